package main

import (
	"testing"
	"time"

	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queue"
)

// TestClock: the clock is set by a year while a message is deferred. It is tried
// again soon, and before anybody says that its time is over; its sender is told once.
func TestClock(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for name, c := range map[string]struct {
		before, after time.Duration // how wrong the clock is
		home          bool          // the recipient takes it at the next attempt
		notified      []string
	}{
		"set back":                    {0, -year, true, nil},
		"set forward":                 {0, year, true, nil},
		"was ahead":                   {year, 0, true, nil},
		"was behind":                  {-year, 0, true, nil},
		"set forward, nobody at home": {0, year, false, []string{"failure later@x.example=5.4.7"}},
		"set back, nobody at home":    {0, -year, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, "", func(w *world) {
				wrong, home := c.before, false
				w.answer = func(r envelope.Recipient) delivery.Result {
					if home {
						return success
					}
					return byLocal(r)
				}
				w.m.now = func() time.Time {
					w.mu.Lock()
					defer w.mu.Unlock()
					return time.Now().Add(wrong)
				}
				w.put(queue.Incoming, 1, "later@x.example")
				w.m.start()
				w.wait(time.Second)
				if c.before == 0 {
					w.expect(queue.Deferred)
				}
				w.set(func() { wrong, home = c.after, c.home })
				w.wait(6 * time.Minute)
				where := ""
				if !c.home && c.notified == nil {
					where = queue.Deferred
				}
				w.expect(where, c.notified...)
				w.wait(time.Hour)
				w.expect(where, c.notified...)
				if got := w.delivered["later@x.example"]; (got == 1) != c.home {
					t.Errorf("delivered %d times", got)
				}
				w.m.stop()
			})
		})
	}
}
