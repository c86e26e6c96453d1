package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/dsn"
	"posthouse/pkg/durable"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// spool is where messages go: every operation whose failure can lose one.
type spool interface {
	// create makes the file of a message; it fails if there is one.
	create(id queueid.ID) (spoolFile, error)
	// commit makes the data of f and its name durable, and lets others have it. It is
	// called once.
	commit(f spoolFile) error
	remove(id queueid.ID) error
	// free returns how many octets may still be written.
	free() (uint64, error)
	// reclaim gives up what is kept of messages that are done.
	reclaim()
}

// spoolFile is a queue file under construction.
type spoolFile interface {
	io.Writer
	io.WriterAt
	io.Closer
}

// diskSpool is incoming/.
type diskSpool struct {
	dir       *queue.Directory
	spares    *queue.Spares // nil: there is no place for them
	committer *durable.Committer

	looked sync.Once
	chmod  bool // the umask takes something away from queue.FileMode
}

func (s *diskSpool) create(id queueid.ID) (spoolFile, error) {
	if s.spares != nil {
		if f, err := s.spares.Take(s.dir, id); f != nil || err != nil {
			return f, err
		}
	}
	f, err := s.dir.Create(id)
	if err != nil {
		return nil, err
	}
	s.looked.Do(func() {
		info, err := f.Stat()
		s.chmod = err != nil || info.Mode().Perm() != queue.FileMode
	})
	if s.chmod {
		if err := f.Chmod(queue.FileMode); err != nil {
			return nil, errors.Join(err, f.Close(), s.dir.Remove(id))
		}
	}
	return f, nil
}

func (s *diskSpool) commit(f spoolFile) error {
	file, ok := f.(*os.File)
	if !ok {
		return fmt.Errorf("commit of a %T", f)
	}
	if err := s.committer.Commit(file, s.dir.File()); err != nil {
		return err
	}
	_ = queue.LetGo(file) // where it cannot be, there is no lock
	return nil
}

func (s *diskSpool) remove(id queueid.ID) error { return s.dir.Remove(id) }

func (s *diskSpool) free() (uint64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Fstatfs(int(s.dir.File().Fd()), &st)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("free space: %w", err)
		}
		return st.Bavail * uint64(st.Frsize), nil
	}
}

func (s *diskSpool) reclaim() {
	if s.spares != nil {
		s.spares.Clear()
	}
}

// diskError is what a client is told of trouble with the spool. All of it may
// pass.
func diskError(err error) *dsn.Error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return dsn.Errorf("4.3.1", "Insufficient system storage")
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return dsn.Errorf("4.3.2", "too many messages at once")
	}
	return dsn.Errorf("4.3.0", "queue file write error")
}

// idSource makes queue IDs.
type idSource struct {
	mu   sync.Mutex
	last int64 // microseconds
}

// next returns an ID whose time is now, or just after that of the one before: a
// clock that is set back must not bring an ID back.
func (s *idSource) next(now time.Time) queueid.ID {
	var b [4]byte
	rand.Read(b[:]) // never fails
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(now.UnixMicro(), s.last+1)
	return queueid.New(time.UnixMicro(s.last), binary.BigEndian.Uint32(b[:]))
}
