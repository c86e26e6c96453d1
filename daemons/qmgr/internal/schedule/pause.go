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

func (s *Scheduler[E]) pauseUntil(p pause[E]) {
	h := append(s.pauses, p)
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h[i].at.Before(h[up].at) {
			break
		}
		h[up], h[i] = h[i], h[up]
		i = up
	}
	s.pauses = h
}

func (s *Scheduler[E]) popPause() pause[E] {
	h := s.pauses
	p, n := h[0], len(h)-1
	h[0], h[n] = h[n], pause[E]{}
	h = h[:n]
	for i := 0; ; {
		least := i
		for _, down := range [2]int{2*i + 1, 2*i + 2} {
			if down < n && h[down].at.Before(h[least].at) {
				least = down
			}
		}
		if least == i {
			break
		}
		h[least], h[i] = h[i], h[least]
		i = least
	}
	s.pauses = h
	return p
}
