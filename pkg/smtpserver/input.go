package smtpserver

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"posthouse/pkg/rawsock"
)

// What a client is given. It has a time for each command and for each message, and
// each octet gives it some back: so one that sends next to nothing comes to an end,
// and a slow one with much to say need not.
const (
	octetTime = time.Second / 500 // as with Postfix's smtpd_min_data_rate
	// What is left where others wait for a place, and how often that is looked at.
	crowdedTime = 10 * time.Second
)

// input reads from the client: it sends the replies that wait, and sees to the
// client's time. The first error is final, so that nothing is taken for a
// command after a time-out in the middle of a message.
type input struct {
	conn    net.Conn
	flush   func() error
	timeout time.Duration
	left    time.Duration // of timeout
	end     time.Time     // of the session; zero: none
	crowded func() bool   // nil: never
	err     error

	mu       sync.Mutex // guards what follows
	idle     bool       // no transaction is under way
	reading  bool
	stopping bool
}

// begin gives the client its time, for a command or a message.
func (in *input) begin() { in.left = in.timeout }

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
	for {
		n, again := in.wait(p)
		if !again {
			return n, in.err
		}
	}
}

// wait reads, and waits for as long as can be said now; then it asks for another call.
func (in *input) wait(p []byte) (n int, again bool) {
	in.mu.Lock()
	if in.stopping && in.idle {
		in.mu.Unlock()
		in.err = errStop
		return 0, false
	}
	if in.crowded != nil && in.crowded() {
		in.left = min(in.left, crowdedTime)
	}
	most := in.left
	if in.crowded != nil {
		most = min(most, crowdedTime)
	}
	start := time.Now()
	deadline := start.Add(most)
	if !in.end.IsZero() && in.end.Before(deadline) {
		deadline = in.end
	}
	in.reading = true
	_ = in.conn.SetReadDeadline(deadline)
	in.mu.Unlock()
	n, in.err = in.conn.Read(p)
	now := time.Now()
	in.left = min(in.left-now.Sub(start)+time.Duration(n)*octetTime, in.timeout)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.reading = false
	switch {
	case in.err == nil:
	case in.stopping && in.idle:
		in.err = errStop
	case errors.Is(in.err, os.ErrDeadlineExceeded) && n == 0 && in.left > 0 && (in.end.IsZero() || now.Before(in.end)):
		in.err = nil
		return 0, true
	}
	return n, false
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
