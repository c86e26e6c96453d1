package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// spool is the queue on disk.
type spool struct {
	base                            string
	incoming, active, held, damaged *queue.Directory
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
	return s, nil
}

// place says where a message is: the name of a queue, or of a bucket of
// deferred/.
type place struct {
	queue  string
	bucket string // for queue.Deferred
}

// in calls f with the directory at p.
func (s *spool) in(p place, f func(*queue.Directory) error) error {
	switch p.queue {
	case queue.Incoming:
		return f(s.incoming)
	case queue.Active:
		return f(s.active)
	case queue.Hold:
		return f(s.held)
	}
	d, err := queue.OpenDirectory(filepath.Join(s.base, queue.Deferred, p.bucket))
	if err != nil {
		return err
	}
	defer d.Close()
	return f(d)
}

// buckets returns the names of the sub-directories of deferred/.
func (s *spool) buckets() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.base, queue.Deferred))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if _, err := queue.BucketDue(e.Name()); err == nil && e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// file moves a message from active/ to the bucket for t.
func (s *spool) file(id queueid.ID, t time.Time) (bucket string, err error) {
	bucket = queue.Bucket(t)
	path := filepath.Join(s.base, queue.Deferred, bucket)
	// The bucket may be removed, being empty, before the message is in it.
	for range 3 {
		if err := os.Mkdir(path, 0o770); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		err = s.in(place{queue.Deferred, bucket}, func(d *queue.Directory) error { return s.active.Move(id, d) })
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return bucket, err
}

// removeBucket removes a bucket if it is empty, and says whether it is gone.
func (s *spool) removeBucket(name string) bool {
	err := os.Remove(filepath.Join(s.base, queue.Deferred, name))
	return err == nil || errors.Is(err, fs.ErrNotExist)
}

// names calls each for every message at p. What is no queue ID is none of ours
// and is left alone.
func (s *spool) names(p place, each func(queueid.ID) error) error {
	return s.in(p, func(d *queue.Directory) error {
		return d.Names(func(name string) error {
			id, err := queueid.Parse(name)
			if err != nil {
				return nil
			}
			return each(id)
		})
	})
}

// isDamage reports whether an error of queue.Read is in the file itself, and
// not trouble that may pass, such as too many open files.
func isDamage(err error) bool {
	var errno syscall.Errno
	var path *fs.PathError
	return !errors.As(err, &errno) && !errors.As(err, &path)
}
