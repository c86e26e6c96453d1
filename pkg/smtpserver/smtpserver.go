// Package smtpserver is the SMTP server engine: one session over one
// connection, from the greeting to the end. It parses, keeps the order of
// commands, counts errors and streams messages; what is accepted is for a
// Policy to say.
//
// It is strict where leniency has been used to smuggle mail: lines end in CRLF
// and nothing else, a message ends with CRLF.CRLF and nothing else, a BDAT chunk
// has exactly the octets that were announced, and after a time-out, an error of
// the connection or a synchronisation error no octet is taken for a command.
//
// Standards: RFC 5321, 1870 (SIZE), 2034 (ENHANCEDSTATUSCODES), 2920
// (PIPELINING), 3030 (CHUNKING), 3461 (DSN), 6152 (8BITMIME), 6531 (SMTPUTF8).
package smtpserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/rawsock"
)

// Config is what a session is held to.
type Config struct {
	Hostname    string // in the greeting and in replies
	MessageSize int64  // octets; 0: no limit
	Recipients  int    // of one message
	// After SoftErrors each reply waits a second; HardErrors end
	// the session. A message that was accepted sets the count back.
	SoftErrors, HardErrors int
	// CommandTimeout is for each command, each write, and each message, where 500 octets
	// give the client a second back.
	CommandTimeout time.Duration
	SessionTimeout time.Duration // for the session as a whole; 0: no limit
	// Crowded, if it is not nil, reports whether others wait for a place: then
	// CommandTimeout is ten seconds, also for a client that waits.
	Crowded func() bool
	// BareNewline lets lines end in a bare LF, and CRs stand alone. LF.LF then
	// ends a message, so it is only for clients that do not pass on what others
	// wrote.
	BareNewline  bool
	HeloRequired bool
	// Local is for a program on the same machine that sends as its user: recipients
	// need no domain, and it need not wait for replies, as where it is a script. One whose
	// first line ends in a bare LF may end all lines so.
	Local bool
	// Stop, when it ends, has the session end with 421 as soon as no
	// transaction is under way. It may be nil.
	Stop context.Context
}

// Reply is a reply to a command.
type Reply struct {
	Code   int    // RFC 5321, section 4.2; 421 and 521 end the session
	Status string // RFC 3463, or "" for none
	Text   string // one line
}

// Session is what is known of the client.
type Session struct {
	Helo  string // as the client claims; printable; "" before HELO
	ESMTP bool   // the client said EHLO
}

// Mail is a MAIL command.
type Mail struct {
	From     addr.Mailbox
	Size     int64 // as announced; 0 where it was not
	Body     envelope.Body
	SMTPUTF8 bool
	Return   dsn.Return
	EnvID    string // decoded
}

// Rcpt is a RCPT command.
type Rcpt struct {
	To     addr.Mailbox // the domain is empty only for postmaster, or with Config.Local
	Notify dsn.Notify
	ORCPT  dsn.OriginalRecipient
}

// Policy decides. A nil reply means yes; the engine then has its own words for
// it. Reply texts may hold what the client said: the engine makes them
// printable. Only one method is called at a time.
type Policy interface {
	Connect(s *Session) *Reply
	Helo(s *Session, name string) *Reply
	Mail(s *Session, m *Mail) *Reply
	Rcpt(s *Session, m *Mail, r *Rcpt) *Reply
	// Data is called before the first octet of a message is taken, with the
	// recipients that were accepted.
	Data(s *Session, m *Mail, rcpts []Rcpt) (Sink, *Reply)
	// Refused hears, for the log, of mail that the engine itself refuses.
	Refused(s *Session, r Refusal)
}

// Refusal is mail that is refused, by a reply to a command or to a message.
type Refusal struct {
	Verb  string // MAIL, RCPT, DATA or EndOfMessage
	Mail  *Mail  // nil where there is no sender
	Rcpt  *Rcpt  // nil where it is not about one recipient
	Reply Reply
}

// EndOfMessage is what the log calls the end of a message.
const EndOfMessage = "END-OF-MESSAGE"

// Sink takes a message: lines that end in CRLF, the last one too, without the
// dots that the protocol adds. Either Commit or Abort is called, once.
type Sink interface {
	Write(p []byte) (int, error)
	// Commit returns the reply to the message: 2xx when it is on disk. Where a
	// Write has failed, it says why.
	Commit() Reply
	Abort()
}

// Stats is what happened in a session.
type Stats struct {
	Cause   string // "lost connection", "timeout", "too many errors"...; "" for a proper end
	After   string // the command under way then
	NotSMTP string // the command that has ended the session because it is none of SMTP
	verbs   [len(verbNames)]count
}

type count struct{ good, all int }

// Summary counts the commands, and those that were accepted where not all
// were, in the form of Postfix's log.
func (s *Stats) Summary() string {
	var b strings.Builder
	var total count
	for i, c := range s.verbs {
		if c.all > 0 {
			b.WriteString(verbNames[i] + "=" + c.String() + " ")
		}
		total.good += c.good
		total.all += c.all
	}
	if total.all == 0 {
		return "commands=0/0" // as scanners are known by
	}
	return b.String() + "commands=" + total.String()
}

func (c count) String() string {
	if c.good == c.all {
		return strconv.Itoa(c.all)
	}
	return fmt.Sprintf("%d/%d", c.good, c.all)
}

// Limits that are not for the administrator.
const (
	maxCommand   = 2048    // octets of a command line; RFC 5321 asks for 512 and more for extensions
	maxJunk      = 100     // commands that do nothing, until a message is accepted
	overshoot    = 1000    // recipients over the limit that are not counted as errors (RFC 5321, section 4.5.3.1.10)
	readBuffer   = 8 << 10 // a line of a message may be longer
	writeBuffer  = 2 << 10
	lingerTime   = 2 * time.Second
	lingerOctets = 1 << 20
)

// Ends of a session. They are errors, so that no code can go on after one.
var (
	errQuit    = errors.New("quit")
	errStop    = errors.New("stop")
	errClosing = errors.New("closing")
	errRefused = errors.New("refused at once")
)

type engine struct {
	conn    net.Conn
	in      *input
	r       *bufio.Reader
	w       *bufio.Writer
	cfg     Config
	policy  Policy
	session Session
	stats   Stats

	greeted bool
	mail    *Mail
	rcpts   []Rcpt
	bdat    *chunked // a message under way in chunks

	errors, junk, excess int
}

// buffer is what a session needs room for.
type buffer struct {
	in  *bufio.Reader
	out *bufio.Writer
}

var buffers = sync.Pool{New: func() any {
	return &buffer{bufio.NewReaderSize(nil, readBuffer), bufio.NewWriterSize(nil, writeBuffer)}
}}

// Serve runs a session and returns when it has ended. It does not close conn.
func Serve(conn net.Conn, cfg Config, policy Policy) Stats {
	conn = rawsock.Wrap(conn)
	e := &engine{conn: conn, cfg: cfg, policy: policy}
	e.in = &input{conn: conn, timeout: cfg.CommandTimeout, crowded: cfg.Crowded, idle: true}
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	e.r, e.w = b.in, b.out
	e.r.Reset(e.in)
	e.w.Reset(output{e.in})
	defer func() { // of this session nothing is kept
		e.r.Reset(nil)
		e.w.Reset(nil)
	}()
	e.in.flush = e.w.Flush
	if cfg.SessionTimeout > 0 {
		e.in.end = time.Now().Add(cfg.SessionTimeout)
	}
	if cfg.Stop != nil {
		defer context.AfterFunc(cfg.Stop, e.in.stop)()
	}
	e.stats.After = "CONNECT"
	err := e.run()
	e.reset()
	e.end(err)
	return e.stats
}

func (e *engine) run() error {
	reply := e.policy.Connect(&e.session)
	// RFC 5321, section 3.1: the client waits for the greeting. Programs that send
	// mail nobody wants often do not.
	err := e.synchronise()
	switch {
	case err == nil && reply != nil:
		err = e.reply(*reply)
	case err == nil:
		err = e.reply(Reply{220, "", e.cfg.Hostname + " ESMTP Posthouse"})
	}
	if err != nil && reply != nil {
		err = errors.Join(errRefused, err)
	}
	if err != nil {
		return err
	}
	for {
		e.in.setIdle(e.mail == nil)
		e.in.begin()
		line, err := e.command()
		if err == nil {
			err = e.dispatch(line)
		}
		if err != nil {
			return err
		}
	}
}

// end says goodbye in the way that err asks for.
func (e *engine) end(err error) {
	var timeout net.Error
	switch {
	case errors.Is(err, errQuit):
	case errors.Is(err, errClosing): // the reply has been given
		if e.stats.Cause == "" && e.stats.NotSMTP == "" {
			e.stats.Cause = "refused"
		}
	case errors.Is(err, errStop):
		e.write(Reply{421, "4.3.2", e.cfg.Hostname + " Service shutting down"})
	case errors.As(err, &timeout) && timeout.Timeout():
		e.stats.Cause = "timeout"
		e.write(Reply{421, "4.4.2", e.cfg.Hostname + " Error: timeout exceeded"})
	default:
		e.stats.Cause = "lost connection"
		return
	}
	// Who is refused at once should have said nothing yet. To wait until he goes would give
	// him a place, and there may be very many of him.
	if e.w.Flush() != nil || errors.Is(err, errQuit) || errors.Is(err, errRefused) {
		return
	}
	// The reply would be lost if the connection were closed with input unread.
	if c, ok := e.conn.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
		_ = e.conn.SetReadDeadline(time.Now().Add(lingerTime))
		buf := make([]byte, 4<<10)
		for n := 0; n < lingerOctets; {
			k, err := e.conn.Read(buf)
			if err != nil {
				return
			}
			n += k
		}
	}
}

// reset gives up the transaction.
func (e *engine) reset() {
	if e.bdat != nil && e.bdat.sink != nil {
		e.bdat.sink.Abort()
	}
	e.mail, e.rcpts, e.bdat, e.excess = nil, nil, nil, 0
}

// reply answers a command; errors are counted, and may end the session.
func (e *engine) reply(r Reply) error {
	if r.Code < 400 {
		e.slow()
		e.write(r)
		return nil
	}
	e.errors++
	if r.Code == 421 || r.Code == 521 {
		e.write(r)
		return errClosing
	}
	return e.limit(r)
}

func (e *engine) limit(r Reply) error {
	if e.cfg.HardErrors > 0 && e.errors >= e.cfg.HardErrors {
		e.stats.Cause = "too many errors"
		e.write(Reply{421, "4.7.0", e.cfg.Hostname + " Error: too many errors"})
		return errClosing
	}
	e.slow()
	e.write(r)
	return nil
}

// slow makes a client wait that has made many errors.
func (e *engine) slow() {
	if e.cfg.SoftErrors > 0 && e.errors > e.cfg.SoftErrors {
		time.Sleep(time.Second)
	}
}

// harmless answers a command that does nothing for the client.
func (e *engine) harmless(r Reply) error {
	e.nothing()
	return e.limit(r)
}

// nothing counts commands that do nothing for the client.
func (e *engine) nothing() {
	e.junk++
	if e.junk > maxJunk {
		e.errors++
	}
}

// write puts a reply into the buffer; it goes out when input is wanted and
// none is there, so that pipelined commands share a packet (RFC 2920, section
// 3.2). Errors show at the flush.
func (e *engine) write(r Reply) {
	status := r.Status
	if status != "" {
		status += " "
	}
	fmt.Fprintf(e.w, "%d %s%s\r\n", r.Code, status, Printable(r.Text))
}

// maxReplyText keeps reply lines within 512 octets (RFC 5321, section 4.5.3.1.5).
const maxReplyText = 490

// Printable makes text fit for a reply line: one line of UTF-8 without control
// characters, of bounded length.
func Printable(s string) string {
	if dsn.CheckText(s) != nil {
		s = strings.Map(func(r rune) rune {
			if dsn.CheckText(string(r)) != nil {
				return '?'
			}
			return r
		}, strings.ToValidUTF8(s, "?"))
	}
	if len(s) > maxReplyText {
		s = strings.ToValidUTF8(s[:maxReplyText], "")
	}
	return s
}

// command reads a command line, without its end.
func (e *engine) command() (string, error) {
	b, err := e.r.ReadSlice('\n')
	long, half := len(b) > maxCommand, false
	for errors.Is(err, bufio.ErrBufferFull) {
		half = bytes.HasSuffix(b, cr) // of its end
		b, err = e.r.ReadSlice('\n')
	}
	if err != nil {
		return "", err
	}
	text, ok := bytes.CutSuffix(b, crlf)
	if !ok && (!half || len(b) > 1) {
		// A script that sends for its user may know LF only. It shows in its first line.
		first := e.cfg.Local && e.stats == Stats{After: "CONNECT"}
		if !e.cfg.BareNewline && !first {
			return "", e.bare("LF")
		}
		e.cfg.BareNewline = true
		text = b[:len(b)-1]
	}
	if long {
		return strings.Repeat("x", maxCommand+1), nil // no command
	}
	return string(text), nil
}

// bare ends a session in which a line did not end as it must. What follows may
// have been written by somebody else.
func (e *engine) bare(which string) error {
	e.stats.Cause = "bare " + which
	e.write(e.bareReply(which))
	return errClosing
}

func (e *engine) bareReply(which string) Reply {
	return Reply{521, "5.5.2", e.cfg.Hostname + " Error: bare <" + which + "> received"}
}

// synchronise ends a session whose client has sent more before it could know
// the reply. It is only called where RFC 2920 wants the client to wait.
func (e *engine) synchronise() error {
	if e.cfg.Local || e.r.Buffered() == 0 && !e.in.unread() {
		return nil
	}
	e.stats.Cause = "improper command pipelining"
	e.write(Reply{554, "5.5.0", "Error: SMTP protocol synchronization"})
	return errClosing
}
