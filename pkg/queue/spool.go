package queue

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/queueid"
)

// Dir is where the queues are.
const Dir = "/var/spool/posthouse"

// The queues, each a directory.
const (
	Incoming = "incoming" // accepted by cleanup, not seen by qmgr yet
	Active   = "active"   // in qmgr's memory
	Deferred = "deferred" // in a sub-directory for the minute of the next attempt
	Hold     = "hold"     // set aside by the administrator
	Corrupt  = "corrupt"  // damaged
)

// Index is the directory beside them where qmgr keeps which deferred messages are
// for which destination.
const Index = "index"

// FileMode is the mode of queue files: nothing for others, so that a delivery
// agent cannot open its descriptor again for writing.
const FileMode = 0o660

// BucketTime is how exactly the time of the next attempt is kept in the name of
// a sub-directory of deferred/. It is rounded up: nothing is tried too early.
const BucketTime = time.Minute

// Bucket returns the name of the sub-directory of deferred/ for what is due at t.
func Bucket(t time.Time) string {
	step := int64(BucketTime / time.Second)
	n := t.Unix()
	if t.Nanosecond() > 0 {
		n++
	}
	return fmt.Sprintf("%010d", (max(n, 0)+step-1)/step*step)
}

// BucketName returns the name of a bucket by the time in it, which may be any second.
func BucketName(t time.Time) string { return fmt.Sprintf("%010d", t.Unix()) }

// BucketDue returns the time that a sub-directory of deferred/ is named for.
func BucketDue(name string) (time.Time, error) {
	n, err := strconv.ParseInt(name, 10, 64)
	if err != nil || n < 0 || fmt.Sprintf("%010d", n) != name {
		return time.Time{}, fmt.Errorf("%q is not the name of a bucket", name)
	}
	return time.Unix(n, 0), nil
}

// Directory is one directory of queue files, held open. Names in it are queue
// IDs, so no name leads anywhere else.
type Directory struct {
	f    *os.File
	name string
}

// OpenDirectory opens the directory at path, which is not a link.
func OpenDirectory(path string) (*Directory, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("queue directory: %w", err)
	}
	return &Directory{f, path}, nil
}

// Close closes the directory.
func (d *Directory) Close() error { return d.f.Close() }

func (d *Directory) wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: d.name + "/" + name, Err: err}
}

// Create makes the file of a new message; it fails if there is one. It is locked until
// LetGo, or as long as it is open: see ReadNew and IsAbandoned.
func (d *Directory) Create(id queueid.ID) (*os.File, error) {
	f, err := d.open(id, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return nil, err
	}
	if err := lock(f); errors.Is(err, unix.EWOULDBLOCK) { // it looked as if it were
		return nil, errors.Join(d.wrap("flock", id.String(), err), f.Close())
	}
	return f, nil
}

func lock(f *os.File) error { return flock(f, unix.LOCK_EX) }

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// LetGo says that f, which Create or Take has made, is a message now. To close it does
// not: a process that is being started has it open, too, until its program begins.
func LetGo(f *os.File) error { return flock(f, unix.LOCK_UN) }

// isBeingWritten reports whether the writer of f has not let go of it. It is for a file
// that has its header: before, f may be a new one that Create is about to lock, and
// could not while this looks.
func isBeingWritten(f *os.File) bool { return errors.Is(flock(f, unix.LOCK_SH), unix.EWOULDBLOCK) }

// IsAbandoned reports whether f is incomplete and nobody is writing it any more. From
// then on nobody can.
func IsAbandoned(f *os.File) bool {
	if lock(f) != nil {
		return false
	}
	_, err := readHead(&window{f: f, b: make([]byte, 0, headerLen)}, headTries) // it may just have been finished
	return errors.Is(err, ErrIncomplete)
}

// Open opens a message for reading.
func (d *Directory) Open(id queueid.ID) (*os.File, error) { return d.open(id, unix.O_RDONLY|noWait) }

// OpenWrite opens a message for reading and for appending outcomes.
func (d *Directory) OpenWrite(id queueid.ID) (*os.File, error) { return d.open(id, unix.O_RDWR|noWait) }

// Look reads a message for who does nothing with the file, by as few system calls
// as that takes. buf is memory for what is read; it is free again afterwards.
func (d *Directory) Look(id queueid.ID, buf []byte) (*Message, error) {
	fd, err := d.openat(id, unix.O_RDONLY|noWait)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(int(fd)) }() // opened for reading
	return read(&window{f: fd, b: buf[:0]}, headTries, fd.size)
}

// descriptor is a file that is read, without what package os does for those that
// may be waited for.
type descriptor int

// ReadAt takes a short read for the end of the file.
func (fd descriptor) ReadAt(p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(int(fd), p, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n < len(p):
			err = io.EOF
		}
		return max(n, 0), err
	}
}

func (fd descriptor) size() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(fd), &st); err != nil {
		return 0, fmt.Errorf("queue file: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, errNotRegular
	}
	return st.Size, nil
}

// noWait keeps a FIFO of that name from holding up who opens it.
const noWait = unix.O_NONBLOCK

func (d *Directory) open(id queueid.ID, flags int) (*os.File, error) {
	fd, err := d.openat(id, flags)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), d.name+"/"+id.String()), nil
}

func (d *Directory) openat(id queueid.ID, flags int) (descriptor, error) {
	for {
		fd, err := unix.Openat(int(d.f.Fd()), id.String(), flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, FileMode)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return descriptor(fd), d.wrap("open", id.String(), err)
	}
}

// Has reports whether there is a message of that name.
func (d *Directory) Has(id queueid.ID) bool {
	var st unix.Stat_t
	return unix.Fstatat(int(d.f.Fd()), id.String(), &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// Lacks reports whether there certainly is no message of that name.
func (d *Directory) Lacks(id queueid.ID) bool {
	var st unix.Stat_t
	return errors.Is(unix.Fstatat(int(d.f.Fd()), id.String(), &st, unix.AT_SYMLINK_NOFOLLOW), unix.ENOENT)
}

// Move makes the message appear in another directory; it is one system call.
func (d *Directory) Move(id queueid.ID, to *Directory) error {
	err := unix.Renameat(int(d.f.Fd()), id.String(), int(to.f.Fd()), id.String())
	return d.wrap("rename", id.String(), err)
}

// moveNew makes the file of old the one of a new message in another directory; it
// fails if there is one.
func (d *Directory) moveNew(old queueid.ID, to *Directory, id queueid.ID) error {
	err := unix.Renameat2(int(d.f.Fd()), old.String(), int(to.f.Fd()), id.String(), unix.RENAME_NOREPLACE)
	return d.wrap("rename", old.String(), err)
}

// Remove removes the message.
func (d *Directory) Remove(id queueid.ID) error {
	return d.wrap("unlink", id.String(), unix.Unlinkat(int(d.f.Fd()), id.String(), 0))
}

// Sync makes the names in the directory durable.
func (d *Directory) Sync() error {
	return d.wrap("fsync", "", d.f.Sync())
}

// Path returns the path by which the directory was opened.
func (d *Directory) Path() string { return d.name }

// File returns the open directory, for calls that take one.
func (d *Directory) File() *os.File { return d.f }

// Names reads the directory in pieces and calls each for every name in it,
// until each returns an error. What is added or removed meanwhile may or may
// not be seen.
func (d *Directory) Names(each func(name string) error) error {
	f, err := os.OpenFile(d.name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("queue directory: %w", err)
	}
	defer f.Close() // opened for reading
	for {
		names, err := f.Readdirnames(1000)
		for _, name := range names {
			if err := each(name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("queue directory: %w", err)
		}
	}
}
