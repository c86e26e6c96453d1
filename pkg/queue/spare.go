package queue

import (
	"errors"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/queueid"
)

// Spare is where the files of messages that are done wait for new ones: below
// incoming/, which is all of the queue that cleanup sees.
const Spare = Incoming + "/spare"

const (
	maxSpares  = 1000                  // what more messages leave is removed,
	maxSpare   = 32 << 10              // and what is larger, in octets
	spareLooks = 20 * time.Millisecond // between looks for more
)

// Spares hands the files of old messages on to new ones. To make a file and to
// remove it is the larger part of what the disk is kept busy with for a message:
// an inode is looked for and given back, and ext4 without a journal looks at all
// that were given back in the last minutes.
//
// Whoever was handed a descriptor of the old message goes on reading that, and
// never reads the new one: a file is taken, and emptied, only if the kernel grants
// a write lease, which it does only where nobody else has the file open (fcntl(2),
// F_SETLEASE). Names are those of the old messages, so no two files ever have
// one. Of several that have opened a file, in one process or two, one gets it: who
// has it locked, and finds it where it was. The others may have been late by so much
// that it is a message already.
//
// After a power failure an old message may be where it was, or here, whole; that
// is as if its file had been removed, or had not: a journal keeps the order of
// leaving the queue, being emptied, and becoming a new message.
type Spares struct {
	dir *Directory

	mu     sync.Mutex
	looked time.Time
	names  []queueid.ID // to be taken
	count  int          // that were put, since it was looked last
}

// OpenSpares opens the directory at path.
func OpenSpares(path string) (*Spares, error) {
	d, err := OpenDirectory(path)
	if err != nil {
		return nil, err
	}
	return &Spares{dir: d, count: maxSpares}, nil
}

// Put takes a message out of the queue that nobody needs any more. On an error it
// is where it was, and has to be removed.
func (s *Spares) Put(from *Directory, m *Message, id queueid.ID) error {
	if m.size > maxSpare || !s.reserve() {
		return errors.New("enough spare queue files")
	}
	return from.Move(id, s.dir)
}

// reserve reports whether there is room for one more.
func (s *Spares) reserve() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count >= maxSpares && time.Since(s.looked) >= spareLooks {
		s.look(func(queueid.ID) {})
	}
	s.count++
	return s.count <= maxSpares
}

// look calls each for every spare file, and counts them. s.mu is held.
func (s *Spares) look(each func(queueid.ID)) {
	s.count, s.looked = 0, time.Now()
	err := s.dir.Names(func(name string) error {
		if id, err := queueid.Parse(name); err == nil {
			s.count++
			each(id)
		}
		return nil
	})
	if err != nil { // it goes without
		s.count = maxSpares
	}
}

// spareTries bounds how many files are looked at for one message.
const spareTries = 4

// Take makes a spare file the empty file of a new message, or returns nil. It
// fails if there is a message of that name.
func (s *Spares) Take(to *Directory, id queueid.ID) (*os.File, error) {
	for range spareTries {
		old, ok := s.next()
		if !ok {
			break
		}
		f, err := s.dir.OpenWrite(old)
		if err != nil {
			continue // gone, or none of ours
		}
		if s.empty(f, old) {
			err = s.dir.moveNew(old, to, id)
			if err == nil {
				return f, nil
			}
		}
		_ = f.Close() // there is nothing in it that matters
		if errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	return nil, nil
}

// next returns the name of a file that may be there.
func (s *Spares) next() (id queueid.ID, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.names) == 0 && time.Since(s.looked) >= spareLooks {
		s.look(func(id queueid.ID) { s.names = append(s.names, id) })
	}
	if len(s.names) == 0 {
		return queueid.ID{}, false
	}
	id, s.names = s.names[0], s.names[1:]
	return id, true
}

// empty locks f, opened by that name, makes it empty, and its time now, or reports
// that it is not one to be taken: taken by somebody else, open elsewhere, or not as
// queue files are.
func (s *Spares) empty(f *os.File, name queueid.ID) bool {
	var st, there unix.Stat_t
	fd := int(f.Fd())
	if lock(f) != nil || unix.Fstat(fd, &st) != nil || st.Mode != unix.S_IFREG|FileMode || st.Nlink != 1 {
		return false
	}
	// Under the lock: who takes it moves it away before letting go.
	if unix.Fstatat(int(s.dir.f.Fd()), name.String(), &there, unix.AT_SYMLINK_NOFOLLOW) != nil || there.Ino != st.Ino || there.Dev != st.Dev {
		return false
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		return false // or of another owner, or on a file system without leases
	}
	err := f.Truncate(0)
	// Kept, the lease would have those wait who open the message.
	_, end := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	return err == nil && end == nil
}

// Clear removes all spare files.
func (s *Spares) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look(func(id queueid.ID) { _ = s.dir.Remove(id) })     // else it is taken at this moment, or there the next time
	s.count, s.looked, s.names = maxSpares, time.Time{}, nil // look again
}
