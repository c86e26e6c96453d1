// Package table looks things up in plain files that are picked up when they
// change: no compile step, no restart.
//
// A lookup has three outcomes, and they are never confused: found, not found,
// and could not look.
package table

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// MaxFile is the largest table, in octets.
const MaxFile = 64 << 20

// checkEvery is how often a file is looked at, at most.
const checkEvery = time.Second

// settle is how long a file must stay as it is, or away, before it takes the
// place of what was read before: editors and scripts write in steps, and half a
// table would refuse the mail of those in the other half.
const settle = 3 * time.Second

// File is the content of a file, parsed, and parsed again when the file has
// changed and been quiet for some seconds. A missing file is an empty one, once
// it has been gone for as long; a link that leads nowhere is an error. Where a changed
// file is broken, the old content stays in force and onError hears of it, once.
type File[T any] struct {
	path    string
	parse   func(path string, b []byte) (T, error)
	onError func(error)
	now     func() time.Time

	content atomic.Pointer[content[T]]
	checked atomic.Int64 // when the file was last looked at, in ns
	mu      sync.Mutex
	said    string    // the last error that onError has heard of
	next    stamp     // of a file that has changed
	since   time.Time // when next was first seen
}

type content[T any] struct {
	value T
	err   error // nothing has been read yet that could be used
	stamp stamp
}

// stamp tells two states of a file apart. The zero value is that of no file that
// was read.
type stamp struct {
	missing bool
	info    fs.FileInfo // nil where there is no file
}

func (s stamp) same(other stamp) bool {
	if s.info == nil || other.info == nil {
		return s.info == nil && other.info == nil && s.missing == other.missing
	}
	return os.SameFile(s.info, other.info) && s.info.Size() == other.info.Size() && s.info.ModTime().Equal(other.info.ModTime())
}

// NewFile returns a File; it reads nothing yet.
func NewFile[T any](path string, parse func(path string, b []byte) (T, error), onError func(error)) *File[T] {
	return &File[T]{path: path, parse: parse, onError: onError, now: time.Now}
}

// Get returns the content in force. The error is that nothing is known: the file
// could not be read, or was broken from the start.
func (f *File[T]) Get() (T, error) {
	now := f.now()
	last := f.checked.Load()
	c := f.content.Load()
	// The clock may have been set back since.
	if ago := time.Duration(now.UnixNano() - last); c == nil || ago.Abs() >= checkEvery && f.checked.CompareAndSwap(last, now.UnixNano()) {
		f.refresh(now)
		c = f.content.Load()
	}
	return c.value, c.err
}

// refresh reads the file if it has changed.
func (f *File[T]) refresh(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.checked.Store(now.UnixNano())
	old := f.content.Load()
	s, err := stampOf(f.path)
	if err == nil && old != nil {
		// Where nothing is known, something is better.
		known := old.err == nil && !old.stamp.missing
		if quiet := f.quiet(s, now); old.stamp.same(s) || known && !quiet {
			return
		}
	}
	fresh := &content[T]{stamp: s, err: err}
	if err == nil {
		fresh.value, fresh.err = f.read(s)
	}
	if fresh.err == nil {
		f.said = ""
		f.content.Store(fresh)
		return
	}
	if fresh.err.Error() != f.said {
		f.said = fresh.err.Error()
		f.onError(fresh.err)
	}
	// What could not be read may be readable the next time, without a change.
	if errors.As(fresh.err, new(*fs.PathError)) {
		s, fresh.stamp = stamp{}, stamp{}
	}
	if old != nil && old.err == nil {
		f.content.Store(&content[T]{value: old.value, stamp: s})
		return
	}
	f.content.Store(fresh)
}

// quiet reports whether a file with the stamp s has stayed as it is for long
// enough.
func (f *File[T]) quiet(s stamp, now time.Time) bool {
	if !f.next.same(s) {
		f.next, f.since = s, now
	}
	return now.Sub(f.since) >= settle || s.info != nil && now.Sub(s.info.ModTime()) >= settle
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if link, target := deadLink(path); link != "" {
			return stamp{}, fmt.Errorf("table: %w (%s is a link to %s, and daemons see little of the system)", err, link, target)
		}
		return stamp{missing: true}, nil
	case err != nil:
		return stamp{}, fmt.Errorf("table: %w", err)
	case info.Mode()&fs.ModeNamedPipe != 0: // to open it would wait for a writer
		return stamp{}, fmt.Errorf("table %s: is a FIFO", path)
	}
	return stamp{info: info}, nil
}

// deadLink returns the link that is why nothing is at path, if it is one. What it leads to
// may well be there, where this daemon does not see it: then who is in the table is not
// known.
func deadLink(path string) (link, target string) {
	for {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		above := filepath.Dir(path)
		if above == path {
			return "", ""
		}
		path = above
	}
	target, err := os.Readlink(path)
	if err != nil {
		return "", "" // a directory, in which the rest is missing
	}
	return path, target
}

func (f *File[T]) read(s stamp) (value T, err error) {
	var b []byte
	if !s.missing {
		if b, err = readAll(f.path); err != nil {
			return value, err
		}
	}
	value, err = f.parse(f.path, b)
	if err != nil {
		var zero T
		return zero, err
	}
	return value, nil
}

func readAll(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("table: %w", err)
	}
	defer file.Close() // opened for reading
	b, err := io.ReadAll(io.LimitReader(file, MaxFile+1))
	if err == nil && len(b) > MaxFile {
		err = fmt.Errorf("larger than %d octets", MaxFile)
	}
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", path, err)
	}
	return b, nil
}
