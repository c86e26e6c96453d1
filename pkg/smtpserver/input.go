package smtpserver

import (
	"net"
	"sync"
	"time"

	"posthouse/pkg/rawsock"
)

// input reads from the client: it sends the replies that wait, and gives each
// read its time. The first error is final, so that nothing is taken for a
// command after a time-out in the middle of a message.
type input struct {
	conn    net.Conn
	flush   func() error
	timeout time.Duration
	end     time.Time // of the session; zero: none
	err     error

	mu       sync.Mutex // guards what follows
	idle     bool       // no transaction is under way
	reading  bool
	stopping bool
}

func (in *input) deadline() time.Time {
	d := time.Now().Add(in.timeout)
	if !in.end.IsZero() && in.end.Before(d) {
		return in.end
	}
	return d
}

// unread reports whether the client has sent something that has not been read.
func (in *input) unread() bool {
	c, ok := in.conn.(*rawsock.Conn)
	if !ok {
		return false
	}
	n, _ := c.Peek() // the next read meets an error, too
	return n > 0
}

// output writes to the client. Each write has its time, and a session that has
// used up its own can still say so, or that a message was taken.
type output struct{ in *input }

func (o output) Write(p []byte) (int, error) {
	if err := o.in.conn.SetWriteDeadline(time.Now().Add(o.in.timeout)); err != nil {
		return 0, err
	}
	return o.in.conn.Write(p)
}

func (in *input) Read(p []byte) (int, error) {
	if in.err != nil {
		return 0, in.err
	}
	if in.err = in.flush(); in.err != nil {
		return 0, in.err
	}
	in.mu.Lock()
	if in.stopping && in.idle {
		in.mu.Unlock()
		in.err = errStop
		return 0, in.err
	}
	in.reading = true
	_ = in.conn.SetReadDeadline(in.deadline())
	in.mu.Unlock()
	var n int
	n, in.err = in.conn.Read(p)
	in.mu.Lock()
	in.reading = false
	if in.err != nil && in.stopping && in.idle {
		in.err = errStop
	}
	in.mu.Unlock()
	return n, in.err
}

func (in *input) setIdle(idle bool) {
	in.mu.Lock()
	in.idle = idle
	in.mu.Unlock()
}

// stop ends a read that waits for the client to begin something.
func (in *input) stop() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.stopping = true
	if in.reading && in.idle {
		_ = in.conn.SetReadDeadline(time.Unix(1, 0))
	}
}
