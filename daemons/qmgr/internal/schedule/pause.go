package schedule

import "time"

// pause is when a destination, or a transport, may go on: behind a delivery
// where there are pauses, and after its death.
type pause[E any] struct {
	at        time.Time
	queue     *queue[E]
	transport *transport[E]
	dead      bool // it ends a death
}

// Wake returns when Next may have something that it has not now though nothing
// ends; zero: never.
func (s *Scheduler[E]) Wake() time.Time {
	if len(s.pauses) == 0 {
		return time.Time{}
	}
	return s.pauses[0].at
}

func (s *Scheduler[E]) endPauses(now time.Time) {
	for len(s.pauses) > 0 && !now.Before(s.pauses[0].at) {
		p := s.popPause()
		if t := p.transport; t != nil {
			t.pausing = false
			s.forgetTransport(t)
			continue
		}
		q := p.queue
		if p.dead {
			q.burials--
		} else {
			q.pausing--
		}
		if q.isDead() && !now.Before(q.deadUntil) {
			q.revive()
		}
		q.settle()
		s.forget(q)
	}
	for len(s.dead) > 0 && !s.dead[0].isDead() {
		s.dead = s.dead[1:]
	}
}

func sooner[E any](a, b pause[E]) bool { return a.at.Before(b.at) }

func (s *Scheduler[E]) pauseUntil(p pause[E]) { s.pauses = pushed(s.pauses, p, sooner[E]) }

func (s *Scheduler[E]) popPause() (p pause[E]) {
	p, s.pauses = popped(s.pauses, sooner[E])
	return p
}
