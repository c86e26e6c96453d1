package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// fakeFS records what is durable, and fails where it is told to.
type fakeFS struct {
	traitsOf traits
	failAt   int                // the call of sync or syncAll that fails, from 1
	lost     map[*os.File]bool  // files with a write error of their own
	gate     chan chan struct{} // nil: flushes do not wait

	writeFails error

	mu     sync.Mutex
	calls  int
	synced map[*os.File]int
	whole  int
	inAll  int // calls of syncAll that have not returned

	written int
}

var errDisk = errors.New("disk")

func (f *fakeFS) call() error {
	if f.gate != nil {
		open := make(chan struct{})
		f.gate <- open
		<-open
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.calls == f.failAt {
		return errDisk
	}
	return nil
}

func (f *fakeFS) sync(file *os.File) error {
	err := f.call()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.synced == nil {
		f.synced = make(map[*os.File]int)
	}
	f.synced[file]++
	return err
}

func (f *fakeFS) write(file *os.File) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.written++
	return f.writeFails
}

func (f *fakeFS) syncAll(*os.File) error {
	f.mu.Lock()
	f.inAll++
	f.mu.Unlock()
	err := f.call()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inAll--
	f.whole++
	return err
}

func (f *fakeFS) writeError(file *os.File) error {
	if f.lost[file] {
		return errDisk
	}
	return nil
}

func (f *fakeFS) traits(*os.File) (traits, error) { return f.traitsOf, nil }

func files(n int) []*os.File {
	list := make([]*os.File, n)
	for i := range list {
		list[i] = new(os.File)
	}
	return list
}

func TestOne(t *testing.T) {
	file, dir := new(os.File), new(os.File)
	for _, how := range []string{"auto", "fsync", "nonsense"} {
		for _, tr := range []traits{{}, {namesWithData: true}, {namesWithData: true, batches: true}} {
			for failAt := range 3 {
				fs := &fakeFS{traitsOf: tr, failAt: failAt}
				err := newCommitter(how, fs).Commit(file, dir)
				steps := 2
				if tr.namesWithData {
					steps = 1
				}
				if failed := failAt >= 1 && failAt <= steps; failed != errors.Is(err, errDisk) {
					t.Errorf("%s, %+v, fail at %d: %v", how, tr, failAt, err)
				}
				if err == nil && (fs.synced[file] != 1 || (fs.synced[dir] == 1) == tr.namesWithData || fs.whole != 0) {
					t.Errorf("%s, %+v: synced %v", how, tr, fs.synced)
				}
				if err != nil && fs.synced[file] != 1 {
					t.Errorf("%s, %+v: fsync was tried again after an error", how, tr)
				}
			}
		}
	}
}

// commitDuringFlush has as many files flushed as can be at once, and commits n
// more while that lasts; it returns their verdicts.
func commitDuringFlush(fs *fakeFS, how string, list []*os.File) []error {
	fs.gate = make(chan chan struct{})
	c := newCommitter(how, fs)
	var wg sync.WaitGroup
	var first []chan struct{}
	for range atOnce(how) {
		wg.Go(func() { _ = c.Commit(new(os.File), new(os.File)) })
		first = append(first, <-fs.gate)
	}
	errs := make([]error, len(list))
	for i, f := range list {
		wg.Go(func() { errs[i] = c.Commit(f, new(os.File)) })
	}
	for waiting := 0; waiting < len(list); runtime.Gosched() {
		c.mu.Lock()
		waiting = len(c.queues[fs.traitsOf.device].waiting)
		c.mu.Unlock()
	}
	for _, open := range first {
		close(open)
	}
	for over := 0; over < len(first); runtime.Gosched() { // the next ones wait at the gate
		fs.mu.Lock()
		over = fs.calls
		fs.mu.Unlock()
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	for {
		select {
		case open := <-fs.gate:
			close(open)
		case <-done:
			return errs
		}
	}
}

func atOnce(how string) int {
	if how == "syncfs" {
		return 1
	}
	return parallel
}

// TestBatch: while flushes run, those who come wait for the next: a few for one
// each, many for one together.
func TestBatch(t *testing.T) {
	ext4 := traits{device: 1, namesWithData: true, batches: true}
	for _, tt := range []struct {
		how          string
		traits       traits
		n            int
		whole, calls int
	}{
		{"auto", ext4, 1, 0, parallel + 1},
		{"auto", ext4, parallel, 0, 2 * parallel},
		{"auto", ext4, parallel + 1, 1, parallel + 1},
		{"auto", ext4, 50, 1, parallel + 1},
		{"syncfs", ext4, 1, 2, 2},
		{"syncfs", traits{}, 50, 2, 2},
	} {
		fs := &fakeFS{traitsOf: tt.traits}
		for i, err := range commitDuringFlush(fs, tt.how, files(tt.n)) {
			if err != nil {
				t.Errorf("%+v: file %d: %v", tt, i, err)
			}
		}
		if fs.whole != tt.whole || fs.calls != tt.calls {
			t.Errorf("%+v: %d calls of syncfs, %d in all", tt, fs.whole, fs.calls)
		}
	}
}

// TestOneSyncfs: while a syncfs runs, what gathers is synced one by one.
func TestOneSyncfs(t *testing.T) {
	fs := &fakeFS{traitsOf: traits{device: 1, namesWithData: true, batches: true}, gate: make(chan chan struct{})}
	c := newCommitter("auto", fs)
	until := func(what string, holds func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; runtime.Gosched() {
			c.mu.Lock()
			fs.mu.Lock()
			ok := holds()
			fs.mu.Unlock()
			c.mu.Unlock()
			if ok {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("not %s: %d wait", what, len(c.queues[1].waiting))
			}
		}
	}
	var wg sync.WaitGroup
	commit := func() { wg.Go(func() { _ = c.Commit(new(os.File), new(os.File)) }) }
	var first []chan struct{}
	for range parallel {
		commit()
		first = append(first, <-fs.gate)
	}
	gather := func() {
		for range parallel + 1 {
			commit()
		}
		until("all there", func() bool { return len(c.queues[1].waiting) == parallel+1 })
	}
	gather()
	close(first[0])
	until("a syncfs", func() bool { return fs.inAll == 1 })
	gather()
	close(first[1])
	until("one more fsync", func() bool { return len(c.queues[1].waiting) == parallel })
	for _, open := range first[2:] {
		close(open)
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	for {
		select {
		case open := <-fs.gate:
			close(open)
		case <-done:
			return
		}
	}
}

// TestWrite: an order is had for a flush where the file system has none.
func TestWrite(t *testing.T) {
	file, dir := new(os.File), new(os.File)
	for _, tt := range []struct {
		fs             *fakeFS
		written, calls int
		fails          bool
	}{
		{&fakeFS{traitsOf: traits{namesWithData: true, ordered: true, batches: true}}, 1, 0, false},
		{&fakeFS{traitsOf: traits{ordered: true}, writeFails: errDisk}, 1, 0, true},
		{&fakeFS{traitsOf: traits{namesWithData: true}}, 0, 1, false},
		{&fakeFS{}, 0, 2, false},
		{&fakeFS{failAt: 1}, 0, 1, true},
	} {
		err := newCommitter("auto", tt.fs).Write(file, dir)
		if errors.Is(err, errDisk) != tt.fails || tt.fs.written != tt.written || tt.fs.calls != tt.calls {
			t.Errorf("%+v: %v, %d writes, %d flushes", tt.fs.traitsOf, err, tt.fs.written, tt.fs.calls)
		}
	}
}

// TestBatchErrors: a failed syncfs is everybody's, a lost write is its file's.
func TestBatchErrors(t *testing.T) {
	ext4 := traits{device: 1, namesWithData: true, batches: true}
	for _, err := range commitDuringFlush(&fakeFS{traitsOf: ext4, failAt: parallel + 1}, "auto", files(10)) {
		if !errors.Is(err, errDisk) {
			t.Errorf("after a failed syncfs: %v", err)
		}
	}
	list := files(10)
	for i, err := range commitDuringFlush(&fakeFS{traitsOf: ext4, lost: map[*os.File]bool{list[3]: true}}, "auto", list) {
		if (i == 3) != errors.Is(err, errDisk) {
			t.Errorf("file %d: %v", i, err)
		}
	}
	failed := 0
	for _, err := range commitDuringFlush(&fakeFS{traitsOf: ext4, failAt: parallel + 1}, "auto", files(parallel)) {
		if err != nil {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d failed with one fsync", failed)
	}
}

// TestIdle: nothing is left behind when nobody waits.
func TestIdle(t *testing.T) {
	c := newCommitter("auto", &fakeFS{traitsOf: traits{batches: true}})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				if err := c.Commit(new(os.File), new(os.File)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for n := 1; n > 0; runtime.Gosched() {
		c.mu.Lock()
		n = len(c.queues)
		c.mu.Unlock()
	}
}

func TestKernel(t *testing.T) {
	for _, how := range []string{"auto", "fsync", "syncfs"} {
		path := t.TempDir()
		dir, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		c := NewCommitter(how)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				f, err := os.Create(filepath.Join(path, fmt.Sprint(i)))
				if err == nil {
					_, err = f.WriteString("content")
				}
				if err == nil {
					err = c.Write(f, dir)
				}
				if err == nil {
					err = c.Commit(f, dir)
				}
				if err != nil {
					t.Errorf("%s: %v", how, err)
				}
				f.Close()
				if err := c.Write(f, dir); err == nil {
					t.Errorf("%s: a closed file was written", how)
				}
				if err := c.Commit(f, dir); err == nil {
					t.Errorf("%s: a closed file was made durable", how)
				}
			})
		}
		wg.Wait()
		dir.Close()
	}
}

func BenchmarkCommit(b *testing.B) {
	for _, how := range []string{"auto", "fsync", "syncfs"} {
		for _, writers := range []int{1, 2, 3, 10, 50} {
			b.Run(fmt.Sprintf("%s/writers=%d", how, writers), func(b *testing.B) { benchmarkCommit(b, how, writers) })
		}
	}
}

func benchmarkCommit(b *testing.B, how string, writers int) {
	path := b.TempDir()
	dir, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer dir.Close()
	c := NewCommitter(how)
	next := make(chan int)
	content := make([]byte, 4096)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for i := range next {
				f, err := os.Create(filepath.Join(path, fmt.Sprint(i)))
				if err != nil {
					b.Error(err)
					continue
				}
				if _, err := f.Write(content); err != nil {
					b.Error(err)
				}
				if err := c.Commit(f, dir); err != nil {
					b.Error(err)
				}
				f.Close()
			}
		})
	}
	b.ResetTimer()
	for i := range b.N {
		next <- i
	}
	close(next)
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "files/s")
}
