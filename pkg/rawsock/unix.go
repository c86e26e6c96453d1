package rawsock

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Unix is a connected UNIX socket whose owner is woken by what arrives, and by
// nothing else.
//
// Package net waits for room to send along with what arrives, and a UNIX socket has
// room whenever the other side takes something. So each packet woke its sender
// once more, to no end: of the 50 times that the processor changes hands for a message
// from a single client these were ten. Here Go's poller knows an epoll(7) instance in
// the place of the socket, which waits for what arrives alone. It has its deadline,
// and its locks keep the descriptor open for as long as somebody uses it.
//
// One goroutine may send while another receives.
type Unix struct {
	fd  int
	in  *os.File // has fd in it
	raw syscall.RawConn

	mu     sync.Mutex // guards what follows
	until  time.Time  // when to send ends
	out    *os.File   // while somebody waits for room
	closed bool
}

// NewUnix makes one of the socket of c, which is connected. It has a descriptor of its
// own, and c should be closed: until then the poller may know the socket, too.
func NewUnix(c syscall.Conn) (*Unix, error) {
	fd, err := duplicate(c)
	if err != nil {
		return nil, err
	}
	in, err := poller(fd, unix.EPOLLIN|unix.EPOLLRDHUP)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	raw, err := in.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, in.Close(), unix.Close(fd))
	}
	return &Unix{fd: fd, in: in, raw: raw}, nil
}

func duplicate(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var inner error
	err = raw.Control(func(old uintptr) { fd, inner = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(err, os.NewSyscallError("fcntl", inner))
}

// poller returns an epoll instance that can be read when one of events has come to fd.
func poller(fd int, events uint32) (*os.File, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create", err)
	}
	if err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err == nil {
		err = unix.SetNonblock(ep, true) // or package os would not wait for it
	}
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("epoll_ctl", err), unix.Close(ep))
	}
	return os.NewFile(uintptr(ep), "epoll"), nil
}

// SyscallConn makes u a socket for New.
func (u *Unix) SyscallConn() (syscall.RawConn, error) { return u, nil }

// Control calls f with the descriptor.
func (u *Unix) Control(f func(fd uintptr)) error {
	return u.outcome(u.raw.Control(func(uintptr) { f(uintptr(u.fd)) }))
}

// Read calls f, each time that something may have arrived, until it reports that it is done.
func (u *Unix) Read(f func(fd uintptr) (done bool)) error {
	return u.outcome(u.raw.Read(func(uintptr) bool { return f(uintptr(u.fd)) }))
}

// Write calls f, each time that there may be room, until it reports that it is done.
func (u *Unix) Write(f func(fd uintptr) (done bool)) error {
	u.mu.Lock()
	until := u.until
	u.mu.Unlock()
	if !until.IsZero() && !time.Now().Before(until) {
		return os.ErrDeadlineExceeded
	}
	var wait error
	err := u.raw.Control(func(uintptr) {
		if !f(uintptr(u.fd)) {
			wait = u.waitForRoom(f)
		}
	})
	if err == nil {
		err = wait
	}
	return u.outcome(err)
}

// waitForRoom is Write where there has been no room, which is rare.
func (u *Unix) waitForRoom(f func(fd uintptr) bool) error {
	out, err := poller(u.fd, unix.EPOLLOUT)
	if err != nil {
		return err
	}
	defer out.Close() // it has no data
	defer func() {
		u.mu.Lock()
		u.out = nil
		u.mu.Unlock()
	}()
	u.mu.Lock()
	if u.closed {
		err = net.ErrClosed
	} else {
		u.out, err = out, out.SetReadDeadline(u.until)
	}
	u.mu.Unlock()
	if err != nil {
		return err
	}
	raw, err := out.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(uintptr) bool { return f(uintptr(u.fd)) })
}

// outcome is err, or that u has been closed.
func (u *Unix) outcome(err error) error {
	if err == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return net.ErrClosed
	}
	return err
}

// SetDeadline bounds all later calls, and those that wait.
func (u *Unix) SetDeadline(t time.Time) error {
	return errors.Join(u.SetReadDeadline(t), u.SetWriteDeadline(t))
}

// SetReadDeadline bounds Read.
func (u *Unix) SetReadDeadline(t time.Time) error { return u.outcome(u.in.SetReadDeadline(t)) }

// SetWriteDeadline bounds Write.
func (u *Unix) SetWriteDeadline(t time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.closed:
		return net.ErrClosed
	case u.out != nil:
		if err := u.out.SetReadDeadline(t); err != nil {
			return err
		}
	}
	u.until = t
	return nil
}

// CloseWrite shuts down the sending side.
func (u *Unix) CloseWrite() error {
	var inner error
	err := u.Control(func(fd uintptr) { inner = unix.Shutdown(int(fd), unix.SHUT_WR) })
	return errors.Join(err, os.NewSyscallError("shutdown", inner))
}

// Close closes the socket. Who waits for it returns with net.ErrClosed.
func (u *Unix) Close() error {
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		return net.ErrClosed
	}
	u.closed = true
	if u.out != nil {
		_ = u.out.SetReadDeadline(time.Unix(1, 0)) // it is closed by who waits
	}
	u.mu.Unlock()
	// It waits until nobody uses the descriptor any more.
	return errors.Join(u.in.Close(), unix.Close(u.fd))
}
