package schedule

// job is what a message has for one transport.
type job[E any] struct {
	message *Message[E]
	flow    *flow[E]
	peers   []*peer[E] // with deliveries that wait
	index   map[*queue[E]]*peer[E]
	turn    []*peer[E] // peers that may start; the first is next
	read    int        // deliveries so far
	started int
	waiting int
	listed  bool // in flow.ready or flow.passing

	earned int     // delivery slots, times their cost
	used   int     // deliveries since it passed another job, less those that were paid for
	passed *job[E] // who paid

	onePeer, oneTurn [1]*peer[E] // most jobs need no more
}

func (j *job[E]) age() uint64 { return j.message.number }

// size is how many deliveries the job may have in all.
func (j *job[E]) size() int { return j.read + j.message.unread }

// job returns the job of m for t.
func (m *Message[E]) job(t *transport[E]) *job[E] {
	var j *job[E]
	for _, other := range m.jobs {
		if other.flow.transport.name == t.name {
			j = other
		}
	}
	if j == nil {
		j = &job[E]{message: m}
		j.peers, j.turn = j.onePeer[:0], j.oneTurn[:0]
		m.jobs = append(m.jobs, j)
	}
	if j.waiting == 0 && !j.listed { // its flow may have been forgotten
		j.flow = t.flow(m.sender)
	}
	return j
}

// few is how many peers are searched for one by one.
const few = 8

// peer returns the peer of j for q.
func (j *job[E]) peer(q *queue[E]) *peer[E] {
	p := j.index[q]
	if j.index == nil {
		for _, other := range j.peers {
			if other.queue == q {
				p = other
			}
		}
	}
	if p != nil {
		return p
	}
	p = &peer[E]{job: j, queue: q, place: len(j.peers)}
	p.todo = p.one[:0]
	j.peers = append(j.peers, p)
	if j.index != nil {
		j.index[q] = p
	} else if len(j.peers) > few {
		j.index = make(map[*queue[E]]*peer[E])
		for _, p := range j.peers {
			j.index[p.queue] = p
		}
	}
	q.insert(p)
	return p
}

// drop forgets a peer that has nothing left.
func (j *job[E]) drop(p *peer[E]) {
	last := len(j.peers) - 1
	j.peers[p.place] = j.peers[last]
	j.peers[p.place].place = p.place
	j.peers[last] = nil
	j.peers = j.peers[:last]
	if j.index != nil {
		delete(j.index, p.queue)
		if last == 0 {
			j.index = nil
		}
	}
	p.queue.unlink(p)
}

// startable returns the peer that is next, or nil.
func (j *job[E]) startable() *peer[E] {
	for len(j.turn) > 0 {
		p := j.turn[0]
		if p.state == ready {
			return p
		}
		j.turn = j.turn[1:]
		p.listed = false
	}
	return nil
}
