package schedule

import "time"

// flow is what one sender has for one transport.
type flow[E any] struct {
	sender    string
	transport *transport[E]
	waiting   int  // deliveries
	listed    bool // in the turns of the transport
	round     uint64
	number    uint64
	ready     order[*job[E]]
	passing   []*job[E]  // jobs that pass another one; the last is next
	back      []*peer[E] // that have come back from where they were parked
	since     int        // deliveries since one of those was preferred
}

// turns gives every flow one delivery in each round.
type turns[E any] struct {
	heap   []*flow[E] // by round and number
	round  uint64     // of the last flow
	number uint64
}

func (a *flow[E]) isBefore(b *flow[E]) bool {
	return a.round < b.round || a.round == b.round && a.number < b.number
}

// push adds a flow. One that has been kept from its turn in the last round goes
// first; so what has come back from where it was parked does not hold a place for
// long in which others could be.
func (t *turns[E]) push(f *flow[E]) {
	f.round = max(f.round, t.round-min(t.round, 1))
	t.number++
	f.number = t.number
	h := append(t.heap, f)
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h[i].isBefore(h[up]) {
			break
		}
		h[up], h[i] = h[i], h[up]
		i = up
	}
	t.heap = h
}

// pop takes the flow whose turn it is.
func (t *turns[E]) pop() *flow[E] {
	h := t.heap
	f, n := h[0], len(h)-1
	h[0], h[n] = h[n], nil
	h = h[:n]
	for i := 0; ; {
		least := i
		for _, down := range [2]int{2*i + 1, 2*i + 2} {
			if down < n && h[down].isBefore(h[least]) {
				least = down
			}
		}
		if least == i {
			break
		}
		h[least], h[i] = h[i], h[least]
		i = least
	}
	t.heap = h
	t.round = max(t.round, f.round)
	return f
}

// flow returns what sender has for t.
func (t *transport[E]) flow(sender string) *flow[E] {
	f := t.flows[sender]
	if f == nil {
		f = &flow[E]{sender: sender, transport: t, round: t.turn.round + 1}
		t.flows[sender] = f
	}
	return f
}

// next returns whose delivery is to begin, or nil.
func (t *transport[E]) next(now time.Time) *peer[E] {
	for len(t.turn.heap) > 0 {
		f := t.turn.pop()
		if p := f.next(now); p != nil {
			f.round++
			t.turn.push(f)
			return p
		}
		f.listed = false
		f.forget()
	}
	return nil
}

func (f *flow[E]) list() {
	if !f.listed {
		f.listed = true
		f.transport.turn.push(f)
	}
}

// forget ends a flow that has nothing any more.
func (f *flow[E]) forget() {
	if f.waiting == 0 && !f.listed && f.transport.flows[f.sender] == f {
		delete(f.transport.flows, f.sender)
	}
}

// next returns whose delivery is to begin, or nil. What it finds to be unable to
// start is taken out of the way.
func (f *flow[E]) next(now time.Time) *peer[E] {
	for {
		j, class := f.current()
		if j == nil {
			return nil
		}
		p := j.startable()
		if p == nil {
			f.takeOut(j, class)
			continue
		}
		if back := f.first(); back != nil && back.job != j && f.since >= f.cost() {
			f.since = 0
			j.earned -= f.cost()
			return back
		}
		if !f.pass(j, now) {
			f.since++
			return p
		}
	}
}

// first returns the first peer that has come back and is still ready, or nil.
func (f *flow[E]) first() *peer[E] {
	for len(f.back) > 0 {
		if p := f.back[0]; p.back && p.state == ready {
			return p
		}
		f.back[0].back = false
		f.back = f.back[1:]
	}
	return nil
}

// cost is how many deliveries are made by the order of the jobs for each that is
// not.
func (f *flow[E]) cost() int {
	if c := f.transport.limits.Slots.Cost; c >= 2 {
		return c
	}
	return DefaultSlots.Cost
}

// current returns the job whose turn it is, and its class, -1 for one that
// passes another.
func (f *flow[E]) current() (*job[E], int) {
	if n := len(f.passing); n > 0 {
		return f.passing[n-1], -1
	}
	class := f.ready.oldest()
	if class < 0 {
		return nil, -1
	}
	return f.ready.classes[class].heap[0], class
}

// takeOut takes the current job off those that may start.
func (f *flow[E]) takeOut(j *job[E], class int) {
	j.listed = false
	if class >= 0 {
		f.ready.remove(class)
		return
	}
	f.passing = f.passing[:len(f.passing)-1]
	// What was paid for and not used is given back.
	j.passed.earned -= j.used * f.transport.limits.Slots.Cost
	j.passed = nil
}

// pass lets another job pass the current one, if there is one that may.
func (f *flow[E]) pass(current *job[E], now time.Time) bool {
	s := &f.transport.limits.Slots
	if s.Cost < 2 || current.earned <= 0 || current.size() < s.Minimum*s.Cost {
		return false
	}
	room := (current.waiting + current.earned) / s.Cost
	class := f.candidate(current, room, now)
	if class < 0 {
		return false
	}
	j := f.ready.classes[class].heap[0]
	need := j.size() - j.started
	if current.earned/s.Cost+s.Loan < need*(100-s.Discount)/100 {
		return false
	}
	f.ready.remove(class)
	f.passing = append(f.passing, j)
	current.earned -= need * s.Cost
	j.passed, j.used = current, -need
	return true
}

// candidate returns the class of the job that has waited longest for its size,
// among those that need no more than room deliveries, or -1.
func (f *flow[E]) candidate(current *job[E], room int, now time.Time) int {
	for i := range f.ready.classes {
		f.ready.settle(i)
	}
	best, score := -1, 0.0
	for i := range f.ready.classes {
		j := f.ready.classes[i].heap[0]
		left := j.size() - j.started
		if j == current || left < 1 || left > room {
			continue
		}
		if s := (now.Sub(j.message.queued) + time.Second).Seconds() / float64(j.size()); best < 0 || s > score {
			best, score = i, s
		}
	}
	return best
}
