// Package rawsock sends to and receives from sockets with system calls that
// Go's scheduler does not hear of.
//
// Package net tells the scheduler of each system call, since it may take long.
// When all of a process sleeps, as a daemon does between two commands of a
// client, the first such call wakes the scheduler's monitor thread, which then
// looks every 20 microseconds whether the call has ended: two context switches
// and several timers for each command, a quarter of the CPU that a message costs.
// A system call that never waits needs none of it. Waiting is left to package
// net, as are deadlines and closing; for packets between daemons, to Unix.
//
// It is the one package with unsafe pointers: those of recvmsg(2) and sendmsg(2).
package rawsock

import (
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket is a connected socket of package net, or a Unix. One goroutine may send while
// another receives.
type Socket struct {
	raw  syscall.RawConn
	in   message
	out  message
	recv func(fd uintptr) bool
	send func(fd uintptr) bool
}

// New returns the socket of c. That c is no open socket is an error of every
// call.
func New(c syscall.Conn) *Socket {
	raw, err := c.SyscallConn()
	if err != nil {
		raw = broken{err}
	}
	s := &Socket{raw: raw}
	// Once, and not for each call.
	s.recv = func(fd uintptr) bool { return s.in.call(unix.SYS_RECVMSG, fd, unix.MSG_CMSG_CLOEXEC) }
	s.send = func(fd uintptr) bool { return s.out.call(unix.SYS_SENDMSG, fd, unix.MSG_NOSIGNAL) }
	return s
}

// broken is what there is of a connection that has no socket.
type broken struct{ err error }

func (b broken) Control(func(uintptr)) error    { return b.err }
func (b broken) Read(func(uintptr) bool) error  { return b.err }
func (b broken) Write(func(uintptr) bool) error { return b.err }

// Receive waits for a packet, or for octets of a stream, and reads them into p;
// control data goes to oob. It returns the numbers of octets and the flags of
// recvmsg(2). At the end of a stream, as for an empty packet, n is 0.
func (s *Socket) Receive(p, oob []byte) (n, oobn, flags int, err error) {
	s.in.set(p, oob)
	err = s.raw.Read(s.recv)
	received()
	n, oobn, flags = s.in.n, int(s.in.h.Controllen), int(s.in.h.Flags)
	if err == nil {
		err = s.in.err("recvmsg")
	}
	s.in.set(nil, nil)
	return n, oobn, flags, err
}

// Send sends p as one packet, with control data, or as octets of a stream, of
// which it may take fewer than all.
func (s *Socket) Send(p, oob []byte) (n int, err error) {
	sending()
	s.out.set(p, oob)
	err = s.raw.Write(s.send)
	n = s.out.n
	if err == nil {
		err = s.out.err("sendmsg")
	}
	s.out.set(nil, nil)
	return n, err
}

// TrySend is Send that gives up, with EAGAIN, where it would have to wait.
func (s *Socket) TrySend(p, oob []byte) (n int, err error) {
	sending()
	s.out.set(p, oob)
	taken := false
	err = s.raw.Write(func(fd uintptr) bool {
		taken = s.out.call(unix.SYS_SENDMSG, fd, unix.MSG_NOSIGNAL)
		return true
	})
	n = s.out.n
	if err == nil {
		if err = s.out.err("sendmsg"); !taken {
			err = unix.EAGAIN
		}
	}
	s.out.set(nil, nil)
	return n, err
}

// Send sends one packet on fd, which is connected, and does not wait.
func Send(fd int, p []byte) error {
	var m message
	m.set(p, nil)
	if !m.call(unix.SYS_SENDMSG, uintptr(fd), unix.MSG_NOSIGNAL) {
		return unix.EAGAIN
	}
	return m.err("sendmsg")
}

// message is what recvmsg and sendmsg work on.
type message struct {
	h     unix.Msghdr
	iov   unix.Iovec
	n     int
	errno syscall.Errno
}

func (m *message) set(p, oob []byte) {
	m.h, m.iov, m.n, m.errno = unix.Msghdr{}, unix.Iovec{}, 0, 0
	if len(p) > 0 {
		m.iov.Base = &p[0]
		m.iov.SetLen(len(p))
	}
	if len(oob) > 0 {
		m.h.Control = &oob[0]
		m.h.SetControllen(len(oob))
	}
}

// call makes one system call and reports whether there is a result; where
// there is none it would have had to wait.
func (m *message) call(number, fd, flags uintptr) bool {
	m.h.Iov = &m.iov
	m.h.SetIovlen(1)
	for {
		n, _, errno := unix.RawSyscall(number, fd, uintptr(unsafe.Pointer(&m.h)), flags|unix.MSG_DONTWAIT)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		case 0:
			m.n = int(n)
		}
		m.errno = errno
		return true
	}
}

func (m *message) err(call string) error {
	if m.errno == 0 {
		return nil
	}
	return os.NewSyscallError(call, m.errno)
}

// Conn is a stream of package net whose reads and writes are Socket's.
type Conn struct {
	net.Conn
	s *Socket
}

// Wrap returns c with other reads and writes, if it is a stream socket.
func Wrap(c net.Conn) net.Conn {
	switch c := c.(type) {
	case *net.TCPConn:
		return &Conn{c, New(c)}
	case *net.UnixConn:
		return &Conn{c, New(c)}
	}
	return c
}

// Read is io.Reader.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, _, _, err := c.s.Receive(p, nil)
	if err == nil && n == 0 {
		err = io.EOF
	}
	return n, err
}

// Write is io.Writer.
func (c *Conn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := c.s.Send(p[done:], nil)
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Peek looks whether something can be read. It returns 1 if so, io.EOF at the
// end of the stream, and EAGAIN where Read would wait.
func (c *Conn) Peek() (n int, err error) {
	var b [1]byte
	var m message
	m.set(b[:], nil)
	err = c.s.raw.Control(func(fd uintptr) {
		if !m.call(unix.SYS_RECVMSG, fd, unix.MSG_PEEK) {
			m.errno = unix.EAGAIN
		}
	})
	if err == nil {
		err = m.err("recvmsg")
	}
	if err == nil && m.n == 0 {
		err = io.EOF
	}
	return m.n, err
}

// CloseWrite shuts down the sending side.
func (c *Conn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("%T has no sending side of its own", c.Conn)
	}
	return half.CloseWrite()
}
