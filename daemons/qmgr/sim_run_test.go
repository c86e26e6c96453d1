package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"posthouse/daemons/qmgr/internal/settime"
	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// sim is one schedule: what happens, in the order of time, and what has become of it.
type sim struct {
	seed   uint64
	events []simEvent
	began  time.Time
	proc   *process // nil: qmgr has gone away
	away   time.Time
	died   time.Time // when the last process crashed
	disk   *simDisk
	spares *queue.Spares // as cleanup sees them
	luck   float64

	mu      sync.Mutex // guards the model, the disk and what follows
	cfg     *config.Config
	outside int
	power   bool // may be cut
	offset  time.Duration
	late    time.Time // the latest that the clock has been
	mood    mood
	calm    chan struct{} // closed when agents do not hang any more
	mails   []*mail
	byID    map[queueid.ID]*mail
	rcpts   map[addr.Mailbox]*rcpt
	chances int

	commanded bool // the administrator has

	story  []note
	broken []string
	seen   map[string]int
}

// simulate plays the schedule of a seed on the directories in base. It is called in
// a bubble of fake time.
func simulate(seed uint64, base string, cfg *config.Config) *sim {
	s := &sim{
		seed: seed, began: time.Now(), disk: newSimDisk(base), calm: make(chan struct{}),
		byID: make(map[queueid.ID]*mail), rcpts: make(map[addr.Mailbox]*rcpt), seen: make(map[string]int),
	}
	s.late = s.began.Round(0)
	s.openSpares()
	s.plan(cfg)
	slices.SortStableFunc(s.events, func(a, b simEvent) int { return cmp.Compare(a.at, b.at) })
	s.boot()
	for _, e := range s.events {
		s.waitUntil(s.began.Add(e.at))
		if len(s.broken) > 0 {
			break
		}
		s.mu.Lock()
		s.notef("%s", e.what)
		s.mu.Unlock()
		e.do()
		synctest.Wait()
		s.check()
	}
	s.end()
	return s
}

func (s *sim) openSpares() {
	var err error
	if s.spares, err = queue.OpenSpares(s.disk.path(queue.Spare)); err != nil {
		panic(err)
	}
}

func (s *sim) locked(f func()) func() {
	return func() { s.mu.Lock(); defer s.mu.Unlock(); f() }
}

// now is what the clock of the machine shows. sim.mu is held.
func (s *sim) now() time.Time {
	t := time.Now().Round(0).Add(s.offset)
	if t.After(s.late) {
		s.late = t
	}
	return t
}

// nowForQmgr is the same as time.Now has it: what a process measures in one run does
// not change with the clock.
func (s *sim) nowForQmgr() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return settime.Now(s.now(), time.Second+time.Since(s.began))
}

// chance draws one of n, where the order in which things are asked is given.
func (s *sim) chance(what string, n int) int {
	s.chances++
	return int(mix(s.seed, "chance", what, fmt.Sprint(s.chances)) % uint64(n))
}

// waitUntil lets time pass. Who has crashed meanwhile is started again.
func (s *sim) waitUntil(t time.Time) {
	for {
		until := t
		var dead chan struct{}
		if s.proc != nil {
			dead = s.proc.dead
		} else if s.away.Before(t) {
			until = s.away
		}
		timer := time.NewTimer(time.Until(until))
		select {
		case <-timer.C:
		case <-dead:
		}
		timer.Stop()
		if s.proc != nil && s.proc.isGone() {
			s.recover()
		}
		if s.proc == nil && !time.Now().Before(s.away) {
			s.boot()
		}
		if !time.Now().Before(t) {
			return
		}
	}
}

func (p *process) isGone() bool { p.sim.mu.Lock(); defer p.sim.mu.Unlock(); return p.gone }

// strike has the process crash, or the power go, at this moment.
func (s *sim) strike(power bool) {
	if s.proc == nil || s.proc.isGone() {
		return
	}
	s.mu.Lock()
	s.disk.power = power
	s.saw("crash between calls")
	s.proc.kill()
	s.mu.Unlock()
	s.recover()
}

// recover clears up after a process that has crashed.
func (s *sim) recover() {
	p := s.proc
	p.m.cancel()
	p.m.stop()
	p.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc = nil
	d := s.disk
	_ = os.Remove(d.path(queue.Index, sealName)) // who crashes leaves none
	d.crashIn = 0
	how := crash
	if d.power {
		how = powerCut
		for _, m := range s.mails {
			m.endWriting()
		}
		d.forget(s)
		s.openSpares()
	}
	s.saw([...]string{"stop", "crash", "power cut"}[how])
	s.notef("%s", [...]string{"stop", "crash", "power cut"}[how])
	s.remembers(how)
	s.away = time.Now()
	if s.chance("away", 2) == 0 {
		s.away = s.away.Add(while(mix(s.seed, fmt.Sprint(s.chances)), 10*time.Minute))
	}
}

// close gives back what a manager keeps open for as long as it lives.
func (p *process) close() {
	for _, d := range []*queue.Directory{p.m.spool.incoming, p.m.spool.active, p.m.spool.held, p.m.spool.damaged} {
		_ = d.Close()
	}
}

// restart stops qmgr as systemd does, and starts it again.
func (s *sim) restart(away time.Duration) {
	p := s.proc
	if p == nil || p.isGone() {
		return
	}
	p.m.stop()
	if p.isGone() { // a crash meanwhile
		s.recover()
		return
	}
	p.close()
	s.mu.Lock()
	s.proc, s.away = nil, time.Now().Add(away)
	s.saw("stop")
	s.remembers(stop)
	s.mu.Unlock()
	if away == 0 {
		s.boot()
	}
}

// goIfIdle is what becomes of a daemon that has nothing to do.
func (s *sim) goIfIdle(away time.Duration) {
	if s.proc != nil && !s.proc.isGone() && !s.proc.stays() {
		s.restart(away)
		s.mu.Lock()
		s.saw("goes away idle")
		s.mu.Unlock()
	}
}

// present starts qmgr for who wants something of it.
func (s *sim) present() *process {
	if s.proc != nil && s.proc.isGone() {
		s.recover()
	}
	if s.proc == nil {
		s.boot()
		synctest.Wait()
	}
	return s.proc
}

// age has the age of a message count from now, if it is to become new, and now is before
// it came.
func (s *sim) age(m *mail) {
	if now := s.now(); m.renewed && now.Before(m.arrival) {
		m.arrival = now
	}
}

func (s *sim) setClock(by time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offset += by.Round(time.Second)
	s.now()
	for _, m := range s.mails {
		m.dueNow()
		m.untimed, m.untold = true, true
		s.age(m)
	}
	s.saw("clock is set " + map[bool]string{true: "forward", false: "back"}[by > 0])
}

// check looks at what has to be so at every moment at which nothing happens.
func (s *sim) check() {
	p := s.proc
	if p == nil || p.isGone() {
		return
	}
	m := p.m
	m.mu.Lock()
	messages, recipients := len(m.known)-m.outside-len(m.coming), m.recipients
	outside, known := m.outside, maps.Clone(m.known)
	m.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if outside > 0 {
		s.saw("waits outside of memory")
	}
	limit := s.cfg.Queue.ActiveMessages
	if s.commanded {
		limit += loaders // that come back to be held, or deleted
	}
	if messages > limit {
		s.failf("%d messages in memory, limit %d", messages, limit)
	}
	if recipients > s.cfg.Queue.ActiveRecipients+loaders*20 {
		s.failf("%d recipients in memory, limit %d", recipients, s.cfg.Queue.ActiveRecipients)
	}
	if p.held > 1 || p.held < 0 {
		s.failf("keeps the daemon %d times", p.held)
	}
	if p.held == 0 && (p.blind[queue.Incoming] || p.blind[queue.Active]) {
		s.failf("qmgr would go, and could not look: %v", p.blind)
	}
	for _, m := range s.mails {
		f := s.disk.files[m.id]
		if f == nil {
			continue
		}
		if !m.deleted.IsZero() && f.there() && known[m.id] == nil && m.accepted {
			s.failf("message %d: deleted, and in %s", m.n, f.at)
		}
		if p.held == 0 && (f.at == queue.Active || strings.HasPrefix(f.at, queue.Deferred)) {
			s.failf("message %d: in %s, and qmgr would go", m.n, f.at)
		}
	}
}

// end has all trouble end, and waits until the queue is empty.
func (s *sim) end() {
	s.mu.Lock()
	s.notef("all is well from now on")
	s.disk.trouble, s.disk.crashIn = simTrouble{}, 0
	s.mood = mood{no: 10}
	cfg := *s.cfg
	cfg.Queue.DeferTransports = nil
	s.cfg = &cfg
	for _, m := range s.mails {
		m.endWriting()
		m.held = time.Time{}
	}
	s.mu.Unlock()
	close(s.calm)
	if len(s.broken) == 0 {
		p := s.present()
		p.m.control(queuectl.Request{Op: queuectl.Release, All: true})
		s.finish(p)
	}
	if s.proc != nil {
		s.proc.m.stop()
		s.proc.close()
	}
	if len(s.broken) == 0 {
		s.verdict()
	}
}

// finish waits for as long as anything can take. What was never completed is removed when
// it is old, by a clock that is right.
func (s *sim) finish(p *process) {
	limit := 20*p.m.longestWait() + deliveryTimeout // a message may be put off several times
	rest := s.waitForRest(p, limit, queue.Corrupt)
	for _, name := range rest {
		id, err := queueid.Parse(strings.TrimPrefix(name, queue.Incoming+"/"))
		if m := s.byID[id]; err != nil || m == nil || m.accepted {
			s.mu.Lock()
			s.failf("left behind: %v; qmgr stays: %d", rest, p.held)
			s.mu.Unlock()
			return
		}
	}
	s.mu.Lock()
	s.offset = s.late.Sub(time.Now().Round(0)).Round(time.Second)
	s.mu.Unlock()
	limit = 2*(p.m.config().LongestSession()+time.Hour) + 2*scanInterval
	if rest = s.waitForRest(p, limit, queue.Corrupt); len(rest) > 0 || p.stays() {
		s.mu.Lock()
		s.failf("left behind at last: %v; qmgr stays: %d", rest, p.held)
		s.mu.Unlock()
	}
}

// waitForRest waits until nothing is left, but for a directory, and qmgr would go.
func (s *sim) waitForRest(p *process, limit time.Duration, but string) []string {
	for begun := time.Now(); ; {
		pass(context.Background(), scanInterval)
		synctest.Wait()
		s.check()
		rest := slices.DeleteFunc(s.disk.rest(), func(name string) bool { return strings.HasPrefix(name, but) })
		if len(rest) == 0 && !p.stays() || len(s.broken) > 0 || time.Since(begun) > limit {
			return rest
		}
	}
}

// verdict is at the end, when nothing is left to be done.
func (s *sim) verdict() {
	m := s.proc.m
	if len(m.known)+m.recipients+len(m.loads)+len(m.crowds)+m.outside+m.deferred+len(m.buckets)+m.comers > 0 {
		s.failf("in memory: %d known, %d recipients, loads %v, %d crowds, %d outside, %d deferred, buckets %v",
			len(m.known), m.recipients, m.loads, len(m.crowds), m.outside, m.deferred, m.buckets)
	}
	for _, name := range s.disk.rest() {
		id, err := queueid.Parse(strings.TrimPrefix(name, queue.Corrupt+"/"))
		if m := s.byID[id]; err != nil || m == nil || m.accepted {
			s.failf("left behind: %s", name)
		}
		s.saw("corrupt")
		_ = os.Remove(s.disk.path(name))
	}
	for _, m := range s.mails {
		if !m.accepted || m.mayGo {
			continue
		}
		if s.disk.files[m.id].there() {
			s.failf("message %d: still in %s", m.n, s.disk.files[m.id].at)
		}
		s.checkFinished(m)
	}
}

// tale is the story in words. What happened at the same moment has no order that
// means anything.
func (s *sim) tale() string {
	var b strings.Builder
	for _, n := range s.story {
		fmt.Fprintf(&b, "%14v %s\n", n.at, n.text)
	}
	return b.String()
}

// sorted is the story: what has happened; at the same moment, in the order of the alphabet.
func (s *sim) sorted() []note {
	list := slices.Clone(s.story)
	slices.SortFunc(list, func(a, b note) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.text, b.text)) })
	return list
}
