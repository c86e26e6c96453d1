// Package durable makes files survive a power failure, many at once.
//
// A Committer flushes a few files at once, whose commits the file system merges.
// What has to wait for them is collected, and served with the next: under load
// one flush of the disk does for many messages, and a message that comes alone
// waits for nobody. Nothing ever waits for company.
package durable

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// fileSystem is every operation of the kernel whose failure can lose mail.
type fileSystem interface {
	// sync makes the data of f, and its size, durable.
	sync(f *os.File) error
	// write has the data of f on its way to the disk, with room for it allotted,
	// and waits until the disk has it. It is not durable by that.
	write(f *os.File) error
	// syncAll makes everything in the file system of dir durable.
	syncAll(dir *os.File) error
	// writeError reports that data of f could not be written since f was
	// opened, or since this was last asked. It writes nothing.
	writeError(f *os.File) error
	// traits says what dir is on.
	traits(dir *os.File) (traits, error)
}

// traits are what a Committer knows of a file system. The zero value promises
// nothing.
type traits struct {
	device        uint64
	namesWithData bool // fsync of a new or renamed file makes its name durable, too
	ordered       bool // what write was called for is durable no later than a name that the file is given then
	batches       bool // syncfs costs about as much as one fsync
}

// parallel is how many files of a file system are synced one by one at the same
// time, so that the file system can merge their commits. Only what gathers beyond
// that is worth a syncfs: it writes what all programs have changed, the journal
// of the system's log above all, whose pages then have to be made writable again
// one by one. With 10 writers that was a third of the whole cost of a message.
const parallel = 8

// Committer makes files durable.
type Committer struct {
	fs  fileSystem
	how string

	mu     sync.Mutex
	queues map[uint64]*line // by device, while a flush of it runs
}

// line is what goes on at one file system.
type line struct {
	running int        // flushes
	whole   bool       // one of them is a syncfs
	waiting []*request // what comes next
}

type request struct {
	file, dir *os.File
	done      chan error // with room for one
}

// NewCommitter returns a Committer; how is "fsync" (each file by itself),
// "syncfs" (the file system, once for many files) or "auto" (what fits the number
// of files and the file system). syncfs also waits for what other programs have
// written to the file system.
func NewCommitter(how string) *Committer { return newCommitter(how, kernel{}) }

func newCommitter(how string, fs fileSystem) *Committer {
	return &Committer{fs: fs, how: how, queues: make(map[uint64]*line)}
}

// Commit returns when the data of f is durable, and its name in dir. f has been
// open since before its first octet was written.
//
// After an error both may be durable or not. The caller gives the file up: to
// try again would be wrong, since the kernel reports a lost write once, and then
// takes the file for clean.
func (c *Committer) Commit(f, dir *os.File) error {
	t, err := c.fs.traits(dir)
	if err != nil {
		return err
	}
	if c.how == "fsync" || c.how != "syncfs" && !t.batches {
		return c.commitOne(f, dir, t)
	}
	most := parallel
	if c.how == "syncfs" {
		most = 1
	}
	r := &request{f, dir, make(chan error, 1)}
	c.mu.Lock()
	l := c.queues[t.device]
	if l == nil {
		l = new(line)
		c.queues[t.device] = l
	}
	full := l.running == most
	if full {
		l.waiting = append(l.waiting, r)
	} else {
		l.running++
	}
	c.mu.Unlock()
	if !full {
		if next := c.flush([]*request{r}, t); next != nil {
			// This caller has got what it wanted.
			go c.flushAll(next, t)
		}
	}
	return <-r.done
}

// Write returns when no name that f is given from now on can become durable
// before its data: after a power failure a renamed file is whole, or is not
// renamed. That may be all that there is, and Commit has to follow; but where the
// file system keeps such an order no flush of the disk is spent on it. dir is in
// the same file system.
func (c *Committer) Write(f, dir *os.File) error {
	t, err := c.fs.traits(dir)
	if err != nil {
		return err
	}
	if !t.ordered {
		return c.Commit(f, dir)
	}
	if err := c.fs.write(f); err != nil {
		return fmt.Errorf("sync_file_range: %w", err)
	}
	return nil
}

// next takes what has gathered while a flush of n files ran: one, or all of many.
// With nothing there, the flush was the last, and the next to come flushes by
// itself.
//
// No two syncfs run at a time: the kernel tells of a failed write once for each
// descriptor of a directory, and so one would hear of what the other has lost.
func (c *Committer) next(device uint64, n int) []*request {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.queues[device]
	if n > 1 {
		l.whole = false
	}
	take := len(l.waiting)
	if take == 0 {
		if l.running--; l.running == 0 {
			delete(c.queues, device)
		}
		return nil
	}
	if c.how != "syncfs" && (take <= parallel || l.whole) {
		take = 1
	}
	l.whole = l.whole || take > 1
	next := l.waiting[:take:take]
	l.waiting = l.waiting[take:]
	return next
}

func (c *Committer) flushAll(requests []*request, t traits) {
	for requests != nil {
		requests = c.flush(requests, t)
	}
}

// flush serves requests on one file system, each with its own verdict, and returns
// what is to be served next.
func (c *Committer) flush(requests []*request, t traits) []*request {
	if c.how == "syncfs" || len(requests) > 1 {
		c.commitAll(requests)
	} else {
		r := requests[0]
		r.done <- c.commitOne(r.file, r.dir, t)
	}
	return c.next(t.device, len(requests))
}

func (c *Committer) commitOne(f, dir *os.File, t traits) error {
	if err := c.fs.sync(f); err != nil {
		return fmt.Errorf("fsync: %w", err)
	}
	if t.namesWithData {
		return nil
	}
	if err := c.fs.sync(dir); err != nil {
		return fmt.Errorf("fsync of the directory: %w", err)
	}
	return nil
}

// commitAll serves requests with one syncfs. If that fails nobody knows for
// whom, so it has failed for all of them.
//
// When it succeeds each file is asked for its own error. syncfs reports, since
// Linux 5.8, that a write failed anywhere on the file system since the descriptor
// was opened or last asked; but the kernel may have tried to write a large file
// long before its turn, and then a syncfs for others has been told of it, or the
// descriptor that is used now is too young. The error that is kept with the open
// file misses nothing.
func (c *Committer) commitAll(requests []*request) {
	all := c.fs.syncAll(requests[0].dir)
	for _, r := range requests {
		err := all
		if err == nil {
			err = c.fs.writeError(r.file)
		}
		if err != nil {
			err = fmt.Errorf("syncfs: %w", err)
		}
		r.done <- err
	}
}

// kernel is the real fileSystem.
type kernel struct{}

func (kernel) sync(f *os.File) error { return f.Sync() }

func (kernel) write(f *os.File) error {
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	return retry(f, func(fd int) error { return unix.SyncFileRange(fd, 0, 0, all) })
}

func (kernel) syncAll(dir *os.File) error {
	return retry(dir, func(fd int) error { return unix.Syncfs(fd) })
}

// writeError waits for writes that are under way, of which there are none after
// a syncfs; what matters is that this system call, like fsync, reports the errors
// of the file since they were last reported.
func (kernel) writeError(f *os.File) error {
	return retry(f, func(fd int) error { return unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE) })
}

// traits knows the journaling file systems whose fsync commits the transaction
// that gave a file its name. POSIX does not promise that. ext2 and ext3 have
// the number of ext4, whose driver serves them and syncs the directory where
// there is no journal. The journals are ordered, too: the room and the size that
// a file got when its data was written are in no later transaction than a rename
// that follows, and the disk is flushed before a transaction counts. Without a
// journal (ext2) there is no order, and nothing that a mail system could do to
// a rename. A syncfs on btrfs is a commit of all its trees, far dearer
// than an fsync.
func (kernel) traits(dir *os.File) (traits, error) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	err := retry(dir, func(fd int) error { return errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &fs)) })
	if err != nil {
		return traits{}, fmt.Errorf("file system: %w", err)
	}
	t := traits{device: st.Dev}
	switch int64(fs.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC:
		t.namesWithData, t.ordered, t.batches = true, true, true
	case unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		t.namesWithData = true
	}
	return t, nil
}

// retry makes a system call on f until no signal interrupts it.
func retry(f *os.File, call func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var inner error
		if err := raw.Control(func(fd uintptr) { inner = call(int(fd)) }); err != nil {
			return err
		}
		if !errors.Is(inner, unix.EINTR) {
			return inner
		}
	}
}
