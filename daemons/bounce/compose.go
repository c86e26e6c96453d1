package main

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/protocol/bounce"
)

// report is one notification to compose.
type report struct {
	*bounce.Request
	from, to addr.Mailbox
	hostname string
	origin   string // domain of MAILER-DAEMON
	limit    int64  // of the content that is given back whole, in octets; -1: none is
	content  io.ReaderAt
	now      time.Time
	// postmaster is set for a copy that goes to the postmaster because the
	// sender cannot be told.
	postmaster bool
}

// maxHeader bounds the header that is given back, in octets.
const maxHeader = 100 << 10

const dateFormat = "Mon, 2 Jan 2006 15:04:05 -0700 (MST)"

// compose writes the notification: RFC 3462 and RFC 3464, and RFC 6533 where an
// address is not ASCII. Lines end in CRLF.
func (r *report) compose() ([]byte, error) {
	original, full, err := r.original()
	if err != nil {
		return nil, err
	}
	global := r.isUTF8()
	boundary := r.boundary(original)
	var b, text, status, returned bytes.Buffer
	r.text(&text)
	r.status(&status)
	fmt.Fprintf(&returned, "Return-Path: %s\r\n%s", r.Envelope.Sender.Path(), original)
	r.header(&b, boundary, global || !isASCII(original) || !isASCII(text.Bytes()))
	part := func(description, contentType string, content []byte) {
		fmt.Fprintf(&b, "\r\n--%s\r\nContent-Description: %s\r\nContent-Type: %s\r\n", boundary, description, contentType)
		if !isASCII(content) {
			b.WriteString("Content-Transfer-Encoding: 8bit\r\n")
		}
		b.WriteString("\r\n")
		b.Write(content)
	}
	part("Notification", "text/plain; charset=utf-8", text.Bytes())
	part("Delivery report", choose(global, "message/global-delivery-status", "message/delivery-status"), status.Bytes())
	attached := r.kindText().attached
	switch {
	case full && global:
		part(attached, "message/global", returned.Bytes())
	case full:
		part(attached, "message/rfc822", returned.Bytes())
	case global:
		part(attached+" (header)", "message/global-headers", returned.Bytes())
	default:
		part(attached+" (header)", "text/rfc822-headers", returned.Bytes())
	}
	if !bytes.HasSuffix(original, []byte("\r\n")) {
		b.WriteString("\r\n")
	}
	fmt.Fprintf(&b, "\r\n--%s--\r\n", boundary)
	return b.Bytes(), nil
}

func (r *report) header(b *bytes.Buffer, boundary string, eightBit bool) {
	global := r.isUTF8()
	fmt.Fprintf(b, "Date: %s\r\n", r.now.Format(dateFormat))
	fmt.Fprintf(b, "From: Mail Delivery System <MAILER-DAEMON@%s>\r\n", r.origin)
	fmt.Fprintf(b, "Subject: %s\r\n", choose(r.postmaster, "Postmaster copy: ", "")+r.kindText().subject)
	fmt.Fprintf(b, "To: %s\r\n", r.to)
	// RFC 3834, section 5: a notification is an answer; a copy is not.
	fmt.Fprintf(b, "Auto-Submitted: %s\r\n", choose(r.postmaster, "auto-generated", "auto-replied"))
	fmt.Fprintf(b, "Message-Id: <%s.%s.%d@%s>\r\n", r.now.UTC().Format("20060102150405.000000"), r.QueueID, r.Kind, r.hostname)
	b.WriteString("MIME-Version: 1.0\r\n")
	fmt.Fprintf(b, "Content-Type: multipart/report; report-type=%s;\r\n\tboundary=\"%s\"\r\n",
		choose(global, "global-delivery-status", "delivery-status"), boundary)
	if eightBit {
		b.WriteString("Content-Transfer-Encoding: 8bit\r\n")
	}
	b.WriteString("\r\nThis is a multi-part message in MIME format.\r\n")
}

type kindText struct {
	subject, action, attached string
	lines                     []string
}

func (r *report) kindText() kindText {
	switch r.Kind {
	case bounce.Delay:
		return kindText{"Delayed Mail (still being retried)", "delayed", "Delayed Message", []string{
			"Your message has not been delivered yet to the recipients below.",
			"You need not do anything: the mail system keeps trying",
			"until " + r.Expires.Format(dateFormat) + ".",
		}}
	case bounce.Success:
		return kindText{"Successful Mail Delivery Report", "delivered", "Message", []string{
			"Your message was delivered to the recipients below, or handed to a",
			"mail system that will not report any further.",
		}}
	case bounce.Failure:
	}
	return kindText{"Undelivered Mail Returned to Sender", "failed", "Undelivered Message", []string{
		"Your message could not be delivered to the recipients below.",
		"No further attempt will be made for them.",
	}}
}

func (r *report) text(b *bytes.Buffer) {
	fmt.Fprintf(b, "This is the mail system at host %s.\r\n\r\n", r.hostname)
	for _, line := range r.kindText().lines {
		b.WriteString(line + "\r\n")
	}
	b.WriteString("\r\nFor further assistance, write to postmaster, and include this report.\r\n")
	for i := range r.Recipients {
		rcpt := &r.Recipients[i]
		line := rcpt.Address.Path()
		if o := rcpt.Original; !o.IsNull() && !strings.EqualFold(o.String(), rcpt.Address.String()) {
			line += " (expanded from " + o.Path() + ")"
		}
		b.WriteString("\r\n" + fold(line+": "+rcpt.Text, "    ") + "\r\n")
	}
}

// status writes the machine-readable part (RFC 3464, section 2).
func (r *report) status(b *bytes.Buffer) {
	fmt.Fprintf(b, "Reporting-MTA: dns; %s\r\n", r.hostname)
	if r.Envelope.EnvID != "" {
		addressField(b, "Original-Envelope-Id", r.said(r.Envelope.EnvID)) // unchanged: RFC 3464, section 2.2.1
	}
	fmt.Fprintf(b, "X-Posthouse-Queue-ID: %s\r\n", r.QueueID)
	if s := r.Envelope.Sender; !s.IsNull() {
		field(b, "X-Posthouse-Sender", addressType(s)+"; "+s.String())
	}
	fmt.Fprintf(b, "Arrival-Date: %s\r\n", r.Envelope.Arrival.Format(dateFormat))
	for i := range r.Recipients {
		r.recipient(b, &r.Recipients[i])
	}
}

func (r *report) recipient(b *bytes.Buffer, rcpt *bounce.Recipient) {
	b.WriteString("\r\n")
	addressField(b, "Final-Recipient", addressType(rcpt.Address)+"; "+rcpt.Address.String())
	if rcpt.ORCPT != (dsn.OriginalRecipient{}) {
		o := rcpt.ORCPT.String()
		if enc := rcpt.ORCPT.Encode(); rcpt.ORCPT.Type == "utf-8" && !r.isUTF8() && enc != "" {
			o = enc // RFC 6533, section 3
		}
		addressField(b, "Original-Recipient", r.said(o))
	}
	action, status := r.kindText().action, rcpt.Status
	if r.Kind == bounce.Success && rcpt.Relayed {
		action = "relayed"
	}
	if r.Kind == bounce.Delay {
		status = status.With(dsn.Transient)
	}
	fmt.Fprintf(b, "Action: %s\r\nStatus: %s\r\n", action, status)
	switch {
	case rcpt.RemoteMTA != "":
		field(b, "Remote-MTA", "dns; "+r.said(hostName(rcpt.RemoteMTA)))
		if rcpt.Diagnostic != "" {
			field(b, "Diagnostic-Code", "smtp; "+r.said(rcpt.Diagnostic))
		}
	case rcpt.Text != "":
		field(b, "Diagnostic-Code", "X-Posthouse; "+r.said(rcpt.Text))
	}
	if r.Kind == bounce.Delay {
		fmt.Fprintf(b, "Will-Retry-Until: %s\r\n", r.Expires.Format(dateFormat))
	}
}

// hostName is a host as RFC 3464, section 2.3.5 wants it: an address is a literal.
func hostName(host string) string {
	a, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return host
	case a.Is4():
		return "[" + host + "]"
	}
	return "[IPv6:" + host + "]"
}

// said is what somebody has said, in any language; fields are in ASCII unless
// the report is in the forms of RFC 6533.
func (r *report) said(s string) string {
	if r.isUTF8() {
		return s
	}
	return ascii(s)
}

// original reads what is given back: all of it where it is small and the sender
// did not ask for less, else the header. A message is never cut in its body.
func (r *report) original() (b []byte, full bool, err error) {
	full = r.Length <= r.limit && r.Envelope.Return != dsn.ReturnHeaders && r.Kind == bounce.Failure
	n := r.Length
	if !full {
		n = min(n, maxHeader)
	}
	b = make([]byte, n)
	if got, err := r.content.ReadAt(b, r.Offset); got < len(b) {
		return nil, false, fmt.Errorf("read the message: %w", err)
	}
	if full {
		return b, true, nil
	}
	if bytes.HasPrefix(b, []byte("\r\n")) {
		return nil, false, nil
	}
	if end := bytes.Index(b, []byte("\r\n\r\n")); end >= 0 {
		return b[:end+2], false, nil
	}
	// No end of the header within the limit: end with a whole line.
	return b[:bytes.LastIndexByte(b, '\n')+1], false, nil
}

// boundary is one that no line of the original begins with. It has 70 characters
// at most (RFC 2046, section 5.1.1).
func (r *report) boundary(original []byte) string {
	for n := 0; ; n++ {
		s := fmt.Sprintf("%.70s", fmt.Sprintf("%s.%d/%s", r.QueueID, r.now.Unix()+int64(n), ascii(r.hostname)))
		if !bytes.Contains(original, []byte(s)) {
			return s
		}
	}
}

// isUTF8 reports whether the report needs the forms of RFC 6533.
func (r *report) isUTF8() bool {
	if !r.Envelope.Sender.IsASCII() || r.Envelope.SMTPUTF8 {
		return true
	}
	for i := range r.Recipients {
		if !r.Recipients[i].Address.IsASCII() || !r.Recipients[i].Original.IsASCII() {
			return true
		}
	}
	return false
}

func addressType(m addr.Mailbox) string { return choose(m.IsASCII(), "rfc822", "utf-8") }

func choose(cond bool, yes, no string) string {
	if cond {
		return yes
	}
	return no
}

// ascii replaces what is not ASCII.
func ascii(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 0x80 {
			return '?'
		}
		return r
	}, s)
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

func field(b *bytes.Buffer, name, value string) {
	b.WriteString(fold(name+": "+value, "    ") + "\r\n")
}

// addressField writes a field with an address, or an envelope ID, on one line: folded, one with spaces
// in quotes would be another.
func addressField(b *bytes.Buffer, name, value string) {
	if line := name + ": " + value; len(line) <= maxLine {
		b.WriteString(line + "\r\n")
		return
	}
	field(b, name, value)
}

// maxLine is the limit of a line (RFC 5322, section 2.1.1), in octets.
const maxLine = 998

// fold breaks a long line at spaces; lines after the first begin with indent,
// which makes them continuation lines of a header field (RFC 5322, section
// 2.2.3). A word that fills a line on its own is left whole up to the limit of
// that section, 998 octets, and cut there.
func fold(s, indent string) string {
	const width = 76
	var b strings.Builder
	column := 0
	for _, word := range strings.Fields(s) {
		for len(word) > maxLine-len(indent) {
			cut := maxLine - len(indent)
			for !utf8.RuneStart(word[cut]) {
				cut--
			}
			b.WriteString("\r\n" + indent + word[:cut])
			word, column = word[cut:], maxLine
		}
		switch {
		case column == 0:
		case column+1+len(word) > width:
			b.WriteString("\r\n" + indent)
			column = len(indent)
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String()
}
