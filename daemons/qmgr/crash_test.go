package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// trouble is what happens to the disk at its nth call.
type trouble struct {
	kind  string // "error": that call fails; "crash": qmgr ends there; "power": so does the machine
	n     int
	crowd bool

	mu     sync.Mutex
	calls  int
	base   string
	synced map[queueid.ID]int64 // how much of a file the disk has for certain
}

func (f *trouble) strike(call string, id queueid.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.calls == f.n || f.calls > f.n && f.kind != "error" {
		return &fs.PathError{Op: call, Path: id.String(), Err: syscall.EIO}
	}
	if call == "fsync" {
		f.synced[id] = size(filepath.Join(f.base, queue.Active, id.String()))
	}
	return nil
}

// striking is a disk of which f makes calls fail.
type striking func(call string, id queueid.ID) error

func (f striking) call(c call, do func() error) error {
	if err := f(c.name, c.id); err != nil {
		return err
	}
	return do()
}

func (striking) target(_ call, f *os.File) queue.Target { return f }

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// forget takes from every file what was not made durable.
func (f *trouble) forget(t testing.TB) {
	for _, dir := range []string{queue.Incoming, queue.Active, queue.Deferred + "/*", queue.Hold} {
		list, _ := filepath.Glob(filepath.Join(f.base, dir, "*"))
		for _, path := range list {
			if path == filepath.Join(f.base, queue.Spare) {
				continue
			}
			id, err := queueid.Parse(filepath.Base(path))
			if err == nil && size(path) > f.synced[id] {
				err = os.Truncate(path, f.synced[id])
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestEveryCall: a message goes through all that can happen to it, and one call
// to the disk fails, or is the last one before a crash or a power cut: each in
// turn. Every recipient gets the message or its sender is told, never both; twice
// only who was in flight at a crash; nothing stays behind. With a crowd, one of the
// recipients has to wait outside of memory.
func TestEveryCall(t *testing.T) {
	log := maillog.New("qmgr")
	for _, kind := range []string{"error", "crash", "power"} {
		for _, crowd := range []bool{false, true} {
			most := 0
			for n, struck := 1, true; struck; n++ {
				synctest.Test(t, func(t *testing.T) {
					f := &trouble{kind: kind, n: n, crowd: crowd, synced: make(map[queueid.ID]int64)}
					struck = everyCall(newWorld(t, log, "queue: {active_messages: 2, retry: {min: 5m, max: 10m}}\n"), f)
					if t.Failed() {
						t.Fatalf("%s at call %d, crowd: %v", kind, n, crowd)
					}
				})
				most = n
			}
			t.Logf("%s: %d calls", kind, most)
			if most < 30 {
				t.Errorf("%d calls: the scenario has become shorter", most)
			}
		}
	}
}

func everyCall(w *world, f *trouble) (struck bool) {
	answers := map[string]delivery.Result{"later": full, "no": nobody}
	w.answer = func(r envelope.Recipient) delivery.Result {
		if result, ok := answers[r.Address.Local()]; ok {
			return result
		}
		return success
	}
	put := func(n uint32, to ...string) queueid.ID {
		id := w.put(queue.Incoming, n, to...)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.base, f.synced[id] = w.base, size(filepath.Join(w.base, queue.Incoming, id.String()))
		return id
	}
	w.m.start()
	w.wait(time.Second)
	if f.crowd {
		w.pause = func(r *delivery.Request) {
			if r.Recipients[0].Address.Local() == "first" {
				time.Sleep(time.Minute)
			}
		}
		put(2, "first@y.example")
		w.m.look()
		w.wait(time.Second)
	}
	id := put(1, "a@x.example", "later@y.example", "no@z.example")
	w.m.spool.disk = striking(f.strike)
	w.m.look()
	w.wait(time.Second)
	w.m.mu.Lock()
	if outside := w.m.outside; outside > 0 != f.crowd && f.n > 20 {
		w.t.Errorf("%d messages wait outside", outside)
	}
	w.m.mu.Unlock()
	if f.crowd {
		w.wait(2 * time.Minute) // it comes back
	}
	for _, op := range []queuectl.Op{queuectl.Hold, queuectl.Release, queuectl.Retry, queuectl.Requeue} {
		w.m.control(queuectl.Request{Op: op, All: op == queuectl.Retry, IDs: map[bool][]queueid.ID{false: {id}}[op == queuectl.Retry]})
		w.wait(time.Second)
	}
	w.wait(20 * time.Minute)
	f.mu.Lock()
	struck = f.calls >= f.n
	f.mu.Unlock()
	if where := w.where(); f.kind == "error" && strings.Contains(where, queue.Active) {
		w.t.Errorf("stuck in %s", where)
	}
	w.m.stop()
	if f.kind == "power" && struck {
		f.forget(w.t)
	}
	w.boot(w.m.config())
	// Who has failed is there now, and one more is not.
	w.set(func() { answers = map[string]delivery.Result{"later": {Status: dsn.MustParse("5.2.1"), Text: "gone"}} })
	w.m.start()
	w.wait(time.Hour)
	if where := w.where(); strings.TrimSpace(where) == queue.Hold { // where a command has left it
		w.m.control(queuectl.Request{Op: queuectl.Release, All: true})
		w.wait(time.Hour)
	}
	w.m.stop()
	w.verdict(f, struck)
	return struck
}

func (w *world) verdict(f *trouble, struck bool) {
	if where := w.where(); where != "" {
		w.t.Errorf("left behind in %s", where)
	}
	twice := 1
	if f.kind != "error" && struck {
		twice = 2
	}
	notified := strings.Join(w.notified, " ")
	rcpts := []string{"a@x.example", "later@y.example", "no@z.example"}
	if f.crowd {
		rcpts = append(rcpts, "first@y.example")
	}
	for _, to := range rcpts {
		delivered, told := w.delivered[to], strings.Count(notified, to)
		switch {
		case delivered > 0 && told > 0:
			w.t.Errorf("%s: delivered, and the sender was told of a failure", to)
		case delivered+told == 0:
			w.t.Errorf("%s: lost", to)
		case delivered+told > twice:
			w.t.Errorf("%s: delivered %d times, reported %d times", to, delivered, told)
		}
	}
	if w.delivered["a@x.example"] == 0 {
		w.t.Errorf("what can be delivered is not: %v, %s", w.delivered, notified)
	}
}
