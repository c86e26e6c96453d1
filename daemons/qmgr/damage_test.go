package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// TestDamage: files of which any octet is another one, or that end anywhere, go to
// corrupt/, and nothing of them to anybody; what is whole is delivered.
func TestDamage(t *testing.T) {
	in(t, "", func(w *world) {
		const bucket = queue.Deferred + "/0000000060"
		if err := os.Mkdir(filepath.Join(w.base, bucket), 0o700); err != nil {
			t.Fatal(err)
		}
		id := w.put(queue.Hold, 0, "damaged@x.example")
		whole, err := os.ReadFile(filepath.Join(w.base, queue.Hold, id.String()))
		if err != nil {
			t.Fatal(err)
		}
		damaged := 0
		spoil := func(dir string, data []byte) {
			damaged++
			name := queueid.New(time.Now(), uint32(damaged)).String()
			if err := os.WriteFile(filepath.Join(w.base, dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for i := range whole {
			flipped := bytes.Clone(whole)
			flipped[i] ^= 1
			for _, dir := range []string{queue.Incoming, queue.Active, bucket} {
				spoil(dir, flipped)
				if dir != queue.Incoming || i >= 64 { // there it is one that is being written
					spoil(dir, whole[:i])
				}
			}
		}
		for i, dir := range []string{queue.Incoming, queue.Active, bucket} {
			w.put(dir, uint32(damaged+1+i), dir[:1]+"@x.example")
		}
		time.Sleep(time.Minute) // content is checked where the power may have gone since
		w.run(time.Hour)
		if n := strings.Count(w.where(), queue.Corrupt); n != damaged || strings.Count(w.where(), " ") != damaged {
			t.Errorf("%d of %d damaged files are found to be", n, damaged)
		}
		if len(w.delivered) != 3 || w.delivered["damaged@x.example"] > 0 || len(w.notified) > 0 {
			t.Errorf("delivered %v, notified %v", w.delivered, w.notified)
		}
	})
}

// TestCommandsMeetTrouble: who gives a command for all messages hears that the disk did
// not let it be carried out with some.
func TestCommandsMeetTrouble(t *testing.T) {
	for op, call := range map[queuectl.Op]string{queuectl.Hold: "rename", queuectl.Delete: "unlink", queuectl.Retry: "rename", queuectl.Requeue: "write"} {
		in(t, "", func(w *world) {
			w.answer = func(envelope.Recipient) delivery.Result { return full }
			for i := range uint32(3) {
				w.put(queue.Incoming, i, "a@x.example")
			}
			w.m.start()
			w.wait(time.Minute)
			for _, broken := range []bool{true, false} {
				w.m.spool.disk = striking(func(c string, _ queueid.ID) error {
					if broken && c == call {
						return syscall.EIO
					}
					return nil
				})
				reply := w.m.control(queuectl.Request{Op: op, All: true})
				if broken != (reply.Err != nil) || broken == (reply.Done == 3) {
					t.Errorf("operation %d, broken %v: %+v", op, broken, reply)
				}
				if broken && reply.Err != nil && !strings.Contains(reply.Err.Text, "input/output error") {
					t.Errorf("%v", reply.Err)
				}
			}
			w.m.stop()
		})
	}
}

// TestTroubleElsewhere: where a message has been found it does not count what there was
// elsewhere; that nothing can be found does.
func TestTroubleElsewhere(t *testing.T) {
	in(t, "", func(w *world) {
		w.answer = func(envelope.Recipient) delivery.Result { return full }
		id := w.put(queue.Hold, 1, "a@x.example")
		w.put(queue.Incoming, 2, "a@x.example")
		w.m.start()
		w.wait(time.Minute)
		w.m.spool.disk = striking(func(c string, _ queueid.ID) error {
			if c == "readdir" {
				return syscall.EIO
			}
			return nil
		})
		reply := w.m.control(queuectl.Request{Op: queuectl.Delete, IDs: []queueid.ID{id}})
		if reply.Err != nil || reply.Done != 1 {
			t.Errorf("%+v", reply)
		}
		if reply = w.m.control(queuectl.Request{Op: queuectl.Retry, All: true}); reply.Err == nil {
			t.Errorf("%+v", reply)
		}
		w.m.stop()
	})
}
