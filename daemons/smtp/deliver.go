package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"posthouse/pkg/agent"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/smtpclient"
)

type service struct {
	config   func() *config.Config
	resolver resolver
	own      func(netip.Addr) bool // is an address of this machine
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	note     func(queueID, text string) // logs what a later attempt may mend
	cache    cache
}

// attempt is the delivery of one message to one next hop.
type attempt struct {
	*service
	ctx   context.Context
	cfg   *config.Config
	job   *agent.Job
	hop   *nexthop
	start time.Time

	outcomes []agent.Outcome
	pending  []int      // recipients for whom another server may be tried
	trouble  *dsn.Error // with the destination as a whole, as seen last
	sessions int        // servers that have heard of the message
	worked   bool       // one of them has come to the end of the dialogue
}

// maxSessions is how many servers are told of one message in one attempt. It is
// Postfix's smtp_mx_session_limit.
const maxSessions = 2

func (s *service) deliver(ctx context.Context, j *agent.Job) agent.Verdict {
	a := &attempt{service: s, ctx: ctx, cfg: s.config(), job: j, start: time.Now(), outcomes: make([]agent.Outcome, len(j.Recipients))}
	for i := range j.Recipients {
		a.pending = append(a.pending, i)
	}
	hop, err := parseNexthop(j.Transport, j.Nexthop)
	if err != nil {
		a.fail("none", dsn.Errorf("4.3.5", "Server configuration error: next hop %s", err))
		return agent.Verdict{Outcomes: a.outcomes}
	}
	a.hop = hop
	a.run()
	if a.worked {
		a.trouble = nil
	}
	return agent.Verdict{Hop: a.trouble, Outcomes: a.outcomes}
}

// run uses a connection to the next hop that is open, and then goes through its
// addresses.
func (a *attempt) run() {
	var used target
	if c := a.cache.forHop(a.hop); c != nil && a.transact(c) {
		used = c.target
	}
	if len(a.pending) == 0 {
		return
	}
	r := &router{a.ctx, a.cfg, a.resolver, a.own, a.hop}
	targets, err := r.route()
	if err != nil {
		a.failHop("none", err)
		return
	}
	for i, t := range targets {
		if len(a.pending) == 0 || a.sessions == maxSessions || i > 0 && a.ctx.Err() != nil {
			return
		}
		if t != used {
			a.try(t, i == len(targets)-1)
		}
	}
}

// try sends the message to one address.
func (a *attempt) try(t target, last bool) {
	if c := a.cache.forTarget(t, a.hop.lmtp); c != nil && a.transact(c) {
		return
	}
	c, relay, err := a.connect(t)
	if err == nil {
		a.transact(c)
		return
	}
	if !last {
		e := dsn.Of(err)
		a.note(a.job.QueueID.String(), e.Text)
		err = &dsn.Error{Status: e.Status.With(dsn.Transient), Text: e.Text} // another server may be of another mind
	}
	a.failHop(relay, err)
}

// connect opens a connection and introduces us. The relay is what the log calls
// the host that the error is from.
func (a *attempt) connect(t target) (c *session, relay string, err error) {
	ctx, cancel := context.WithTimeout(a.ctx, time.Duration(a.cfg.Smtp.ConnectTimeout))
	defer cancel()
	network, address := t.network()
	conn, err := a.dial(ctx, network, address)
	if err != nil {
		if a.ctx.Err() != nil {
			return nil, "none", dsn.Errorf("4.3.2", "connect to %s: interrupted", t.relay())
		}
		return nil, "none", dsn.Errorf("4.4.1", "connect to %s: %s", t.relay(), connectError(err))
	}
	client := smtpclient.New(conn, smtpclient.Options{
		Peer: t.name(), Helo: heloName(a.cfg.Smtp.Helo), LMTP: a.hop.lmtp, LineLength: a.cfg.Smtp.LineLength,
	})
	if err = client.Hello(a.ctx); err == nil {
		err = a.checkLoop(client, t)
	}
	if err != nil {
		client.Quit()
		return nil, t.relay(), err
	}
	return &session{client: client, target: t, hop: a.hop.key, lmtp: a.hop.lmtp, born: time.Now()}, "", nil
}

// checkLoop finds out that we talk to ourselves. Where we are not the best server
// of the domain, the better one did not answer, and may be back.
func (a *attempt) checkLoop(c *smtpclient.Client, t target) error {
	if !a.hop.detectsLoops() || !strings.EqualFold(c.Name(), a.cfg.Hostname) {
		return nil
	}
	status := "5.4.6"
	if t.lesser {
		status = "4.4.6"
	}
	return dsn.Errorf(status, "mail for %s loops back to myself", a.hop.text)
}

// connectError is the text for an error of connect(2), as strerror(3) has it.
func connectError(err error) string {
	var errno syscall.Errno
	var timeout net.Error
	text := err.Error()
	switch {
	case errors.As(err, &errno):
		text = errno.Error()
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		text = "connection timed out"
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

// configured reports whether the next hop was chosen by the administrator, as a
// smarthost and every LMTP server is, and is not simply the domain of the recipients.
func (a *attempt) configured() bool {
	return a.hop.lmtp || !slices.ContainsFunc(a.job.Recipients, func(r envelope.Recipient) bool { return strings.EqualFold(r.Address.Domain(), a.job.Nexthop) })
}

// failHop gives the pending recipients the outcome of an error that is about
// the destination. No mail is lost for a mistake in the configuration: where the
// destination stands there, nothing but a server's word on the message or on a
// recipient is for good.
func (a *attempt) failHop(relay string, err error) {
	e := dsn.Of(err)
	var se *smtpclient.Error
	spoke := errors.As(err, &se)
	if e.Status.Class() == dsn.Permanent && a.configured() {
		e = &dsn.Error{Status: dsn.MustParse("4.3.5"), Text: e.Text}
		if err = e; spoke {
			err = &smtpclient.Error{Verdict: e, Reply: se.Reply}
		}
	}
	a.fail(relay, err)
	if spoke || e.Status.Class() == dsn.Transient {
		a.trouble = &dsn.Error{Status: e.Status.With(dsn.Transient), Text: e.Text}
	}
}

// fail gives the pending recipients the outcome of an error. It does not replace
// what a server has said of a recipient.
func (a *attempt) fail(relay string, err error) {
	o := agent.Failed(relay, err)
	o.Setup = time.Since(a.start)
	var se *smtpclient.Error
	if errors.As(err, &se) && se.Reply != nil {
		o.Diagnostic = se.Reply.String()
		o.RemoteMTA, _, _ = strings.Cut(relay, "[")
	}
	rest := a.pending[:0]
	for _, i := range a.pending {
		if a.outcomes[i].Diagnostic == "" {
			a.outcomes[i] = o
		}
		if a.outcomes[i].Status.Class() == dsn.Transient {
			rest = append(rest, i)
		}
	}
	a.pending = rest
}

// transact sends the message on an open connection, which it keeps or closes.
// It reports false where the connection had been used before and was at its end,
// so that the message has not been seen by anybody.
func (a *attempt) transact(c *session) bool {
	setup := time.Since(a.start)
	recipients := make([]envelope.Recipient, len(a.pending))
	for n, i := range a.pending {
		recipients[n] = a.job.Recipients[i]
	}
	results, err := c.client.Send(a.ctx, &smtpclient.Message{
		Sender: a.job.Sender, Return: a.job.Return, EnvID: a.job.EnvID, Body: a.job.Body, SMTPUTF8: a.job.SMTPUTF8,
		Recipients: recipients, Content: a.job.Content,
	})
	var lost *smtpclient.Error
	if errors.As(err, &lost) && lost.Unanswered && c.uses > 0 {
		c.client.Quit()
		return false
	}
	c.uses++
	a.sessions++
	if lost == nil || c.uses > 1 {
		a.worked = true
	} else {
		a.trouble = &dsn.Error{Status: lost.Verdict.Status.With(dsn.Transient), Text: lost.Verdict.Text}
	}
	a.record(c, results, setup)
	if err != nil {
		c.client.Quit()
		if lost == nil {
			a.pending = nil // the content cannot be read
		}
		return true
	}
	left := time.Duration(a.cfg.Smtp.ReuseTime) - time.Since(c.born)
	a.cache.put(c, min(time.Duration(a.cfg.Smtp.KeepTime), left))
	return true
}

// record takes the results for the pending recipients.
func (a *attempt) record(c *session, results []smtpclient.Result, setup time.Duration) {
	var rest []int
	for n, i := range a.pending {
		r := &results[n]
		o := agent.Outcome{Relay: c.target.relay(), ConnUse: c.uses, Setup: setup}
		o.Result = delivery.Result{Status: r.Status, Text: r.Text, Diagnostic: r.Diagnostic}
		if r.Diagnostic != "" {
			o.RemoteMTA = c.target.host
		}
		if r.Status.Class() == dsn.Success {
			o.Relayed = !c.client.Extensions().DSN
		}
		if r.Diagnostic != "" || a.outcomes[i].Diagnostic == "" {
			a.outcomes[i] = o
		}
		if r.Status.Class() == dsn.Transient && !r.Uncertain {
			rest = append(rest, i)
		}
	}
	a.pending = rest
}
