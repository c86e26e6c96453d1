package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/protocol/resolve"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/smtpserver"
)

// What a session asks of others.
type (
	resolver interface {
		Name(ctx context.Context, ip netip.Addr) (resolve.Reply, error)
	}
	rewriter interface {
		Ask(ctx context.Context, r rewrite.Request) ([]rewrite.Answer, error)
	}
	transaction interface {
		Write(p []byte) (int, error)
		Commit() error
		Abort()
	}
	queue interface {
		begin(ctx context.Context, e *envelope.Envelope) (id string, t transaction, err error)
	}
)

// How long a session waits for other daemons. The client waits five minutes.
const (
	nameTimeout    = 10 * time.Second
	rewriteTimeout = 60 * time.Second
	queueTimeout   = time.Hour // and all that the session may take, for the client may need it for one message
)

// policy decides for one session. It implements smtpserver.Policy.
type policy struct {
	*service
	rules
	ctx   context.Context
	ip    netip.Addr
	port  uint16
	known bool   // one of rules.trusted
	name  string // verified, or "unknown"
	id    string // of the message that came last

	sessions int // of the client, this one included
}

func (p *policy) client() string { return fmt.Sprintf("%s[%s]", p.name, p.ip) }

// Connect looks up who the client is. A name is one only if it leads back to
// the address.
func (p *policy) Connect(*smtpserver.Session) *smtpserver.Reply {
	p.name = "unknown"
	if most := p.ClientConnections; !p.known && most > 0 && p.sessions > most {
		p.log.Warn(maillog.Fields{"CLIENT": p.ip.String()}, "Connection concurrency limit exceeded: %d from %s for service %s", p.sessions, p.client(), p.socket)
		return &smtpserver.Reply{Code: 421, Status: "4.7.0", Text: p.config().Hostname + " Error: too many connections from " + p.ip.String()}
	}
	if p.ClientNames && !p.ip.IsLoopback() {
		ctx, cancel := context.WithTimeout(p.ctx, nameTimeout)
		defer cancel()
		if reply, err := p.resolver.Name(ctx, p.ip); err == nil && reply.Outcome == resolve.Verified {
			p.name = reply.Name
		}
	}
	if p.ip.IsLoopback() {
		p.name = "localhost"
	}
	p.log.Info(maillog.Fields{"CLIENT": p.ip.String()}, "connect from %s", p.client())
	return nil
}

// crowded reports whether the client has to hurry. One that may send anywhere has not:
// it is one of our own.
func (p *policy) crowded() bool {
	now, news := p.places.crowded(p.room)
	if news {
		p.log.Warn(nil, "service %s: nearly all of %d places are taken: who is silent for ten seconds has to go", p.socket, p.room)
	}
	return now && !p.known
}

// Helo takes any name: too many clients get it wrong.
func (p *policy) Helo(*smtpserver.Session, string) *smtpserver.Reply { return nil }

// Mail has nothing to say against a sender but at a submission port, where
// nobody is to send who is not known.
func (p *policy) Mail(s *smtpserver.Session, m *smtpserver.Mail) *smtpserver.Reply {
	if p.submission && !p.known {
		return p.refuse(s, smtpserver.Refusal{Verb: "MAIL", Mail: m, Reply: smtpserver.Reply{Code: 530, Status: "5.7.0", Text: "Authentication required"}})
	}
	return nil
}

// Rcpt refuses recipients that do not exist, and those of others unless the
// client may relay. postmaster without a domain is always there (RFC 5321, section
// 4.5.1): who has trouble with this system must be able to say so.
func (p *policy) Rcpt(s *smtpserver.Session, m *smtpserver.Mail, r *smtpserver.Rcpt) *smtpserver.Reply {
	if r.To.Domain() == "" { // only postmaster gets here without one
		return nil
	}
	no := func(reply smtpserver.Reply) *smtpserver.Reply {
		return p.refuse(s, smtpserver.Refusal{Verb: "RCPT", Mail: m, Rcpt: r, Reply: reply})
	}
	ctx, cancel := context.WithTimeout(p.ctx, rewriteTimeout)
	defer cancel()
	answers, err := p.rewriter.Ask(ctx, rewrite.Request{Op: rewrite.Verify, Sender: m.From, Addresses: []addr.Mailbox{r.To}})
	if err != nil {
		p.log.Warn(nil, "%v", err)
		return no(smtpserver.Reply{Code: 451, Status: "4.3.0", Text: r.To.Path() + ": Temporary lookup failure"})
	}
	a := answers[0]
	switch {
	case a.Class == rewrite.ClassDefault && !p.known && (a.Err == nil || a.Err.Status.Class() != dsn.Permanent):
		return no(smtpserver.Reply{Code: 554, Status: "5.7.1", Text: r.To.Path() + ": Relay access denied"})
	case a.Err != nil && a.Err.Status.Class() == dsn.Permanent:
		return no(smtpserver.Reply{Code: 550, Status: a.Err.Status.String(), Text: r.To.Path() + ": Recipient address rejected: " + a.Err.Text})
	case a.Err != nil:
		p.log.Warn(nil, "%s: %s", r.To, a.Err.Text)
		return no(smtpserver.Reply{Code: 451, Status: "4.3.0", Text: r.To.Path() + ": Temporary lookup failure"})
	case a.Unverified && !p.known:
		// The agent that could tell users from others is off. What was taken from
		// strangers would wait for it, and might then go back to forged senders.
		return no(smtpserver.Reply{Code: 450, Status: "4.1.1", Text: r.To.Path() + ": Recipient address rejected: unverified address"})
	}
	return nil
}

// Refused logs what the engine refuses.
func (p *policy) Refused(s *smtpserver.Session, r smtpserver.Refusal) {
	id := noQueue
	if r.Verb == smtpserver.EndOfMessage {
		id = p.id
	}
	p.reject(id, s, r)
}

// refuse logs a refusal and returns the reply.
func (p *policy) refuse(s *smtpserver.Session, r smtpserver.Refusal) *smtpserver.Reply {
	p.reject(noQueue, s, r)
	return &r.Reply
}

// noQueue stands for the queue ID of what has none.
const noQueue = "NOQUEUE"

// reject logs a refusal in the form that other programs watch for.
func (p *policy) reject(id string, s *smtpserver.Session, r smtpserver.Refusal) {
	fields := maillog.Fields{"CLIENT": p.ip.String()}
	var who strings.Builder
	if r.Mail != nil {
		fields["SENDER"] = r.Mail.From.String()
		fmt.Fprintf(&who, " from=<%s>", r.Mail.From)
	}
	if r.Rcpt != nil {
		fmt.Fprintf(&who, " to=<%s>", r.Rcpt.To)
	}
	fmt.Fprintf(&who, " proto=%s", protocol(s, r.Mail))
	if s.Helo != "" {
		fmt.Fprintf(&who, " helo=<%s>", s.Helo)
	}
	if id != noQueue {
		fields["QUEUE_ID"] = id
	}
	p.log.Info(fields, "%s: reject: %s from %s: %d %s %s;%s", id, r.Verb, p.client(), r.Reply.Code, r.Reply.Status, r.Reply.Text, &who)
}

// protocol is the word for the Received field (RFC 3848, RFC 6531).
func protocol(s *smtpserver.Session, m *smtpserver.Mail) string {
	switch {
	case m != nil && m.SMTPUTF8:
		return "UTF8SMTP"
	case s.ESMTP:
		return "ESMTP"
	}
	return "SMTP"
}

// Data opens the message in cleanup.
func (p *policy) Data(s *smtpserver.Session, m *smtpserver.Mail, rcpts []smtpserver.Rcpt) (smtpserver.Sink, *smtpserver.Reply) {
	e := &envelope.Envelope{
		Arrival: time.Now(), Sender: m.From, Return: m.Return, EnvID: m.EnvID, Body: m.Body, SMTPUTF8: m.SMTPUTF8,
		Trace: envelope.Trace{Protocol: protocol(s, m), Helo: clip(s.Helo), ClientName: p.name, ClientAddr: p.ip},
	}
	if p.submission {
		e.Trace.Origin = envelope.FromLocal
	}
	for i := range rcpts {
		r := &rcpts[i]
		e.Recipients = append(e.Recipients, envelope.Recipient{Address: r.To, Original: r.To, Notify: r.Notify, ORCPT: r.ORCPT})
	}
	ctx, cancel := context.WithTimeout(p.ctx, time.Duration(p.SessionTimeout)+queueTimeout)
	id, t, err := p.queue.begin(ctx, e)
	if err != nil {
		cancel()
		return nil, p.refuse(s, smtpserver.Refusal{Verb: "DATA", Mail: m, Rcpt: only(rcpts), Reply: p.replyTo(err)})
	}
	p.id = id
	p.log.Info(maillog.Fields{"QUEUE_ID": id, "CLIENT": p.ip.String()}, "%s: client=%s", id, p.client())
	return &sink{policy: p, session: s, mail: m, only: only(rcpts), id: id, transaction: t, cancel: cancel}, nil
}

// only is the recipient, if there is no other: a line of the log has room for one.
func only(rcpts []smtpserver.Rcpt) *smtpserver.Rcpt {
	if len(rcpts) != 1 {
		return nil
	}
	return &rcpts[0]
}

func clip(s string) string {
	if len(s) > envelope.MaxName {
		s = strings.ToValidUTF8(s[:envelope.MaxName], "")
	}
	return maillog.Printable(s)
}

// sink is one message on its way to cleanup.
type sink struct {
	*policy
	transaction
	session *smtpserver.Session
	mail    *smtpserver.Mail
	only    *smtpserver.Rcpt
	id      string
	cancel  context.CancelFunc
}

// Commit waits for cleanup's commit. The 250 means that the message is on disk.
func (s *sink) Commit() smtpserver.Reply {
	defer s.cancel()
	if err := s.transaction.Commit(); err != nil {
		reply := s.replyTo(err)
		s.reject(s.id, s.session, smtpserver.Refusal{Verb: smtpserver.EndOfMessage, Mail: s.mail, Rcpt: s.only, Reply: reply})
		return reply
	}
	return smtpserver.Reply{Code: 250, Status: "2.0.0", Text: "Ok: queued as " + s.id}
}

// Abort gives the message up.
func (s *sink) Abort() {
	s.transaction.Abort()
	s.cancel()
}

// codes are the reply codes for verdicts of cleanup, where they say more than
// "try again" and "no".
var codes = map[string]int{
	"4.3.1": 452, // no space
	"5.3.4": 552, // too big
	"4.5.3": 452, // too many recipients
	"5.1.3": 553, // bad address
	"5.1.1": 550,
}

// replyTo makes a reply of an error. One that is no verdict is trouble of ours,
// and its text is for the log.
func (p *policy) replyTo(err error) smtpserver.Reply {
	var e *dsn.Error
	if !errors.As(err, &e) || e.Status.Class() == dsn.Success {
		p.log.Warn(nil, "%v", err)
		return smtpserver.Reply{Code: 451, Status: "4.3.0", Text: "Error: queue file write error"}
	}
	code, ok := codes[e.Status.String()]
	switch {
	case ok:
	case e.Status.Class() == dsn.Permanent:
		code = 554
	default:
		code = 451
	}
	return smtpserver.Reply{Code: code, Status: e.Status.String(), Text: "Error: " + e.Text}
}

// cleanupQueue is the queue behind cleanup.
type cleanupQueue struct{ client *cleanup.Client }

func (q cleanupQueue) begin(ctx context.Context, e *envelope.Envelope) (string, transaction, error) {
	t, err := q.client.Begin(ctx, e)
	if err != nil {
		return "", nil, err
	}
	return t.ID.String(), t, nil
}
