package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
)

// TestLongestReport: an agent that says as much as its protocol allows damages
// no queue file, whatever qmgr adds to its words for a destination that is
// suspended.
func TestLongestReport(t *testing.T) {
	log := maillog.New("qmgr")
	text := strings.Repeat("é", wire.MaxText/2)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, log, "")
		w.hop = &dsn.Error{Status: dsn.MustParse("4.4.1"), Text: text}
		w.answer = func(envelope.Recipient) delivery.Result {
			return delivery.Result{Status: dsn.MustParse("4.4.1"), Text: text, Diagnostic: text}
		}
		for i := range 200 {
			w.put(queue.Incoming, uint32(i), "a@x.example")
		}
		w.run(time.Hour)
		suspended := 0
		files, _ := filepath.Glob(filepath.Join(w.base, queue.Deferred, "*", "*"))
		for _, name := range files {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			m, err := queue.Read(f)
			f.Close()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if strings.Contains(m.Recipients[0].Last.Text, "suspended") {
				suspended++
			}
		}
		if len(files) != 200 || suspended == 0 {
			t.Errorf("%d files are left, %d recipients were suspended", len(files), suspended)
		}
	})
}

// TestNotMessages: what has the name of a message and is none goes to corrupt/,
// other names are left alone and named in the log, once, and the rest is delivered.
func TestNotMessages(t *testing.T) {
	log := maillog.New("qmgr")
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, log, "")
		const bucket = queue.Deferred + "/0000000060"
		if err := os.Mkdir(filepath.Join(w.base, bucket), 0o700); err != nil {
			t.Fatal(err)
		}
		var odd []string
		var mu sync.Mutex
		say := w.m.spool.odd
		w.m.spool.odd = func(p place, name string) {
			mu.Lock()
			defer mu.Unlock()
			if path := filepath.Join(p.String(), name); !slices.Contains(odd, path) {
				odd = append(odd, path)
			}
			say(p, name)
		}
		for _, dir := range []string{queue.Incoming, queue.Active, bucket} {
			for kind, err := range map[string]error{
				"link":      os.Symlink("/etc/passwd", filepath.Join(w.base, dir, w.put(queue.Hold, 1, "h@x.example").String())),
				"FIFO":      syscall.Mkfifo(filepath.Join(w.base, dir, w.put(queue.Hold, 2, "h@x.example").String()), 0o600),
				"directory": os.Mkdir(filepath.Join(w.base, dir, w.put(queue.Hold, 3, "h@x.example").String()), 0o700),
				"name":      os.WriteFile(filepath.Join(w.base, dir, "core"), nil, 0o600),
			} {
				if err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
			}
			time.Sleep(time.Second) // other IDs
			w.put(dir, 4, dir[:1]+"@x.example")
		}
		w.run(time.Hour)
		if where := w.where(); strings.Count(where, queue.Corrupt) != 9 || strings.Count(where, queue.Deferred) != 1 {
			t.Errorf("files are in %s", where)
		}
		if len(w.delivered) != 3 || len(odd) != 3 {
			t.Errorf("delivered %v, odd %q", w.delivered, odd)
		}
	})
}

// TestUnreadable: a directory, or a message, that cannot be read now is read when
// it can be, although nobody sends a message meanwhile.
func TestUnreadable(t *testing.T) {
	log := maillog.New("qmgr")
	for _, call := range []string{"readdir", "open"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, log, "")
			w.put(queue.Incoming, 1, "a@x.example")
			w.put(queue.Active, 2, "b@x.example")
			var full atomic.Bool
			var tries atomic.Int32
			full.Store(true)
			w.m.spool.disk = striking(func(c string, id queueid.ID) error {
				if c != call || !full.Load() {
					return nil
				}
				tries.Add(1)
				return &fs.PathError{Op: c, Path: id.String(), Err: syscall.EMFILE}
			})
			w.m.start()
			w.wait(10 * time.Minute)
			w.mu.Lock()
			stays := w.held > 0
			w.mu.Unlock()
			if !stays || tries.Load() < 10 {
				t.Errorf("%s: stays: %v, %d tries", call, stays, tries.Load())
			}
			full.Store(false)
			w.wait(2 * time.Minute)
			w.m.stop()
			w.expect("")
			if len(w.delivered) != 2 || len(w.m.said.last) != 0 {
				t.Errorf("%s: delivered %v, remembered %v", call, w.delivered, w.m.said.last)
			}
		})
	}
}

// TestSaid: a thing is said once, and again when it is another one, or has been
// over for a while.
func TestSaid(t *testing.T) {
	var s said
	for i, want := range []bool{true, false} {
		if s.isNew("a", "x") != want {
			t.Errorf("time %d", i)
		}
	}
	if !s.isNew("b", "x") || !s.isNew("a", "y") || s.isNew("b", "x") {
		t.Error("others are confused")
	}
	inBucket := func(name string) error { return &fs.PathError{Op: "open", Path: name, Err: syscall.EACCES} }
	if !s.isNew("c", short(inBucket("1"))) || s.isNew("c", short(inBucket("2"))) {
		t.Error("the same in another bucket is news")
	}
	if s.forget("a"); !s.isNew("a", "y") {
		t.Error("not forgotten")
	}
	for i := range 2 * maxSaid {
		s.isNew(strconv.Itoa(i), "")
	}
	if len(s.last) > maxSaid {
		t.Errorf("%d are remembered", len(s.last))
	}
}
