package main

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queueid"
)

// mood is how the others behave: percentages.
type mood struct {
	later, no, hop, agentDies, hang, slow       uint64 // of deliveries
	rewriteSlow, rewriteDown, routes, aliases   uint64 // of questions
	bounceSlow, bounceFails                     uint64 // of notifications
	lostNotices, refused, cleanupDies, hesitant int    // of messages
}

// planner draws a schedule from its seed. Each draws only some kinds of trouble, so
// that those meet each other that are rare together, and some schedules are quiet enough to
// show what is slow.
type planner struct {
	*rand.Rand
	s      *sim
	span   time.Duration // in which things happen
	burst  time.Duration // in which messages come
	events []simEvent
}

type simEvent struct {
	at   time.Duration
	what string
	do   func()
}

func (p *planner) maybe() bool { return p.IntN(2) == 0 }

// some is a percentage, or more often 0.
func (p *planner) some(most int) uint64 {
	if p.maybe() {
		return 0
	}
	return uint64(p.IntN(most + 1))
}

// between is a time between two, to the nanosecond; small ones are as likely as large ones.
func (p *planner) between(a, b time.Duration) time.Duration {
	d := a
	for d < b && p.IntN(3) > 0 {
		d *= 2
	}
	return min(d, b) + time.Duration(p.Int64N(int64(a)))
}

func pick[T any](p *planner, list ...T) T { return list[p.IntN(len(list))] }

func (p *planner) at(what string, do func()) {
	p.atTime(time.Duration(p.Int64N(int64(p.span))), what, do)
}

func (p *planner) atTime(at time.Duration, what string, do func()) {
	p.events = append(p.events, simEvent{at, what, do})
}

// plan draws everything.
func (s *sim) plan(base *config.Config) {
	p := &planner{Rand: rand.New(rand.NewPCG(s.seed, 1)), s: s}
	p.span = pick(p, 2*time.Minute, 20*time.Minute, 2*time.Hour, 10*time.Hour)
	p.burst = pick(p, p.span, p.span, p.span/10, time.Minute)
	s.mood = mood{
		later: p.some(80), no: p.some(50), hop: p.some(70), agentDies: p.some(40), hang: p.some(20), slow: p.some(60),
		rewriteSlow: p.some(20), rewriteDown: p.some(40), routes: p.some(50), aliases: p.some(100),
		bounceSlow: p.some(40), bounceFails: p.some(60),
		lostNotices: int(p.some(60)), refused: int(p.some(20)), cleanupDies: int(p.some(15)), hesitant: int(p.some(50)),
	}
	s.luck = p.Float64()
	if p.IntN(4) == 0 {
		s.outside = 1 + p.IntN(4)
	}
	s.power = p.maybe()
	s.cfg = p.config(base)
	for n := range 1 + p.IntN(pick(p, 2, 6, 15)) {
		p.message(n)
	}
	p.commands()
	p.troubles()
	s.events = p.events
}

func (p *planner) config(base *config.Config) *config.Config {
	c := *base
	q := &c.Queue
	q.ActiveMessages, q.ActiveRecipients = pick(p, 1, 2, 3, 8, 100), pick(p, 1, 3, 6, 20, 1000)
	q.ActiveShare = pick(p, 1, 20, 50, 80, 100)
	least := pick(p, p.span/40, p.span/10, p.span/2)
	q.Retry.Min = config.Duration(max(time.Second, least))
	q.Retry.Max = config.Duration(max(time.Second, least*pick(p, time.Duration(1), 3, 10)))
	q.Lifetime = config.Duration(pick(p, p.span/4, p.span, 10*p.span, 5*24*time.Hour))
	q.BounceLifetime = config.Duration(pick(p, time.Duration(q.Lifetime)/2, time.Duration(q.Lifetime)*2))
	if p.maybe() {
		q.DelayWarning = config.Duration(pick(p, p.span/20, p.span/4, p.span))
	}
	if p.IntN(4) == 0 {
		q.DeferTransports = []string{"relay"}
	}
	c.Smtpd.SessionTimeout, c.Submission.SessionTimeout = config.Duration(time.Minute), config.Duration(time.Minute)
	c.Transports = map[string]config.Transport{"smtp": p.transport(base), "relay": p.transport(base)}
	return &c
}

func (p *planner) transport(base *config.Config) config.Transport {
	t := base.Transport("smtp")
	t.Deliveries, t.Concurrency = pick(p, 1, 2, 5, 100), pick(p, 1, 2, 20)
	t.InitialConcurrency, t.Recipients = pick(p, 1, 2, 5), pick(p, 1, 2, 50)
	t.FailedCohorts = pick(p, 0, 1, 1, 3)
	if p.IntN(8) == 0 {
		t.DestinationDelay = config.Duration(p.between(time.Second, time.Minute))
	}
	if p.IntN(8) == 0 {
		t.Delay = config.Duration(p.between(time.Second, time.Minute))
	}
	t.SlotCost, t.MinimumSlots = pick(p, 0, 2, 5), pick(p, 1, 3)
	return t
}

var simNotify = []dsn.Notify{0, 0, 0, dsn.NotifyNever, dsn.NotifySuccess, dsn.NotifyFailure, dsn.NotifyDelay, dsn.NotifySuccess | dsn.NotifyFailure}

// message plans the arrival of a message.
func (p *planner) message(n int) {
	s := p.s
	m := &mail{n: n, text: fmt.Sprintf("Subject: %d\r\n\r\n%0*d\r\n", n, 1+p.IntN(100), n), warnings: 1}
	if p.IntN(6) > 0 {
		m.sender = simAddr(fmt.Sprintf("s%d", p.IntN(3)), "example.org")
	}
	domain := p.IntN(4)
	for k := range 1 + p.IntN(pick(p, 1, 3, 8)) {
		if p.maybe() {
			domain = p.IntN(4)
		}
		a := simAddr(fmt.Sprintf("m%dr%d", n, k), fmt.Sprintf("d%d.example", domain))
		m.rcpts = append(m.rcpts, s.rcptFor(m, a, pick(p, simNotify...), nil))
	}
	s.mails = append(s.mails, m)
	pauses := time.Millisecond
	if p.IntN(100) < s.mood.hesitant {
		pauses = p.between(time.Second, p.span/4)
	}
	at := time.Duration(p.Int64N(int64(p.burst)))
	next := func(what string, do func()) {
		p.atTime(at, fmt.Sprintf("message %d: %s", n, what), do)
		at += 1 + time.Duration(p.Int64N(int64(pauses)))
	}
	next("create", func() { s.create(m, queueid.New(s.now(), uint32(n))) })
	next("first half", func() { s.write(m, len(m.bytes)/2) })
	next("second half", func() { s.write(m, len(m.bytes)) })
	switch k := p.IntN(100); {
	case k < s.mood.refused:
		next("given up", func() { s.giveUp(m) })
		return
	case k < s.mood.refused+s.mood.cleanupDies:
		next("cleanup dies", func() { s.cleanupDies(m) })
		return
	}
	next("header", func() { s.header(m) })
	if s.power && p.IntN(10) == 0 {
		next("crash", func() { s.strike(true) })
	}
	next("flush", func() { s.accept(m) })
	if p.IntN(100) >= s.mood.lostNotices {
		next("notice", func() { s.tell(m) })
	}
}

func simAddr(local, domain string) addr.Mailbox {
	a, err := addr.New(local, domain)
	if err != nil {
		panic(err)
	}
	return a
}

// commands plans what the administrator asks for.
func (p *planner) commands() {
	if p.maybe() {
		return
	}
	s := p.s
	for range 1 + p.IntN(8) {
		if domain := p.IntN(24); domain < 4 {
			p.at("retry destination", func() { s.retry(fmt.Sprintf("d%d.example", domain)) })
			continue
		}
		op := queuectl.Op(1 + p.IntN(int(queuectl.Delete)))
		var list []*mail
		if p.IntN(3) == 0 {
			if op == queuectl.Delete && p.IntN(3) > 0 {
				op = queuectl.Requeue
			}
		} else {
			for range 1 + p.IntN(3) {
				list = append(list, s.mails[p.IntN(len(s.mails))])
			}
		}
		p.at(fmt.Sprint(simOps[op], " ", len(list)), func() { s.command(op, list) })
	}
}

var simOps = map[queuectl.Op]string{
	queuectl.Hold: "hold", queuectl.Release: "release", queuectl.Retry: "retry", queuectl.Requeue: "requeue", queuectl.Delete: "delete",
}

// troubles plans crashes, faults of the disk, a clock that is set, and changes of mind.
func (p *planner) troubles() {
	s := p.s
	for range int(p.some(4)) {
		calls := 1 + p.IntN(pick(p, 3, 30, 200))
		power, at := s.power && p.maybe(), time.Duration(p.Int64N(int64(p.span)))
		p.atTime(at, "crash to come", s.locked(func() { s.disk.crashIn, s.disk.power = calls, power }))
		if p.maybe() {
			p.atTime(at+p.between(time.Second, p.span/2), "crash", func() { s.strike(power) })
		}
	}
	for range int(p.some(4)) {
		t := simTrouble{percent: pick(p, uint64(100), 100, 50, 10), errno: syscall.EIO}
		switch p.IntN(4) {
		case 0:
			t.errno, t.what, t.torn = syscall.ENOSPC, []string{"write", "mkdir", "rename"}, p.maybe()
		case 1:
			t.errno, t.what = syscall.EMFILE, []string{"open", "readdir"}
		case 2:
			t.what, t.torn = []string{pick(p, "write", "fsync", "rename", "unlink", "mkdir", "rmdir", "open", "readdir")}, p.maybe()
		default:
			t.what = []string{"write", "fsync", "rename", "unlink", "mkdir", "rmdir", "open", "readdir"}
		}
		at := time.Duration(p.Int64N(int64(p.span)))
		p.atTime(at, fmt.Sprintf("disk in trouble: %v", t), s.locked(func() { s.disk.trouble = t }))
		p.atTime(at+pick(p, time.Second, p.span/20, p.span/4, p.span), "disk is well", s.locked(func() { s.disk.trouble = simTrouble{} }))
	}
	for range int(p.some(3)) {
		p.at("stop", func() { s.restart(0) })
	}
	for range int(p.some(3)) {
		away := p.between(time.Second, p.span/4)
		p.at("goes if it is idle", func() { s.goIfIdle(away) })
	}
	for range int(p.some(3)) {
		by := pick(p, time.Duration(1), -1) * pick(p, p.between(time.Second, time.Hour), 365*24*time.Hour)
		p.at(fmt.Sprintf("clock is set by %v", by), func() { s.setClock(by) })
	}
	for range int(p.some(3)) {
		p.at("look", func() { s.look() })
	}
	if p.maybe() {
		p.at("everybody is well for now", s.locked(func() { s.mood = mood{} }))
	}
	if p.maybe() {
		m := mood{later: 100}
		if p.maybe() {
			m = mood{hop: 100}
		}
		p.at("nobody is at home", s.locked(func() { s.mood = m }))
	}
}
