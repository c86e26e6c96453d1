package mailbox

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/dsn"
)

// Mbox is a mailbox file: messages one after the other, each behind a line that
// begins with "From ". Whoever reads and removes them locks the file, as we do.
//
// Everything is done beneath one directory that is open, and nothing through a
// link: who has rights in the directory may put anything there at any time.
type Mbox struct {
	Dir   *os.File
	Name  string // in Dir
	Owner uint32 // the file belongs to this user, or is made by it
	Limit int64  // octets that it may have; 0: any number
	Sync  Syncer

	// MayLack says that where no lock file can be made for want of rights the
	// lock of the kernel has to do. It does for all who are on this machine.
	MayLack bool
}

// How often a lock is tried for, and how often; when a lock file is taken for
// one that somebody has left behind. As Postfix has them. Variables for tests.
var (
	lockTries  = 20
	lockPause  = time.Second
	staleAfter = 500 * time.Second
)

// Append appends a message; from is the sender in the line that begins it. head
// and content are as for [Maildir.Deliver]. When it returns nil, the message is
// in the file for good; when it does not, the file is as it was, unless the error
// says that even that has failed. What a process that was killed has left of this
// message at the end of the file is removed before. Errors are *dsn.Error.
func (b *Mbox) Append(from string, at time.Time, head string, content io.ReadSeeker) error {
	err := b.append(from, at, head, content)
	if err == nil {
		return nil
	}
	var e *dsn.Error
	if errors.As(err, &e) {
		return e
	}
	return &dsn.Error{Status: statusOf(err), Text: fmt.Sprintf("mailbox delivery failed: %s: %v", b.Name, err)}
}

// Make makes the file where it is missing.
func (b *Mbox) Make() error {
	f, err := b.open()
	if errors.Is(err, errBusy) {
		return nil // somebody else has made it
	}
	if err != nil {
		return fmt.Errorf("mailbox %s: %w", b.Name, err)
	}
	return f.Close()
}

func (b *Mbox) append(from string, at time.Time, head string, content io.ReadSeeker) error {
	f, unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer func() {
		unlock()
		_ = f.Close() // what matters has been synced
	}()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	m := message{FromLine(from, at), head, content}
	size, err := m.dropRemnant(f, info.Size())
	if err != nil {
		return err
	}
	err = b.write(f, size, m)
	if err == nil {
		err = b.Sync.Commit(f, b.Dir)
	}
	if err == nil {
		return nil
	}
	// Half a message would end up before the next one.
	undo := f.Truncate(size)
	if undo == nil {
		undo = f.Sync()
	}
	if undo != nil {
		undo = fmt.Errorf("what has been written of it stays: %w", undo)
	}
	return errors.Join(err, undo)
}

// FromLine is the line that begins a message from that sender, in Postfix's form.
func FromLine(from string, at time.Time) string {
	return fmt.Sprintf("From %s  %s\n", cmp.Or(from, "MAILER-DAEMON"), at.Format(time.ANSIC))
}

// message is what is appended: the line that begins it, and what follows.
type message struct {
	first, head string
	content     io.ReadSeeker
}

// render writes m as it is in a mailbox file.
func (m message) render(w io.Writer, before string) error {
	out := writers.Get().(*bufio.Writer)
	out.Reset(w)
	defer func() {
		out.Reset(nil)
		writers.Put(out)
	}()
	if _, err := m.content.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, _ = out.WriteString(before + m.first) // an error sticks
	lines := NewLines(out, Form{EOL: "\n", From: true})
	if err := WriteLF(lines, m.head, m.content); err != nil {
		return err
	}
	lines.End(true)
	return out.Flush()
}

// write appends m to f, which has size octets.
func (b *Mbox) write(f *os.File, size int64, m message) error {
	before, err := separator(f, size)
	if err != nil {
		return err
	}
	left := int64(-1)
	if b.Limit > 0 {
		left = max(b.Limit-size, 0)
	}
	return m.render(&limited{f, left, b}, before)
}

var writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, fillPiece) }}

// separator is what has to stand between the end of f and a message: after a
// crash, or another program, it may end in the middle of a line.
func separator(f *os.File, size int64) (string, error) {
	if size == 0 {
		return "", nil
	}
	end := make([]byte, min(size, 2))
	if _, err := f.ReadAt(end, size-int64(len(end))); err != nil {
		return "", fmt.Errorf("read its end: %w", err)
	}
	switch {
	case end[len(end)-1] != '\n':
		return "\n\n", nil
	case end[0] != '\n':
		return "\n", nil
	}
	return "", nil
}

// limited writes as much as the mailbox has room for.
type limited struct {
	f    *os.File
	left int64 // negative: no limit
	b    *Mbox
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left >= 0 {
		if int64(len(p)) > l.left {
			return 0, dsn.Errorf("5.2.2", "mailbox is full: %s would have over %d octets", l.b.Name, l.b.Limit)
		}
		l.left -= int64(len(p))
	}
	return l.f.Write(p)
}

// errBusy says that somebody else has a lock, or has just put another file in
// the place of ours.
var errBusy = errors.New("it is locked by another program")

// lock opens the file and locks it.
func (b *Mbox) lock() (f *os.File, unlock func(), err error) {
	for try := 1; ; try++ {
		if f, unlock, err = b.tryLock(); !errors.Is(err, errBusy) || try >= lockTries {
			return f, unlock, err
		}
		time.Sleep(lockPause)
	}
}

// tryLock takes the lock of the kernel and then that of the lock file, as Debian
// policy has it (section 11.6), and waits for neither: so no two programs can
// wait for each other. The lock is one of this open file: it stands against those of
// other programs as one of a process would, and against one of another thread here.
func (b *Mbox) tryLock() (_ *os.File, unlock func(), err error) {
	f, err := b.open()
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // the lock of the kernel goes with it
		}
	}()
	lk := unix.Flock_t{Type: unix.F_WRLCK} // to its end, wherever that is
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, nil, errBusy
	} else if err != nil {
		return nil, nil, fmt.Errorf("lock: %w", err)
	}
	unlock, err = b.lockFile()
	if err != nil {
		return nil, nil, err
	}
	// Who had the locks before may have put a new file in the place of this one.
	if err := b.same(f); err != nil {
		unlock()
		return nil, nil, err
	}
	return f, unlock, nil
}

// lockFile makes the lock file.
func (b *Mbox) lockFile() (unlock func(), err error) {
	dir, name := int(b.Dir.Fd()), b.Name+".lock"
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	switch {
	case err == nil:
		unix.Close(fd)
		return func() { _ = unix.Unlinkat(dir, name, 0) }, nil // if it stays, it is stale some time
	case errors.Is(err, unix.EEXIST):
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && time.Since(time.Unix(st.Mtim.Unix())) > staleAfter {
			_ = unix.Unlinkat(dir, name, 0) // the next try sees
		}
		return nil, errBusy
	case b.MayLack && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS)):
		return func() {}, nil
	}
	return nil, fmt.Errorf("create %s: %w", name, err)
}

// open opens the file, and makes it where it is missing. It is looked at before
// it is opened: to open a device may do something by itself.
func (b *Mbox) open() (*os.File, error) {
	dir, flags := int(b.Dir.Fd()), unix.O_RDWR|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC
	var st unix.Stat_t
	err := unix.Fstatat(dir, b.Name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		flags |= unix.O_CREAT | unix.O_EXCL
	case err != nil:
		return nil, fmt.Errorf("stat: %w", err)
	default:
		if err := b.check(&st); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Openat(dir, b.Name, flags, 0o600)
	switch {
	case errors.Is(err, unix.ENOENT) && flags&unix.O_CREAT != 0:
		return nil, fmt.Errorf("create: %w", err) // the directory is gone, or is of a kind that takes no files
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINTR):
		return nil, errBusy // somebody was quicker
	case errors.Is(err, unix.EAGAIN):
		return nil, errBusy // its owner has a lease, which ends now
	case err != nil:
		return nil, fmt.Errorf("open: %w", err)
	}
	f := os.NewFile(uintptr(fd), b.Name)
	if err := b.same(f); err != nil {
		_ = f.Close() // nothing has been written
		return nil, err
	}
	return f, nil
}

// same reports whether f is the file that its name stands for now, and one that
// may be written to.
func (b *Mbox) same(f *os.File) error {
	var named, st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	err := unix.Fstatat(int(b.Dir.Fd()), b.Name, &named, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || err == nil && (named.Dev != st.Dev || named.Ino != st.Ino) {
		return errBusy
	}
	if err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	return b.check(&st)
}

// check reports what keeps a file from being a mailbox of its owner: through a
// link, or a second name, somebody could have another file written to.
func (b *Mbox) check(st *unix.Stat_t) error {
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return dsn.Errorf("4.2.0", "mailbox %s is no regular file", b.Name)
	case st.Uid != b.Owner:
		return dsn.Errorf("4.2.0", "mailbox %s belongs to user %d, not to %d", b.Name, st.Uid, b.Owner)
	case st.Nlink > 1:
		return dsn.Errorf("4.2.0", "mailbox %s has %d names", b.Name, st.Nlink)
	}
	return nil
}
