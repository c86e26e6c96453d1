// Package mailbox writes messages into mailboxes.
package mailbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/dsn"
)

// Syncer is what durable.Committer does.
type Syncer interface {
	// Write sees to it that no name that f is given from now on becomes durable
	// before its data.
	Write(f, dir *os.File) error
	// Commit makes a new or renamed file durable: its data, and its name in dir.
	Commit(f, dir *os.File) error
}

// Maildir delivers into Maildirs beneath one base directory, as one user.
type Maildir struct {
	base *os.File
	sync Syncer
	host string // as it appears in file names
}

// seq keeps the names of this process apart while files are written.
var seq atomic.Uint64

// Open returns a Maildir for the mail store at base. host is the name of this
// machine, which becomes part of file names.
func Open(base, host string, sync Syncer) (*Maildir, error) {
	f, err := os.OpenFile(base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mail store: %w", err)
	}
	return At(f, host, sync), nil
}

// At is Open for a base directory that is open; Close closes it.
func At(base *os.File, host string, sync Syncer) *Maildir {
	return &Maildir{base: base, sync: sync, host: inName.Replace(host)}
}

// inName takes out of a host name what the name of a file, or Maildir, gives a meaning.
var inName = strings.NewReplacer("/", `\057`, ":", `\072`)

// Close closes the mail store.
func (m *Maildir) Close() error { return m.base.Close() }

// CheckComponent reports whether s may be a part of a path in the mail store.
func CheckComponent(s string) error {
	if s == "" || s[0] == '.' || strings.ContainsAny(s, "/\x00") || len(s) > 255 {
		return fmt.Errorf("%.50q cannot be the name of a directory", s)
	}
	return nil
}

// Deliver writes a message into the Maildir at path, whose directories are made
// where they are missing. head is what delivery puts before the message; content
// has lines that end in CRLF, which become LF as is the custom in a Maildir. When
// Deliver returns nil, the message is in new/ for good; when it does not, it is
// not there. Errors are *dsn.Error.
func (m *Maildir) Deliver(path []string, head string, content io.Reader) error {
	err := m.deliver(path, head, content)
	if err == nil {
		return nil
	}
	var e *dsn.Error
	if errors.As(err, &e) {
		return e
	}
	return &dsn.Error{Status: statusOf(err), Text: fmt.Sprintf("maildir delivery failed: %s: %v", strings.Join(path, "/"), err)}
}

// statusOf tells which errors of the file system are a verdict. All but a quota
// that is used up may pass.
func statusOf(err error) dsn.Status {
	switch {
	case errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return dsn.MustParse("5.2.2")
	case errors.Is(err, unix.ENOSPC):
		return dsn.MustParse("4.3.1")
	}
	return dsn.MustParse("4.2.0")
}

func (m *Maildir) deliver(path []string, head string, content io.Reader) (err error) {
	tmp, fresh, err := m.open(path)
	if err != nil {
		return err
	}
	defer tmp.Close()
	defer fresh.Close()
	now := time.Now()
	temp := fmt.Sprintf("%d.P%dQ%d.%s", now.Unix(), os.Getpid(), seq.Add(1), m.host)
	fd, err := unix.Openat(int(tmp.Fd()), temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("create tmp/%s: %w", temp, err)
	}
	f := os.NewFile(uintptr(fd), temp)
	name, where := temp, tmp
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = unix.Unlinkat(int(where.Fd()), name, 0) // the error above is the one that tells
		}
	}()
	if err := WriteLF(f, head, content); err != nil {
		return err
	}
	// The data first: a name in new/ must never show half a message.
	if err := m.sync.Write(f, tmp); err != nil {
		return err
	}
	final, err := finalName(f, now, m.host)
	if err != nil {
		return err
	}
	err = renameNew(int(tmp.Fd()), temp, int(fresh.Fd()), final, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) {
		// Not on each file system, as NFS. The name is one that no other file has.
		err = unix.Renameat(int(tmp.Fd()), temp, int(fresh.Fd()), final)
	}
	if err != nil {
		return fmt.Errorf("rename to new/%s: %w", final, err)
	}
	name, where = final, fresh
	return m.sync.Commit(f, fresh)
}

// renameNew is a variable for tests.
var renameNew = unix.Renameat2

// finalName is unique without a look at the directory: no two files have the
// same inode at the same time.
func finalName(f *os.File, now time.Time, host string) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", fmt.Errorf("stat: %w", err)
	}
	return fmt.Sprintf("%d.V%xI%xM%06d.%s", now.Unix(), st.Dev, st.Ino, now.Nanosecond()/1000, host), nil
}

// open opens tmp/ and new/ of the Maildir at path, and makes what is missing.
//
// It walks name by name. openat2 would do it in one call, but the system call
// filters of containers refuse it as unknown.
func (m *Maildir) open(path []string) (tmp, fresh *os.File, err error) {
	at := int(m.base.Fd())
	for i, name := range path {
		if err := CheckComponent(name); err != nil {
			return nil, nil, &dsn.Error{Status: dsn.MustParse("5.1.3"), Text: err.Error()}
		}
		next, err := openSub(at, name)
		if i > 0 {
			unix.Close(at)
		}
		if err != nil {
			return nil, nil, err
		}
		at = next
	}
	if len(path) > 0 {
		defer unix.Close(at)
	}
	tmpFd, err := openSub(at, "tmp")
	if err != nil {
		return nil, nil, err
	}
	freshFd, err := openNew(at)
	if err != nil {
		unix.Close(tmpFd)
		return nil, nil, err
	}
	return os.NewFile(uintptr(tmpFd), "tmp"), os.NewFile(uintptr(freshFd), "new"), nil
}

// openNew opens new/ of the Maildir at. Where it is missing, cur/ comes with it:
// IMAP servers expect that, delivery does not use it.
func openNew(at int) (int, error) {
	fd, err := openDir(at, "new")
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if cur, err := openSub(at, "cur"); err == nil {
		unix.Close(cur)
	}
	return openSub(at, "new")
}

// openSub opens a directory and makes it where it is missing. A new directory
// is synced into its parent, for a message in it is only as durable as the path
// that leads there.
func openSub(at int, name string) (int, error) {
	for {
		fd, err := openDir(at, name)
		if !errors.Is(err, unix.ENOENT) {
			return fd, err
		}
		if err := unix.Mkdirat(at, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, fmt.Errorf("mkdir %s: %w", name, err)
		}
		if err := unix.Fsync(at); err != nil {
			return -1, fmt.Errorf("sync parent of %s: %w", name, err)
		}
	}
}

// openDir opens a directory, which is no link.
func openDir(at int, name string) (int, error) {
	for {
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return fd, nil
		case !errors.Is(err, unix.EINTR):
			return -1, fmt.Errorf("open %s: %w", name, err)
		}
	}
}

// fillPiece is the size of a buffer, in octets: half of it is read at once, and
// what becomes of that fits behind what waits to be written.
const fillPiece = 32 << 10

var buffers = sync.Pool{New: func() any { return new([2][fillPiece]byte) }}

// WriteLF writes head and content with LF for CRLF. A CR or LF alone stays.
func WriteLF(f io.Writer, head string, content io.Reader) error {
	b := buffers.Get().(*[2][fillPiece]byte)
	defer buffers.Put(b)
	in, out := b[0][:fillPiece/2], append(b[1][:0], head...)
	pending := false // a CR at the end of the last piece
	for {
		n, err := content.Read(in)
		piece := in[:n]
		if pending && n > 0 {
			if piece[0] != '\n' {
				out = append(out, '\r')
			}
			pending = false
		}
		for len(piece) > 0 {
			i := bytes.IndexByte(piece, '\r')
			if i < 0 {
				out = append(out, piece...)
				break
			}
			out = append(out, piece[:i]...)
			switch {
			case i+1 == len(piece):
				pending = true
			case piece[i+1] != '\n':
				out = append(out, '\r')
			}
			piece = piece[i+1:]
		}
		end := errors.Is(err, io.EOF)
		if end && pending {
			out = append(out, '\r')
		}
		if err != nil && !end {
			return fmt.Errorf("read the message: %w", err)
		}
		if end || len(out) >= fillPiece/2 {
			if _, err := f.Write(out); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			out = out[:0]
		}
		if end {
			return nil
		}
	}
}
