package main

import (
	"context"
	"errors"
	"os"
	"time"

	"posthouse/pkg/cli"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maildrop"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/smtpserver"
)

// session is a dialogue at standard input and output (-bs). It asks nobody
// whether an address exists, and knows no limits: messages are submitted as the
// caller's, and pickup and cleanup have the last word. It implements
// smtpserver.Policy.
type session struct{ *submission }

func (c *call) session(s *submission) int {
	name, err := os.Hostname()
	if err != nil || name == "" {
		name = "localhost"
	}
	cfg := smtpserver.Config{Hostname: name, Recipients: envelope.MaxRecipients, CommandTimeout: submitTimeout, Local: true}
	smtpserver.ServeStdio(c.In, c.Out, cfg, &session{s})
	return cli.OK // each message has had its reply
}

// Connect, Helo, Mail and Rcpt have nothing against what the engine takes.
func (*session) Connect(*smtpserver.Session) *smtpserver.Reply                { return nil }
func (*session) Helo(*smtpserver.Session, string) *smtpserver.Reply           { return nil }
func (*session) Mail(*smtpserver.Session, *smtpserver.Mail) *smtpserver.Reply { return nil }
func (*session) Rcpt(*smtpserver.Session, *smtpserver.Mail, *smtpserver.Rcpt) *smtpserver.Reply {
	return nil
}

// Refused is for a log. What pickup refuses it logs itself.
func (*session) Refused(*smtpserver.Session, smtpserver.Refusal) {}

// Data begins the message.
func (s *session) Data(_ *smtpserver.Session, m *smtpserver.Mail, rcpts []smtpserver.Rcpt) (smtpserver.Sink, *smtpserver.Reply) {
	e := &envelope.Envelope{
		Arrival: time.Now(), Sender: m.From, Return: m.Return, EnvID: m.EnvID, Body: m.Body, SMTPUTF8: m.SMTPUTF8,
		Trace: envelope.Trace{Origin: envelope.FromLocal},
	}
	for i := range rcpts {
		r := &rcpts[i]
		e.Recipients = append(e.Recipients, envelope.Recipient{Address: r.To, Original: r.To, Notify: r.Notify, ORCPT: r.ORCPT})
	}
	ctx, cancel := context.WithTimeout(context.Background(), submitTimeout)
	t, err := s.begin(ctx, e)
	if err == nil {
		return &queued{t, cancel}, nil
	}
	cancel()
	var off *ipc.UnavailableError
	if errors.As(err, &off) {
		if d, err := maildrop.Create(s.maildrop, e); err == nil {
			return dropped{d}, nil
		}
	}
	reply := replyTo(explain(err))
	return nil, &reply
}

// queued is a message on its way into the queue.
type queued struct {
	*cleanup.Transaction
	cancel context.CancelFunc
}

func (q *queued) Commit() smtpserver.Reply {
	defer q.cancel()
	if err := q.Transaction.Commit(); err != nil {
		return replyTo(err)
	}
	return smtpserver.Reply{Code: 250, Status: "2.0.0", Text: "Ok: queued as " + q.ID.String()}
}

func (q *queued) Abort() {
	q.Transaction.Abort()
	q.cancel()
}

// dropped is one on its way into the maildrop.
type dropped struct{ *maildrop.Dropped }

func (d dropped) Commit() smtpserver.Reply {
	if _, err := d.Dropped.Commit(); err != nil {
		return replyTo(err)
	}
	maildrop.Wake(cleanup.SubmitFIFOPath)
	return smtpserver.Reply{Code: 250, Status: "2.0.0", Text: "Ok: the mail system is off: left in the maildrop"}
}

// replyTo makes a reply of an error. What is not known to be for good is
// temporary.
func replyTo(err error) smtpserver.Reply {
	e := dsn.Of(err)
	code := 451
	switch {
	case e.Status.String() == "4.3.1":
		code = 452
	case e.Status.String() == "5.3.4":
		code = 552
	case e.Status.Class() == dsn.Permanent:
		code = 554
	}
	return smtpserver.Reply{Code: code, Status: e.Status.String(), Text: "Error: " + e.Text}
}
