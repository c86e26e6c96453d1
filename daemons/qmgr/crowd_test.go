package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// slowly answers after a minute for slow.example, and at once for all others; it
// notes when the others have got theirs.
func (w *world) slowly(begun time.Time, at map[string]time.Duration) {
	w.pause = func(r *delivery.Request) {
		if r.Nexthop == "slow.example" {
			time.Sleep(time.Minute)
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		at[r.Recipients[0].Address.Local()] = time.Since(begun)
	}
}

// TestSlowAccount: mail for an account whose command takes a minute takes few places of
// local's, under whichever of its names it comes; others get theirs at once.
func TestSlowAccount(t *testing.T) {
	in(t, "recipient_delimiter: +\n", func(w *world) {
		const n = 100
		slow, most, others := 0, 0, 0
		w.pause = func(r *delivery.Request) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if r.Nexthop != "mail.example" {
				t.Errorf("next hop %q", r.Nexthop)
			}
			if !strings.HasPrefix(strings.ToLower(r.Recipients[0].Address.Local()), "slow") {
				others++
				return
			}
			slow++
			most = max(most, slow)
			w.mu.Unlock()
			time.Sleep(time.Minute)
			w.mu.Lock()
			slow--
		}
		for i := range uint32(n) {
			w.put(queue.Incoming, i, []string{"slow@accounts.example", "Slow@accounts.example", "slow+x@accounts.example"}[i%3])
		}
		w.m.start()
		w.wait(time.Second)
		for i := range uint32(20) {
			w.put(queue.Incoming, n+i, fmt.Sprintf("u%d@accounts.example", i))
		}
		w.m.look()
		w.wait(time.Second)
		w.set(func() {
			if others != 20 || most != 2 {
				t.Errorf("%d of 20 get their mail; %d deliveries at once", others, most)
			}
		})
		w.wait(2 * time.Hour)
		w.m.stop()
		w.expect("")
	})
}

// TestSlowDestination: more mail for a slow destination than may be active at
// all, before and behind mail for others, new and deferred: the others get theirs
// at once, and so does in the end, once, everybody. A crash changes nothing.
func TestSlowDestination(t *testing.T) {
	const settings = "queue: {active_messages: 40}\ntransports: {smtp: {concurrency: 5}}\n"
	for _, crash := range []bool{false, true} {
		in(t, settings, func(w *world) {
			const n = 300
			begun, at := time.Now(), make(map[string]time.Duration)
			w.slowly(begun, at)
			for i := range uint32(n) {
				w.put([]string{queue.Incoming, queue.Active}[i%2], i, "a@slow.example")
			}
			w.m.start()
			w.wait(time.Second)
			for i := range uint32(20) {
				w.put(queue.Incoming, n+i, fmt.Sprintf("u%d@x.example", i))
			}
			w.m.look()
			w.wait(time.Second)
			w.set(func() {
				if len(at) != 20 {
					t.Errorf("%d of 20 get their mail", len(at))
				}
			})
			w.m.mu.Lock()
			if active, most := len(w.m.known)-w.m.outside, 40; active > most || w.m.outside < n-most || w.m.recipients > most {
				t.Errorf("%d messages and %d recipients are active, %d are outside", active, w.m.recipients, w.m.outside)
			}
			if w.m.warned.IsZero() {
				t.Error("the log does not say who is in the way")
			}
			w.m.mu.Unlock()
			if crash {
				w.wait(10 * time.Minute)
				w.m.stop()
				w.boot(w.m.config())
				w.m.start()
			}
			w.wait(3 * time.Hour)
			w.m.mu.Lock()
			if len(w.m.loads)+len(w.m.crowds)+len(w.m.known)+w.m.outside+w.m.recipients+w.m.deferred+w.m.comers != 0 {
				t.Errorf("left: %v, %v, %d messages, %d outside, %d recipients", w.m.loads, w.m.crowds, len(w.m.known), w.m.outside, w.m.recipients)
			}
			w.m.mu.Unlock()
			w.m.stop()
			w.expect("")
			if w.delivered["a@slow.example"] != n {
				t.Errorf("%d of %d arrive at the slow destination", w.delivered["a@slow.example"], n)
			}
		})
	}
}

// TestLeftOver: what is new is not kept waiting by what a crash has left, however
// long that takes to read.
func TestLeftOver(t *testing.T) {
	in(t, "", func(w *world) {
		for i := range uint32(200) {
			w.put(queue.Active, i, "a@slow.example")
		}
		at := make(map[string]time.Duration)
		w.slowly(time.Now(), at)
		w.set(func() { w.slow = time.Second }) // with each message
		w.put(queue.Incoming, 300, "u@x.example")
		w.m.start()
		w.wait(4 * time.Second)
		w.set(func() {
			if len(at) != 1 {
				t.Error("the new message waits")
			}
		})
		w.wait(time.Hour)
		w.m.stop()
		w.expect("")
		if w.delivered["a@slow.example"] != 200 || w.delivered["u@x.example"] != 1 {
			t.Errorf("delivered %v", w.delivered)
		}
	})
}

// TestFlood: a sender of more mail than may be active at all, to everywhere, and a
// slow destination beside it, hold up nobody else's mail.
func TestFlood(t *testing.T) {
	in(t, "queue: {active_messages: 40}\ntransports: {smtp: {deliveries: 10, concurrency: 5}}\n", func(w *world) {
		begun, at := time.Now(), make(map[string]time.Duration)
		w.slowly(begun, at)
		quick := w.pause
		w.pause = func(r *delivery.Request) {
			time.Sleep(time.Second)
			quick(r)
		}
		w.sender = "flood@example.org"
		for i := range uint32(300) {
			w.put(queue.Incoming, i, fmt.Sprintf("f@d%d.example", i%50))
		}
		w.sender = "slow@example.org"
		for i := range uint32(100) {
			w.put(queue.Incoming, 300+i, "a@slow.example")
		}
		w.m.start()
		w.wait(time.Second)
		for i := range uint32(10) {
			w.sender = fmt.Sprintf("u%d@example.org", i)
			w.put(queue.Incoming, 400+i, fmt.Sprintf("u%d@d1.example", i))
		}
		w.m.look()
		w.wait(15 * time.Second)
		w.set(func() {
			for i := range 10 {
				if _, ok := at[fmt.Sprintf("u%d", i)]; !ok {
					t.Errorf("u%d has not got his mail", i)
				}
			}
			if n := w.delivered["f@d1.example"]; n > 5 {
				t.Errorf("the flood is over: %d", n)
			}
		})
		w.wait(time.Hour)
		w.m.stop()
		w.expect("")
	})
}

// TestSlowForSome: a message for a slow destination and others is delivered to the
// others at once, and to nobody twice; who has failed for now does not get it
// sooner because the message comes back to memory for others.
func TestSlowForSome(t *testing.T) {
	in(t, "queue: {active_messages: 10, retry: {min: 1h}}\ntransports: {smtp: {concurrency: 1}}\n", func(w *world) {
		begun, at := time.Now(), make(map[string]time.Duration)
		w.slowly(begun, at)
		tries := 0
		w.answer = func(r envelope.Recipient) delivery.Result {
			if r.Address.Local() == "later" {
				tries++
			}
			return byLocal(r)
		}
		for i := range uint32(30) {
			w.put(queue.Incoming, i, "a@slow.example")
		}
		w.m.start()
		w.wait(time.Second)
		w.put(queue.Incoming, 100, "b@slow.example", "u@x.example", "later@y.example", "no@z.example")
		w.m.look()
		w.wait(time.Second)
		w.set(func() {
			if at["u"] > 2*time.Second || len(at) != 3 {
				t.Errorf("%v", at)
			}
		})
		w.wait(59 * time.Minute)
		w.set(func() {
			if w.delivered["b@slow.example"] != 1 || tries != 1 {
				t.Errorf("delivered %v, later is tried %d times", w.delivered, tries)
			}
		})
		w.wait(10 * time.Minute)
		w.set(func() {
			if tries != 2 {
				t.Errorf("later is tried %d times", tries)
			}
		})
		w.m.stop()
		w.expect("deferred", "failure no@z.example=5.1.1")
		if w.delivered["u@x.example"] != 1 || w.delivered["a@slow.example"] != 30 {
			t.Errorf("delivered %v", w.delivered)
		}
	})
}

// TestManyCrowds: with more crowds than are looked at in a turn nothing is left.
func TestManyCrowds(t *testing.T) {
	in(t, "queue: {active_messages: 2}\n", func(w *world) {
		w.pause = func(*delivery.Request) { time.Sleep(time.Second) }
		for i := range uint32(300) {
			w.sender = fmt.Sprintf("u%d@example.org", i%60)
			w.put(queue.Incoming, i, fmt.Sprintf("a@d%d.example", i%70))
		}
		w.run(20 * time.Minute)
		w.expect("")
		n := 0
		for _, times := range w.delivered {
			n += times
		}
		if n != 300 || len(w.m.crowds)+len(w.m.crowdTurn)+w.m.outside != 0 {
			t.Errorf("%d delivered, %d crowds", n, len(w.m.crowds))
		}
	})
}

// TestCommandsForCrowds: what waits outside of memory is held, deleted, and goes to
// the sender when it is too old, as everything else.
func TestCommandsForCrowds(t *testing.T) {
	in(t, "queue: {active_messages: 4}\ntransports: {smtp: {concurrency: 1}}\n", func(w *world) {
		w.slowly(time.Now(), make(map[string]time.Duration))
		var ids []queueid.ID
		for i := range uint32(30) {
			ids = append(ids, w.put(queue.Incoming, i, "a@slow.example"))
		}
		w.m.start()
		w.wait(time.Second)
		outside := func() (list []queueid.ID) {
			w.m.mu.Lock()
			defer w.m.mu.Unlock()
			for _, id := range ids {
				if msg := w.m.known[id]; msg != nil && msg.outside != (party{}) && !msg.coming {
					list = append(list, id)
				}
			}
			return list
		}
		list := outside()
		if len(list) < 20 {
			t.Fatalf("%d are outside", len(list))
		}
		w.do(queuectl.Hold, 1, list[3])
		w.do(queuectl.Delete, 1, list[4])
		w.wait(time.Second)
		if where := w.where(); strings.Count(where, queue.Hold) != 1 || strings.Count(where, queue.Active) != 28 {
			t.Errorf("in %s", where)
		}
		w.do(queuectl.Release, 1, list[3])
		w.wait(time.Second) // what is held while it is being taken up is counted twice
		w.do(queuectl.Hold, 29)
		w.wait(2 * time.Minute)
		if where := w.where(); strings.Count(where, queue.Hold) < 26 || strings.Contains(where, queue.Active) {
			t.Errorf("in %s", where)
		}
		w.do(queuectl.Release, strings.Count(w.where(), queue.Hold))
		w.wait(time.Hour)
		w.m.stop()
		w.expect("")
		if w.delivered["a@slow.example"] != 29 {
			t.Errorf("delivered %v", w.delivered)
		}
	})
}

// TestDeadCrowd: when the destination dies all that waits for it is deferred, and
// what was too much to wait outside is as well.
func TestDeadCrowd(t *testing.T) {
	in(t, "queue: {active_messages: 4}\ntransports: {smtp: {concurrency: 1}}\n", func(w *world) {
		w.hop = dsn.Errorf("4.4.1", "connection timed out")
		w.answer = func(envelope.Recipient) delivery.Result { return full }
		w.slowly(time.Now(), make(map[string]time.Duration))
		w.m.limitOutside = 20
		for i := range uint32(60) {
			w.put(queue.Incoming, i, "a@slow.example")
		}
		w.m.start()
		w.wait(30 * time.Second)
		if where := w.where(); strings.Count(where, queue.Deferred) < 20 { // more than wait outside
			t.Errorf("in %s", where)
		}
		w.wait(3 * time.Minute)
		if where := w.where(); where != strings.TrimSpace(strings.Repeat("deferred ", 60)) {
			t.Errorf("in %s", where)
		}
		w.set(func() { w.hop, w.answer = nil, byLocal })
		w.wait(24 * time.Hour)
		w.m.stop()
		w.expect("")
		if w.delivered["a@slow.example"] != 60 {
			t.Errorf("delivered %v", w.delivered)
		}
	})
}
