package main

import (
	"math"
	"time"

	"posthouse/daemons/qmgr/internal/schedule"
	"posthouse/pkg/queue"
)

// party is who may have too much in memory: a destination, or a sender.
type party struct {
	schedule.Destination
	sender string
}

func (p party) String() string {
	if p.sender != "" {
		return "from " + p.sender
	}
	return "for " + p.Transport + ":" + clip(p.Nexthop)
}

// crowd is the mail of a party that has more than its share of memory. Of a message
// that waits there nothing is left in memory but its ID; its file stays in active/,
// so after a crash it is taken up as any other. It comes back when others have
// gone.
type crowd struct {
	party   party
	waiting []*message
	on      int // the way back
	load    int // of those, see manager.weight

	beyond map[string]int64 // buckets that have more of it, and where in their index
	taking bool             // some of that is being taken up
}

const (
	maxComing = 2 * loaders     // messages of a crowd that come back at once
	visits    = 8               // crowds that are looked at when something has ended
	warnPause = 5 * time.Minute // between two warnings
)

// share is how many recipients p may have in memory. That depends on what is free:
// so one party may take its percentage, several take less each, and something is
// always left for others. A sender may have more than a destination: a slow
// destination is no reason to hold up his other mail. m.mu is held.
func (m *manager) share(p party) int {
	q := &m.config().Queue
	percent := q.ActiveShare
	if p.sender != "" {
		percent = (percent + 100) / 2
	}
	if percent >= 100 {
		return math.MaxInt
	}
	free := min(q.ActiveMessages-len(m.known)+m.outside, q.ActiveRecipients-m.recipients)
	return max(1, free*percent/(100-percent))
}

// isCrowded reports whether more mail of p has to wait. m.mu is held.
func (m *manager) isCrowded(p party) bool {
	c := m.crowds[p]
	return m.loads[p] >= m.share(p) || c != nil && len(c.waiting) > 0
}

// burden adds n to the recipients that p has in memory. m.mu is held.
func (m *manager) burden(p party, n int) {
	if m.loads[p] += n; m.loads[p] <= 0 {
		delete(m.loads, p)
	}
}

// mostOutside is how many messages may wait outside, at some 200 octets each.
func (m *manager) mostOutside() int {
	if m.limitOutside > 0 {
		return m.limitOutside
	}
	return 5 * max(m.config().Queue.ActiveMessages, 1000)
}

// sendOut has a message wait outside of memory. It reports false where it cannot.
func (m *manager) sendOut(msg *message) bool {
	msg.file.Lock()
	err := m.write(msg)
	if err == nil {
		err = m.appendRetries(msg, m.stillDue(msg))
	}
	msg.file.Unlock()
	if err != nil {
		m.log.Error(msg.fields(), "%s: %v", msg.id, err)
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopping {
		return true // the next process takes it up
	}
	p := msg.crowded
	c := m.crowds[p]
	waiting := 0
	if c != nil {
		waiting = len(c.waiting)
	}
	// As in memory, a crowd may have as many as are free.
	if msg.want != wantDelivery || waiting >= m.mostOutside()-m.outside {
		return false
	}
	c = m.crowdOf(p)
	c.waiting = append(c.waiting, msg)
	m.outside++
	if now := m.now(); m.warned.IsZero() || now.Sub(m.warned) >= warnPause {
		m.warned = now
		m.log.Warn(nil, "mail %s is using up %d%% of the active queue; what else there is of it waits",
			p, min(100, m.loads[p]*100/m.config().Queue.ActiveRecipients))
	}
	m.recipients -= msg.counted
	m.burden(msg.sender, -msg.counted)
	if msg.deferred {
		m.deferred--
	}
	msg.asked, msg.before = msg.isAsked(), true
	msg.from, msg.outside, msg.crowded, msg.counted = place{queue: queue.Active}, p, party{}, 0
	msg.q, msg.turn, msg.next, msg.unread, msg.coming, msg.deferred = nil, nil, nil, nil, false, false
	msg.ended, msg.anew = false, false
	m.room.Broadcast()
	m.letIn()
	return true
}

// stillDue returns the times of recipients for when a message comes back: who has been
// tried waits, and who has not does not, if the administrator has asked for him.
// msg.file is held.
func (m *manager) stillDue(msg *message) (list []queue.Retry) {
	for i, t := range msg.next {
		list = append(list, queue.Retry{Index: i, Next: t})
	}
	if !msg.isForAll() {
		return list
	}
	now := m.now()
	for _, i := range msg.pending() {
		if _, tried := msg.next[i]; !tried && msg.q.Recipients[i].Next.After(now) {
			list = append(list, queue.Retry{Index: i, Next: now})
		}
	}
	return list
}

// letIn has messages come back for which there is room again. It is called with
// everything that ends, looks at the crowds of which that was first, and then at a
// few in turn: there may be many. If nothing is active any more the first has room.
// m.mu is held.
func (m *manager) letIn(ended ...party) {
	for _, p := range ended {
		if c := m.crowds[p]; c != nil {
			m.visit(c)
		}
	}
	for range min(visits, len(m.crowdTurn)) {
		c := m.crowdTurn[0]
		m.crowdTurn = m.crowdTurn[1:]
		m.visit(c)
		if len(c.waiting) == 0 && c.on == 0 && len(c.beyond) == 0 && !c.taking {
			delete(m.crowds, c.party)
		} else {
			m.crowdTurn = append(m.crowdTurn, c)
		}
	}
}

// visit has messages of a crowd come back for which there is room. m.mu is held.
func (m *manager) visit(c *crowd) {
	q := &m.config().Queue
	for len(c.waiting) > 0 && c.on < maxComing && m.loads[c.party]+c.load < m.share(c.party) &&
		len(m.known)-m.outside < q.ActiveMessages && m.recipients < q.ActiveRecipients {
		msg := c.waiting[0]
		c.waiting[0] = nil
		c.waiting = c.waiting[1:]
		m.comeBack(msg)
	}
	m.takeBeyond(c)
}

// comeBack has a message read again that is waiting outside. m.mu is held.
func (m *manager) comeBack(msg *message) {
	if msg.outside == (party{}) || msg.coming || m.stopping {
		return
	}
	msg.coming = true
	m.outside--
	c := m.crowds[msg.outside]
	c.on++
	c.load += msg.weighs()
	m.coming = append(m.coming, msg)
	if m.comers < loaders {
		m.comers++
		m.wg.Go(m.readAgain)
	}
}

// weighs is what a message outside will count for, as far as that is known.
func (msg *message) weighs() int { return max(1, msg.weight) }

// readAgain reads the messages that come back, one after the other.
func (m *manager) readAgain() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.coming) > 0 && !m.stopping {
		msg := m.coming[0]
		m.coming = m.coming[1:]
		c, load := m.crowds[msg.outside], msg.weighs()
		m.mu.Unlock()
		m.slots <- struct{}{}
		m.load(msg)
		<-m.slots
		m.mu.Lock()
		c.on--
		c.load -= load
		m.letIn()
	}
	m.comers--
}
