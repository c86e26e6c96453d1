package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/header"
	"posthouse/pkg/queueid"
)

// mailName is what the mail system calls itself in Received fields.
const mailName = "Posthouse"

// rules are what the configuration says of content.
type rules struct {
	hostname string
	origin   string // completes addresses
	size     int64  // octets of content as it comes in
	header   int    // octets of its header
	hops     int    // Received fields that it has
}

// content takes the content of one message in pieces, and writes what belongs
// into the queue: the message as it came, but for what is said here.
//
// Fields that are nobody's business, or that only the final delivery may write,
// are dropped (dropField). A line that is no field ends the header: where the
// sender forgot the empty line in between it is put there, or else other programs
// would take the line for a part of the field before it. A From_ line of an mbox
// becomes a field, or is dropped in a local submission. Only to a local submission
// (envelope.FromLocal) fields are added that it should have, and the domain to
// addresses in its header that have none.
//
// It holds no more than one field in memory. A header over the limit is
// refused; Postfix throws away what is too much of a field, which is to change
// a message without a word.
type content struct {
	rules
	e   *envelope.Envelope
	id  queueid.ID
	out io.Writer

	lines lines
	size  int64
	start []byte // the beginning, while it may be a From_ line
	begun bool   // it is not, or is dealt with
	split *header.Splitter
	body  bool
	seen  seen
}

// seen is what the header has.
type seen struct {
	received        int
	resent          bool // fields of a message that is sent again
	messageID, date bool
	from            bool
	resentMessageID bool
	resentDate      bool
	resentFrom      bool
	id, resentID    string // for the log
}

// newContent returns the content of the message id, to be written to out. The
// trace of this system is not part of it.
func newContent(r rules, e *envelope.Envelope, id queueid.ID, out io.Writer) *content {
	c := &content{rules: r, e: e, id: id, out: out, split: header.NewSplitter(r.header)}
	c.lines.out = lineWriter{c}
	return c
}

// write takes the next piece. An error that is a *dsn.Error is a verdict on the
// message.
func (c *content) write(p []byte) error {
	c.size += int64(len(p))
	if c.size > c.rules.size {
		return dsn.Errorf("5.3.4", "message size exceeds the limit of %d octets", c.rules.size)
	}
	return c.lines.write(p)
}

// close ends the message.
func (c *content) close() error {
	if err := c.lines.close(); err != nil {
		return err
	}
	if !c.begun {
		c.begun = true
		if err := c.feed(c.start); err != nil {
			return err
		}
	}
	if c.body {
		return nil
	}
	rest, err := c.split.Close(c.field)
	if err != nil {
		return c.verdict(err)
	}
	if len(rest) > 0 {
		return c.startBody(rest)
	}
	return c.endHeader()
}

// lineWriter passes what has proper lines to the next stage.
type lineWriter struct{ c *content }

func (w lineWriter) Write(p []byte) (int, error) {
	c := w.c
	var err error
	switch {
	case c.body:
		_, err = c.out.Write(p)
	case c.begun:
		err = c.feed(p)
	default:
		err = c.first(p)
	}
	return len(p), err
}

// first looks for From_ lines at the very beginning.
func (c *content) first(p []byte) error {
	if is, sure := isMboxLine(p); len(c.start) == 0 && sure && !is {
		c.begun = true
		return c.feed(p)
	}
	c.start = append(c.start, p...)
	for {
		is, sure := isMboxLine(c.start)
		end := bytes.IndexByte(c.start, '\n') + 1
		switch {
		case !sure || is && end == 0:
			if len(c.start) > c.header {
				return c.verdict(header.ErrTooLarge)
			}
			return nil
		case is && isSubmitted(&c.e.Trace):
			c.start = c.start[end:] // there may be more of them
			continue
		case is:
			if _, err := fmt.Fprintf(c.out, "X-Mailbox-Line: %s", c.start[:end]); err != nil {
				return err
			}
			c.start = c.start[end:]
		}
		c.begun = true
		rest := c.start
		c.start = nil
		return c.feed(rest)
	}
}

// isSubmitted reports whether a program on this machine handed the message over.
func isSubmitted(t *envelope.Trace) bool {
	return (t.Origin == envelope.FromLocal || t.Origin == envelope.FromGateway) && !t.ClientAddr.IsValid()
}

// isMboxLine reports whether b begins with a From_ line, quoted or not; sure is
// false where more of it has to be seen.
func isMboxLine(b []byte) (is, sure bool) {
	const mark = "From "
	b = bytes.TrimLeft(b, ">")
	if len(b) < len(mark) && strings.HasPrefix(mark, string(b)) {
		return false, false
	}
	return bytes.HasPrefix(b, []byte(mark)), true
}

// feed takes a piece of the header, or the first one of the body.
func (c *content) feed(p []byte) error {
	rest, err := c.split.Feed(p, c.field)
	if err != nil {
		return c.verdict(err)
	}
	if !c.split.Done() {
		return nil
	}
	return c.startBody(rest)
}

func (c *content) startBody(rest []byte) error {
	if err := c.endHeader(); err != nil {
		return err
	}
	c.body = true
	if _, err := c.out.Write(crlf); err != nil {
		return err
	}
	if len(rest) == 0 {
		return nil
	}
	_, err := c.out.Write(rest)
	return err
}

func (c *content) verdict(err error) error {
	if errors.Is(err, header.ErrTooLarge) {
		return dsn.Errorf("5.3.4", "message header exceeds the limit of %d octets", c.header)
	}
	return err
}

// dropField reports whether a field, its name in lower case, goes into no
// message: the blind copies that it is blind for, a length that is wrong by now,
// and the mark of final delivery.
func dropField(name string) bool {
	switch name {
	case "bcc", "resent-bcc", "content-length", "return-path":
		return true
	}
	return false
}

// field takes one field of the header.
func (c *content) field(f header.Field) error {
	name := strings.ToLower(f.Name())
	if err := c.note(name, f); err != nil || dropField(name) {
		return err
	}
	raw := f.Raw
	if c.e.Trace.Origin == envelope.FromLocal && hasAddresses(name) {
		raw = f.Complete(c.origin)
	}
	_, err := c.out.Write(raw)
	return err
}

// hasAddresses reports whether a field, its name in lower case, has addresses
// that users of this system may write without a domain: cron's "From: root".
func hasAddresses(name string) bool {
	switch strings.TrimPrefix(name, "resent-") {
	case "from", "sender", "reply-to", "to", "cc":
		return true
	}
	return false
}

// note remembers what matters later.
func (c *content) note(name string, f header.Field) error {
	s := &c.seen
	s.resent = s.resent || strings.HasPrefix(name, "resent-")
	switch name {
	case "received":
		if s.received++; s.received > c.hops {
			return dsn.Errorf("5.4.0", "too many hops")
		}
	case "message-id":
		s.messageID, s.id = true, f.Value()
	case "date":
		s.date = true
	case "from":
		s.from = true
	case "resent-message-id":
		s.resentMessageID, s.resentID = true, f.Value()
	case "resent-date":
		s.resentDate = true
	case "resent-from":
		s.resentFrom = true
	}
	return nil
}

// endHeader adds what a local submission lacks (RFC 5322, section 3.6, and RFC
// 6409, section 8). In a message that is sent again these are the Resent- fields.
func (c *content) endHeader() error {
	if c.e.Trace.Origin != envelope.FromLocal {
		return nil
	}
	s := &c.seen
	prefix, messageID, date, from := "", s.messageID, s.date, s.from
	if s.resent {
		prefix, messageID, date, from = "Resent-", s.resentMessageID, s.resentDate, s.resentFrom
	}
	var b strings.Builder
	if !messageID {
		id := fmt.Sprintf("<%s@%s>", c.id, c.hostname)
		if s.resent {
			s.resentID = id
		} else {
			s.id = id
		}
		fmt.Fprintf(&b, "%sMessage-Id: %s\r\n", prefix, id)
	}
	if !date {
		fmt.Fprintf(&b, "%sDate: %s\r\n", prefix, mailDate(c.e.Arrival))
	}
	if !from {
		sender := c.e.Sender.String()
		if sender == "" {
			sender = "MAILER-DAEMON"
		}
		fmt.Fprintf(&b, "%sFrom: %s\r\n", prefix, sender)
	}
	_, err := io.WriteString(c.out, b.String())
	return err
}

// mailDate is the form of a date in the header (RFC 5322, section 3.3), in
// local time.
func mailDate(t time.Time) string { return t.Local().Format("Mon, _2 Jan 2006 15:04:05 -0700 (MST)") }

// received is the trace field of this system (RFC 5321, section 4.4), in
// Postfix's form. only is the recipient, as it was given, if there is no other;
// several are not told of each other.
func received(hostname string, e *envelope.Envelope, id queueid.ID, only addr.Mailbox) string {
	t := &e.Trace
	date := mailDate(e.Arrival)
	if !t.ClientAddr.IsValid() {
		who := ""
		if isSubmitted(t) {
			who = fmt.Sprintf(", from userid %d", t.UID)
		}
		return fmt.Sprintf("Received: by %s (%s%s)\r\n\tid %s; %s\r\n", hostname, mailName, who, id, date)
	}
	ip := t.ClientAddr.Unmap().String()
	if t.ClientAddr.Unmap().Is6() {
		ip = "IPv6:" + ip
	}
	name := cmp.Or(t.ClientName, "unknown")
	s := fmt.Sprintf("Received: from %s (%s [%s])\r\n\tby %s (%s) with %s id %s",
		cmp.Or(t.Helo, name), name, ip, hostname, mailName, cmp.Or(t.Protocol, "SMTP"), id)
	if only.IsNull() {
		return s + ";\r\n\t" + date + "\r\n"
	}
	return s + "\r\n\tfor " + only.Path() + "; " + date + "\r\n"
}
