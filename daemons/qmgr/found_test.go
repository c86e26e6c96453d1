package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// What the simulation has found, each by itself.

// failing makes calls of one kind fail while on is set, and counts them.
func failing(name string, on *atomic.Bool, calls *atomic.Int32) striking {
	return func(call string, id queueid.ID) error {
		if call != name {
			return nil
		}
		calls.Add(1)
		if !on.Load() {
			return nil
		}
		return &fs.PathError{Op: call, Path: id.String(), Err: syscall.EIO}
	}
}

// dawdle has an agent take its time for slow.example.
func dawdle(r *delivery.Request) {
	if r.Recipients[0].Address.Domain() == "slow.example" {
		time.Sleep(20 * time.Second)
	}
}

// TestAskedAndCrowded: the administrator asks for a message, which has to wait outside of
// memory for one of its recipients. When it comes back who has just been tried is not
// tried again, and who has not is, whenever he would have been due.
func TestAskedAndCrowded(t *testing.T) {
	in(t, "queue: {active_messages: 2, active_share: 50}\ntransports: {smtp: {concurrency: 1}}\n", func(w *world) {
		tried := make(map[string]int)
		w.answer = func(r envelope.Recipient) delivery.Result {
			tried[r.Address.String()]++
			return full
		}
		id := w.put(queue.Incoming, 1, "later@x.example", "a@slow.example")
		w.m.start()
		w.wait(time.Minute)
		w.expect(queue.Deferred)
		w.set(func() {
			w.answer = func(r envelope.Recipient) delivery.Result {
				tried[r.Address.String()]++
				return byLocal(r)
			}
			w.pause = dawdle
		})
		w.put(queue.Incoming, 2, "b@slow.example")
		w.m.look()
		w.wait(time.Second)
		w.do(queuectl.Retry, 1, id)
		w.wait(time.Minute)
		w.expect(queue.Deferred)
		if w.delivered["a@slow.example"] != 1 || w.delivered["b@slow.example"] != 1 || tried["later@x.example"] != 2 {
			t.Errorf("delivered %v, tried %v", w.delivered, tried)
		}
		w.m.stop()
	})
}

// TestDeletedIsGone: what is to be deleted as soon as nothing of it is in flight is
// there for no other command.
func TestDeletedIsGone(t *testing.T) {
	in(t, "", func(w *world) {
		w.answer = byLocal
		w.pause = func(*delivery.Request) { time.Sleep(time.Minute) }
		id := w.put(queue.Incoming, 1, "later@x.example")
		w.m.start()
		w.wait(time.Second)
		w.do(queuectl.Delete, 1, id)
		for _, op := range []queuectl.Op{queuectl.Hold, queuectl.Requeue, queuectl.Retry, queuectl.Release} {
			w.do(op, 0, id)
			w.do(op, 0)
		}
		w.wait(2 * time.Minute)
		w.expect("")
		w.m.stop()
	})
}

// TestStopWithWishes: what the administrator wants of messages in memory is done
// before qmgr goes: the next process would not know of it. Some wait for others, some wait
// outside of memory.
func TestStopWithWishes(t *testing.T) {
	for op, where := range map[queuectl.Op]string{queuectl.Hold: queue.Hold, queuectl.Delete: "", queuectl.Requeue: queue.Deferred} {
		in(t, "queue: {active_messages: 8}\ntransports: {smtp: {concurrency: 1}}\n", func(w *world) {
			w.answer, w.hang = byLocal, true
			var ids []queueid.ID
			for n := range uint32(10) {
				ids = append(ids, w.put(queue.Incoming, n, "later@x.example"))
			}
			w.m.start()
			w.wait(time.Second)
			go func() {
				time.Sleep(time.Second)
				w.m.mu.Lock()
				outside := w.m.outside
				w.m.mu.Unlock()
				if outside == 0 {
					t.Error("none waits outside")
				}
				w.do(op, 10, ids...)
			}()
			time.AfterFunc(time.Second/2, func() { w.m.mu.Lock(); w.m.stopping = true; w.m.mu.Unlock() })
			w.wait(2 * time.Second)
			w.m.stop()
			if got, want := w.where(), strings.TrimSpace(strings.Repeat(where+" ", 10)); got != want {
				t.Errorf("operation %d: in %q, want %q", op, got, want)
			}
		})
	}
}

// TestLeftToCommands: what a crash has left in active/, and has no room yet, is there
// for the administrator.
func TestLeftToCommands(t *testing.T) {
	in(t, "queue: {active_messages: 1}\n", func(w *world) {
		w.hang = true
		var ids []queueid.ID
		for n := range uint32(5) {
			ids = append(ids, w.put(queue.Active, n, "a@x.example"))
		}
		w.m.start()
		w.wait(time.Second)
		w.m.mu.Lock()
		if len(w.m.known) > 1 {
			t.Errorf("%d are in memory", len(w.m.known))
		}
		w.m.mu.Unlock()
		w.do(queuectl.Hold, 5)
		w.do(queuectl.Delete, 1, ids[2])
		w.do(queuectl.Release, 1, ids[3])
		w.m.cancel() // one was being delivered
		w.m.stop()
		// The one that was released may have been taken up by then.
		if got := w.where(); strings.Count(got, queue.Hold) < 2 || strings.Count(got, queue.Active) > 1 {
			t.Errorf("in %q", got)
		}
	})
}

// TestWishOfTheUnread: a message comes back from outside of memory to be deleted, and
// cannot be read. That is not forgotten.
func TestWishOfTheUnread(t *testing.T) {
	for op, where := range map[queuectl.Op]string{queuectl.Hold: queue.Hold, queuectl.Delete: ""} {
		in(t, "queue: {active_messages: 2, active_share: 50}\ntransports: {smtp: {concurrency: 1}}\n", func(w *world) {
			w.pause = func(*delivery.Request) { time.Sleep(10 * time.Minute) }
			var on atomic.Bool
			var calls atomic.Int32
			w.put(queue.Incoming, 1, "first@x.example")
			w.m.start()
			w.wait(time.Second)
			id := w.put(queue.Incoming, 2, "second@x.example")
			w.m.look()
			w.wait(time.Second)
			w.m.mu.Lock()
			if w.m.outside != 1 {
				t.Error("it does not wait outside")
			}
			w.m.mu.Unlock()
			w.m.spool.disk = failing("open", &on, &calls)
			on.Store(true)
			w.do(op, 1, id)
			w.wait(3 * time.Minute)
			on.Store(false)
			w.wait(time.Hour)
			w.m.stop()
			w.expect(where)
			if w.delivered["second@x.example"] != 0 || w.delivered["first@x.example"] != 1 || calls.Load() < 3 {
				t.Errorf("delivered %v, %d tries to read it", w.delivered, calls.Load())
			}
		})
	}
}

// TestFoundTwice: a message that cannot be read is found with each scan. It is tried
// once a minute all the same, however long that lasts.
func TestFoundTwice(t *testing.T) {
	in(t, "", func(w *world) {
		var on atomic.Bool
		var calls atomic.Int32
		on.Store(true)
		w.m.spool.disk = failing("open", &on, &calls)
		w.put(queue.Incoming, 1, "a@x.example")
		w.m.start()
		w.wait(10 * time.Hour)
		if n := calls.Load(); n < 500 || n > 800 {
			t.Errorf("%d tries in ten hours", n)
		}
		on.Store(false)
		w.wait(2 * time.Minute)
		w.m.stop()
		w.expect("")
	})
}

// TestOldNotice: a message in active/ could not be read, and an old notice has it in
// incoming/. It is not left where it is.
func TestOldNotice(t *testing.T) {
	in(t, "", func(w *world) {
		id := w.put(queue.Active, 1, "a@x.example")
		w.m.mu.Lock()
		w.m.later[id] = place{queue: queue.Active}
		w.m.laterDue = true
		w.m.fresh = []located{{place{queue: queue.Incoming}, id}}
		w.m.feeding = freshFeeder
		w.m.mu.Unlock()
		w.m.wg.Go(w.m.feedFresh)
		w.wait(time.Minute)
		w.expect("")
		w.m.stop()
	})
}

// TestStillWritten: a clock that is set forward makes no file old that cleanup is
// writing: its sender would be told that it is accepted, and it would be gone.
func TestStillWritten(t *testing.T) {
	in(t, "", func(w *world) {
		w.m.now = func() time.Time { return time.Now().AddDate(100, 0, 0) }
		dir, err := queue.OpenDirectory(filepath.Join(w.base, queue.Incoming))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		f, err := dir.Create(queueid.New(time.Now(), 1))
		if err != nil {
			t.Fatal(err)
		}
		w.m.start()
		w.wait(time.Hour)
		w.expect(queue.Incoming)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		w.wait(time.Hour)
		w.expect("")
		w.m.stop()
	})
}

// notExpanding is a rewrite that does not expand as long as on is set.
type notExpanding struct {
	asker
	on *atomic.Bool
}

func (n notExpanding) Ask(ctx context.Context, r rewrite.Request) ([]rewrite.Answer, error) {
	if r.Op == rewrite.Expand && n.on.Load() {
		return nil, errors.New("no answer")
	}
	return n.asker.Ask(ctx, r)
}

// TestNotNewHalfWay: a requeued message that could not be expanded waits outside of
// memory for one of its recipients. When it comes back it is not as new: who has just been
// tried would be tried again.
func TestNotNewHalfWay(t *testing.T) {
	in(t, "queue: {active_messages: 2, active_share: 50}\ntransports: {smtp: {concurrency: 1}}\n", func(w *world) {
		tried := make(map[string]int)
		w.answer = func(r envelope.Recipient) delivery.Result {
			tried[r.Address.String()]++
			return full
		}
		id := w.put(queue.Incoming, 1, "later@x.example", "a@slow.example")
		var on atomic.Bool
		w.m.rewrite = notExpanding{w.m.rewrite, &on}
		w.m.start()
		w.wait(time.Minute)
		on.Store(true)
		w.set(func() { w.pause = dawdle })
		w.put(queue.Incoming, 2, "b@slow.example")
		w.m.look()
		w.wait(time.Second)
		w.do(queuectl.Requeue, 1, id)
		w.wait(2 * time.Second)
		on.Store(false)
		w.wait(time.Minute)
		if tried["later@x.example"] != 2 || tried["a@slow.example"] != 2 {
			t.Errorf("tried %v", tried)
		}
		w.m.stop()
	})
}

// TestClockBehind: after a power cut the clock may be behind, so that a message seems to
// have come since. Its content is checked all the same.
func TestClockBehind(t *testing.T) {
	in(t, "", func(w *world) {
		id := w.put(queue.Incoming, 1, "a@x.example")
		path := filepath.Join(w.base, queue.Incoming, id.String())
		if err := os.Truncate(path, size(path)-1); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size(path)+1); err != nil {
			t.Fatal(err)
		}
		w.m.now = func() time.Time { return time.Now().AddDate(-1, 0, 0) }
		w.run(time.Minute)
		w.expect(queue.Corrupt)
	})
}

// TestDeletedElsewhere: an old notice has a message in memory that is on hold, and waits
// for its turn to be read. A command that finds it there finds it on disk, too.
func TestDeletedElsewhere(t *testing.T) {
	in(t, "", func(w *world) {
		id := w.put(queue.Hold, 1, "a@x.example")
		for range loaders {
			w.m.slots <- struct{}{}
		}
		w.m.fresh = []located{{place{queue: queue.Incoming}, id}}
		w.m.start()
		w.wait(time.Second)
		w.do(queuectl.Delete, 1, id)
		for range loaders {
			<-w.m.slots
		}
		w.wait(time.Second)
		w.expect("")
		w.m.stop()
	})
}

// TestOwedNotification: a message of which nothing is left but a notification that cannot
// be made is tried now and then, and not over and over.
func TestOwedNotification(t *testing.T) {
	in(t, "", func(w *world) {
		var on atomic.Bool
		var calls atomic.Int32
		on.Store(true)
		w.m.spool.disk = failing("fsync", &on, &calls)
		w.answer = byLocal
		id := w.put(queue.Incoming, 1, "no@x.example")
		w.m.start()
		w.wait(time.Second)
		if w.where() != queue.Deferred {
			t.Errorf("files are in %q", w.where())
		}
		if _, err := os.Stat(filepath.Join(w.base, queue.Deferred, dueBucket, id.String())); err == nil {
			t.Error("it is due at once")
		}
		w.wait(time.Hour)
		if n := calls.Load(); n < 20 || n > 100 {
			t.Errorf("%d flushes in an hour", n)
		}
		on.Store(false)
		w.wait(5 * time.Minute)
		w.expect("", "failure no@x.example=5.1.1")
		w.m.stop()
	})
}
