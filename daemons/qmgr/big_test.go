package main

import (
	"fmt"
	"os"
	"testing"
	"time"

	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queue"
)

// TestBigMessages: messages with more recipients, each or together, than may be in
// memory, all of them slow, hold up nobody else's mail.
func TestBigMessages(t *testing.T) {
	for _, sizes := range [][]int{{2000}, {200, 200}, {350, 2000, 350, 350, 350}} {
		in(t, "queue: {active_messages: 400, active_recipients: 400}\n", func(w *world) {
			at := make(map[string]time.Duration)
			w.slowly(time.Now(), at)
			w.sender = "list@example.org"
			all := 20
			for n, size := range sizes {
				all += size
				var to []string
				for i := range size {
					to = append(to, fmt.Sprintf("m%d-%d@slow.example", n, i))
				}
				w.put(queue.Incoming, uint32(n), to...)
			}
			w.m.start()
			w.wait(10 * time.Second)
			w.sender = ""
			for i := range uint32(20) {
				w.put(queue.Incoming, 100+i, fmt.Sprintf("u%d@x.example", i))
			}
			w.m.look()
			w.wait(10 * time.Second)
			w.set(func() {
				if len(at) != 20 {
					t.Errorf("%v: %d of 20 get their mail", sizes, len(at))
				}
			})
			w.wait(12 * time.Hour)
			w.m.stop()
			w.expect("")
			if len(w.delivered) != all {
				t.Errorf("%v: %d recipients of %d have got a message", sizes, len(w.delivered), all)
			}
		})
	}
}

// size is that of the one message that is deferred.
func (w *world) size() int64 {
	w.t.Helper()
	info, err := os.Stat(w.deferred())
	if err != nil {
		w.t.Fatal(err)
	}
	return info.Size()
}

// TestManyAttempts: what is said of many recipients, time and again, does not fill the
// disk, nor the memory of who reads it.
func TestManyAttempts(t *testing.T) {
	in(t, "", func(w *world) {
		w.answer = byLocal
		var to []string
		for range 1000 {
			to = append(to, "later@x.example")
		}
		w.put(queue.Incoming, 1, to...)
		w.m.start()
		w.wait(time.Minute)
		first := w.size()
		w.wait(100 * time.Hour)
		if last := w.size(); last > first+10_000 {
			t.Errorf("%d octets after the first attempt, %d in the end", first, last)
		}
		w.m.stop()
	})
}

// TestManyTimes: who waits for a time of his own is not written down again each time
// that others of the message are tried.
func TestManyTimes(t *testing.T) {
	in(t, "queue: {retry: {min: 1h, max: 1h}}\n", func(w *world) {
		const domains, each, hours = 6, 50, 12
		w.answer = byLocal
		begun := time.Now()
		w.pause = func(r *delivery.Request) { // so that each domain has a time of its own
			if time.Since(begun) < time.Minute {
				time.Sleep(time.Duration(r.Nexthop[1]-'0') * 5 * time.Minute)
			}
		}
		var to []string
		for i := range domains * each {
			to = append(to, fmt.Sprintf("later@d%d.example", i/each))
		}
		w.put(queue.Incoming, 1, to...)
		w.m.start()
		w.wait(30 * time.Minute)
		first := w.size()
		w.wait(hours * time.Hour)
		// A time for each recipient and attempt, and that the one before does not count any more.
		if last := w.size(); last > first+hours*domains*(each*2*12+200) {
			t.Errorf("%d octets after the first attempts, %d in the end", first, last)
		}
		w.m.stop()
	})
}
