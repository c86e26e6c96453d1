package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"posthouse/daemons/qmgr/internal/schedule"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/arrival"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

var (
	success = delivery.Result{Status: dsn.MustParse("2.0.0"), Text: "ok"}
	full    = delivery.Result{Status: dsn.MustParse("4.2.2"), Text: "full"}
	nobody  = delivery.Result{Status: dsn.MustParse("5.1.1"), Text: "nobody"}
)

// byLocal answers by the local-part of the recipient.
func byLocal(r envelope.Recipient) delivery.Result {
	switch r.Address.Local() {
	case "later":
		return full
	case "no":
		return nobody
	}
	return success
}

func (w *world) do(op queuectl.Op, done int, ids ...queueid.ID) {
	w.t.Helper()
	if reply := w.m.control(queuectl.Request{Op: op, All: len(ids) == 0, IDs: ids}); int(reply.Done) != done || len(reply.Missing) != max(0, len(ids)-done) {
		w.t.Errorf("operation %d: %+v, want %d done", op, reply, done)
	}
}

// wait lets time pass, until nothing happens any more.
func (w *world) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// set changes the world while qmgr is at work.
func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// in runs f in a bubble of fake time, with a world of its own.
func in(t *testing.T, settings string, f func(w *world)) {
	log := maillog.New("qmgr") // from outside of the bubble
	synctest.Test(t, func(t *testing.T) { f(newWorld(t, log, settings)) })
}

// TestRequeue: the message is as new to who has not got it: aliases are expanded
// again, and it is not too old. That holds after a crash, and where rewrite has
// no answer for a while.
func TestRequeue(t *testing.T) {
	in(t, "", func(w *world) {
		w.answer = byLocal
		id := w.put(queue.Incoming, 1, "later@x.example", "a@x.example")
		w.m.start()
		w.wait(4 * 24 * time.Hour)
		w.set(func() {
			w.rewriteUp, w.aliases = false, map[string][]string{"later@x.example": {"b@x.example", "later@y.example", "b@x.example"}}
		})
		w.do(queuectl.Requeue, 1, id)
		w.wait(time.Minute)
		w.expect("deferred")
		w.m.stop()
		w.rewriteUp = true
		w.boot(w.m.config())
		w.m.start()
		w.wait(4 * 24 * time.Hour) // over the lifetime since it came
		w.expect("deferred")
		if w.delivered["a@x.example"] != 1 || w.delivered["b@x.example"] != 1 {
			t.Errorf("delivered %v", w.delivered)
		}
		w.wait(29 * time.Hour) // an attempt comes every four hours
		w.expect("", "failure later@y.example=5.4.7")
		w.m.stop()
	})
}

// TestRequeueInFlight: what is being delivered is requeued when that has ended.
func TestRequeueInFlight(t *testing.T) {
	in(t, "", func(w *world) {
		w.aliases = map[string][]string{"later@x.example": {"b@x.example"}}
		id := w.put(queue.Incoming, 1, "later@x.example")
		w.answer = func(r envelope.Recipient) delivery.Result {
			if r.Address.Local() == "later" {
				go w.do(queuectl.Requeue, 1, id)
				time.Sleep(time.Second)
			}
			return byLocal(r)
		}
		w.run(time.Minute)
		w.expect("")
		if w.delivered["b@x.example"] != 1 {
			t.Errorf("delivered %v", w.delivered)
		}
	})
}

// TestBeingWritten: a message that cleanup is writing is nobody's to touch: its
// sender may be told in a moment that it has been accepted.
func TestBeingWritten(t *testing.T) {
	in(t, "", func(w *world) {
		id := w.put(queue.Incoming, 1, "a@x.example")
		path := filepath.Join(w.base, queue.Incoming, id.String())
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, 100), 0o600); err != nil {
			t.Fatal(err)
		}
		w.m.start()
		w.wait(time.Second)
		for _, op := range []queuectl.Op{queuectl.Hold, queuectl.Delete} {
			w.do(op, 0)
			w.do(op, 0, id)
			w.expect("incoming")
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		w.do(queuectl.Hold, 1, id)
		w.expect("hold")
		w.m.stop()
	})
}

// TestToldMeanwhile: a scan finds a message a moment before it is complete, and
// while it is looked at the notice comes. It is not left to the next scan.
func TestToldMeanwhile(t *testing.T) {
	in(t, "", func(w *world) {
		id := w.put(queue.Incoming, 1, "a@x.example")
		path := filepath.Join(w.base, queue.Incoming, id.String())
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, 100), 0o600); err != nil {
			t.Fatal(err)
		}
		opened := 0
		w.m.spool.disk = striking(func(call string, _ queueid.ID) error {
			if call != "open" {
				return nil
			}
			switch opened++; opened {
			case 1:
			case 2:
				return os.WriteFile(path, whole, 0o600)
			default:
				return nil
			}
			m := ipc.NewMessage()
			arrival.Encode(m, []queueid.ID{id})
			err := w.m.handleArrival(t.Context(), nil, m.Data()[1:], nil)
			time.Sleep(time.Second) // until it has been dealt with
			return err
		})
		w.m.start()
		w.wait(2 * time.Second)
		w.expect("")
		if w.delivered["a@x.example"] != 1 {
			t.Errorf("delivered %v", w.delivered)
		}
		w.m.stop()
	})
}

// TestUncommitted: a message that cleanup has not let go of is not there yet, though it is
// complete: it may be refused, since it cannot be made durable.
func TestUncommitted(t *testing.T) {
	in(t, "", func(w *world) {
		id := w.put(queue.Incoming, 1, "a@x.example")
		path := filepath.Join(w.base, queue.Incoming, id.String())
		cleanup, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Flock(int(cleanup.Fd()), syscall.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		w.m.start()
		w.wait(time.Second)
		w.m.look()
		w.wait(time.Hour)
		w.do(queuectl.Hold, 0, id)
		w.do(queuectl.Delete, 0)
		w.expect(queue.Incoming)
		if err := cleanup.Close(); err != nil {
			t.Fatal(err)
		}
		m := ipc.NewMessage()
		arrival.Encode(m, []queueid.ID{id})
		if err := w.m.handleArrival(t.Context(), nil, m.Data()[1:], nil); err != nil {
			t.Fatal(err)
		}
		w.wait(time.Second)
		w.expect("")
		if w.delivered["a@x.example"] != 1 || len(w.m.later) > 0 {
			t.Errorf("delivered %v; %d are looked at again", w.delivered, len(w.m.later))
		}
		w.m.stop()
	})
}

// TestLockedForAMoment: a message that is locked in the moment in which qmgr is told
// of it is looked at again, though nobody tells of it another time.
func TestLockedForAMoment(t *testing.T) {
	in(t, "", func(w *world) {
		id := w.put(queue.Incoming, 1, "a@x.example")
		f, err := os.Open(filepath.Join(w.base, queue.Incoming, id.String()))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		w.m.start()
		w.wait(time.Second)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		w.wait(2 * retryPause)
		w.expect("")
		if w.delivered["a@x.example"] != 1 {
			t.Errorf("delivered %v", w.delivered)
		}
		w.m.stop()
	})
}

// TestCommandCut: a command that takes long does not keep the daemon from going, and says
// how far it has come.
func TestCommandCut(t *testing.T) {
	in(t, "", func(w *world) {
		for i := range uint32(10) {
			w.put(queue.Hold, i+1, "a@x.example")
		}
		looked := 0
		w.m.ending = func() bool { looked++; return looked > 4 }
		w.m.start()
		if reply := w.m.control(queuectl.Request{Op: queuectl.Release, All: true}); reply.Done != 4 || reply.Err == nil {
			t.Errorf("%+v", reply)
		}
		w.m.stop()
	})
}

// TestSaidLate: what the administrator says while a message is on its way out of
// memory is done all the same.
func TestSaidLate(t *testing.T) {
	for op, where := range map[queuectl.Op]string{queuectl.Hold: "hold", queuectl.Delete: ""} {
		in(t, "", func(w *world) {
			w.answer = byLocal
			id := w.put(queue.Incoming, 1, "later@x.example", "no@x.example")
			w.notify = func() { w.do(op, 1, id) }
			w.run(time.Minute)
			w.expect(where, "failure no@x.example=5.1.1")
		})
	}
}

// TestRetryAll: a whole backlog is tried again at once, each message once, and
// never all of it is in memory; neither a second order while the first is carried
// out nor a crash changes that.
func TestRetryAll(t *testing.T) {
	in(t, "queue: {active_messages: 8, retry: {min: 1h}}\n", func(w *world) {
		const n = 300
		tried, most := 0, 0
		w.answer = func(envelope.Recipient) delivery.Result {
			tried++
			w.m.mu.Lock()
			most = max(most, len(w.m.known)-w.m.outside+len(w.m.fresh))
			w.m.mu.Unlock()
			return full
		}
		for i := range uint32(n) {
			w.put(queue.Incoming, i, "a@x.example")
		}
		w.set(func() { w.slow = 10 * time.Second }) // so that there are several buckets
		w.m.start()
		w.wait(time.Hour - 40*time.Second) // between two looks
		w.do(queuectl.Retry, n)
		w.wait(20 * time.Second)
		if tried == n {
			t.Error("nothing is tried again")
		}
		w.do(queuectl.Retry, tried-n+len(w.m.known)) // those that have failed again, and those that are under way
		w.m.stop()
		tried = 0
		w.boot(w.m.config())
		w.answer = func(r envelope.Recipient) delivery.Result { tried++; return success }
		w.slow = 0
		w.run(time.Minute)
		w.expect("")
		if w.delivered["a@x.example"] != n || tried != n || most > 8 {
			t.Errorf("delivered %v, %d attempts, at most %d in memory", w.delivered, tried, most)
		}
	})
}

// TestRetrySome: messages are tried by ID, each once and at once, also while
// others are taken up.
func TestRetrySome(t *testing.T) {
	in(t, "queue: {retry: {min: 1h}}\n", func(w *world) {
		tried := make(map[string]int)
		w.answer = func(r envelope.Recipient) delivery.Result { tried[r.Address.Local()]++; return full }
		var ids []queueid.ID
		for i := range uint32(20) {
			ids = append(ids, w.put(queue.Incoming, i, fmt.Sprintf("u%d@x.example", i)))
		}
		w.m.start()
		w.wait(time.Minute)
		w.set(func() { w.slow = time.Second })
		for _, id := range ids[:10] {
			w.do(queuectl.Retry, 1, id)
			w.wait(50 * time.Millisecond)
		}
		w.do(queuectl.Retry, 1, ids[10], queueid.New(time.Now(), 99))
		w.wait(10 * time.Second)
		for i := range 20 {
			want := 1
			if i <= 10 {
				want = 2
			}
			if got := tried[fmt.Sprintf("u%d", i)]; got != want {
				t.Errorf("message %d was tried %d times, want %d", i, got, want)
			}
		}
		w.m.stop()
	})
}

// TestRetryOfTheFailed: the administrator sees that a message has failed, and asks for
// another attempt before it has been put away. It is made at once, for all who have failed.
func TestRetryOfTheFailed(t *testing.T) {
	for _, all := range []bool{false, true} {
		in(t, "queue: {retry: {min: 1h}}\n", func(w *world) {
			w.answer = func(envelope.Recipient) delivery.Result { return full }
			id := w.put(queue.Incoming, 1, "a@x.example", "b@x.example")
			writes := 0
			w.m.spool.disk = striking(func(call string, _ queueid.ID) error {
				if call == "write" {
					if writes++; writes == 2 { // the first is what mailq shows
						time.Sleep(time.Minute)
					}
				}
				return nil
			})
			w.m.start()
			w.wait(time.Second)
			w.expect(queue.Active)
			w.set(func() { w.answer = byLocal })
			if all {
				w.do(queuectl.Retry, 1)
			} else {
				w.do(queuectl.Retry, 1, id)
			}
			w.wait(2 * time.Minute)
			w.expect("")
			if w.delivered["a@x.example"] != 1 || w.delivered["b@x.example"] != 1 {
				t.Errorf("delivered %v", w.delivered)
			}
			w.m.stop()
		})
	}
}

// TestHoldAll: with mail in every state nothing is overlooked, and deleting it all
// leaves nothing to stay for.
func TestHoldAll(t *testing.T) {
	in(t, "", func(w *world) {
		w.answer = func(envelope.Recipient) delivery.Result { return full }
		for i := range uint32(5) {
			w.put(queue.Incoming, i, "a@x.example")
		}
		w.m.start()
		w.wait(time.Minute)
		w.put(queue.Incoming, 10, "a@x.example") // without a notice
		w.put(queue.Corrupt, 11, "a@x.example")
		w.do(queuectl.Hold, 6)
		w.do(queuectl.Delete, 6)
		w.wait(time.Second)
		w.expect("corrupt")
		if w.held > 0 {
			t.Error("stays for an empty queue")
		}
		w.m.stop()
	})
}

// TestDiskFull: what cannot be noted is not delivered again, and is noted when
// it can be.
func TestDiskFull(t *testing.T) {
	in(t, "", func(w *world) {
		id := w.put(queue.Incoming, 1, "a@x.example", "later@x.example")
		path, away := filepath.Join(w.base, queue.Active, id.String()), filepath.Join(w.base, "away")
		calls := 0
		w.answer = func(r envelope.Recipient) delivery.Result {
			if calls++; calls == 1 {
				// Nothing can be written to a directory.
				if err := os.Rename(path, away); err != nil {
					t.Error(err)
				}
				os.Mkdir(path, 0o700)
			}
			if calls > 2 {
				return success
			}
			return byLocal(r)
		}
		w.m.start()
		w.wait(time.Hour)
		os.Remove(path)
		if err := os.Rename(away, path); err != nil {
			t.Fatal(err)
		}
		w.wait(2 * time.Minute)
		w.m.stop()
		w.boot(w.m.config())
		w.run(24 * time.Hour)
		w.expect("")
		if w.delivered["a@x.example"] != 1 || w.delivered["later@x.example"] != 1 {
			t.Errorf("delivered %v", w.delivered)
		}
	})
}

// TestLastTry: what the disk does not take for a moment it takes at the end at the
// latest, and nobody gets a message again because qmgr goes.
func TestLastTry(t *testing.T) {
	for name, fails := range map[string]string{"write": "write", "rename": "mkdir"} {
		t.Run(name, func(t *testing.T) {
			in(t, "", func(w *world) {
				w.answer = byLocal
				w.put(queue.Incoming, 1, "a@x.example")
				w.put(queue.Incoming, 2, "b@x.example", "later@y.example")
				failed := 0
				w.m.spool.disk = striking(func(call string, _ queueid.ID) error {
					if call == fails && failed < 3 { // a write is tried again at once, twice
						failed++
						return &fs.PathError{Op: call, Path: "x", Err: syscall.EIO}
					}
					return nil
				})
				w.m.start()
				w.wait(time.Second)
				failed = 3
				w.m.stop()
				w.expect(queue.Deferred)
				w.boot(w.m.config())
				w.answer = func(envelope.Recipient) delivery.Result { return success }
				w.run(10 * time.Minute)
				w.expect("")
				for to, n := range w.delivered {
					if n != 1 {
						t.Errorf("%s: delivered %d times", to, n)
					}
				}
			})
		})
	}
}

// TestStaysDelivered: a message that is delivered, and whose file cannot be taken out of
// its directory, is not delivered again by the next process: the file can be written.
func TestStaysDelivered(t *testing.T) {
	in(t, "", func(w *world) {
		w.m.spool.disk = striking(func(call string, id queueid.ID) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if call == "unlink" || call == "rename" && len(w.delivered) > 0 {
				return &fs.PathError{Op: call, Path: id.String(), Err: syscall.EACCES}
			}
			return nil
		})
		w.put(queue.Incoming, 1, "a@x.example")
		w.run(5 * time.Minute)
		w.expect(queue.Active)
		w.boot(w.m.config())
		w.run(10 * time.Minute)
		w.expect("")
		if n := w.delivered["a@x.example"]; n != 1 {
			t.Errorf("delivered %d times", n)
		}
	})
}

// TestLostFlush: where a flush fails what was to be flushed may never get to the
// disk, though the next flush succeeds. So it is written again at once: the sender
// is not told of a failure that the power can take away.
func TestLostFlush(t *testing.T) {
	in(t, "", func(w *world) {
		w.answer = byLocal
		id := w.put(queue.Incoming, 1, "no@x.example", "later@y.example")
		path := filepath.Join(w.base, queue.Active, id.String())
		whole := size(filepath.Join(w.base, queue.Incoming, id.String()))
		var mu sync.Mutex
		failed, checked := false, false
		w.m.spool.disk = striking(func(call string, of queueid.ID) error {
			if of != id {
				return nil // who looks for other mail meanwhile
			}
			mu.Lock()
			defer mu.Unlock()
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return nil // it is somewhere else
			}
			defer f.Close()
			switch {
			case call == "fsync" && !failed:
				failed = true
				if _, err := f.WriteAt(make([]byte, size(path)-whole), whole); err != nil {
					t.Error(err)
				}
				return &fs.PathError{Op: call, Path: path, Err: syscall.EIO}
			case failed && !checked:
				checked = true
				if q, err := queue.Read(f); err != nil || q.Recipients[0].Pending() {
					t.Errorf("it is not written again: %v", err)
				}
			}
			return nil
		})
		w.run(20 * time.Minute)
		w.expect(queue.Deferred, "failure no@x.example=5.1.1")
		if !checked {
			t.Error("no flush has failed")
		}
	})
}

// TestMisfiled: deferred mail is found wherever it lies, and not left there
// because the clock has been wrong.
func TestMisfiled(t *testing.T) {
	in(t, "", func(w *world) {
		for i, dir := range []string{"deferred", "deferred/9999999960", "deferred/0000000007"} {
			if err := os.MkdirAll(filepath.Join(w.base, dir), 0o700); err != nil {
				t.Fatal(err)
			}
			w.put(dir, uint32(i), "a@x.example")
		}
		w.m.start()
		w.wait(10 * time.Second)
		w.expect("")
		w.set(func() { w.held = 1 }) // somebody keeps the process
		w.put(queue.Deferred, 7, "a@x.example")
		w.wait(10 * time.Minute)
		w.expect("")
		if w.delivered["a@x.example"] != 4 {
			t.Errorf("delivered %v", w.delivered)
		}
		w.m.stop()
	})
}

// TestDoubleBounce: a notification that cannot be delivered is reported to bounce,
// which knows whether the postmaster wants to hear, though it says NOTIFY=NEVER.
func TestDoubleBounce(t *testing.T) {
	in(t, "", func(w *world) {
		w.answer = byLocal
		w.put(queue.Incoming, 1, "-no@x.example")
		w.run(time.Minute)
		w.expect("", "failure no@x.example=5.1.1")
	})
}

func TestOwnResult(t *testing.T) {
	for _, tt := range []struct{ transport, nexthop, want string }{
		{"error", "5.1.1 nobody here", "5.1.1 nobody here"}, {"error", "moved away", "5.0.0 moved away"}, {"error", " 4.2.1  busy ", "4.2.1 busy"},
		{"error", "5.7.1", "5.7.1 mail to this address is refused"}, {"error", "2.0.0 ok", "5.0.0 2.0.0 ok"}, {"error", "", "5.0.0 mail to this address is refused"},
		{"retry", "5.1.1 not yet", "4.1.1 not yet"}, {"retry", "not yet", "4.0.0 not yet"},
		{"discard", "", "2.0.0 discarded"}, {"discard", "silently\x1b", "2.0.0 silently?"},
	} {
		r := ownResult(schedule.Destination{Transport: tt.transport, Nexthop: tt.nexthop})
		if got := r.Status.String() + " " + r.Text; got != tt.want {
			t.Errorf("%s:%s: %s, want %s", tt.transport, tt.nexthop, got, tt.want)
		}
	}
}

// TestLargeExpiry: the last word on very many recipients is more than one record
// of a queue file holds.
func TestLargeExpiry(t *testing.T) {
	in(t, "queue: {lifetime: 0s}\n", func(w *world) {
		const n = 9000
		long := strings.Repeat("x", 950)
		w.answer = func(envelope.Recipient) delivery.Result {
			return delivery.Result{Status: full.Status, Text: long, RemoteMTA: "mx.example", Diagnostic: long}
		}
		to := make([]string, n)
		for i := range to {
			to[i] = fmt.Sprintf("u%d@x.example", i)
		}
		w.put(queue.Incoming, 1, to...)
		w.run(time.Minute)
		if got := strings.Count(strings.Join(w.notified, " "), "=5.4.7"); got != n || w.where() != "" {
			t.Errorf("%d of %d are reported, files in %q", got, n, w.where())
		}
	})
}

// TestRetryAtStart: a command for everything that comes before the queue has been
// looked at, as one does that starts the daemon, means what there is.
func TestRetryAtStart(t *testing.T) {
	in(t, "", func(w *world) {
		w.answer = byLocal
		w.put(queue.Incoming, 1, "later@x.example")
		w.run(time.Minute)
		w.expect("deferred")
		w.answer = func(envelope.Recipient) delivery.Result { return success }
		w.boot(w.m.config())
		w.do(queuectl.Retry, 1)
		w.run(time.Second)
		w.expect("")
	})
}
