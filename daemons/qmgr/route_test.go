package main

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
)

// TestPieces: of a message with very many recipients a few are deliveries at a
// time; all get it once, and another message does not wait for them.
func TestPieces(t *testing.T) {
	in(t, "transports: {smtp: {recipients: 1, concurrency: 1000, deliveries: 5}}\n", func(w *world) {
		const n = 10_000
		to := make([]string, n)
		for i := range to {
			to[i] = fmt.Sprintf("u%d@d%d.example", i, i%5000)
		}
		most := 0
		w.answer = func(r envelope.Recipient) delivery.Result { return byLocal(r) }
		w.pause = func(*delivery.Request) {
			w.m.mu.Lock()
			for _, msg := range w.m.known {
				most = max(most, msg.open)
			}
			w.m.mu.Unlock()
			time.Sleep(time.Second)
		}
		w.put(queue.Incoming, 1, to...)
		w.m.start()
		w.wait(time.Minute)
		w.put(queue.Incoming, 2, "one@x.example")
		w.m.look()
		w.wait(5 * time.Second)
		w.set(func() {
			if w.delivered["one@x.example"] != 1 {
				t.Error("a message waits for a list")
			}
		})
		w.wait(time.Hour)
		w.m.stop()
		w.expect("")
		if len(w.delivered) != n+1 {
			t.Errorf("%d of %d have got it", len(w.delivered)-1, n)
		}
		for to, times := range w.delivered {
			if times != 1 {
				t.Errorf("%s has got it %d times", to, times)
			}
		}
		if most > 2*piece {
			t.Errorf("%d recipients at once", most)
		}
	})
}

// TestOwnTimes: a recipient that has failed for now is tried again at his own
// time, though another one of the same message takes long, and after a restart, too.
func TestOwnTimes(t *testing.T) {
	for _, restart := range []bool{false, true} {
		in(t, "queue: {retry: {min: 5m, max: 5m}}\n", func(w *world) {
			begun := time.Now()
			at := make(map[string][]time.Duration)
			w.pause = func(r *delivery.Request) {
				name := r.Recipients[0].Address.Local()
				w.mu.Lock()
				at[name] = append(at[name], time.Since(begun).Round(time.Minute))
				w.mu.Unlock()
				if name == "later+slow" {
					time.Sleep(3 * time.Minute)
				}
			}
			w.answer = func(envelope.Recipient) delivery.Result { return full }
			w.put(queue.Incoming, 1, "later@x.example", "later+slow@y.example")
			w.m.start()
			w.wait(4 * time.Minute)
			if restart {
				w.m.stop()
				w.boot(w.m.config())
				w.m.start()
			}
			w.wait(11 * time.Minute)
			w.m.stop()
			// The one is due 5 minutes after each attempt, the other 8. What is due
			// while the other is in flight is tried right behind it.
			if got, want := fmt.Sprint(at["later"], at["later+slow"]), "[0s 5m0s 11m0s] [0s 8m0s]"; got != want {
				t.Errorf("restart %v: tried at %s, want %s", restart, got, want)
			}
		})
	}
}

// TestDeferTransports: mail for such a transport waits, with its reason, until it
// is asked for, or the setting has changed.
func TestDeferTransports(t *testing.T) {
	in(t, "queue: {defer_transports: [smtp]}\n", func(w *world) {
		w.put(queue.Incoming, 1, "a@x.example", "b@error.example")
		w.m.start()
		w.wait(24 * time.Hour)
		w.expect("deferred", "failure b@error.example=5.1.1")
		w.set(func() {
			if len(w.delivered) != 0 {
				t.Errorf("delivered %v", w.delivered)
			}
		})
		if q := w.read(); q.Recipients[0].Last.Status.String() != "4.3.2" || q.Recipients[0].Last.Text != "deferred transport" {
			t.Errorf("%+v", q.Recipients[0].Last)
		}
		w.do(queuectl.Retry, 1)
		w.wait(time.Second)
		w.expect("", "failure b@error.example=5.1.1")
		w.put(queue.Incoming, 2, "c@x.example")
		w.m.look()
		w.wait(time.Minute)
		w.m.stop()
		w.expect("deferred", "failure b@error.example=5.1.1")
		cfg := *w.m.config()
		cfg.Queue.DeferTransports = []string{"lmtp"}
		w.boot(&cfg)
		w.run(time.Hour)
		if w.where() != "" || len(w.delivered) != 2 {
			t.Errorf("in %q, delivered %v", w.where(), w.delivered)
		}
	})
}

// TestChance: what has failed at once does not come back at once, and comes back
// within the bounds.
func TestChance(t *testing.T) {
	in(t, "queue: {retry: {min: 5m, max: 4h}}\n", func(w *world) {
		for _, age := range []time.Duration{0, time.Minute, time.Hour, 3*time.Hour + 30*time.Minute, 4 * time.Hour, 48 * time.Hour} {
			msg := &message{q: &queue.Message{Envelope: &envelope.Envelope{Arrival: time.Now().Add(-age)}}}
			shortest := w.m.delay(msg)
			msg.luck = 1
			longest := w.m.delay(msg)
			base := max(5*time.Minute, min(age, 4*time.Hour))
			if base > 3*time.Hour { // taken off
				shortest, longest = longest, shortest
			}
			if shortest < 5*time.Minute || longest > 4*time.Hour || longest-shortest < base/6 || shortest > base || longest < base {
				t.Errorf("age %v: %v to %v", age, shortest, longest)
			}
		}
		var luck atomic.Uint32
		w.m.random = func() float64 { return float64(luck.Add(1)%100) / 100 }
		w.answer = func(envelope.Recipient) delivery.Result { return full }
		for i := range uint32(100) {
			w.put(queue.Incoming, i, "a@x.example")
		}
		w.run(time.Minute)
		if n := len(w.m.buckets); n < 2 || strings.Count(w.where(), queue.Deferred) != 100 {
			t.Errorf("%d times, files in %s", n, w.where())
		}
	})
}
