package schedule

import (
	"time"

	"posthouse/pkg/dsn"
)

// queue is one destination.
type queue[E any] struct {
	destination Destination
	transport   *transport[E]
	window      window
	busy        int
	waiting     int
	first       *peer[E]   // all that have something to deliver here
	ready       []*peer[E] // those that may start

	lanes map[*flow[E]]*lane[E] // of what is parked; none is empty
	turn  []*lane[E]

	pausing   int       // pauses that have not ended
	burials   int       // the same, of deaths
	deadUntil time.Time // zero: alive
	reason    *dsn.Error
}

// lane is what is parked of one sender.
type lane[E any] struct {
	flow  *flow[E]
	peers order[*peer[E]]
	taken int
}

// peer is what a job has for one destination.
type peer[E any] struct {
	job            *job[E]
	queue          *queue[E]
	todo           []E
	one            [1]E // most have no more
	state          state
	place          int  // in job.peers
	readyPlace     int  // in queue.ready
	listed         bool // in job.turn
	back           bool // in flow.back
	before, behind *peer[E]
}

type state uint8

const (
	idle   state = iota // has nothing to deliver
	ready               // in the turn of its job
	parked              // in a lane of its destination
)

func (p *peer[E]) age() uint64 { return p.job.age() }
func (p *peer[E]) size() int   { return p.job.size() }

func (q *queue[E]) isDead() bool { return !q.deadUntil.IsZero() }

// room reports whether another delivery may begin, as far as q is concerned.
func (q *queue[E]) room() bool {
	return q.busy < q.window.size && q.pausing == 0 && !q.isDead()
}

func (q *queue[E]) revive() {
	l := &q.transport.limits
	q.deadUntil, q.reason = time.Time{}, nil
	q.window = newWindow(l)
	if q.busy > 0 {
		q.window.size = min(q.busy, l.window())
	}
}

func (q *queue[E]) insert(p *peer[E]) {
	p.behind = q.first
	if q.first != nil {
		q.first.before = p
	}
	q.first = p
}

func (q *queue[E]) unlink(p *peer[E]) {
	if p.before != nil {
		p.before.behind = p.behind
	} else {
		q.first = p.behind
	}
	if p.behind != nil {
		p.behind.before = p.before
	}
	p.before, p.behind = nil, nil
}

// park has p wait for its destination.
func (q *queue[E]) park(p *peer[E]) {
	p.state = parked
	f := p.job.flow
	n := q.lanes[f]
	if n == nil {
		n = &lane[E]{flow: f}
		if q.lanes == nil {
			q.lanes = make(map[*flow[E]]*lane[E])
		}
		q.lanes[f] = n
		q.turn = append(q.turn, n)
	}
	n.peers.push(p)
}

// settle has as many peers come back from where they are parked as there is room
// for, by senders in turn. Where there is no room it parks those that are ready:
// when a place becomes free, all that wait are equal.
func (q *queue[E]) settle() {
	if !q.room() {
		for _, p := range q.ready {
			q.park(p)
		}
		clear(q.ready)
		q.ready = q.ready[:0]
		return
	}
	for len(q.turn) > 0 && len(q.ready) < q.window.size-q.busy {
		n := q.turn[0]
		q.turn = q.turn[1:]
		p := n.take(q.transport.limits.Slots.Cost)
		if len(n.peers.classes) > 0 {
			q.turn = append(q.turn, n)
		} else {
			delete(q.lanes, n.flow)
		}
		p.makeReady()
		if !p.back {
			p.back = true
			n.flow.back = append(n.flow.back, p)
		}
	}
}

// take takes the oldest peer or, one of cost times, that of the smallest message.
func (n *lane[E]) take(cost int) *peer[E] {
	n.taken++
	class := n.peers.oldest()
	if cost >= 2 && n.taken%cost == 0 {
		class = 0
	}
	return n.peers.remove(class)
}

func (p *peer[E]) makeReady() {
	p.state, p.readyPlace = ready, len(p.queue.ready)
	p.queue.ready = append(p.queue.ready, p)
	j := p.job
	if !p.listed {
		p.listed = true
		j.turn = append(j.turn, p)
	}
	if !j.listed {
		j.listed = true
		j.flow.ready.push(j)
	}
	j.flow.list()
}

// unready takes p off those that may start at its destination.
func (p *peer[E]) unready() {
	q := p.queue
	last := len(q.ready) - 1
	q.ready[p.readyPlace] = q.ready[last]
	q.ready[p.readyPlace].readyPlace = p.readyPlace
	q.ready[last] = nil
	q.ready = q.ready[:last]
	p.state = idle
}

// start takes a delivery of p.
func (p *peer[E]) start() E {
	var none E
	e := p.todo[0]
	p.todo[0] = none
	p.todo = p.todo[1:]
	j, q := p.job, p.queue
	j.waiting--
	j.started++
	j.earned++
	j.used++
	j.flow.waiting--
	q.waiting--
	q.busy++
	q.transport.busy++
	if j.turn[0] == p { // to its end
		j.turn = j.turn[1:]
		p.listed = false
	}
	p.back = false
	switch {
	case len(p.todo) == 0:
		p.unready()
		j.drop(p)
		q.settle()
	case q.room():
		if !p.listed {
			p.listed = true
			j.turn = append(j.turn, p)
		}
		q.settle()
	default: // behind all others
		p.unready()
		q.settle()
		q.park(p)
	}
	return e
}

// takeAll returns everything that waits for q.
func (q *queue[E]) takeAll() []E {
	var all []E
	for p := q.first; p != nil; p = q.first {
		all = append(all, p.todo...)
		j := p.job
		j.read -= len(p.todo)
		j.waiting -= len(p.todo)
		j.flow.waiting -= len(p.todo)
		if p.state == ready {
			p.unready()
		}
		p.todo, p.state = nil, idle
		j.drop(p)
		j.flow.forget()
	}
	q.waiting, q.lanes, q.turn = 0, nil, nil
	return all
}
