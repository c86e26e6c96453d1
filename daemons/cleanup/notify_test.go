package main

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/protocol/arrival"
	"posthouse/pkg/queueid"
)

// testQmgr hears notices.
type testQmgr struct {
	gate chan struct{} // nil, or closed: it reads

	mu  sync.Mutex
	ids []queueid.ID
}

func (q *testQmgr) serve(t *testing.T) (path string) {
	return ipctest.Serve(t, arrival.Protocol, func(_ *ipc.Conn, msg []byte, _ *os.File) error {
		if q.gate != nil {
			<-q.gate
		}
		ids, err := arrival.Decode(msg)
		q.mu.Lock()
		defer q.mu.Unlock()
		q.ids = append(q.ids, ids...)
		return err
	})
}

// hears waits until it has heard of want, in any order, and of nothing twice.
func (q *testQmgr) hears(t *testing.T, want []queueid.ID) {
	t.Helper()
	var got []queueid.ID
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline) && len(got) < len(want); time.Sleep(time.Millisecond) {
		q.mu.Lock()
		got = slices.Clone(q.ids)
		q.mu.Unlock()
	}
	heard := make(map[queueid.ID]int)
	for _, id := range got {
		heard[id]++
	}
	for _, id := range want {
		if heard[id] != 1 {
			t.Fatalf("heard of %s %d times; %d notices of %d messages", id, heard[id], len(got), len(want))
		}
	}
}

func someIDs(n int) []queueid.ID {
	var source idSource
	ids := make([]queueid.ID, n)
	for i := range ids {
		ids[i] = source.next(time.Now())
	}
	return ids
}

func (n *notifier) busy() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.running
}

// TestNotices: with a connection each notice goes at once. One that would have to
// wait holds up nobody, and those after it go with it.
func TestNotices(t *testing.T) {
	q := &testQmgr{gate: make(chan struct{})}
	n := newNotifier(q.serve(t), filepath.Join(t.TempDir(), "fifo"), &testLog{})
	n.wake()
	n.wg.Wait()
	ids := someIDs(100_000)
	n.add(ids[0])
	if n.busy() {
		t.Error("a goroutine for a notice that goes at once")
	}
	full, behind := 0, 1000 // how much a socket takes is for the machine to say
	for i, id := range ids[1:] {
		if n.add(id); full == 0 && n.busy() {
			full = i
		}
		if full > 0 && i == full+behind {
			ids = ids[:i+2]
			break
		}
	}
	if full == 0 {
		t.Fatal("the socket takes it all: the test is of no use")
	}
	close(q.gate)
	q.hears(t, ids)
	n.close()
}

// TestOff: a qmgr that is switched off is looked for once in a while, not for
// every message, and hears of all that came since it was last looked for.
func TestOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmgr")
	n := newNotifier(path, filepath.Join(t.TempDir(), "fifo"), &testLog{})
	ids := someIDs(100)
	n.add(ids[0])
	for pausing := false; !pausing; time.Sleep(time.Millisecond) {
		n.mu.Lock()
		pausing = n.running && len(n.pending) == 0
		n.mu.Unlock()
	}
	q := &testQmgr{}
	if err := os.Symlink(q.serve(t), path); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids[1:] {
		n.add(id)
	}
	q.hears(t, ids[1:])
	n.close()
}
