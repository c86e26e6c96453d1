package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"posthouse/pkg/envelope"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// backlog has n messages deferred, to uI@dJ.example with I running below n and J
// below domains, in several buckets, and counts attempts by domain.
func (w *world) backlog(n, domains int) (tried map[string]int) {
	tried = make(map[string]int)
	w.answer = func(r envelope.Recipient) delivery.Result { tried[r.Address.Domain()]++; return full }
	var luck atomic.Int64
	w.m.random = func() float64 { return float64(luck.Add(1)%7) / 7 }
	for i := range n {
		w.put(queue.Incoming, uint32(i), fmt.Sprintf("u%d@d%d.example", i, i%domains))
	}
	w.m.start()
	w.wait(time.Minute)
	clear(tried)
	return tried
}

// retry asks for a destination, and reports how many buckets the index does not
// know as a whole before.
func (w *world) retry(domain string, done int) (unknown int) {
	w.t.Helper()
	sizes := w.m.index.sizes()
	for _, b := range w.buckets() {
		if _, ok := sizes[filepath.Base(b)]; !ok {
			unknown++
		}
	}
	w.set(func() { w.slow = time.Second }) // nothing comes back meanwhile
	if reply := w.m.control(queuectl.Request{Op: queuectl.Retry, Destination: domain}); int(reply.Done) != done {
		w.t.Errorf("%s: %+v, want %d", domain, reply, done)
	}
	return unknown
}

func (w *world) buckets() []string {
	list, _ := filepath.Glob(filepath.Join(w.base, queue.Deferred, "*"))
	return list
}

// only checks that just those of one domain have been tried, n of them.
func only(t testing.TB, tried map[string]int, domain string, n int) {
	t.Helper()
	if want := map[string]int{domain: n}; !maps.Equal(tried, want) {
		t.Errorf("tried: %v, want %v", tried, want)
	}
	clear(tried)
}

// TestDestination: what waits for a domain is tried, and nothing else; without the
// index being whole the queue is looked through, with the same result, and the
// index is whole afterwards.
func TestDestination(t *testing.T) {
	const n, domains, each = 300, 10, 30
	for name, change := range map[string]struct {
		f     func(w *world)
		looks bool
	}{
		"nothing": {func(*world) {}, false},
		"a restart": {func(w *world) {
			w.m.stop()
			w.boot(w.m.config())
			w.m.start()
		}, false},
		"two restarts": {func(w *world) {
			for range 2 {
				w.m.stop()
				w.boot(w.m.config())
				w.m.start()
			}
		}, false},
		"a crash": {func(w *world) { // as after a kill nothing was written
			w.m.index.dir = w.t.TempDir()
			w.m.stop()
			w.boot(w.m.config())
			w.m.start()
		}, true},
		"a crash after a restart": {func(w *world) { // what was left to it does not fit any more
			w.m.stop()
			w.boot(w.m.config())
			w.m.start()
			w.wait(time.Second)
			w.retry("d5.example", each)
			w.wait(10 * time.Second)
			dir := w.m.index.dir
			w.m.index.dir = w.t.TempDir()
			w.m.stop()
			w.boot(w.m.config())
			if w.m.index.dir != dir {
				w.t.Error("another index")
			}
			w.m.start()
		}, true},
		"a power cut": {func(w *world) { // the index has lost what the queue has not
			w.m.stop()
			files, _ := filepath.Glob(filepath.Join(w.base, queue.Index, "[0-9]*"))
			for _, f := range files {
				if err := os.WriteFile(f, make([]byte, size(f)), 0o600); err != nil {
					w.t.Fatal(err)
				}
			}
			w.boot(w.m.config())
			w.m.start()
		}, false}, // which is found when it is read
		"an index cut short": {func(w *world) {
			w.m.stop()
			files, _ := filepath.Glob(filepath.Join(w.base, queue.Index, "[0-9]*"))
			for _, f := range files {
				if err := os.Truncate(f, size(f)-entryLen); err != nil {
					w.t.Fatal(err)
				}
			}
			w.boot(w.m.config())
			w.m.start()
		}, true},
		"a damaged seal": {func(w *world) {
			w.m.stop()
			if err := os.WriteFile(filepath.Join(w.base, queue.Index, sealName), []byte("x"), 0o600); err != nil {
				w.t.Fatal(err)
			}
			w.boot(w.m.config())
			w.m.start()
		}, true},
		"an index of others": {func(w *world) {
			w.m.stop()
			if err := os.RemoveAll(filepath.Join(w.base, queue.Index)); err != nil {
				w.t.Fatal(err)
			}
			w.boot(w.m.config())
			w.m.start()
			os.Mkdir(filepath.Join(w.base, queue.Index), 0o700)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, "queue: {retry: {min: 1h}}\n", func(w *world) {
				tried := w.backlog(n, domains)
				if len(w.buckets()) < 3 {
					t.Fatalf("buckets %v", w.buckets())
				}
				change.f(w)
				w.wait(time.Second)
				clear(tried)
				if unknown := w.retry("D3.Example", each); unknown > 0 != change.looks {
					t.Errorf("%d buckets were looked through", unknown)
				}
				w.wait(10 * time.Second)
				only(t, tried, "d3.example", each)
				if unknown := w.retry("d4.example", each); unknown > 0 {
					t.Errorf("the second time: %d buckets were looked through", unknown)
				}
				w.wait(10 * time.Second)
				only(t, tried, "d4.example", each)
				w.retry("nowhere.example", 0)
				w.retry("d3.example", each) // those that were filed since
				w.wait(10 * time.Second)
				only(t, tried, "d3.example", each)
				w.m.stop()
			})
		})
	}
}

// TestIndexDisk: without a place for the index mail goes its way, and commands do
// what they say.
func TestIndexDisk(t *testing.T) {
	in(t, "queue: {retry: {min: 1h}}\n", func(w *world) {
		if err := os.Remove(filepath.Join(w.base, queue.Index)); err != nil {
			t.Fatal(err)
		}
		tried := w.backlog(1000, 10)
		for range 2 { // the second time those that were filed meanwhile
			w.retry("d3.example", 100)
			w.wait(30 * time.Second)
			only(t, tried, "d3.example", 100)
		}
		w.m.stop()
	})
}

// TestPutByHand: what was put into a bucket while qmgr was away is found.
func TestPutByHand(t *testing.T) {
	in(t, "queue: {retry: {min: 1h}}\n", func(w *world) {
		tried := w.backlog(100, 10)
		w.m.stop()
		dir, err := filepath.Rel(w.base, w.buckets()[0])
		if err != nil {
			t.Fatal(err)
		}
		w.put(dir, 5000, "new@d3.example")
		// As the kernel notes it, but for one whose clock has stood still since the last message was filed.
		at := time.Unix(1, 0)
		if err := os.Chtimes(w.buckets()[0], at, at); err != nil {
			t.Fatal(err)
		}
		w.boot(w.m.config())
		w.m.start()
		w.wait(time.Second)
		if unknown := w.retry("d3.example", 11); unknown != 1 {
			t.Errorf("%d buckets were looked through, not just that one", unknown)
		}
		w.wait(10 * time.Second)
		only(t, tried, "d3.example", 11)
		w.m.stop()
	})
}

// TestHint: an entry is believed nothing. That of another destination, or of a
// message that is gone or is a link, does no harm.
func TestHint(t *testing.T) {
	in(t, "queue: {retry: {min: 1h}}\n", func(w *world) {
		tried := w.backlog(100, 10)
		bucket := filepath.Base(w.buckets()[0])
		names, err := os.ReadDir(w.buckets()[0])
		if err != nil || len(names) == 0 {
			t.Fatal(err)
		}
		id, err := queueid.Parse(names[0].Name())
		if err != nil {
			t.Fatal(err)
		}
		gone, link := queueid.New(time.Now(), 7000), queueid.New(time.Now(), 7001)
		if err := os.Symlink("/etc/passwd", filepath.Join(w.buckets()[0], link.String())); err != nil {
			t.Fatal(err)
		}
		for _, id := range []queueid.ID{id, gone, link} {
			w.m.index.add(bucket, id, []key{keyOf("other.example"), anyKey})
		}
		w.retry("other.example", 0)
		w.wait(10 * time.Second)
		if len(tried) > 0 {
			t.Errorf("tried: %v", tried)
		}
		w.m.stop()
	})
}

// TestManyDestinations: a message with very many of them is found for each, and
// the index has not an entry for each.
func TestManyDestinations(t *testing.T) {
	in(t, "queue: {retry: {min: 1h}}\n", func(w *world) {
		w.answer = func(envelope.Recipient) delivery.Result { return full }
		var to []string
		for i := range 5000 {
			to = append(to, fmt.Sprintf("u@d%d.example", i))
		}
		w.put(queue.Incoming, 1, to...)
		w.put(queue.Incoming, 2, "u@d4000.example")
		w.m.start()
		w.wait(time.Minute)
		w.retry("d4000.example", 2)
		w.wait(10 * time.Second)
		w.retry("d17.example", 1)
		w.m.stop()
		files, _ := filepath.Glob(filepath.Join(w.base, queue.Index, "*"))
		sum := int64(0)
		for _, f := range files {
			sum += size(f)
		}
		if sum > 1000 {
			t.Errorf("%d octets", sum)
		}
	})
}

// TestIndexEnds: nothing is left of the index when its messages are gone, and
// memory does not grow with it.
func TestIndexEnds(t *testing.T) {
	in(t, "queue: {retry: {min: 5m, max: 10m}}\n", func(w *world) {
		w.backlog(2000, 2000)
		w.m.index.mu.Lock()
		if w.m.index.buffered > indexBuffer {
			t.Errorf("%d octets in memory", w.m.index.buffered)
		}
		w.m.index.mu.Unlock()
		w.set(func() { w.answer = func(envelope.Recipient) delivery.Result { return success } })
		w.wait(time.Hour)
		w.expect("")
		w.m.stop()
		files, _ := filepath.Glob(filepath.Join(w.base, queue.Index, "*"))
		if len(files) > 0 || w.m.index.buffered != 0 || len(w.m.index.shelves) > 0 {
			t.Errorf("left: %v, %d octets, %d shelves", files, w.m.index.buffered, len(w.m.index.shelves))
		}
	})
}

// TestSeen: a message that is where it was seen is not looked for; one that is
// elsewhere is found all the same, and what is selected is all that is touched.
func TestSeen(t *testing.T) {
	in(t, "queue: {retry: {min: 1h}}\n", func(w *world) {
		w.backlog(200, 10)
		var ids []queueid.ID
		var where []int64
		first := w.buckets()[0]
		due, err := queue.BucketDue(filepath.Base(first))
		if err := errors.Join(err, os.Rename(first, filepath.Join(filepath.Dir(first), beyondBucket(due, true)))); err != nil {
			t.Fatal(err)
		}
		for _, b := range w.buckets() {
			due, err := queue.BucketDue(filepath.Base(b))
			if err != nil {
				t.Fatal(err)
			}
			names, err := os.ReadDir(b)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range names {
				id, err := queueid.Parse(n.Name())
				if err != nil {
					t.Fatal(err)
				}
				ids, where = append(ids, id), append(where, due.Unix())
			}
		}
		read := 0
		w.m.spool.disk = striking(func(call string, _ queueid.ID) error {
			if call == "readdir" {
				read++
			}
			return nil
		})
		do := func(op queuectl.Op, ids []queueid.ID, where []int64) {
			t.Helper()
			if reply := w.m.control(queuectl.Request{Op: op, IDs: ids, Buckets: where}); int(reply.Done) != len(ids) || len(reply.Missing) > 0 {
				t.Errorf("%+v", reply)
			}
		}
		do(queuectl.Delete, ids[:80], where[:80])
		do(queuectl.Hold, ids[80:140], where[80:140])
		if read != 0 {
			t.Errorf("%d directories were read", read)
		}
		slices.Reverse(where)
		do(queuectl.Hold, ids[150:], where[:len(ids)-150])
		do(queuectl.Hold, ids[149:150], nil)
		if got := w.where(); strings.Count(got, queue.Deferred) != 9 || strings.Count(got, queue.Hold) != 111 {
			t.Errorf("files in %s", got)
		}
		w.m.spool.disk = nil
		w.m.stop()
	})
}

// FuzzKey: what is equal but for case has one key.
func FuzzKey(f *testing.F) {
	f.Add("Example.ORG", "eXample.org")
	f.Add("\u212aelvin.example", "kelvin.example")
	f.Add("\u017f.example", "S.example")
	f.Add("stra\u00dfe.example", "stra\u1e9ee.example")
	f.Fuzz(func(t *testing.T, a, b string) {
		if strings.EqualFold(a, b) && keyOf(a) != keyOf(b) || keyOf(a) == anyKey {
			t.Errorf("%q %x, %q %x", a, keyOf(a), b, keyOf(b))
		}
	})
}

// FuzzSeal: what is taken is what would be written.
func FuzzSeal(f *testing.F) {
	f.Add(encodeSeal(nil))
	f.Add(encodeSeal([]sealed{{"1790000040", 1790000000123456789, 2 * entryLen, 7}, {"0000000060", -1, 0, 0}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeSeal(b)
		if err != nil && list != nil || err == nil && string(encodeSeal(list)) != string(b) {
			t.Errorf("%v, %v", list, err)
		}
	})
}

// BenchmarkDefer is the way of a message through qmgr that ends in deferred/: the
// CPU for each.
func BenchmarkDefer(b *testing.B) {
	w := newWorld(b, maillog.New("qmgr"), "queue: {retry: {min: 1h, max: 4h}}\n")
	w.answer = func(envelope.Recipient) delivery.Result { return full }
	const n = 2000
	cpu := time.Duration(0)
	for k := range b.N {
		for i := range n {
			w.put(queue.Incoming, uint32(k*n+i), fmt.Sprintf("u@d%d.example", i%100))
		}
		before := used(b)
		if k == 0 {
			w.m.start()
		} else {
			w.m.look()
		}
		for busy := true; busy; time.Sleep(time.Millisecond) {
			w.m.mu.Lock()
			busy = len(w.m.known) > 0 || w.m.scan
			w.m.mu.Unlock()
		}
		cpu += used(b) - before
	}
	b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N*n), "cpu-ns/message")
	w.m.stop()
}

func used(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestDestinationCut: a question about a destination for which much has to be looked
// through does not keep the daemon from going.
func TestDestinationCut(t *testing.T) {
	for _, whole := range []bool{false, true} {
		in(t, "queue: {retry: {min: 1h}}\n", func(w *world) {
			w.backlog(100, 1)
			if !whole {
				w.m.stop()
				if err := os.RemoveAll(filepath.Join(w.base, queue.Index)); err != nil {
					t.Fatal(err)
				}
				w.boot(w.m.config())
				w.m.start()
			}
			looked := 0
			w.m.ending = func() bool { looked++; return looked > 20 }
			r := queuectl.Request{Op: queuectl.Retry, Destination: "d0.example"}
			if reply := w.m.control(r); reply.Done > 20 || reply.Err == nil {
				t.Errorf("%+v", reply)
			}
			w.m.stop()
		})
	}
}
