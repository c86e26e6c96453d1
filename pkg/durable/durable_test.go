package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// fakeFS records what is durable, and fails at one call.
type fakeFS struct {
	mu      sync.Mutex
	calls   int
	failAt  int
	names   bool
	data    map[*os.File]bool // synced alone
	whole   int               // calls of SyncFS
	release chan struct{}     // nil: calls do not block
}

var errDisk = errors.New("disk")

func (f *fakeFS) call() error {
	if f.release != nil {
		<-f.release
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.calls == f.failAt {
		return errDisk
	}
	return nil
}

func (f *fakeFS) Sync(file *os.File) error {
	if err := f.call(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.data[file] = true
	return nil
}

func (f *fakeFS) SyncFS(*os.File) error {
	f.mu.Lock()
	f.whole++
	f.mu.Unlock()
	return f.call()
}

func (f *fakeFS) NamesWithData(*os.File) bool { return f.names }

func newFile(t testing.TB, n int) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprint(n)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestOne(t *testing.T) {
	file, dir := newFile(t, 1), newFile(t, 2)
	for _, names := range []bool{true, false} {
		for failAt := range 4 {
			fs := &fakeFS{names: names, failAt: failAt, data: map[*os.File]bool{}}
			err := NewCommitterFS("auto", fs).Commit(file, dir)
			steps := 2
			if names {
				steps = 1
			}
			if failed := failAt >= 1 && failAt <= steps; failed != errors.Is(err, errDisk) {
				t.Errorf("names %v, fail at %d: %v", names, failAt, err)
			}
			if err == nil && (!fs.data[file] || fs.data[dir] == names) {
				t.Errorf("names %v: synced %v", names, fs.data)
			}
		}
	}
}

// TestBatch: while a flush runs, those who come wait for one more, all together.
func TestBatch(t *testing.T) {
	const n = 50
	for _, failAt := range []int{0, 2} {
		fs := &fakeFS{names: true, failAt: failAt, data: map[*os.File]bool{}, release: make(chan struct{})}
		c := NewCommitterFS("auto", fs)
		dir := newFile(t, 0)
		errs := make(chan error, n)
		first := newFile(t, 1)
		go func() { errs <- c.Commit(first, dir) }()
		fs.release <- struct{}{} // the first runs alone
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
		go func() { errs <- c.Commit(first, dir) }()
		waitFor(c, func() bool { return c.running && len(c.waiting) == 0 })
		var files []*os.File
		for i := range n {
			files = append(files, newFile(t, i))
		}
		for _, f := range files {
			go func() { errs <- c.Commit(f, dir) }()
		}
		waitFor(c, func() bool { return len(c.waiting) == n })
		close(fs.release)
		failed := 0
		for range n + 1 {
			if err := <-errs; err != nil {
				failed++
			}
		}
		if fs.whole != 1 {
			t.Errorf("%d calls of syncfs for %d files", fs.whole, n)
		}
		if want := map[int]int{0: 0, 2: 1}[failAt]; failed != want {
			t.Errorf("fail at %d: %d of %d failed", failAt, failed, n)
		}
	}
	// The error of a syncfs is everybody's.
	fs := &fakeFS{failAt: 1, data: map[*os.File]bool{}}
	c := NewCommitterFS("syncfs", fs)
	batch := []*pending{{newFile(t, 1), newFile(t, 2), make(chan error, 1)}, {newFile(t, 3), newFile(t, 4), make(chan error, 1)}}
	c.flush(batch)
	for _, p := range batch {
		if err := <-p.done; !errors.Is(err, errDisk) {
			t.Errorf("%v", err)
		}
	}
}

func waitFor(c *Committer, cond func() bool) {
	for {
		c.mu.Lock()
		ok := cond()
		c.mu.Unlock()
		if ok {
			return
		}
	}
}

func TestKernel(t *testing.T) {
	for _, how := range []string{"auto", "fsync", "syncfs"} {
		dir, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := NewCommitter(how).Commit(newFile(t, 1), dir); err != nil {
			t.Errorf("%s: %v", how, err)
		}
	}
}

func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 10, 50} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			path := b.TempDir()
			dir, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			defer dir.Close()
			c := NewCommitter("auto")
			next := make(chan int)
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for i := range next {
						f, err := os.Create(filepath.Join(path, fmt.Sprint(i)))
						if err != nil {
							b.Error(err)
							continue
						}
						if _, err := f.Write(make([]byte, 4096)); err != nil {
							b.Error(err)
						}
						if err := c.Commit(f, dir); err != nil {
							b.Error(err)
						}
						f.Close()
					}
				})
			}
			for i := range b.N {
				next <- i
			}
			close(next)
			wg.Wait()
		})
	}
}
