package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// TestSpare: the file of a message that is done is kept for another one, as long
// as qmgr runs. That of one that the administrator has deleted is not. Where it
// cannot be kept it is removed.
func TestSpare(t *testing.T) {
	in(t, "", func(w *world) {
		left := filepath.Join(w.base, queue.Spare, queueid.New(time.Now(), 9).String()) // by a crash
		if err := os.WriteFile(left, nil, queue.FileMode); err != nil {
			t.Fatal(err)
		}
		w.answer = byLocal
		w.put(queue.Incoming, 1, "a@x.example", "b@y.example")
		id := w.put(queue.Incoming, 2, "later@x.example")
		w.m.start()
		w.wait(time.Second)
		w.expect(queue.Deferred)
		if list := w.spares(); len(list) != 1 || list[0] == left {
			t.Errorf("kept: %v", list)
		}
		w.m.control(queuectl.Request{Op: queuectl.Delete, IDs: []queueid.ID{id}})
		w.put(queue.Incoming, 3, "a@x.example")
		w.m.spool.disk = striking(func(call string, _ queueid.ID) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if call == "rename" && w.delivered["a@x.example"] == 2 {
				return &fs.PathError{Op: call, Err: syscall.EIO}
			}
			return nil
		})
		w.m.look()
		w.wait(time.Second)
		w.expect("")
		if list := w.spares(); len(list) != 1 {
			t.Errorf("kept: %v", list)
		}
		w.m.stop()
		if list := w.spares(); len(list) != 0 {
			t.Errorf("left behind: %v", list)
		}
	})
}
