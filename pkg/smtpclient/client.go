// Package smtpclient is the client's side of SMTP (RFC 5321) and LMTP (RFC
// 2033): one connection and the dialogue on it.
//
// Who calls it has made the connection, and decides by the results where to go
// next. The server is hostile: its replies are bounded and made printable, each
// has to come whole within the time for its command, a reply that is out of
// place ends the connection, and nothing but a clear refusal is permanent.
package smtpclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/rawsock"
)

// Options say who talks to whom and how.
type Options struct {
	Peer       string // how texts call the server: "mx.example.org[192.0.2.1]"
	Helo       string // our name
	LMTP       bool
	LineLength int // longer lines are folded, in octets without CRLF; 0: never; else at least 64
}

// Extensions is what the server offers.
type Extensions struct {
	Pipelining   bool  // RFC 2920
	EightBitMIME bool  // RFC 6152
	SMTPUTF8     bool  // RFC 6531
	DSN          bool  // RFC 3461
	Size         bool  // RFC 1870
	MaxSize      int64 // in octets; 0: not told
}

// Client is one connection. It is for one goroutine at a time.
type Client struct {
	o    Options
	conn net.Conn
	r    *bufio.Reader
	w    *bufio.Writer

	name   string
	ext    Extensions
	unsure bool // EHLO was refused for now: the server may offer more than ext
	open   bool // the server may be within a transaction
	broken bool // nothing more may be sent
}

// New returns a client for a connection, which it owns from now on.
func New(conn net.Conn, o Options) *Client {
	if o.LineLength > 0 {
		o.LineLength = max(o.LineLength, minLine)
	}
	conn = rawsock.Wrap(conn)
	return &Client{o: o, conn: conn, r: bufio.NewReaderSize(conn, 4<<10), w: bufio.NewWriterSize(conn, 32<<10)}
}

// Error says why a connection is of no further use. It wraps a *dsn.Error.
type Error struct {
	Verdict *dsn.Error
	Reply   *Reply // what the server said; nil where it was not the server that decided
	// Unanswered is set where the server has replied to no command of the
	// message: where the connection was used before, it had come to its end, and
	// the message may be sent on another one.
	Unanswered bool
}

func (e *Error) Error() string { return e.Verdict.Error() }

func (e *Error) Unwrap() error { return e.Verdict }

// stage is where in the dialogue a client is.
type stage uint8

const (
	greeting stage = iota
	ehlo
	helo
	lhlo
	mail
	rcpt
	data
	body
	endOfData
	rset
)

// stages has the words for each stage, and the time that a reply to it may
// take; they are Postfix's.
var stages = [...]struct {
	doing, command string
	timeout        time.Duration
}{
	greeting:  {"receiving the initial server greeting", "", 300 * time.Second},
	ehlo:      {"performing the EHLO handshake", "EHLO", 300 * time.Second},
	helo:      {"performing the HELO handshake", "HELO", 300 * time.Second},
	lhlo:      {"performing the LHLO handshake", "LHLO", 300 * time.Second},
	mail:      {"sending MAIL FROM", "MAIL FROM", 300 * time.Second},
	rcpt:      {"sending RCPT TO", "RCPT TO", 300 * time.Second},
	data:      {"sending DATA command", "DATA", 120 * time.Second},
	body:      {"sending message body", "message body", 180 * time.Second},
	endOfData: {"sending end of data -- message may be sent more than once", "end of DATA", 600 * time.Second},
	rset:      {"sending RSET", "RSET", 20 * time.Second},
}

// endGrace is how long a client that has been told to stop waits for the reply
// to a message that it has sent: without that the message goes out twice.
const endGrace = 30 * time.Second

// later returns a context that ends some time after ctx does.
func later(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(by, cancel) })
	return late, func() { stop(); cancel() }
}

// arm sets the deadline of what is done in stage s. Where ctx ends the deadline
// is drawn near. The caller calls the result when it is done.
func (c *Client) arm(ctx context.Context, s stage) (disarm func()) {
	c.setDeadline(time.Now().Add(stages[s].timeout))
	return c.hurry(ctx)
}

// hurry draws the deadline near where ctx ends before stop is called. After that it does
// not: it might cut short what has another deadline, the wait for the reply to a message.
func (c *Client) hurry(ctx context.Context) (stop func()) {
	ended := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		c.setDeadline(time.Now())
		close(ended)
	})
	return func() {
		if !cancel() {
			<-ended
		}
	}
}

// setDeadline leaves an error to the next read or write, which meets it too.
func (c *Client) setDeadline(t time.Time) { _ = c.conn.SetDeadline(t) }

// ask sends a command, if there is one, and reads the reply to it.
func (c *Client) ask(ctx context.Context, s stage, command string) (*Reply, *Error) {
	if command != "" {
		_, _ = c.w.WriteString(command + "\r\n") // the error comes up at Flush
	}
	return c.read(ctx, s)
}

// read sends what is buffered and reads one reply.
func (c *Client) read(ctx context.Context, s stage) (*Reply, *Error) {
	defer c.arm(ctx, s)()
	if err := c.w.Flush(); err != nil {
		// A server that closes the connection may have said why.
		if reply := c.lastWord(ctx, err); reply != nil {
			return reply, nil
		}
		return nil, c.lost(ctx, s, err)
	}
	reply, err := readReply(c.r)
	if err != nil {
		return nil, c.lost(ctx, s, err)
	}
	return reply, nil
}

// lastWordTime is how long a client looks for a reply on a connection that it
// cannot write to any more.
const lastWordTime = 5 * time.Second

// lastWord returns the refusal that a server left before it closed the
// connection, or nil.
func (c *Client) lastWord(ctx context.Context, err error) *Reply {
	if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	c.setDeadline(time.Now().Add(lastWordTime))
	reply, err := readReply(c.r)
	if err != nil || !reply.refusal() {
		return nil
	}
	return reply
}

// lost makes an error of the end of a connection.
func (c *Client) lost(ctx context.Context, s stage, err error) *Error {
	c.broken = true
	doing := stages[s].doing
	var garbage *errReply
	switch {
	case errors.As(err, &garbage):
		return &Error{Verdict: dsn.Errorf("4.5.0", "host %s sent a %s while %s", c.o.Peer, garbage.why, doing)}
	case ctx.Err() != nil:
		return &Error{Verdict: dsn.Errorf("4.3.2", "delivery to %s was interrupted while %s", c.o.Peer, doing)}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &Error{Verdict: dsn.Errorf("4.4.2", "conversation with %s timed out while %s", c.o.Peer, doing)}
	}
	return &Error{Verdict: dsn.Errorf("4.4.2", "lost connection with %s while %s", c.o.Peer, doing)}
}

// refused makes an error of a reply after which the connection is no good.
func (c *Client) refused(s stage, reply *Reply) *Error {
	c.broken = true
	return &Error{Verdict: c.verdict(s, reply), Reply: reply}
}

// verdict is what a reply that is not the wanted one comes to. Only a 5xx reply
// is permanent.
func (c *Client) verdict(s stage, reply *Reply) *dsn.Error {
	e := dsn.Errorf("4.5.0", "host %s said: %s (in reply to %s command)", c.o.Peer, reply, stages[s].command)
	if s == body {
		e.Text = fmt.Sprintf("host %s said: %s (while sending message body)", c.o.Peer, reply)
	}
	if reply.refusal() {
		e.Status = reply.Status()
	}
	return e
}

// Hello reads the greeting and introduces us. A server that does not know EHLO
// is asked with HELO. The error is an *Error. A greeting with 5xx is transient:
// it says that this host takes no mail, while another may.
func (c *Client) Hello(ctx context.Context) error {
	reply, err := c.ask(ctx, greeting, "")
	if err != nil {
		return err
	}
	if !reply.positive() {
		e := c.unwelcome(greeting, reply)
		e.Verdict.Status = e.Verdict.Status.With(dsn.Transient)
		return e
	}
	first, verb := ehlo, "EHLO "
	if c.o.LMTP {
		first, verb = lhlo, "LHLO "
	}
	if reply, err = c.ask(ctx, first, verb+c.o.Helo); err != nil {
		return err
	}
	if reply.refusal() && reply.Code != unavailable && !c.o.LMTP {
		first, c.unsure = helo, reply.Code/100 == 4
		if reply, err = c.ask(ctx, helo, "HELO "+c.o.Helo); err != nil {
			return err
		}
	}
	if !reply.positive() {
		return c.unwelcome(first, reply)
	}
	c.name, _, _ = strings.Cut(reply.Lines[0], " ")
	if first != helo {
		c.ext = parseExtensions(reply.Lines[1:])
	}
	return nil
}

func (c *Client) unwelcome(s stage, reply *Reply) *Error {
	e := c.refused(s, reply)
	e.Verdict.Text = fmt.Sprintf("host %s refused to talk to me: %s", c.o.Peer, reply)
	return e
}

// parseExtensions reads the lines of the reply to EHLO. Keywords are compared
// without regard to case (RFC 5321, section 2.4); unknown ones do not matter.
func parseExtensions(lines []string) Extensions {
	var x Extensions
	for _, line := range lines {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch strings.ToUpper(words[0]) {
		case "PIPELINING":
			x.Pipelining = true
		case "8BITMIME":
			x.EightBitMIME = true
		case "SMTPUTF8":
			x.SMTPUTF8 = true
		case "DSN":
			x.DSN = true
		case "SIZE":
			x.Size = true
			if len(words) > 1 {
				if n, err := strconv.ParseInt(words[1], 10, 64); err == nil && n > 0 {
					x.MaxSize = n
				}
			}
		}
	}
	return x
}

// Name returns what the server called itself in its reply to EHLO.
func (c *Client) Name() string { return c.name }

// Extensions returns what the server offers; the zero value before Hello.
func (c *Client) Extensions() Extensions { return c.ext }

// Quiet reports whether the server has neither said anything nor closed the
// connection since the last reply. One that did cannot be used again: what it
// said would be taken for the reply to a command to come.
func (c *Client) Quiet() bool {
	if c.broken || c.r.Buffered() > 0 {
		return false
	}
	conn, ok := c.conn.(*rawsock.Conn)
	if !ok {
		return true
	}
	_, err := conn.Peek()
	return errors.Is(err, syscall.EAGAIN)
}

// quitTime bounds the sending of QUIT.
const quitTime = 5 * time.Second

// Quit ends the connection. Where the dialogue is in order the server is told;
// its reply is of no interest.
func (c *Client) Quit() {
	if !c.broken {
		c.broken = true
		c.setDeadline(time.Now().Add(quitTime))
		_, _ = c.w.WriteString("QUIT\r\n")
		_ = c.w.Flush()
	}
	_ = c.conn.Close()
}
