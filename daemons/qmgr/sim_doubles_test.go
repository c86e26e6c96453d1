package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/bounce"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/queue"
)

// process is one process of qmgr, and the agents, rewrite and bounce as it sees them.
type process struct {
	sim  *sim
	m    *manager
	gone bool           // it has crashed: nothing that it does has an effect
	tear int            // how much of the next write the disk takes; -1: all
	busy map[string]int // deliveries under way, by destination and by transport
	held int
	dead chan struct{} // closed when it has crashed

	blind      map[string]bool // directories that could not be read when it looked last
	commanding bool            // it looks for the administrator
}

// boot starts qmgr.
func (s *sim) boot() {
	sp, err := openSpool(s.disk.base)
	if err != nil {
		panic(err) // of the test itself
	}
	p := &process{sim: s, tear: -1, busy: make(map[string]int), dead: make(chan struct{}), blind: make(map[string]bool)}
	sp.disk = p
	p.m = newManager(func() *config.Config { s.mu.Lock(); defer s.mu.Unlock(); return s.cfg }, &maillog.Logger{}, sp)
	p.m.rewrite, p.m.bounce, p.m.now = p, p, s.nowForQmgr
	p.m.random = func() float64 { return s.luck }
	p.m.limitOutside = s.outside
	p.m.agent = func(string) deliverer { return p }
	p.m.hold = func() func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		p.held++
		return func() { s.mu.Lock(); p.held--; s.mu.Unlock() }
	}
	s.mu.Lock()
	s.proc = p
	s.notef("qmgr starts")
	s.mu.Unlock()
	p.m.start()
}

// kill ends the process with its next call to anybody. sim.mu is held.
func (p *process) kill() {
	if !p.gone {
		p.gone = true
		p.sim.died = time.Now() // which is noted later, where it was about to stop
		close(p.dead)
	}
}

// stays reports whether the daemon would not go away by itself.
func (p *process) stays() bool {
	p.sim.mu.Lock()
	defer p.sim.mu.Unlock()
	return p.held > 0
}

// pass lets time pass, as long as chance has it: to the nanosecond, so that few
// things happen at the same moment. It ends early with ctx.
func pass(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// while is a time of up to most, and not less than a microsecond.
func while(n uint64, most time.Duration) time.Duration {
	return time.Microsecond + time.Duration(n%uint64(most))
}

// linger is a moment, or in slow of a hundred cases a time of up to most.
func linger(ctx context.Context, n, slow uint64, most time.Duration) {
	if n%100 >= slow {
		most = time.Millisecond
	}
	pass(ctx, while(n>>8, most))
}

func (p *process) Ask(ctx context.Context, r rewrite.Request) ([]rewrite.Answer, error) {
	s := p.sim
	s.mu.Lock()
	e := s.rcpts[r.Addresses[0]]
	e.asks++
	n := mix(s.seed, "ask", e.addr.String(), fmt.Sprint(e.asks))
	m := s.mood
	s.mu.Unlock()
	linger(ctx, n, m.rewriteSlow, 2*time.Minute) // qmgr waits for one
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case p.gone:
		return nil, errGone
	case ctx.Err() != nil:
		s.saw("rewrite does not answer")
		return nil, ctx.Err()
	case n>>40%100 < m.rewriteDown:
		s.saw("no rewrite")
		return nil, errors.New("no rewrite")
	}
	if r.Op == rewrite.Expand {
		e.mail.dueNow() // it becomes as new
	}
	var out []rewrite.Answer
	for _, a := range r.Addresses {
		if r.Op == rewrite.Expand {
			out = append(out, s.expansion(s.rcpts[a]))
		} else {
			out = append(out, s.route(s.rcpts[a]))
		}
	}
	return out, nil
}

// expansion is what a recipient stands for now.
func (s *sim) expansion(e *rcpt) rewrite.Answer {
	n := mix(s.seed, "alias", e.addr.String(), fmt.Sprint(e.asks))
	answer := rewrite.Answer{Addresses: []addr.Mailbox{e.addr}}
	switch {
	case n%100 >= s.mood.aliases || len(e.addr.Local()) > 12:
		return answer
	case n>>8%8 == 0:
		s.saw("alias unknown for now")
		return rewrite.Answer{Err: dsn.Errorf("4.3.0", "no answer")}
	case n>>8%2 == 0:
		answer.Addresses = nil
	}
	var list []*rcpt
	for i := range 1 + n>>16%2 {
		a, err := addr.New(fmt.Sprintf("%s-%d", e.addr.Local(), 2*e.asks+int(i)), fmt.Sprintf("d%d.example", n>>24%4))
		if err != nil {
			panic(err)
		}
		list = append(list, s.rcptFor(e.mail, a, e.notify, e))
		answer.Addresses = append(answer.Addresses, a)
	}
	if len(answer.Addresses) > len(list) {
		list = append(list, e)
	}
	e.renewed = append(e.renewed, list)
	s.saw("alias")
	s.notef("%s stands for %v", e.addr, answer.Addresses)
	return answer
}

// route is where a recipient is.
func (s *sim) route(e *rcpt) rewrite.Answer {
	e.asks++
	n := mix(s.seed, "route", e.addr.String(), fmt.Sprint(e.asks))
	answer := rewrite.Answer{Transport: "smtp", Nexthop: e.addr.Domain(), Addresses: []addr.Mailbox{e.addr}}
	if e.addr.Domain() == "d3.example" {
		answer.Transport = "relay"
	}
	switch k := n >> 8 % 16; {
	case n%100 >= s.mood.routes:
	case k == 0:
		s.saw("transport error")
		answer.Transport, answer.Nexthop, e.failed = "error", "5.1.1 nobody here", true
	case k == 1:
		s.saw("transport retry")
		answer.Transport, answer.Nexthop = "retry", "4.1.1 wait"
	case k == 2:
		s.saw("transport discard")
		answer.Transport, answer.Nexthop, e.discard = "discard", "", true
	case k == 3:
		s.saw("malformed answer")
		answer.Transport = "../x"
	case k == 4:
		s.saw("malformed answer")
		answer.Addresses = nil
	case k < 10:
		s.saw("temporary answer of rewrite")
		return rewrite.Answer{Err: dsn.Errorf("4.3.0", "wait")}
	case k == 10:
		s.saw("permanent answer of rewrite")
		e.failed = true
		return rewrite.Answer{Err: dsn.Errorf("5.1.2", "no such domain")}
	default:
		s.saw("another route")
		answer.Nexthop = fmt.Sprintf("d%d.example", n>>16%3)
	}
	return answer
}

// fates of a delivery.
var (
	simOK    = delivery.Result{Status: dsn.MustParse("2.0.0"), Text: "ok"}
	simLater = delivery.Result{Status: dsn.MustParse("4.2.2"), Text: "full"}
	simNo    = delivery.Result{Status: dsn.MustParse("5.1.1"), Text: "nobody"}
)

func (p *process) Deliver(ctx context.Context, r *delivery.Request, file *os.File) (*delivery.Report, error) {
	s := p.sim
	s.mu.Lock()
	if p.gone {
		s.mu.Unlock()
		return nil, errGone
	}
	list := s.beginsDelivery(p, r, file)
	if len(list) == 0 {
		s.mu.Unlock()
		return nil, errors.New("for nobody")
	}
	key := fmt.Sprintf("%s(%d)", list[0].addr, list[0].tries)
	n := mix(s.seed, "agent", key)
	m := s.mood
	s.notef("delivery to %s of %s begins", key, r.QueueID)
	calm := s.calm
	s.mu.Unlock()
	switch n %= 1 << 60; {
	case n%100 < m.hang:
		select {
		case <-ctx.Done():
		case <-calm:
		}
	case n%100 < m.hang+m.slow:
		pass(ctx, while(n>>8, 20*time.Minute))
	default:
		pass(ctx, while(n>>8, time.Second))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.busy[r.Transport+":"+r.Nexthop]--
	p.busy[r.Transport]--
	for _, e := range list {
		e.inFlight = false
	}
	if p.gone || n>>32%100 < s.mood.agentDies {
		return nil, s.agentDies(p, list, n)
	}
	if ctx.Err() != nil {
		s.saw("agent is told to end")
	}
	report := &delivery.Report{}
	if n>>40%100 < s.mood.hop {
		s.saw("destination in trouble")
		report.Hop = dsn.Errorf("4.4.1", "connection refused")
	}
	text := ""
	for _, e := range list {
		result := s.fate(e, report.Hop != nil || ctx.Err() != nil)
		s.endsDelivery(e, &result)
		report.Results = append(report.Results, result)
		text += fmt.Sprintf(" %s=%s", e.addr, result.Status)
	}
	s.notef("delivery to %s ends:%s", key, text)
	return report, nil
}

// agentDies has some of the recipients get the message, and nobody know.
func (s *sim) agentDies(p *process, list []*rcpt, n uint64) error {
	for k, e := range list {
		if n>>(8+k%32)%2 == 0 {
			e.delivered.lost()
			s.notef("%s has got it, and nobody knows", e.addr)
		}
		e.wait(s)
	}
	switch {
	case p.gone:
		s.saw("in flight at a crash")
		return errGone
	case n>>48%4 == 0:
		s.saw("agent switched off")
		return &ipc.UnavailableError{}
	}
	s.saw("agent dies")
	return errors.New("EOF")
}

// fate is what an agent says of a recipient.
func (s *sim) fate(e *rcpt, trouble bool) delivery.Result {
	n := mix(s.seed, "fate", e.addr.String(), fmt.Sprint(e.tries))
	switch k := n % 100; {
	case k < s.mood.later || trouble && k < 80:
		s.saw("4xx")
		return simLater
	case k < s.mood.later+s.mood.no && !trouble:
		s.saw("5xx")
		return simNo
	}
	s.saw("delivered")
	ok := simOK
	if n>>8%4 == 0 {
		ok.RemoteMTA, ok.Diagnostic = "mx.example", "250 ok"
		ok.Relayed = n>>16%2 == 0
	}
	return ok
}

func (p *process) Notify(ctx context.Context, r *bounce.Request, _ *os.File) (string, error) {
	s := p.sim
	s.mu.Lock()
	if p.gone {
		s.mu.Unlock()
		return "", errGone
	}
	key := fmt.Sprint(r.Kind, " ", r.Recipients[0].Address)
	s.disk.nth[key]++
	n := mix(s.seed, "bounce", key, fmt.Sprint(s.disk.nth[key]))
	m := s.mood
	if f := s.disk.files[r.QueueID]; f.at != queue.Active {
		s.failf("%s: notified of from %q", key, f.at)
	}
	s.mu.Unlock()
	linger(ctx, n, m.bounceSlow, 10*time.Minute) // qmgr waits for five
	s.mu.Lock()
	defer s.mu.Unlock()
	// The answer may get lost, or bounce may have done nothing.
	failed := p.gone || ctx.Err() != nil || n>>32%100 < m.bounceFails
	made := !failed || n>>40%3 == 0
	s.notef("notification %s: made: %v, told so: %v", key, made, !failed)
	if made {
		s.saw([...]string{"", "failure", "delay", "success"}[r.Kind] + " reported")
		s.notified(r, !failed)
	}
	if failed {
		if made {
			s.saw("answer of bounce lost")
		}
		s.saw("bounce fails")
		return "", errors.New("no bounce")
	}
	return "X", nil
}
