package smtpserver

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// ready says why a message may not begin now; nil where it may.
func (e *engine) ready() *Reply {
	switch {
	case e.mail == nil:
		return &Reply{503, "5.5.1", "Error: need RCPT command"}
	case len(e.rcpts) == 0:
		return &Reply{554, "5.5.1", "Error: no valid recipients"}
	}
	return nil
}

var (
	crlf   = []byte("\r\n")
	cr     = []byte("\r")
	tooBig = Reply{552, "5.3.4", "Error: message file too big"}
)

func (e *engine) data(args string) (bool, error) {
	if args != "" {
		return e.no(501, "5.5.4", "Syntax: DATA")
	}
	if e.bdat != nil {
		return e.no(503, "5.5.1", "Error: DATA within BDAT")
	}
	if reply := e.ready(); reply != nil {
		return false, e.reply(*reply)
	}
	// Lines sent before 354 would be taken for commands if it were not given.
	if err := e.synchronise(); err != nil {
		return false, err
	}
	sink, reply := e.policy.Data(&e.session, e.mail, e.rcpts)
	if reply != nil {
		e.reset()
		return false, e.reply(*reply)
	}
	e.write(Reply{354, "", "End data with <CR><LF>.<CR><LF>"})
	e.in.begin()
	l := &limited{sink: sink, left: e.cfg.MessageSize, unlimited: e.cfg.MessageSize == 0}
	n, err := e.receive(l)
	if err != nil {
		if l.sink != nil {
			sink.Abort()
		}
		e.stats.After = fmt.Sprintf("DATA (%d bytes)", n)
		var bare *bareError
		if errors.As(err, &bare) {
			e.readOn(bare.state)
			err = e.refuseBare(bare.which)
		}
		return false, err
	}
	return e.finish(l)
}

// limited passes on what fits and gives up a message that does not.
type limited struct {
	sink      Sink // nil when given up
	left      int64
	unlimited bool
	failed    bool // the sink will say why
}

func (l *limited) Write(p []byte) (int, error) {
	if l.sink == nil || l.failed {
		return len(p), nil
	}
	if !l.unlimited {
		if l.left -= int64(len(p)); l.left < 0 {
			l.sink.Abort()
			l.sink = nil
			return len(p), nil
		}
	}
	if _, err := l.sink.Write(p); err != nil {
		l.failed = true
	}
	return len(p), nil
}

// finish ends a message that was received to its end.
func (e *engine) finish(l *limited) (bool, error) {
	e.stats.After = EndOfMessage
	chunks := e.bdat
	e.bdat = nil
	reply := tooBig
	if l.sink != nil {
		reply = l.sink.Commit()
		if rest, ok := strings.CutPrefix(reply.Text, "Ok: "); ok && chunks != nil && reply.Code/100 == 2 {
			reply.Text = fmt.Sprintf("Ok: %d bytes %s", chunks.size, rest) // as Postfix says it
		}
	} else {
		e.policy.Refused(&e.session, Refusal{Verb: EndOfMessage, Mail: e.mail, Reply: reply})
	}
	e.reset()
	if reply.Code/100 == 2 {
		e.errors, e.junk = 0, 0
	}
	return reply.Code/100 == 2, e.reply(reply)
}

// bareError is a CR or an LF that stands alone in a message.
type bareError struct {
	which string
	state int // how much of endOfData has been read, maybe
}

// bareIn is the error for b, a line or a piece of one.
func bareIn(b []byte, which string) *bareError {
	e := &bareError{which: which}
	switch {
	case bytes.HasSuffix(b, crlf):
		e.state = len(crlf)
	case bytes.HasSuffix(b, cr):
		e.state = len(cr)
	}
	return e
}

func (b *bareError) Error() string { return "bare <" + b.which + ">" }

// endOfData is what ends a message, and nothing else does.
const endOfData = "\r\n.\r\n"

// step is how much of endOfData has been read when c is read after state octets
// of it.
func step(state int, c byte) int {
	switch c {
	case endOfData[state]:
		return state + 1
	case '\r':
		return 1
	}
	return 0
}

// quietTime is how long a client may say nothing in a message that is refused: one
// that believes in bare LFs waits for its reply.
const quietTime = 10 * time.Second

// readOn reads a message that is refused up to its end, so that the client
// gets to the reply: it does not read while it sends, and a connection that is
// closed with input unread takes the reply with it. What a client that never
// comes to an end gets is the same, and it ends there.
func (e *engine) readOn(state int) {
	e.in.timeout = min(e.in.timeout, quietTime)
	e.in.begin()
	left := e.cfg.MessageSize
	if left == 0 {
		left = maxChunk
	}
	for ; state < len(endOfData) && left > 0; left-- {
		c, err := e.r.ReadByte()
		if err != nil {
			return // the session ends anyway
		}
		state = step(state, c)
	}
}

// refuseBare refuses a message, and ends the session.
func (e *engine) refuseBare(which string) error {
	e.policy.Refused(&e.session, Refusal{Verb: EndOfMessage, Mail: e.mail, Reply: e.bareReply(which)})
	return e.bare(which)
}

// receive reads a message up to CRLF.CRLF and passes its lines on (RFC 5321,
// section 4.5.2). It returns how many octets it has read.
func (e *engine) receive(w io.Writer) (n int64, err error) {
	start := true // of a line
	held := false // a CR was the last octet of a piece of a line
	for {
		b, err := e.r.ReadSlice('\n')
		n += int64(len(b))
		full := err == nil
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return n, err
		}
		if start && b[0] == '.' {
			if full && (len(b) == 3 && b[1] == '\r' || len(b) == 2 && e.cfg.BareNewline) {
				return n, nil
			}
			b = b[1:]
		}
		start = full
		if held, err = e.pass(w, b, held); err != nil {
			return n, err
		}
	}
}

// pass writes a line, or a piece of one where it is long, to w. held says that
// the piece before ended in a CR that has not been written; the result says
// the same of this one.
func (e *engine) pass(w io.Writer, b []byte, held bool) (bool, error) {
	if held {
		if b[0] != '\n' && !e.cfg.BareNewline {
			return false, bareIn(b, "CR")
		}
		if _, err := w.Write(cr); err != nil {
			return false, err
		}
	}
	text, end := bytes.CutSuffix(b, []byte("\n"))
	wasCR := held && len(text) == 0
	if t, ok := bytes.CutSuffix(text, cr); ok {
		text, wasCR = t, true
	}
	if !e.cfg.BareNewline {
		if bytes.IndexByte(text, '\r') >= 0 {
			return false, bareIn(b, "CR")
		}
		if end && !wasCR {
			return false, bareIn(b, "LF")
		}
	}
	switch {
	case end && held && len(text) == 0:
		_, err := w.Write([]byte("\n"))
		return false, err
	case end && len(b) >= 2 && wasCR:
		_, err := w.Write(b)
		return false, err
	}
	if _, err := w.Write(text); err != nil {
		return false, err
	}
	if end {
		_, err := w.Write(crlf)
		return false, err
	}
	return wasCR, nil
}

// chunked is a message that comes in chunks.
type chunked struct {
	limited
	started bool
	refused *Reply // all further chunks get it
	size    int64  // of the chunks, in octets
	held    bool   // see pass
	middle  bool   // the last octet was not the end of a line
}

// maxChunk bounds one chunk: what is refused has to be read all the same.
const maxChunk = 1 << 31

// bdatChunk is BDAT (RFC 3030, section 2). Whatever the answer, exactly the
// announced octets are read: none of them can become a command, and a chunk
// that was cut off is never taken for a whole one.
func (e *engine) bdatChunk(args string) (bool, error) {
	size, last, ok := parseChunk(args)
	if !ok {
		// How much follows is not known.
		e.stats.Cause = "malformed BDAT"
		e.write(Reply{521, "5.5.4", "Syntax: BDAT count [LAST]"})
		return false, errClosing
	}
	if e.bdat == nil && e.mail != nil {
		e.bdat = &chunked{limited: limited{left: e.cfg.MessageSize, unlimited: e.cfg.MessageSize == 0}}
	}
	if reply := e.openChunked(); reply != nil {
		if err := e.skip(size); err != nil {
			return false, err
		}
		if last { // the transaction ends with it, as with a message that is refused
			e.reset()
		}
		return false, e.reply(*reply)
	}
	c := e.bdat
	got, err := e.copyChunk(c, size)
	c.size += got
	if err == nil && last && c.held && !e.cfg.BareNewline {
		err = &bareError{which: "CR"}
	}
	if err != nil {
		e.stats.After = fmt.Sprintf("BDAT (%d bytes)", got)
		var bare *bareError
		if errors.As(err, &bare) {
			_ = e.skip(size - got) // the session ends anyway
			err = e.refuseBare(bare.which)
		}
		return false, err
	}
	if !last {
		if size == 0 {
			e.nothing()
		}
		if c.sink == nil {
			c.refused = &tooBig
			return e.refuse(Refusal{Verb: EndOfMessage, Mail: e.mail, Reply: tooBig})
		}
		return e.yes("2.0.0", "Ok: "+strconv.FormatInt(size, 10)+" bytes")
	}
	if c.held {
		_, _ = c.Write(cr) // limited keeps errors for the end
	}
	if c.middle {
		_, _ = c.Write(crlf)
	}
	return e.finish(&c.limited)
}

// openChunked opens the sink at the first chunk. It returns the reply to a
// chunk that is not wanted.
func (e *engine) openChunked() *Reply {
	reply := e.ready()
	if e.bdat == nil {
		return reply
	}
	if e.bdat.refused == nil && !e.bdat.started {
		e.bdat.refused = reply
		if reply == nil {
			e.bdat.sink, e.bdat.refused = e.policy.Data(&e.session, e.mail, e.rcpts)
			e.bdat.started = true
		}
	}
	return e.bdat.refused
}

func parseChunk(args string) (size int64, last, ok bool) {
	number, word, _ := strings.Cut(args, " ")
	n, err := strconv.ParseUint(number, 10, 63)
	last = strings.EqualFold(word, "LAST")
	return int64(n), last, err == nil && n <= maxChunk && (last || word == "")
}

func (e *engine) skip(size int64) error {
	for size > 0 {
		n, err := e.r.Discard(int(min(size, readBuffer)))
		size -= int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// copyChunk passes size octets on.
func (e *engine) copyChunk(c *chunked, size int64) (got int64, err error) {
	for got < size {
		if _, err := e.r.Peek(1); err != nil {
			return got, err
		}
		b, _ := e.r.Peek(int(min(size-got, int64(e.r.Buffered()))))
		for len(b) > 0 {
			line := b
			if i := bytes.IndexByte(b, '\n'); i >= 0 {
				line = b[:i+1]
			}
			if c.held, err = e.pass(c, line, c.held); err != nil {
				return got, err
			}
			c.middle = line[len(line)-1] != '\n'
			got += int64(len(line))
			b = b[len(line):]
			if _, err := e.r.Discard(len(line)); err != nil {
				return got, err
			}
		}
	}
	return got, nil
}
