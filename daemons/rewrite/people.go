package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/recipient"
)

// peopleTable knows what is behind a local-part where mail goes to the agent
// local.
type peopleTable interface {
	Lookup(local string) (recipient.Outcome, error)
}

// people asks local, and remembers for a short while: a message to many, and who
// tries names, asks for the same ones again and again.
type people struct {
	ask  func(ctx context.Context, localParts []string) ([]recipient.Outcome, error)
	warn func(error)
	now  func() time.Time

	mu     sync.Mutex
	known  map[string]remembered
	silent time.Time // until then local, which took all its time, is not asked
}

type remembered struct {
	outcome recipient.Outcome
	until   time.Time
}

// Bounds of what is remembered. Who has got an account wants mail at once.
const (
	maxKnown   = 10000
	knownTime  = 30 * time.Second
	nobodyTime = 3 * time.Second
	// askTimeout bounds a question; smtpd waits for a minute.
	askTimeout = 15 * time.Second
	// silentTime is for how long a local that does not answer is not asked again: a
	// message may have a thousand recipients there.
	silentTime = 5 * time.Second
)

var errNoAnswer = errors.New("no answer from local")

func newPeople(warn func(error)) *people {
	return &people{ask: recipient.NewClient(recipient.Path).Ask, warn: warn, now: time.Now, known: make(map[string]remembered)}
}

// Lookup says what is behind a local-part. Without an error that is known.
func (p *people) Lookup(local string) (recipient.Outcome, error) {
	key := strings.ToLower(local)
	p.mu.Lock()
	r, ok := p.known[key]
	silent := p.silent
	p.mu.Unlock()
	now := p.now()
	switch {
	case ok && now.Before(r.until):
		return r.outcome, nil
	case now.Before(silent):
		return recipient.Unknown, errNoAnswer
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	outcomes, err := p.ask(ctx, []string{local})
	var off *ipc.UnavailableError
	switch {
	case errors.As(err, &off):
		return recipient.Unknown, errors.New("local is switched off: enable posthouse-local.socket")
	case err != nil:
		p.warn(fmt.Errorf("is there a user %s: %w", local, err))
		if ctx.Err() != nil {
			p.mu.Lock()
			p.silent = p.now().Add(silentTime)
			p.mu.Unlock()
		}
		return recipient.Unknown, errNoAnswer
	case outcomes[0] == recipient.Unknown:
		return recipient.Unknown, errors.New("local cannot look up users")
	}
	r = remembered{outcomes[0], now.Add(knownTime)}
	if r.outcome == recipient.None {
		r.until = now.Add(nobodyTime)
	}
	p.mu.Lock()
	if len(p.known) >= maxKnown {
		clear(p.known)
	}
	p.known[key] = r
	p.mu.Unlock()
	return r.outcome, nil
}

// atHome says where mail goes that its route leaves to local: accounts, and names
// that are nobody's, may have a transport of their own. It is decided here
// because local has no network, and could not hand a message on.
func (r *rules) atHome(m addr.Mailbox, to route) (route, error) {
	if r.mailboxRoute == (route{}) && r.fallbackRoute == (route{}) {
		return to, nil
	}
	outcome, err := r.people.Lookup(m.Local())
	switch {
	case err != nil:
		return route{}, err
	case outcome == recipient.Account && r.mailboxRoute != (route{}):
		return r.mailboxRoute, nil
	case outcome == recipient.None && r.fallbackRoute != (route{}):
		return r.fallbackRoute, nil
	}
	return to, nil
}
