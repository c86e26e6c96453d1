// Package ipc carries messages between daemons over SOCK_SEQPACKET UNIX
// sockets, with descriptors where a protocol passes any.
//
// A message is one packet or several. The first octet of each packet is 1
// where another packet of the same message follows, else 0. The server speaks
// first: a greeting with the name and version of the protocol, so that daemons
// of two versions, which may meet during an upgrade, do not misread each other.
//
// Everything that arrives is gossip: sizes are bounded by the reader, and a
// descriptor that was not asked for is closed.
package ipc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/rawsock"
	"posthouse/pkg/wire"
)

// maxPacket bounds a packet, its flag octet included. A socket takes 200 KiB
// by default; this leaves room for several to be under way.
const maxPacket = 32<<10 + 1

// MaxChunk is the most that fits into a message of a single packet.
const MaxChunk = maxPacket - 1

const (
	flagLast = 0
	flagMore = 1
)

// Message is an encoder for a message that is about to be sent. It keeps room
// for the flag of the first packet, so that a small message is sent uncopied.
type Message struct{ wire.Encoder }

// NewMessage returns an empty message.
func NewMessage() *Message {
	b := make([]byte, 1, 512)
	return &Message{*wire.NewEncoder(b)}
}

// Reset empties m for the next message; it keeps the memory.
func (m *Message) Reset() { m.Encoder = *wire.NewEncoder(m.Data()[:1]) }

// Len returns the number of octets in m.
func (m *Message) Len() int { return len(m.Data()) - 1 }

// Conn is one connection. One goroutine may send while another receives.
type Conn struct {
	c        *rawsock.Unix
	sock     *rawsock.Socket
	buf      []byte
	patience time.Duration // see SetSendTimeout
}

// NewConn makes a connection of the socket of c, a connected SOCK_SEQPACKET socket. It
// has a descriptor of its own; c is to be closed.
func NewConn(c syscall.Conn) (*Conn, error) {
	u, err := rawsock.NewUnix(c)
	if err != nil {
		return nil, err
	}
	return &Conn{c: u, sock: rawsock.New(u)}, nil
}

// Pair returns a connection, and its other end for a process that is about to be
// started, which makes a Conn of it with FromFile.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "socketpair")
	c, err := FromFile(os.NewFile(uintptr(fds[0]), "socketpair"))
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return c, theirs, nil
}

// FromFile makes a connection of a SOCK_SEQPACKET socket that was inherited, and closes f.
func FromFile(f *os.File) (*Conn, error) {
	c, err := NewConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("inherited socket: %w", err)
	}
	return c, nil
}

// Close closes the connection.
func (c *Conn) Close() error { return c.c.Close() }

// CloseWrite ends what is sent: the other side is to come to an end. See OnEnd.
func (c *Conn) CloseWrite() error { return c.c.CloseWrite() }

// SetDeadline bounds every later Send and Receive.
func (c *Conn) SetDeadline(t time.Time) error { return c.c.SetDeadline(t) }

// SetReadDeadline bounds every later Receive.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.c.SetReadDeadline(t) }

// SetSendTimeout bounds each later Send by itself, for servers, who do not know
// when they will have something to say. Whoever does not read his answers then
// keeps nobody.
func (c *Conn) SetSendTimeout(d time.Duration) { c.patience = d }

func (c *Conn) boundSend() error {
	if c.patience == 0 {
		return nil
	}
	return c.c.SetWriteDeadline(time.Now().Add(c.patience))
}

// Send sends m. On an error the connection is of no more use.
func (c *Conn) Send(m *Message) error { return c.SendFile(m, nil) }

// SendFile sends m and, with its first packet, a descriptor of f.
func (c *Conn) SendFile(m *Message, f *os.File) error {
	if err := c.boundSend(); err != nil {
		return err
	}
	b := m.Data()
	var oob []byte
	if f != nil {
		oob = unix.UnixRights(int(f.Fd()))
	}
	for len(b) > maxPacket {
		b[0] = flagMore
		if err := c.write(b[:maxPacket], oob); err != nil {
			return err
		}
		// The flag of the next packet takes the place of an octet that has been
		// sent; it is put back below, since m may have to be sent again.
		b, oob = b[maxPacket-1:], nil
		defer func(p *byte, v byte) { *p = v }(&b[0], b[0])
	}
	b[0] = flagLast
	return c.write(b, oob)
}

// TrySend is Send that fails, with EAGAIN, where it would have to wait. m fits
// into one packet.
func (c *Conn) TrySend(m *Message) error {
	b := m.Data()
	if len(b) > maxPacket {
		return fmt.Errorf("%w: packet", ErrTooBig)
	}
	// The deadline of the Send before may have passed.
	if err := c.boundSend(); err != nil {
		return err
	}
	b[0] = flagLast
	_, err := c.sock.TrySend(b, nil)
	return err
}

func (c *Conn) write(b, oob []byte) error {
	n, err := c.sock.Send(b, oob)
	if err == nil && n != len(b) {
		err = io.ErrShortWrite
	}
	return err
}

// keepBuffer is the largest buffer that a connection keeps for its next message.
const keepBuffer = 8 * maxPacket

// ErrTooBig is returned for a message over its limit.
var ErrTooBig = errors.New("message is too big")

// Receive reads one message of at most limit octets, without a descriptor. The
// result is valid until the next call. At the end of the connection the error
// is io.EOF.
func (c *Conn) Receive(limit int) ([]byte, error) {
	b, f, err := c.receive(limit, false)
	if f != nil {
		_ = f.Close() // cannot be: no room was given for it
	}
	return b, err
}

// ReceiveFile is Receive for messages that may carry a descriptor; the file is
// nil where none came. The caller closes it.
func (c *Conn) ReceiveFile(limit int) ([]byte, *os.File, error) {
	return c.receive(limit, true)
}

func (c *Conn) receive(limit int, wantFile bool) (b []byte, f *os.File, err error) {
	defer func() {
		if err != nil && f != nil {
			_ = f.Close() // read-only, and not ours to report on
			f = nil
		}
	}()
	if len(c.buf) > keepBuffer {
		c.buf = nil
	}
	used := 0
	for first := true; ; first = false {
		if len(c.buf)-used < maxPacket {
			c.buf = slices.Grow(c.buf[:used], maxPacket) // by more than that where it is large
			c.buf = c.buf[:cap(c.buf)]
		}
		n, file, err := c.packet(c.buf[used:used+maxPacket], first && wantFile)
		if file != nil {
			f = file
		}
		if err != nil {
			return nil, f, err
		}
		flag := c.buf[used]
		if flag > flagMore {
			return nil, f, fmt.Errorf("packet with flag %d", flag)
		}
		// Drop the flag by moving the payload over it; for the first packet
		// the payload is simply what follows it.
		if first {
			used = n
		} else {
			copy(c.buf[used:], c.buf[used+1:used+n])
			used += n - 1
		}
		if used-1 > limit {
			return nil, f, fmt.Errorf("%w: over %d octets", ErrTooBig, limit)
		}
		if flag == flagLast {
			return c.buf[1:used], f, nil
		}
		if n == 1 {
			return nil, f, errors.New("empty packet within a message")
		}
	}
}

// packet reads one packet into b.
func (c *Conn) packet(b []byte, wantFile bool) (n int, f *os.File, err error) {
	if wantFile {
		n, f, err = c.withFile(b)
	} else {
		var flags int
		n, _, flags, err = c.sock.Receive(b, nil)
		if err == nil && flags&unix.MSG_TRUNC != 0 {
			err = fmt.Errorf("%w: packet", ErrTooBig)
		}
	}
	if err == nil && n == 0 {
		err = io.EOF // our side never sends an empty packet
	}
	return n, f, err
}

func (c *Conn) withFile(b []byte) (int, *os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, err := c.sock.Receive(b, oob)
	if err != nil {
		return 0, nil, err
	}
	files, err := descriptors(oob[:oobn])
	if err == nil && (flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(files) > 1) {
		err = errors.New("packet or its descriptors are cut off")
	}
	if err != nil {
		for _, fd := range files {
			_ = unix.Close(fd)
		}
		return 0, nil, err
	}
	if len(files) == 0 {
		return n, nil, nil
	}
	return n, os.NewFile(uintptr(files[0]), "passed"), nil
}

func descriptors(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var all []int
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return all, fmt.Errorf("control message: %w", err)
		}
		all = append(all, fds...)
	}
	return all, nil
}

// OnEnd has f called if the other side ends what it sends before stop is called:
// it wants no more, or is gone. Until then nobody may receive.
func (c *Conn) OnEnd(f func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := c.c.SyscallConn()
		if err != nil {
			return // closed by ourselves
		}
		ended := false
		_ = raw.Read(func(fd uintptr) bool { // with an error it was stopped
			var b [1]byte
			n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				return false
			}
			ended = err != nil || n == 0
			return true
		})
		if ended {
			f()
		}
	}()
	return func() {
		_ = c.SetReadDeadline(time.Unix(1, 0))
		<-done
		_ = c.SetReadDeadline(time.Time{})
	}
}

// PeerUID returns the user at the other end as the kernel knows it. In a unit
// with PrivateUsers= it is the overflow user for everybody.
func (c *Conn) PeerUID() (uint32, error) {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var inner error
	err = raw.Control(func(fd uintptr) {
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, inner); err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	return cred.Uid, nil
}

// Ended reports whether err means that the other side has closed the
// connection, in order or not.
func Ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
