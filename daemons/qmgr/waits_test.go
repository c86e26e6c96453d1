package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// arrivals has w note when each recipient gets his mail; who is called no is refused.
func (w *world) arrivals() map[string]time.Duration {
	begun, at := time.Now(), make(map[string]time.Duration)
	w.answer = func(r envelope.Recipient) delivery.Result {
		at[r.Address.String()] = time.Since(begun)
		if r.Address.Local() == "no" {
			return delivery.Result{Status: dsn.MustParse("5.1.1"), Text: "nobody"}
		}
		return delivery.Result{Status: dsn.MustParse("2.0.0"), Text: "ok"}
	}
	return at
}

// slowFor answers about one domain when nobody expects it any more.
type slowFor struct{ *world }

func (s slowFor) Ask(ctx context.Context, r rewrite.Request) ([]rewrite.Answer, error) {
	if r.Addresses[0].Domain() == "slow.example" {
		time.Sleep(50 * time.Second)
	}
	return s.world.Ask(ctx, r)
}

// TestNoWait: what makes one message wait, a notification or an answer about an address,
// does not make others wait.
func TestNoWait(t *testing.T) {
	const fresh = "a@fresh.example"
	for what, begin := range map[string]func(w *world){
		"a notification of what was deferred": func(w *world) { w.due("u@error.example") },
		"an answer about what was deferred":   func(w *world) { w.due("u@slow.example") },
		"many notifications": func(w *world) {
			for i := range uint32(10 * loaders) {
				w.put(queue.Incoming, i+1, "u@error.example")
			}
		},
		"a notification, with one place": func(w *world) { w.put(queue.Incoming, 1, "no@x.example") },
	} {
		in(t, "transports: {smtp: {deliveries: 1}}\n", func(w *world) {
			at := w.arrivals()
			w.m.rewrite = slowFor{w}
			w.notify = func() { time.Sleep(4 * time.Minute) }
			w.pause = func(*delivery.Request) { time.Sleep(time.Second) }
			begin(w)
			w.m.start()
			w.wait(500 * time.Millisecond)
			w.put(queue.Incoming, 1000, fresh)
			w.m.look()
			w.wait(2 * time.Hour)
			if at[fresh] == 0 || at[fresh] > 10*time.Second {
				t.Errorf("%s: other mail is delivered after %v", what, at[fresh])
			}
			w.m.stop()
		})
	}
}

// due has a message in deferred/ whose time has come.
func (w *world) due(rcpt string) {
	dir := filepath.Join(queue.Deferred, queue.Bucket(time.Now().Add(-time.Minute)))
	if err := os.Mkdir(filepath.Join(w.base, dir), 0o700); err != nil {
		w.t.Fatal(err)
	}
	w.put(dir, 1, rcpt)
}

// TestDeadList: what waits for a destination that is found dead is put away though
// each message has a notification made first.
func TestDeadList(t *testing.T) {
	in(t, "queue: {delay_warning: 1s}\n", func(w *world) {
		w.hop = dsn.Errorf("4.4.1", "no")
		w.answer = func(envelope.Recipient) delivery.Result {
			return delivery.Result{Status: dsn.MustParse("4.4.1"), Text: "no"}
		}
		w.pause = func(*delivery.Request) { time.Sleep(5 * time.Second) }
		w.notify = func() { time.Sleep(40 * time.Second) }
		for i := range uint32(105) {
			w.put(queue.Incoming, i+1, "a@x.example")
		}
		w.m.start()
		w.wait(5*time.Minute + 50*time.Second) // eight times 40 seconds, for 16 at once
		if list, err := os.ReadDir(filepath.Join(w.base, queue.Active)); err != nil || len(list) > 0 {
			t.Errorf("%d messages are active still; %v", len(list), err)
		}
		w.m.stop()
	})
}

// TestDeadAtOnce: what waits for a destination that is found dead does not wait for the
// notification that the message has made by which that was found.
func TestDeadAtOnce(t *testing.T) {
	in(t, "transports: {smtp: {concurrency: 1}}\n", func(w *world) {
		w.hop, w.answer = dsn.Errorf("4.4.1", "no"), byLocal
		w.pause = func(*delivery.Request) { time.Sleep(time.Second) }
		w.notify = func() { time.Sleep(4 * time.Minute) }
		w.put(queue.Incoming, 1, "no@x.example")
		w.m.start()
		w.wait(500 * time.Millisecond)
		for i := range uint32(3) {
			w.put(queue.Incoming, i+2, "a@x.example")
		}
		w.m.look()
		w.wait(10 * time.Second)
		w.expect("active deferred deferred deferred")
		w.wait(4 * time.Minute)
		w.expect("deferred deferred deferred", "failure no@x.example=5.1.1")
		w.m.stop()
	})
}

// TestCrowds: mail for a fast destination passes that of very many that are slow and
// have more than there is room for.
func TestCrowds(t *testing.T) {
	in(t, "queue: {active_messages: 2000, active_recipients: 2000}\ntransports: {smtp: {deliveries: 5000}}\n", func(w *world) {
		const slow, fast = 200, 200
		n := 0
		w.answer = func(r envelope.Recipient) delivery.Result {
			if r.Address.Domain() == "fast.example" {
				n++
			}
			return delivery.Result{Status: dsn.MustParse("2.0.0"), Text: "ok"}
		}
		w.pause = func(r *delivery.Request) {
			if r.Nexthop == "fast.example" {
				time.Sleep(20 * time.Millisecond)
			} else {
				time.Sleep(10 * time.Minute)
			}
		}
		id := uint32(0)
		put := func(domain string) {
			id++
			w.sender = fmt.Sprintf("s%d@example.org", id)
			w.put(queue.Incoming, id, "a@"+domain)
		}
		for i := range 20 * slow {
			put(fmt.Sprintf("d%d.example", i%slow))
		}
		w.m.start()
		w.wait(time.Minute)
		for range fast {
			put("fast.example")
		}
		w.m.look()
		w.wait(time.Minute)
		if n != fast {
			t.Errorf("%d of %d are delivered after a minute", n, fast)
		}
		w.m.stop()
	})
}

// TestGone: a message whose file somebody has taken away does not keep its place.
func TestGone(t *testing.T) {
	in(t, "queue: {active_messages: 2}\n", func(w *world) {
		at := w.arrivals()
		w.pause = func(r *delivery.Request) {
			time.Sleep(time.Second)
			_ = os.Remove(filepath.Join(w.base, queue.Active, r.QueueID.String()))
		}
		ids := []queueid.ID{w.put(queue.Incoming, 1, "a@x.example"), w.put(queue.Incoming, 2, "later@x.example")}
		first := w.answer
		w.answer = func(r envelope.Recipient) delivery.Result {
			if r.Address.Local() == "later" {
				return delivery.Result{Status: dsn.MustParse("4.2.1"), Text: "later"}
			}
			return first(r)
		}
		w.m.start()
		w.wait(time.Minute)
		w.put(queue.Incoming, 3, "c@y.example")
		w.m.look()
		w.wait(time.Hour)
		if at["c@y.example"] == 0 || len(w.m.known) > 0 {
			t.Errorf("%v; %d are known", at, len(w.m.known))
		}
		if r := w.m.control(queuectl.Request{Op: queuectl.Delete, IDs: ids}); r.Done != 0 {
			t.Errorf("%+v", r)
		}
		w.m.stop()
	})
}

// TestOldButNew: what was too old when it came to be active is tried once, though it
// had to wait for others.
func TestOldButNew(t *testing.T) {
	in(t, "queue: {active_messages: 20, active_recipients: 20}\n", func(w *world) {
		const n = 100
		at := w.arrivals()
		w.pause = func(*delivery.Request) { time.Sleep(time.Second) }
		for i := range uint32(n) {
			w.put(queue.Hold, i+1, fmt.Sprintf("u%d@x.example", i))
		}
		w.m.start()
		w.wait(6 * 24 * time.Hour)
		w.do(queuectl.Release, n)
		w.wait(2 * time.Hour)
		if len(at) != n || len(w.notified) != 0 {
			t.Errorf("%d delivered, %d returned", len(at), len(w.notified))
		}
		w.m.stop()
	})
}

// TestDeletePaused: what is deleted does not take the places of deliveries to a
// destination that gets few.
func TestDeletePaused(t *testing.T) {
	in(t, "transports: {smtp: {destination_delay: 1h}}\n", func(w *world) {
		for i := range uint32(20) {
			w.put(queue.Incoming, i, "a@x.example")
		}
		w.m.start()
		w.wait(time.Second)
		w.do(queuectl.Delete, 19)
		w.wait(2 * time.Hour)
		w.m.mu.Lock()
		if n := len(w.m.known); n > 0 {
			t.Errorf("%d messages are left after the next delivery", n)
		}
		w.m.mu.Unlock()
		w.m.stop()
		w.expect("")
	})
}

// TestRequeueOld: what is requeued when it is too old already is new from then on, also
// before rewrite has expanded it again.
func TestRequeueOld(t *testing.T) {
	in(t, "", func(w *world) {
		at := w.arrivals()
		id := w.put(queue.Hold, 1, "a@x.example")
		w.m.start()
		w.wait(6 * 24 * time.Hour)
		w.set(func() { w.rewriteUp = false })
		w.do(queuectl.Requeue, 1, id)
		w.wait(time.Hour)
		w.expect("deferred")
		w.set(func() { w.rewriteUp = true })
		w.wait(4 * time.Hour)
		w.m.stop()
		w.expect("")
		if len(at) != 1 {
			t.Error("is not delivered")
		}
	})
}

// TestInterrupted: what the end of a process has interrupted is tried at once by the next
// one, but not where the administrator wants it to wait.
func TestInterrupted(t *testing.T) {
	for settings, want := range map[string]int{"": 1, "queue: {defer_transports: [smtp]}\n": 0} {
		in(t, settings, func(w *world) {
			deferring := w.m.config()
			w.boot(newWorld(t, w.log, "").m.config())
			w.hang, w.answer = true, byLocal
			w.put(queue.Incoming, 1, "later@x.example")
			w.run(time.Second)
			w.expect("deferred")
			w.boot(deferring)
			w.hang, w.answer = false, func(envelope.Recipient) delivery.Result { return success }
			w.m.start()
			w.wait(time.Minute)
			if got := w.arrived(); got != want {
				t.Errorf("%q: %d delivered, want %d", settings, got, want)
			}
			w.m.control(queuectl.Request{Op: queuectl.Retry, All: true})
			w.wait(time.Minute)
			w.m.stop()
			w.expect("")
		})
	}
}

// TestInterruptedOne: who is interrupted is tried at once by the next process, and who had
// failed before keeps his time.
func TestInterruptedOne(t *testing.T) {
	in(t, "queue: {retry: {min: 1h}}\n", func(w *world) {
		w.answer = byLocal
		w.pause = func(r *delivery.Request) {
			if r.Nexthop == "y.example" {
				time.Sleep(10 * time.Minute)
				w.mu.Lock()
				w.agentErr = errors.New("interrupted")
				w.mu.Unlock()
			}
		}
		w.put(queue.Incoming, 1, "later@x.example", "a@y.example")
		w.run(5 * time.Minute)
		w.expect("deferred")
		w.boot(w.m.config())
		w.pause, w.agentErr, w.answer = nil, nil, func(envelope.Recipient) delivery.Result { return success }
		w.m.start()
		w.wait(time.Minute)
		w.set(func() {
			if w.delivered["a@y.example"] != 1 || w.delivered["later@x.example"] != 0 {
				t.Errorf("delivered %v", w.delivered)
			}
		})
		w.wait(2 * time.Hour)
		w.m.stop()
		w.expect("")
	})
}

// TestReleaseOfTheActive: what came to its turn while a message was to be held is tried as
// soon as the message, which was released meanwhile, has been put away.
func TestReleaseOfTheActive(t *testing.T) {
	in(t, "queue: {retry: {min: 1h}}\ntransports: {smtp: {concurrency: 1, recipients: 1}}\n", func(w *world) {
		w.pause = func(r *delivery.Request) {
			if r.Recipients[0].Address.Local() == "slow" {
				time.Sleep(2 * time.Minute)
			} else {
				time.Sleep(10 * time.Second)
			}
		}
		id := w.put(queue.Incoming, 1, "slow@x.example", "a@y.example", "b@y.example")
		w.m.start()
		w.wait(time.Second)
		w.do(queuectl.Hold, 1, id)
		w.wait(15 * time.Second)
		w.do(queuectl.Release, 1, id)
		w.wait(3 * time.Minute)
		w.expect("")
		for _, to := range []string{"slow@x.example", "a@y.example", "b@y.example"} {
			if w.delivered[to] != 1 {
				t.Errorf("delivered %v", w.delivered)
			}
		}
		w.m.stop()
	})
}

// TestRetryAllCounts: nothing stands still while the messages are counted that a command
// is about.
func TestRetryAllCounts(t *testing.T) {
	in(t, "queue: {retry: {min: 1h}}\n", func(w *world) {
		const n = 30
		w.backlog(n, 1)
		var counted atomic.Bool
		w.m.spool.disk = striking(func(call string, _ queueid.ID) error {
			if call == "rename" {
				counted.Store(true)
			}
			if call != "readdir" || counted.Load() {
				return nil
			}
			for range 1_000_000 { // somebody else may have it for a moment
				if w.m.mu.TryLock() {
					w.m.mu.Unlock()
					return nil
				}
				runtime.Gosched()
			}
			t.Error("a directory is read, and all else waits for it")
			return nil
		})
		w.set(func() { w.slow = time.Second }) // nothing comes back meanwhile
		if reply := w.m.control(queuectl.Request{Op: queuectl.Retry, All: true}); reply.Done != n {
			t.Errorf("%+v", reply)
		}
		w.wait(time.Minute)
		w.m.stop()
	})
}
