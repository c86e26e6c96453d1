package main

import (
	"context"
	"errors"
	"io"

	"posthouse/pkg/addr"
	"posthouse/pkg/agent"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/mailbox"
	"posthouse/pkg/protocol/delivery"
)

// relay is what the log calls this agent.
const relay = "virtual"

// store is where messages go.
type store interface {
	Deliver(path []string, head string, content io.Reader) error
}

type service struct {
	config func() *config.Config
	store  store
}

// atOnce bounds how many recipients of one request are delivered to at once,
// so that they share flushes.
const atOnce = 16

func (s *service) deliver(ctx context.Context, j *agent.Job) agent.Verdict {
	outcomes := make([]agent.Outcome, len(j.Recipients))
	delivered, err := j.DeliveredTo()
	if err != nil {
		return agent.Verdict{Outcomes: j.All(agent.Failed(relay, err))}
	}
	slots := make(chan struct{}, atOnce)
	for i := range j.Recipients {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			outcomes[i] = s.one(ctx, j, &j.Recipients[i], delivered)
		}()
	}
	for range atOnce {
		slots <- struct{}{} // all have ended
	}
	return agent.Verdict{Outcomes: outcomes}
}

func (s *service) one(ctx context.Context, j *agent.Job, rcpt *envelope.Recipient, delivered map[string]bool) agent.Outcome {
	final := rcpt.Address.Fold()
	if delivered[final.String()] {
		return agent.Failed(relay, dsn.Errorf("5.4.6", "mail forwarding loop for %s", rcpt.Address))
	}
	if ctx.Err() != nil {
		return agent.Failed(relay, dsn.Errorf("4.3.2", "the system is going down"))
	}
	path, err := mailboxPath(final, s.config().RecipientDelimiter)
	if err != nil {
		return agent.Failed(relay, err)
	}
	content := io.NewSectionReader(j.Content, 0, j.Content.Size())
	if err := s.store.Deliver(path, j.Head(rcpt), content); err != nil {
		return agent.Failed(relay, forNow(err))
	}
	return agent.Outcome{Result: delivery.Result{Status: dsn.MustParse("2.0.0"), Text: "delivered to maildir"}, Relay: relay}
}

// forNow makes a quota that is used up a temporary failure. The mail of all users
// belongs to one account: it is the quota of the store, not one user's.
func forNow(err error) error {
	var e *dsn.Error
	if errors.As(err, &e) && e.Status.String() == "5.2.2" {
		return &dsn.Error{Status: e.Status.With(dsn.Transient), Text: e.Text}
	}
	return err
}

// mailboxPath is where the mail of a user is beneath the mail store. Whether
// there is such a user has been asked of the users table by now: rewrite says
// so to smtpd when the message comes, and to qmgr before each attempt.
func mailboxPath(m addr.Mailbox, delimiters string) ([]string, error) {
	base, _ := m.SplitExtension(delimiters)
	for _, part := range []string{base.Domain(), base.Local()} {
		if err := mailbox.CheckComponent(part); err != nil {
			return nil, &dsn.Error{Status: dsn.MustParse("5.1.3"), Text: "recipient " + m.String() + ": " + err.Error()}
		}
	}
	return []string{base.Domain(), base.Local(), "Maildir"}, nil
}
