// Package schedule decides what is delivered next. It is pure: no clock, no
// I/O; time is an argument, and deliveries are values of the caller.
//
// Deliveries of a message with one transport are a job. Who may start is
// decided in these turns:
//
//   - transports, round robin;
//   - senders, round robin, one delivery each: who floods delays himself;
//   - jobs of one sender, oldest first; but a small one passes a big one for
//     which it need not wait long, by the delivery slots of Postfix (see Slots).
//     The big one is slowed down by a factor of at most k/(k-1), where k is the
//     cost of a slot;
//   - destinations of a job, round robin.
//
// Every destination, which is a transport with a next hop, has a window: how
// many deliveries it may have at once. The window grows with success and
// shrinks with failure; a destination that only fails is dead for a while, and
// its deliveries are given back at once.
//
// No decision looks through what cannot start. What waits for a destination
// whose window is full is parked there, by sender, and comes back as soon as
// something ends: again senders take turns, and of k places one goes to a small
// job if the oldest is not. Who comes back is next for his sender once in k
// deliveries, so that the place is soon used. So a decision costs the same with ten destinations
// that wait and with a hundred thousand.
//
// Postfix has one list of jobs for each transport, in the order of their
// arrival, and no senders. Here the rules of that list hold for each sender by
// himself. A sender is whatever string the caller says it is.
package schedule

import (
	"time"

	"posthouse/pkg/dsn"
)

// Destination is where deliveries go.
type Destination struct{ Transport, Nexthop string }

// Signal is what a delivery says about its destination as a whole.
type Signal uint8

// The signals.
const (
	Nothing  Signal = iota // the delivery was not tried
	Positive               // it speaks, whatever it said of the recipients
	Negative               // it cannot be reached, or does not speak
)

// maxDead bounds how many dead destinations are remembered. Beyond it the one
// that died first is taken for alive.
const maxDead = 10000

// Scheduler holds the deliveries that are waiting. E is a delivery.
type Scheduler[E any] struct {
	limits     func(transport string) Limits
	deadTime   func() time.Duration
	transports map[string]*transport[E]
	turn       []*transport[E] // all transports; the first is the next to be asked
	queues     map[Destination]*queue[E]
	dead       []*queue[E] // in the order of their death; some are alive again
	pauses     []pause[E]  // a heap, by time
	messages   uint64      // so far
}

type transport[E any] struct {
	name    string
	limits  Limits
	busy    int
	queues  int
	flows   map[string]*flow[E] // that have something to deliver, by sender
	turn    turns[E]
	pausing bool
}

// New returns an empty scheduler. A destination that died is tried again after
// deadTime.
func New[E any](limits func(transport string) Limits, deadTime func() time.Duration) *Scheduler[E] {
	return &Scheduler[E]{
		limits: limits, deadTime: deadTime,
		transports: make(map[string]*transport[E]), queues: make(map[Destination]*queue[E]),
	}
}

// Message is one message for the scheduler: the deliveries that belong together.
type Message[E any] struct {
	sender string
	number uint64 // of the order of arrival
	queued time.Time
	unread int
	jobs   []*job[E]
	one    [1]*job[E] // most have no more
}

// NewMessage returns a message that has no deliveries yet, behind all others.
func (s *Scheduler[E]) NewMessage(now time.Time, sender string) *Message[E] {
	s.messages++
	m := &Message[E]{sender: sender, number: s.messages, queued: now}
	m.jobs = m.one[:0]
	return m
}

// Unread says how many deliveries of m, at most, are still to be added.
func (m *Message[E]) Unread(n int) { m.unread = n }

// Add has a delivery of m wait. Where its destination is dead it returns the
// reason instead.
func (s *Scheduler[E]) Add(now time.Time, m *Message[E], d Destination, e E) *dsn.Error {
	q := s.queues[d]
	if q == nil {
		q = s.newQueue(d)
	}
	if q.isDead() {
		if now.Before(q.deadUntil) {
			return q.reason
		}
		q.revive()
	}
	j := m.job(q.transport)
	p := j.peer(q)
	j.read++
	j.waiting++
	j.flow.waiting++
	q.waiting++
	p.todo = append(p.todo, e)
	if p.state == idle {
		if q.room() && len(q.lanes) == 0 {
			p.makeReady()
		} else { // others that wait come first
			q.park(p)
			q.settle()
		}
	}
	return nil
}

func (s *Scheduler[E]) newQueue(d Destination) *queue[E] {
	t := s.transports[d.Transport]
	if t == nil {
		t = &transport[E]{name: d.Transport, flows: make(map[string]*flow[E])}
		s.transports[d.Transport] = t
		s.turn = append(s.turn, t)
	}
	t.limits = s.limits(d.Transport)
	t.queues++
	q := &queue[E]{destination: d, transport: t, window: newWindow(&t.limits)}
	s.queues[d] = q
	return q
}

// Next takes the delivery that is to begin now. ok is false where none may.
func (s *Scheduler[E]) Next(now time.Time) (e E, d Destination, ok bool) {
	s.endPauses(now)
	for range s.turn {
		t := s.turn[0]
		copy(s.turn, s.turn[1:])
		s.turn[len(s.turn)-1] = t
		if len(t.turn.heap) == 0 || t.pausing {
			continue
		}
		t.limits = s.limits(t.name)
		if t.busy >= t.limits.Deliveries {
			continue
		}
		p := t.next(now)
		if p == nil {
			continue
		}
		q := p.queue
		e = p.start()
		if t.limits.Pause > 0 {
			t.pausing = true
			s.pauseUntil(pause[E]{at: now.Add(t.limits.Pause), transport: t})
		}
		return e, q.destination, true
	}
	return e, d, false
}

// Done says how a delivery that Next gave has ended. reason is why, for a
// Negative signal. Where the destination dies of it the deliveries that wait
// for it are returned: they are to be given up for now, for the same reason.
func (s *Scheduler[E]) Done(now time.Time, d Destination, signal Signal, reason *dsn.Error) (dead []E) {
	q := s.queues[d]
	t := q.transport
	t.limits = s.limits(t.name)
	l := &t.limits
	switch {
	case signal == Positive && q.isDead():
		q.revive()
	case signal == Positive:
		q.window.positive(l, q.busy)
	case signal == Negative && !q.isDead() && q.window.negative(l):
		q.deadUntil, q.reason = now.Add(s.deadTime()), reason
		dead = q.takeAll()
		s.bury(q)
	}
	q.busy--
	t.busy--
	if l.DestinationPause > 0 && !q.isDead() {
		q.window.size = 1
		if signal != Nothing { // it has not been asked for anything
			q.pausing++
			s.pauseUntil(pause[E]{at: now.Add(l.DestinationPause), queue: q})
		}
	}
	q.settle()
	s.forget(q)
	return dead
}

// forget drops a destination of which there is nothing to know.
func (s *Scheduler[E]) forget(q *queue[E]) {
	if q.busy > 0 || q.waiting > 0 || q.pausing > 0 || q.burials > 0 || q.isDead() || s.queues[q.destination] != q {
		return
	}
	delete(s.queues, q.destination)
	t := q.transport
	t.queues--
	s.forgetTransport(t)
}

// maxTransports is how many transports are remembered that have nothing to do.
const maxTransports = 20

func (s *Scheduler[E]) forgetTransport(t *transport[E]) {
	if t.queues > 0 || t.pausing || len(s.transports) <= maxTransports {
		return
	}
	t.next(time.Time{}) // takes out what has nothing any more
	delete(s.transports, t.name)
	for i := range s.turn {
		if s.turn[i] == t {
			s.turn = append(s.turn[:i], s.turn[i+1:]...)
			return
		}
	}
}

// bury remembers that q is dead, for its time.
func (s *Scheduler[E]) bury(q *queue[E]) {
	s.dead = append(s.dead, q)
	q.burials++
	s.pauseUntil(pause[E]{at: q.deadUntil, queue: q, dead: true})
	for len(s.dead) > maxDead {
		first := s.dead[0]
		s.dead = s.dead[1:]
		if first.isDead() {
			first.revive()
			first.settle()
		}
	}
}

// ReviveAll has dead destinations tried again at once.
func (s *Scheduler[E]) ReviveAll() {
	for _, q := range s.dead {
		if q.isDead() {
			q.revive()
			s.forget(q)
		}
	}
	s.dead = nil
}

// Len returns the number of destinations that are known.
func (s *Scheduler[E]) Len() int { return len(s.queues) }

// Waiting returns how many deliveries wait for d or are under way there.
func (s *Scheduler[E]) Waiting(d Destination) int {
	if q := s.queues[d]; q != nil {
		return q.waiting + q.busy
	}
	return 0
}
