// Package envelope holds what travels beside the content of a message: where
// it came from, whom it is for, and what the sender wants to be told.
package envelope

import (
	"net/netip"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
)

// Body is the BODY parameter of MAIL (RFC 6152).
type Body uint8

// The values of Body. The zero value means that the client did not say.
const (
	BodyUnset Body = iota
	Body7Bit
	Body8BitMIME
)

// Origin says by which way a message came in. It decides what cleanup may
// add to it: only a local submission is completed.
type Origin uint8

// The values of Origin. The zero value is the one that is trusted least.
const (
	FromNetwork Origin = iota // smtpd, port 25: content is relayed as it is
	FromLocal                 // pickup, or a submission port: missing headers are added
	FromSystem                // our own notifications
	FromGateway               // pickup, of a program that passes on what came from elsewhere: as it is
)

// Trace is what the Received field and the log say of a message's way here.
type Trace struct {
	Origin     Origin
	Protocol   string     // SMTP, ESMTP, UTF8SMTP... (RFC 3848); "" for a local submission
	Helo       string     // as the client claimed; printable
	ClientName string     // verified name of the client, or "unknown"
	ClientAddr netip.Addr // zero for a local submission
	UID        uint32     // who submitted, for FromLocal and FromGateway without ClientAddr
}

// Recipient is one recipient of a message.
type Recipient struct {
	Address  addr.Mailbox          // where to deliver now
	Original addr.Mailbox          // as given at RCPT, before alias expansion
	Notify   dsn.Notify            // when to tell the sender
	ORCPT    dsn.OriginalRecipient // as the sender gave it; zero where it did not
}

// Envelope is the envelope of one message.
type Envelope struct {
	Arrival    time.Time
	Sender     addr.Mailbox // reverse-path; zero: the null reverse-path
	Return     dsn.Return
	EnvID      string // decoded; printable, one line; "" where not given
	Body       Body
	SMTPUTF8   bool
	Trace      Trace
	Recipients []Recipient
}
