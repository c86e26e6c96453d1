// Package schedule decides what is delivered next. It is pure: no clock, no
// I/O; time is an argument, and deliveries are values of the caller.
//
// Every destination, which is a transport with a next hop, has a window: how
// many deliveries it may have at once. The window grows with success and
// shrinks with failure; a destination that only fails is dead for a while, and
// its deliveries are given back at once. Transports, and the destinations of a
// transport, take turns, so that a slow one holds up nobody but itself.
package schedule

import (
	"time"

	"posthouse/pkg/dsn"
)

// Limits are those of one transport.
type Limits struct {
	Deliveries  int // at once, to all its destinations
	Concurrency int // at once, to one destination
	Initial     int // at once, to a destination of which nothing is known
}

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

// Scheduler holds the deliveries that are waiting. E is a delivery.
type Scheduler[E any] struct {
	limits     func(transport string) Limits
	transports map[string]*transport[E]
	turn       []*transport[E] // all transports; the first is the next to be asked
	queues     map[Destination]*queue[E]
	deadTime   time.Duration
}

type transport[E any] struct {
	name  string
	busy  int
	ready []*queue[E] // those that may begin another delivery; the first is next
}

type queue[E any] struct {
	destination Destination
	transport   *transport[E]
	todo        []E
	busy        int
	listed      bool // in ready
	window      window
	deadUntil   time.Time // zero: alive
	reason      *dsn.Error
}

// New returns an empty scheduler. A destination that died is tried again after
// deadTime.
func New[E any](limits func(transport string) Limits, deadTime time.Duration) *Scheduler[E] {
	return &Scheduler[E]{
		limits: limits, deadTime: deadTime,
		transports: make(map[string]*transport[E]), queues: make(map[Destination]*queue[E]),
	}
}

// Add puts a delivery into the queue of its destination. Where that is dead it
// returns the reason instead.
func (s *Scheduler[E]) Add(now time.Time, d Destination, e E) *dsn.Error {
	q := s.queues[d]
	if q == nil {
		t := s.transports[d.Transport]
		if t == nil {
			t = &transport[E]{name: d.Transport}
			s.transports[d.Transport] = t
			s.turn = append(s.turn, t)
		}
		q = &queue[E]{destination: d, transport: t, window: newWindow(s.limits(d.Transport))}
		s.queues[d] = q
	}
	if !q.deadUntil.IsZero() {
		if now.Before(q.deadUntil) {
			return q.reason
		}
		q.revive(s.limits(d.Transport))
	}
	q.todo = append(q.todo, e)
	q.list()
	return nil
}

// list makes q known as ready, if it is.
func (q *queue[E]) list() {
	if !q.listed && len(q.todo) > 0 && q.busy < q.window.size {
		q.listed = true
		q.transport.ready = append(q.transport.ready, q)
	}
}

func (q *queue[E]) revive(l Limits) {
	q.deadUntil, q.reason = time.Time{}, nil
	q.window = newWindow(l)
	if q.busy > 0 {
		q.window.size = min(q.busy, q.window.limit)
	}
}

// Next takes the delivery that is to begin now. ok is false where none may.
func (s *Scheduler[E]) Next() (e E, d Destination, ok bool) {
	for range s.turn {
		t := s.turn[0]
		s.turn = append(s.turn[1:], t)
		if t.busy >= s.limits(t.name).Deliveries {
			continue
		}
		for len(t.ready) > 0 {
			q := t.ready[0]
			t.ready = t.ready[1:]
			q.listed = false
			if len(q.todo) == 0 || q.busy >= q.window.size {
				continue
			}
			e, q.todo = q.todo[0], q.todo[1:]
			q.busy++
			t.busy++
			q.list()
			return e, q.destination, true
		}
	}
	return e, d, false
}

// Done says how a delivery that Next gave has ended. reason is why, for a
// Negative signal. Where the destination dies of it the deliveries that wait
// for it are returned: they are to be given up for now, for the same reason.
func (s *Scheduler[E]) Done(now time.Time, d Destination, signal Signal, reason *dsn.Error) (dead []E) {
	q := s.queues[d]
	limits := s.limits(d.Transport)
	switch {
	case signal == Positive && !q.deadUntil.IsZero():
		q.revive(limits)
	case signal == Positive:
		q.window.positive(q.busy)
	case signal == Negative && q.deadUntil.IsZero():
		if q.window.negative() {
			q.deadUntil, q.reason = now.Add(s.deadTime), reason
			dead, q.todo = q.todo, nil
		}
	}
	q.busy--
	q.transport.busy--
	q.list()
	if q.busy == 0 && len(q.todo) == 0 && q.deadUntil.IsZero() {
		delete(s.queues, d)
	}
	s.bury(now)
	return dead
}

// maxDead bounds how many dead destinations are remembered.
const maxDead = 10000

// bury forgets dead destinations when there are very many of them.
func (s *Scheduler[E]) bury(now time.Time) {
	if len(s.queues) <= maxDead {
		return
	}
	for d, q := range s.queues {
		if q.busy == 0 && len(q.todo) == 0 && (!now.Before(q.deadUntil) || len(s.queues) > maxDead) {
			delete(s.queues, d)
		}
	}
}

// ReviveAll has dead destinations tried again at once.
func (s *Scheduler[E]) ReviveAll() {
	for d, q := range s.queues {
		if !q.deadUntil.IsZero() {
			q.revive(s.limits(d.Transport))
		}
	}
}

// Len returns the number of destinations that are known.
func (s *Scheduler[E]) Len() int { return len(s.queues) }
