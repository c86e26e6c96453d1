package ipc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"posthouse/pkg/wire"
)

// Protocol names what is spoken on a socket, and bounds it.
type Protocol struct {
	Name    string
	Version uint8 // grows with every change of an encoding

	MaxRequest int // octets of one message of a client
	MaxReply   int // octets of one message of the server

	// Grace is how long a client waits for the answer after its context has
	// ended. The server is told, by the end of what the client sends, and comes
	// to an end with what it does; see Conn.OnEnd.
	Grace time.Duration
}

const maxGreeting = 64

// Greet sends the greeting; every server begins with it.
func Greet(c *Conn, p Protocol) error {
	m := NewMessage()
	m.String(p.Name)
	m.Uint8(p.Version)
	return c.Send(m)
}

func (p Protocol) checkGreeting(b []byte) error {
	d := wire.NewDecoder(b)
	name, version := d.Text(maxGreeting), d.Uint8()
	if err := d.End(); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if name != p.Name || version != p.Version {
		return fmt.Errorf("greeting: %s version %d, want %s version %d", name, version, p.Name, p.Version)
	}
	return nil
}

// DefaultTimeout bounds a call whose context has no deadline.
const DefaultTimeout = 60 * time.Second

// UnavailableError says that nobody listens at a socket: the subsystem behind
// it is switched off.
type UnavailableError struct {
	Path string
	Err  error
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("%s: nobody listens: %v", e.Path, e.Err)
}

func (e *UnavailableError) Unwrap() error { return e.Err }

// Client talks to one server over connections that it keeps.
type Client struct {
	path  string
	proto Protocol

	mu   sync.Mutex
	idle []idleConn // oldest first
}

type idleConn struct {
	conn  *Conn
	since time.Time
}

// Bounds of what a client keeps. A kept connection that has seen no use for
// keepTime is closed at the next opportunity.
const (
	keepMost = 64
	keepTime = 30 * time.Second
)

// NewClient returns a client for the server at path.
func NewClient(path string, proto Protocol) *Client { return &Client{path: path, proto: proto} }

// Wake begins to connect, so that systemd starts the server while the caller
// does something else. Errors are left to the call that matters.
func (c *Client) Wake(ctx context.Context) {
	if conn, _, err := c.Get(ctx); err == nil {
		c.Put(conn)
	}
}

// Get returns a connection, a kept one if possible. The caller gives it back
// with Put, or closes it after any error.
func (c *Client) Get(ctx context.Context) (conn *Conn, kept bool, err error) {
	if conn := c.takeIdle(); conn != nil {
		return conn, true, c.bound(ctx, conn)
	}
	conn, err = c.dial(ctx)
	return conn, false, err
}

// Put gives back a connection on which nothing is under way.
func (c *Client) Put(conn *Conn) {
	now := time.Now()
	var old []idleConn
	c.mu.Lock()
	for len(c.idle) > 0 && (len(c.idle) >= keepMost || now.Sub(c.idle[0].since) > keepTime) {
		old = append(old, c.idle[0])
		c.idle = c.idle[1:]
	}
	c.idle = append(c.idle, idleConn{conn, now})
	c.mu.Unlock()
	closeAll(old)
}

// Close closes the connections that are kept; the client may be used again.
func (c *Client) Close() {
	c.mu.Lock()
	old := c.idle
	c.idle = nil
	c.mu.Unlock()
	closeAll(old)
}

func closeAll(list []idleConn) {
	for _, i := range list {
		_ = i.conn.Close() // nothing is under way on it
	}
}

func (c *Client) takeIdle() *Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.idle)
	if n == 0 {
		return nil
	}
	conn := c.idle[n-1].conn
	c.idle = c.idle[:n-1]
	return conn
}

func (c *Client) bound(ctx context.Context, conn *Conn) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(DefaultTimeout)
	}
	return conn.SetDeadline(deadline.Add(c.proto.Grace))
}

// giveUp ends a call whose context has ended, at once or in the time of grace.
// What fails here the call meets, too.
func (c *Client) giveUp(conn *Conn) {
	if c.proto.Grace == 0 {
		_ = conn.SetDeadline(time.Unix(1, 0))
		return
	}
	_ = conn.c.CloseWrite()
	_ = conn.SetDeadline(time.Now().Add(c.proto.Grace))
}

// dial connects and reads the greeting. A connection that ends before it was
// most likely in the backlog of a socket that has been closed, and is made once
// more: nobody has taken it, and nobody may be listening any more.
func (c *Client) dial(ctx context.Context) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	for first := true; ; first = false {
		conn, err := c.connect(ctx)
		if err == nil {
			err = c.greeted(ctx, conn)
		}
		switch {
		case err == nil:
			return conn, nil
		case !first || !Ended(err):
			return nil, err
		}
	}
}

// connect waits where the backlog is full: Go's connect does not block, and gives
// EAGAIN where that of C would wait.
func (c *Client) connect(ctx context.Context) (*Conn, error) {
	var d net.Dialer
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		nc, err := d.DialContext(ctx, "unixpacket", c.path)
		switch {
		case err == nil:
			conn, err := NewConn(nc.(*net.UnixConn))
			_ = nc.Close() // conn has a descriptor of its own
			if err != nil {
				return nil, fmt.Errorf("connect to %s: %w", c.path, err)
			}
			return conn, nil
		case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
			return nil, &UnavailableError{c.path, err}
		case !errors.Is(err, syscall.EAGAIN):
			return nil, fmt.Errorf("connect: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to %s: backlog is full: %w", c.path, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// greeted reads the greeting, and closes conn where that fails. A server that is
// slow to start keeps its client waiting here.
func (c *Client) greeted(ctx context.Context, conn *Conn) error {
	err := c.bound(ctx, conn)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if err == nil {
		var b []byte
		if b, err = conn.Receive(maxGreeting * 2); err == nil {
			err = c.proto.checkGreeting(b)
		}
	}
	if !stop() && err == nil {
		err = ctx.Err() // its deadline may have been spoiled
	}
	if err != nil {
		_ = conn.Close() // the first error is the one that tells
		return fmt.Errorf("%s: %w", c.path, err)
	}
	return nil
}

// Call sends m, with a descriptor of f unless it is nil, waits for one message,
// and has decode read it before the connection may be used again.
//
// A kept connection that ends before the answer was most likely closed by a
// server that was about to go away: the call is then made once more on a new
// connection. So a request may be carried out twice when a server crashes,
// which every protocol has to bear anyway.
func (c *Client) Call(ctx context.Context, m *Message, f *os.File, decode func([]byte) error) error {
	return c.CallFor(ctx, m, f, Answer{c.proto.MaxReply, decode})
}

// Answer is what a call is made for.
type Answer struct {
	Max    int // octets that it may have
	Decode func([]byte) error
}

// CallFor is Call where the request says how long the answer can be: a server that is
// asked by many at once is not to fill the memory of who asks.
func (c *Client) CallFor(ctx context.Context, m *Message, f *os.File, a Answer) error {
	for {
		conn, kept, err := c.Get(ctx)
		if err != nil {
			return err
		}
		again, err := c.call(ctx, conn, callArgs{m, f, a})
		if again && kept {
			continue
		}
		return err
	}
}

type callArgs struct {
	m      *Message
	f      *os.File
	answer Answer
}

// call reports again where the connection ended before an answer.
func (c *Client) call(ctx context.Context, conn *Conn, a callArgs) (again bool, err error) {
	stop := context.AfterFunc(ctx, func() { c.giveUp(conn) })
	defer stop()
	var b []byte
	if err = conn.SendFile(a.m, a.f); err == nil {
		b, err = conn.Receive(a.answer.Max)
	}
	if err != nil {
		_ = conn.Close() // the error above is the one that tells
		return Ended(err), fmt.Errorf("%s: %w", c.path, err)
	}
	if err := a.answer.Decode(b); err != nil {
		_ = conn.Close() // what else it says is not worth reading
		return false, fmt.Errorf("%s: answer: %w", c.path, err)
	}
	if stop() {
		c.Put(conn)
	} else {
		_ = conn.Close() // its deadline may have been spoiled
	}
	return false, nil
}
