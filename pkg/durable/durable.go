// Package durable makes files survive a power failure, many at once.
//
// A Committer collects what waits while a flush runs, and serves all of it with
// the next: under load one flush of the disk does for many messages, and a
// message that comes alone waits for nobody.
package durable

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// FS is every operation whose failure can lose mail.
type FS interface {
	// Sync makes the data of f, and its size, durable.
	Sync(f *os.File) error
	// SyncFS makes everything in the file system of f durable.
	SyncFS(f *os.File) error
	// NamesWithData reports whether Sync of a file also makes the name durable
	// that it has got since it was last synced.
	NamesWithData(dir *os.File) bool
}

// A batch of up to smallBatch files is synced one by one, at the same time, so
// that the file system can merge their commits; a larger one by one syncfs.
const smallBatch = 2

// Committer makes files durable.
type Committer struct {
	fs     FS
	always string // "fsync", "syncfs" or "auto"

	mu      sync.Mutex
	waiting []*pending
	running bool
}

type pending struct {
	file, dir *os.File
	done      chan error
}

// NewCommitter returns a Committer; how is "fsync" (each file by itself),
// "syncfs" (the file system, once for a batch) or "auto" (what fits the batch).
// syncfs also waits for what other programs have written to the file system.
func NewCommitter(how string) *Committer { return NewCommitterFS(how, kernel{}) }

// NewCommitterFS is NewCommitter on something else than the kernel.
func NewCommitterFS(how string, fs FS) *Committer { return &Committer{fs: fs, always: how} }

// Commit returns when the data of f and its name in dir are durable. After an
// error they may be or not, and another attempt must not be trusted: the kernel
// reports a lost write once.
func (c *Committer) Commit(f, dir *os.File) error {
	p := &pending{f, dir, make(chan error, 1)}
	c.mu.Lock()
	c.waiting = append(c.waiting, p)
	lead := !c.running
	c.running = true
	c.mu.Unlock()
	if lead {
		// Whoever comes first works for all until nobody waits.
		c.flushAll()
	}
	return <-p.done
}

// flushAll flushes batches until none is waiting. Once its own file is done it
// leaves the rest to a goroutine, so that its caller does not wait for others.
func (c *Committer) flushAll() {
	batch := c.take()
	c.flush(batch)
	c.mu.Lock()
	more := len(c.waiting) > 0
	c.running = more
	c.mu.Unlock()
	if more {
		go c.flushRest()
	}
}

func (c *Committer) flushRest() {
	for {
		c.flush(c.take())
		c.mu.Lock()
		if len(c.waiting) == 0 {
			c.running = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
	}
}

func (c *Committer) take() []*pending {
	c.mu.Lock()
	defer c.mu.Unlock()
	batch := c.waiting
	c.waiting = nil
	return batch
}

func (c *Committer) flush(batch []*pending) {
	if c.always == "syncfs" || c.always == "auto" && len(batch) > smallBatch {
		c.flushTogether(batch)
		return
	}
	var wg sync.WaitGroup
	for _, p := range batch[1:] {
		wg.Go(func() { p.done <- c.flushOne(p) })
	}
	batch[0].done <- c.flushOne(batch[0])
	wg.Wait()
}

func (c *Committer) flushOne(p *pending) error {
	if err := c.fs.Sync(p.file); err != nil {
		return fmt.Errorf("fsync: %w", err)
	}
	if c.fs.NamesWithData(p.dir) {
		return nil
	}
	if err := c.fs.Sync(p.dir); err != nil {
		return fmt.Errorf("fsync of the directory: %w", err)
	}
	return nil
}

// flushTogether syncs each file system that the batch is on, once. Its error is
// that of every file on it: the kernel does not say whose data was lost. Since
// Linux 5.8 syncfs reports a write that has failed since the descriptor that it
// is called on was opened; the oldest of the batch is the first, and the data of
// all the others was written after that one was opened or fails in the call.
func (c *Committer) flushTogether(batch []*pending) {
	results := make(map[uint64]error)
	for _, p := range batch {
		dev, err := device(p.file)
		if err == nil {
			if _, ok := results[dev]; !ok {
				results[dev] = c.fs.SyncFS(p.file)
			}
			err = results[dev]
		}
		if err != nil {
			err = fmt.Errorf("syncfs: %w", err)
		}
		p.done <- err
	}
}

func device(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat: %w", err)
	}
	return st.Dev, nil
}

// kernel is the real FS.
type kernel struct{}

func (kernel) Sync(f *os.File) error { return f.Sync() }

func (kernel) SyncFS(f *os.File) error {
	for {
		err := unix.Syncfs(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// NamesWithData knows the journaling file systems whose fsync of a file commits
// the transaction that gave it its name. POSIX does not promise that, so on any
// other file system the directory is synced too.
func (kernel) NamesWithData(dir *os.File) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return false
	}
	switch int64(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	}
	return false
}
