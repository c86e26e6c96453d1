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

	// fault comes before every system call whose failure matters, with a word
	// for it, and makes it fail; nil outside of tests.
	fault func(call string, id queueid.ID) error
}

func (s *spool) struck(call string, id queueid.ID) error {
	if s.fault == nil {
		return nil
	}
	return s.fault(call, id)
}

// open opens a message for reading.
func (s *spool) open(d *queue.Directory, id queueid.ID) (*os.File, error) {
	if err := s.struck("open", id); err != nil {
		return nil, err
	}
	return d.Open(id)
}

func (s *spool) move(from *queue.Directory, id queueid.ID, to *queue.Directory) error {
	if err := s.struck("rename", id); err != nil {
		return err
	}
	return from.Move(id, to)
}

func (s *spool) remove(d *queue.Directory, id queueid.ID) error {
	if err := s.struck("unlink", id); err != nil {
		return err
	}
	return d.Remove(id)
}

// retire removes a message of active/ that is done. Its file may get another one,
// and whatever hinders that is no reason to keep the message.
func (s *spool) retire(id queueid.ID, q *queue.Message) error {
	if s.spares != nil && s.struck("rename", id) == nil && s.spares.Put(s.active, q, id) == nil {
		return nil
	}
	return s.remove(s.active, id)
}

// append writes an outcome into the file of a message, which is q.
func (s *spool) append(d *queue.Directory, id queueid.ID, q *queue.Message, o queue.Outcome) error {
	if err := s.struck("write", id); err != nil {
		return err
	}
	f, err := d.OpenWrite(id)
	if err != nil {
		return err
	}
	return errors.Join(q.Append(f, o), f.Close())
}

// flush makes the outcomes of a message, which is q, durable.
func (s *spool) flush(d *queue.Directory, id queueid.ID, q *queue.Message) error {
	f, err := d.OpenWrite(id)
	if err != nil {
		return err
	}
	if err = s.struck("fsync", id); err == nil {
		err = f.Sync()
	}
	return errors.Join(q.Flushed(f, err), f.Close())
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
		s.spares.Clear()
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
	if err := s.struck("readdir", queueid.ID{}); err != nil {
		return nil, nil, err
	}
	entries, err := os.ReadDir(filepath.Join(s.base, queue.Deferred))
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
		if err = s.struck("rename", queueid.ID{}); err == nil {
			err = os.Rename(filepath.Join(dir, name), filepath.Join(dir, to))
		}
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
	if err := s.struck("mkdir", id); err != nil {
		return err
	}
	path := filepath.Join(s.base, queue.Deferred, bucket)
	if err := os.Mkdir(path, 0o770); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.in(place{queue.Deferred, bucket}, func(d *queue.Directory) error { return s.move(from, id, d) })
}

// removeBucket removes a bucket if it is empty, and says whether it is gone.
func (s *spool) removeBucket(name string) bool {
	if s.struck("rmdir", queueid.ID{}) != nil {
		return false
	}
	err := os.Remove(filepath.Join(s.base, queue.Deferred, name))
	return err == nil || errors.Is(err, fs.ErrNotExist)
}

// names calls each for every message at p, with the directory. What is no queue
// ID is none of ours and is left alone.
func (s *spool) names(p place, each func(*queue.Directory, queueid.ID) error) error {
	if err := s.struck("readdir", queueid.ID{}); err != nil {
		return err
	}
	return s.in(p, func(d *queue.Directory) error {
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
