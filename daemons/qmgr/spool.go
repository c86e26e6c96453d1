package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// spool is the queue on disk.
type spool struct {
	base                            string
	incoming, active, held, damaged *queue.Directory
	spares                          *queue.Spares // nil: there is no place for them

	odd func(p place, name string) // hears of what is in the queue and none of ours; may be nil

	disk disk // nil outside of tests
}

// disk stands between qmgr and every system call whose failure matters.
type disk interface {
	// call carries out c, which is do, or fails.
	call(c call, do func() error) error
	// target is f, to which outcomes are about to be appended.
	target(c call, f *os.File) queue.Target
}

// call says what a system call does.
type call struct {
	name     string
	id       queueid.ID // of the message; zero: it is not about one
	from, to string     // paths of directories: from where, where to
}

func (s *spool) call(c call, do func() error) error {
	if s.disk == nil {
		return do()
	}
	return s.disk.call(c, do)
}

func (s *spool) target(c call, f *os.File) queue.Target {
	if s.disk == nil {
		return f
	}
	return s.disk.target(c, f)
}

// open opens a message for reading.
func (s *spool) open(d *queue.Directory, id queueid.ID) (f *os.File, err error) {
	err = s.call(call{name: "open", id: id, from: d.Path()}, func() (err error) {
		f, err = d.Open(id)
		return err
	})
	return f, err
}

func (s *spool) move(from *queue.Directory, id queueid.ID, to *queue.Directory) error {
	return s.call(call{"rename", id, from.Path(), to.Path()}, func() error { return from.Move(id, to) })
}

func (s *spool) remove(d *queue.Directory, id queueid.ID) error {
	return s.call(call{name: "unlink", id: id, from: d.Path()}, func() error { return d.Remove(id) })
}

// retire removes a message of active/ that is done. Its file may get another one,
// and whatever hinders that is no reason to keep the message.
func (s *spool) retire(id queueid.ID, q *queue.Message) error {
	if s.spares != nil {
		c := call{"rename", id, s.active.Path(), filepath.Join(s.base, queue.Spare)}
		if s.call(c, func() error { return s.spares.Put(s.active, q, id) }) == nil {
			return nil
		}
	}
	return s.remove(s.active, id)
}

// append writes an outcome into the file of a message, which is q.
func (s *spool) append(d *queue.Directory, id queueid.ID, q *queue.Message, o queue.Outcome) error {
	c := call{name: "write", id: id, from: d.Path()}
	return s.call(c, func() error {
		f, err := d.OpenWrite(id)
		if err != nil {
			return err
		}
		return errors.Join(q.Append(s.target(c, f), o), f.Close())
	})
}

// flush makes the outcomes of a message, which is q, durable.
func (s *spool) flush(d *queue.Directory, id queueid.ID, q *queue.Message) error {
	f, err := d.OpenWrite(id)
	if err != nil {
		return err
	}
	c := call{name: "fsync", id: id, from: d.Path()}
	sync := func() error { return s.call(c, f.Sync) }
	return errors.Join(q.Flush(s.target(c, f), sync), f.Close())
}

func openSpool(base string) (*spool, error) {
	s := &spool{base: base}
	for _, d := range []struct {
		name string
		to   **queue.Directory
	}{{queue.Incoming, &s.incoming}, {queue.Active, &s.active}, {queue.Hold, &s.held}, {queue.Corrupt, &s.damaged}} {
		var err error
		if *d.to, err = queue.OpenDirectory(filepath.Join(base, d.name)); err != nil {
			return nil, err
		}
	}
	sp, err := queue.OpenSpares(filepath.Join(base, queue.Spare))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	s.spares = sp
	return s, nil
}

// clearSpares has nothing left of messages that are gone.
func (s *spool) clearSpares() {
	if s.spares != nil {
		_ = s.call(call{name: "clear"}, func() error { s.spares.Clear(); return nil }) // the next process does it
	}
}

// place says where a message is: the name of a queue, or of a bucket of
// deferred/.
type place struct {
	queue  string
	bucket string // for queue.Deferred; "": none
}

func (p place) String() string { return filepath.Join(p.queue, p.bucket) }

// in calls f with the directory at p.
func (s *spool) in(p place, f func(*queue.Directory) error) error {
	switch p.queue {
	case queue.Incoming:
		return f(s.incoming)
	case queue.Active:
		return f(s.active)
	case queue.Hold:
		return f(s.held)
	case queue.Corrupt:
		return f(s.damaged)
	}
	d, err := queue.OpenDirectory(filepath.Join(s.base, queue.Deferred, p.bucket))
	if err != nil {
		return err
	}
	defer d.Close()
	return f(d)
}

// deferred returns the names of the buckets in deferred/, in order, and the
// messages that are in no bucket, where nobody would look for them.
func (s *spool) deferred() (buckets []string, strays []queueid.ID, err error) {
	var entries []os.DirEntry
	dir := filepath.Join(s.base, queue.Deferred)
	err = s.call(call{name: "readdir", from: dir}, func() (err error) {
		entries, err = os.ReadDir(dir)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if _, err := queue.BucketDue(e.Name()); err == nil && e.IsDir() {
			buckets = append(buckets, e.Name())
		} else if id, err := queueid.Parse(e.Name()); err == nil {
			strays = append(strays, id)
		} else {
			s.isOdd(place{queue: queue.Deferred}, e.Name())
		}
	}
	return buckets, strays, nil
}

// dueBucket is where messages go that the administrator wants tried now. Those
// that makeDue gives to whole buckets count on from it.
const dueBucket = "0000000000"

// maxAsked is the number of names that makeDue may give.
const maxAsked = 1_000_000

// interruptedBucket is where messages go of which the end of a process interrupted
// deliveries: as long past, but nobody has asked for them.
const interruptedBucket = "0001000000"

// isAsked reports whether a bucket is one of those.
func isAsked(bucket string) bool {
	t, err := queue.BucketDue(bucket)
	return err == nil && t.Unix() < maxAsked
}

// makeDue gives a bucket a name that is free and long past, and returns it.
func (s *spool) makeDue(name string) (to string, err error) {
	dir := filepath.Join(s.base, queue.Deferred)
	for n := 1; n < maxAsked; n++ {
		to = fmt.Sprintf("%0*d", len(dueBucket), n)
		c := call{name: "rename", from: filepath.Join(dir, name), to: filepath.Join(dir, to)}
		err = s.call(c, func() error { return os.Rename(c.from, c.to) })
		if !errors.Is(err, fs.ErrExist) { // which ENOTEMPTY is, too
			break
		}
	}
	return to, err
}

// count returns the number of messages in a bucket.
func (s *spool) count(bucket string) (n uint32, err error) {
	err = s.names(place{queue.Deferred, bucket}, func(*queue.Directory, queueid.ID) error { n++; return nil })
	return n, err
}

// file moves a message to a bucket, which is made if need be.
func (s *spool) file(from *queue.Directory, id queueid.ID, bucket string) error {
	path := filepath.Join(s.base, queue.Deferred, bucket)
	err := s.call(call{name: "mkdir", id: id, to: path}, func() error { return os.Mkdir(path, 0o770) })
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.in(place{queue.Deferred, bucket}, func(d *queue.Directory) error { return s.move(from, id, d) })
}

// removeBucket removes a bucket if it is empty, and says whether it is gone.
func (s *spool) removeBucket(name string) bool {
	path := filepath.Join(s.base, queue.Deferred, name)
	err := s.call(call{name: "rmdir", from: path}, func() error { return os.Remove(path) })
	return err == nil || errors.Is(err, fs.ErrNotExist)
}

// names calls each for every message at p, with the directory. What is no queue
// ID is none of ours and is left alone.
func (s *spool) names(p place, each func(*queue.Directory, queueid.ID) error) error {
	return s.in(p, func(d *queue.Directory) error {
		if err := s.call(call{name: "readdir", from: d.Path()}, func() error { return nil }); err != nil {
			return err
		}
		return d.Names(func(name string) error {
			id, err := queueid.Parse(name)
			switch {
			case err == nil:
				return each(d, id)
			case filepath.Join(p.queue, name) != queue.Spare:
				s.isOdd(p, name)
			}
			return nil
		})
	})
}

func (s *spool) isOdd(p place, name string) {
	if s.odd != nil {
		s.odd(p, name)
	}
}

// isDamage reports whether an error of open, or of queue.Read, is in the file
// itself, and not trouble that may pass, such as too many open files.
func isDamage(err error) bool {
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO) {
		return true // a link, or a socket, will never be a message
	}
	var errno syscall.Errno
	var path *fs.PathError
	return !errors.As(err, &errno) && !errors.As(err, &path)
}
