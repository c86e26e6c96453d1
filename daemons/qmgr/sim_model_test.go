package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/bounce"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// The model: what has to become of each recipient of each message. Everything in it
// is guarded by sim.mu.

// mail is one message.
type mail struct {
	n       int
	id      queueid.ID
	sender  addr.Mailbox
	arrival time.Time // by the clock of the machine
	text    string
	rcpts   []*rcpt // as accepted

	bytes    []byte // of the file
	file     *os.File
	accepted bool // 250 has been said
	ended    bool // cleanup has nothing to do with it any more
	gone     time.Time
	failures int       // calls to the disk about it that failed
	held     time.Time // when qmgr said that it is on hold; zero: not
	deleted  time.Time // when qmgr said that it is deleted
	wished   int       // failures then
	untold   bool      // the clock has been set since it came
	renewed  bool      // is to become new, by the clock of that moment
	mayGo    bool      // the administrator has asked for its deletion
	warnings int       // that may be given
	untimed  bool      // the clock has been set since it was taken up
}

// rcpt is one recipient, or what one stands for since an alias has changed.
type rcpt struct {
	mail    *mail
	addr    addr.Mailbox
	notify  dsn.Notify
	parent  *rcpt
	renewed [][]*rcpt // what it has been replaced by, perhaps

	tries    int
	asks     int
	inFlight bool
	notDue   time.Time // before that it is not tried
	failed   bool      // for good: somebody has said so
	discard  bool      // the transport discard has been named
	relayed  bool

	delivered account
	told      account // of a failure
	toldOK    account // of success
}

// account is how often something has been done, and may still be.
type account struct {
	times int
	spare int       // how often it may be done again, beyond once
	known time.Time // when qmgr was told last
	after int       // mail.failures then
}

// may reports whether it may be done now.
func (a *account) may() bool { return a.times <= a.spare }

// done notes that it has been done, and that qmgr has been told.
func (a *account) done(s *sim, m *mail) {
	a.times++
	a.known, a.after = time.Now(), m.failures
}

// lost notes that it has been done, and that nobody will ever know.
func (a *account) lost() {
	a.times++
	a.spare++
}

func (a *account) forget() { a.spare, a.known = a.times, time.Time{} }

// forgotten is called when a process has ended, with what is on disk. What is not
// there is done again. That is allowed to what was in flight, to what the disk did not
// take, and to what the power has taken away.
func (a *account) forgotten(s *sim, m *mail, how ending, recorded bool) bool {
	if recorded || a.may() {
		return true
	}
	known := a.known
	a.forget()
	return how == powerCut || m.failures > a.after || how == crash && known.Equal(s.died)
}

// failf notes that a promise has been broken.
func (s *sim) failf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.notef("BROKEN: %s", text)
	s.broken = append(s.broken, text)
}

// notef adds to the story.
func (s *sim) notef(format string, args ...any) {
	s.story = append(s.story, note{time.Since(s.began), fmt.Sprintf(format, args...)})
}

type note struct {
	at   time.Duration
	text string
}

// saw counts what has been exercised.
func (s *sim) saw(what string) { s.seen[what]++ }

func (s *sim) ids() []queueid.ID {
	ids := make([]queueid.ID, 0, len(s.mails))
	for _, m := range s.mails {
		if s.disk.files[m.id] != nil {
			ids = append(ids, m.id)
		}
	}
	return ids
}

// family calls f for r and all that it stands for.
func (r *rcpt) family(f func(*rcpt)) {
	f(r)
	for _, list := range r.renewed {
		for _, other := range list {
			if other != r && other.parent == r {
				other.family(f)
			}
		}
	}
}

func (m *mail) everybody(f func(*rcpt)) {
	for _, r := range m.rcpts {
		r.family(f)
	}
}

// failedCall notes that a call about a message has failed: what is written of it may
// be lost, and the times of recipients with it.
func (s *sim) failedCall(id queueid.ID) {
	if m := s.byID[id]; m != nil {
		m.failures++
		m.warnings++
		m.dueNow()
	}
}

// dueNow has nobody complain that a message is tried too early.
func (m *mail) dueNow() { m.everybody(func(r *rcpt) { r.notDue = time.Time{} }) }

// transition counts what of the table in docs/queue.md has happened.
func (s *sim) transition(c simChange) {
	from, to := queueOf(c.from), queueOf(c.to)
	switch {
	case c.name == "unlink":
		to = "gone"
	case c.to == queue.Spare:
		to = "spare"
	}
	m := s.byID[c.id]
	if m == nil { // a bucket
		s.saw("bucket " + from + " to " + to)
		for _, m := range s.mails {
			if f := s.disk.files[m.id]; f != nil && f.at == c.from {
				m.dueNow()
			}
		}
		return
	}
	if from == queue.Incoming && !m.ended {
		from = "writing"
	}
	s.saw(from + " to " + to)
	if from == "writing" && to != "gone" {
		s.failf("message %d: to %s while it is being written", m.n, to)
	}
	if strings.HasSuffix(c.to, "1") && to == queue.Deferred {
		s.saw("goes beyond")
	}
	if to == queue.Active && strings.HasSuffix(c.from, "1") && from == queue.Deferred {
		s.saw("comes from beyond")
	}
	if to == queue.Active {
		m.untimed = false
	}
	if to == "due" {
		m.dueNow()
	}
	if to == "gone" || to == "spare" {
		m.gone = s.now()
		if m.accepted && !m.mayGo && from != queue.Active && from != "spare" {
			s.failf("message %d: removed from %s", m.n, from)
		}
		if m.accepted && !m.mayGo {
			s.checkFinished(m)
		}
	}
}

// queueOf is a directory without the time that it is for.
func queueOf(dir string) string {
	name, bucket, _ := strings.Cut(dir, "/")
	switch {
	case name != queue.Deferred:
		return dir
	case bucket == "":
		return name
	case isAsked(bucket), bucket == interruptedBucket:
		return "due"
	}
	return queue.Deferred
}

// beginsDelivery checks that a delivery may begin.
func (s *sim) beginsDelivery(p *process, r *delivery.Request, file *os.File) []*rcpt {
	m := s.byID[r.QueueID]
	now := time.Now()
	switch f := s.disk.files[r.QueueID]; {
	case f.at != queue.Active:
		s.failf("message %d: delivered from %q", m.n, f.at)
	case !m.deleted.IsZero() && now.After(m.deleted):
		s.failf("message %d: delivered though it has been deleted", m.n)
	case !m.held.IsZero() && now.After(m.held):
		s.failf("message %d: delivered though it is on hold", m.n)
	}
	content := make([]byte, r.Length)
	_, err := file.ReadAt(content, r.Offset)
	// Of what was never accepted nobody can tell whether it came before a power cut, when
	// the clock has been set since.
	if (err != nil || string(content) != m.text) && (m.accepted || !m.untold) {
		s.failf("message %d: content is %q, %v", m.n, content, err)
	}
	var list []*rcpt
	for _, to := range r.Recipients {
		e := s.rcpts[to.Address]
		if e == nil || e.mail != m {
			s.failf("message %d: delivered to %s", m.n, to.Address)
			continue
		}
		list = append(list, e)
		switch {
		case e.inFlight:
			s.failf("%s: delivered to twice at once", e.addr)
		case !e.delivered.may():
			s.failf("%s: delivered to again", e.addr)
		case e.told.times > 0:
			s.failf("%s: delivered to after the sender was told that it failed", e.addr)
		case now.Before(e.notDue):
			s.failf("%s: tried %v too early", e.addr, e.notDue.Sub(now))
		}
		e.inFlight = true
		e.tries++
	}
	to := r.Transport + ":" + r.Nexthop
	p.busy[to]++
	p.busy[r.Transport]++
	limits := s.cfg.Transport(r.Transport)
	if p.busy[to] > limits.Concurrency || p.busy[r.Transport] > limits.Deliveries || len(list) > limits.Recipients {
		s.failf("%d deliveries to %s at once, %d by its transport, %d recipients", p.busy[to], to, p.busy[r.Transport], len(list))
	}
	return list
}

// endsDelivery notes what qmgr is told of a recipient.
func (s *sim) endsDelivery(e *rcpt, result *delivery.Result) {
	switch result.Status.Class() {
	case dsn.Success:
		e.delivered.done(s, e.mail)
		e.relayed = result.RemoteMTA != "" && !result.Relayed // to who tells the sender himself
	case dsn.Permanent:
		e.failed = true
	default:
		e.wait(s)
	}
}

// wait notes when a recipient that has failed is tried again, at the earliest.
func (r *rcpt) wait(s *sim) {
	if !r.mail.untimed {
		r.notDue = time.Now().Add(time.Duration(s.cfg.Queue.Retry.Min))
	}
}

// lifetime is how long a message is tried.
func (s *sim) lifetime(m *mail) time.Duration {
	if m.sender.IsNull() {
		return time.Duration(min(s.cfg.Queue.Lifetime, s.cfg.Queue.BounceLifetime))
	}
	return time.Duration(s.cfg.Queue.Lifetime)
}

func (s *sim) mayHaveExpired(m *mail) bool {
	return s.late.Sub(m.arrival) >= s.lifetime(m)
}

// notified checks a notification that has been made; known says whether qmgr hears of it.
func (s *sim) notified(r *bounce.Request, known bool) {
	m := s.byID[r.QueueID]
	for i := range r.Recipients {
		got := &r.Recipients[i]
		e := s.rcpts[got.Address]
		if e == nil || e.mail != m {
			s.failf("message %d: the sender is told of %s", m.n, got.Address)
			continue
		}
		a, wanted := &e.told, e.notify.Wants(dsn.NotifyFailure) || m.sender.IsNull()
		switch r.Kind {
		case bounce.Failure:
			if !e.delivered.may() {
				s.failf("%s: delivered, and the sender is told that it failed", e.addr)
			}
			if !e.failed && !(got.Status.String() == "5.4.7" && s.mayHaveExpired(m)) {
				s.failf("%s: the sender is told %s, which nobody has said", e.addr, got.Status)
			}
			if got.Status.String() == "5.4.7" {
				s.saw("expired")
			}
		case bounce.Success:
			a, wanted = &e.toldOK, e.notify.Wants(dsn.NotifySuccess)
			if e.delivered.times == 0 && !e.discard {
				s.failf("%s: the sender is told that it is delivered", e.addr)
			}
		case bounce.Delay:
			wanted = e.notify.Wants(dsn.NotifyDelay) && !m.sender.IsNull() && s.cfg.Queue.DelayWarning > 0 &&
				s.late.Sub(m.arrival) >= time.Duration(s.cfg.Queue.DelayWarning)
			if i == 0 {
				m.warnings--
			}
			if m.warnings < 0 {
				s.failf("%s: warned of a delay again", e.addr)
			}
			a = &account{}
		}
		if !wanted {
			s.failf("%s: a notification of kind %d that nobody wants", e.addr, r.Kind)
		}
		if !a.may() {
			s.failf("%s: notified of again, kind %d", e.addr, r.Kind)
		}
		if known {
			a.done(s, m)
		} else {
			a.lost()
			m.warnings++
		}
	}
}

// ending is how a process of qmgr comes to its end.
type ending uint8

const (
	stop ending = iota
	crash
	powerCut
)

// remembers compares what has been done with what the disk knows, after a process
// has ended.
func (s *sim) remembers(how ending) {
	for _, m := range s.mails {
		f := s.disk.files[m.id]
		if f == nil || !f.there() {
			continue
		}
		states, readable := s.onDisk(m, f)
		if how != stop {
			m.warnings++
		}
		if how == powerCut || f.at == queue.Active {
			m.dueNow()
		}
		if how != stop || m.failures > m.wished {
			s.forgetWish(m, f)
		}
		m.everybody(func(r *rcpt) {
			state := states[r.addr]
			recorded := state != nil && state.Tried && state.Last.Status.Class() == dsn.Success
			if !readable { // and not accepted
				r.delivered.forget()
				r.told.forget()
				r.toldOK.forget()
				return
			}
			if !r.delivered.forgotten(s, m, how, recorded) {
				s.failf("%s: delivered at %v, but that is not in the file", r.addr, r.delivered.known.Sub(s.began))
			}
			reported := state != nil && state.Reported
			if !r.told.forgotten(s, m, how, reported) || !r.toldOK.forgotten(s, m, how, reported) {
				s.failf("%s: notified of, but that is not in the file", r.addr)
			}
			if r.told.times > 0 && (state == nil || state.Pending()) {
				s.failf("%s: the sender was told of a failure that is not in the file", r.addr)
			}
		})
	}
}

// forgetWish notes that a crash came between a command and what it does on disk: what
// the administrator wants of a message in memory is there only, and no change of a
// directory is flushed for him. So it is where the disk does not take it before a stop.
func (s *sim) forgetWish(m *mail, f *simFile) {
	if !m.deleted.IsZero() {
		s.notef("the deletion of %d is forgotten", m.n)
		m.deleted = time.Time{}
	}
	if !m.held.IsZero() && f.at != queue.Hold {
		s.notef("the hold of %d is forgotten", m.n)
		m.held = time.Time{}
	}
}

// onDisk reads what the file of a message says of its recipients.
func (s *sim) onDisk(m *mail, f *simFile) (map[addr.Mailbox]*queue.RecipientState, bool) {
	file, err := os.Open(s.disk.path(f.at, m.id.String()))
	var q *queue.Message
	if err == nil {
		defer file.Close()
		q, err = queue.ReadFinished(file) // in no time: whether all is as it should be depends on that
	}
	if err != nil {
		if m.accepted {
			s.failf("message %d: in %s: %v", m.n, f.at, err)
		}
		return nil, false
	}
	states := make(map[addr.Mailbox]*queue.RecipientState)
	for i := range q.Recipients {
		states[q.Envelope.Recipients[i].Address] = &q.Recipients[i]
	}
	return states, true
}

// checkFinished checks that a message that is removed leaves nobody waiting.
func (s *sim) checkFinished(m *mail) {
	for _, r := range m.rcpts {
		if why := s.unfinished(r); why != "" {
			s.failf("%s: %s, and the message is removed", r.addr, why)
		}
	}
}

func (s *sim) unfinished(r *rcpt) string {
	var whys []string
	for _, list := range r.renewed {
		if i := slices.IndexFunc(list, func(other *rcpt) bool { return other == r && s.own(r) != "" || other != r && s.unfinished(other) != "" }); i < 0 {
			return ""
		}
	}
	if why := s.own(r); why != "" {
		whys = append(whys, why)
	}
	return strings.Join(whys, "; ")
}

// own says what is missing of a recipient by himself.
func (s *sim) own(r *rcpt) string {
	known := !r.delivered.known.IsZero()
	wanted := r.notify.Wants(dsn.NotifyFailure) || r.mail.sender.IsNull()
	switch {
	case r.told.times > 0 || r.discard:
		return ""
	case !wanted && (r.failed || s.mayHaveExpired(r.mail) && !known):
		return "" // nobody wants to know
	case known && r.notify.Wants(dsn.NotifySuccess) && !r.relayed && r.toldOK.times == 0:
		return "the sender wanted to know that it is delivered"
	case known:
		return ""
	}
	return "neither delivered nor reported"
}

// rcptFor returns the recipient a of m, which is made if need be.
func (s *sim) rcptFor(m *mail, a addr.Mailbox, notify dsn.Notify, parent *rcpt) *rcpt {
	r := s.rcpts[a]
	if r == nil {
		r = &rcpt{mail: m, addr: a, notify: notify, parent: parent}
		s.rcpts[a] = r
	}
	return r
}

func (m *mail) envelope() *envelope.Envelope {
	e := &envelope.Envelope{Arrival: m.arrival, Sender: m.sender}
	for _, r := range m.rcpts {
		e.Recipients = append(e.Recipients, envelope.Recipient{Address: r.addr, Original: r.addr, Notify: r.notify})
	}
	return e
}

var errGone = errors.New("the process is no more")
