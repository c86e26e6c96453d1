package simulate

import (
	"container/heap"
	"math/rand"
	"strconv"
	"time"

	"posthouse/daemons/qmgr/internal/schedule"
	"posthouse/pkg/dsn"
)

// rules are what differs between mail systems.
type rules struct {
	name    string
	senders bool          // take turns
	share   int           // percentage of memory for one destination; a sender may have more; 0: any
	aged    int           // percentage of memory for what has been deferred; 0: any
	chance  bool          // in the time between attempts
	scan    time.Duration // how often deferred mail is looked at
}

var (
	ours    = rules{name: "posthouse", senders: true, share: 50, aged: 75, chance: true, scan: time.Minute}
	postfix = rules{name: "postfix rules", scan: 5 * time.Minute}
)

const (
	leastWait = 5 * time.Minute
	mostWait  = 4000 * time.Second
)

type delivery struct {
	*mail
	to int32
}

type event struct {
	at time.Duration
	delivery
	signal schedule.Signal
	ok     bool
}

type events []event

func (h events) Len() int           { return len(h) }
func (h events) Less(i, j int) bool { return h[i].at < h[j].at }
func (h events) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *events) Push(x any)        { *h = append(*h, x.(event)) }
func (h *events) Pop() any          { x := (*h)[len(*h)-1]; *h = (*h)[:len(*h)-1]; return x }

type byNext []*mail

func (h byNext) Len() int           { return len(h) }
func (h byNext) Less(i, j int) bool { return h[i].next < h[j].next }
func (h byNext) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *byNext) Push(x any)        { *h = append(*h, x.(*mail)) }
func (h *byNext) Pop() any          { x := (*h)[len(*h)-1]; *h = (*h)[:len(*h)-1]; return x }

// system is a mail system in modelled time.
type system struct {
	*traffic
	rules
	rand     *rand.Rand
	memory   int // messages
	limits   schedule.Limits
	now      time.Duration
	places   []destination
	sched    *schedule.Scheduler[delivery]
	turns    map[*mail]*schedule.Message[delivery]
	flying   events
	incoming []*mail
	deferred byNext
	scanned  time.Duration
	due      int // deferred mail that the last scan has found, and that is not active yet
	aged     int // active mail that was deferred
	loads    map[int32]int
	outside  map[int32][]*mail
	away     int // in outside
	turn     bool
	report   *report
}

func newSystem(t *traffic, r rules, memory int, limits schedule.Limits) *system {
	s := &system{
		traffic: t, rules: r, rand: rand.New(rand.NewSource(t.seed)), memory: memory, limits: limits, places: t.places(),
		turns: make(map[*mail]*schedule.Message[delivery]), loads: make(map[int32]int), outside: make(map[int32][]*mail), report: &report{name: r.name},
	}
	s.sched = schedule.New[delivery](func(string) schedule.Limits { return s.limits }, func() time.Duration { return leastWait })
	return s
}

var epoch = time.Unix(1790000000, 0)

func (s *system) time() time.Time { return epoch.Add(s.now) }

// run plays the traffic, and goes on for some time behind it.
func (s *system) run() *report {
	src := s.source()
	for m := src.next(); m != nil || s.now < s.day+s.day/10; {
		at := s.scanned + s.rules.scan
		if m != nil {
			at = min(at, m.arrival)
		}
		if len(s.flying) > 0 {
			at = min(at, s.flying[0].at)
		}
		s.now = max(at, s.now)
		switch {
		case len(s.flying) > 0 && s.flying[0].at <= s.now:
			s.done(heap.Pop(&s.flying).(event))
		case m != nil && m.arrival <= s.now:
			s.report.arrived(m)
			s.incoming = append(s.incoming, m)
			m = src.next()
		default:
			s.scanned = s.now
			s.due = 0
			for i := range s.deferred {
				if s.deferred[i].next <= s.now {
					s.due++
				}
			}
		}
		s.admit()
		s.dispatch()
		s.report.watch(s)
	}
	s.report.left = len(s.incoming) + len(s.turns) + s.away
	s.report.deferred = len(s.deferred)
	return s.report
}

// admit takes messages into memory while there is room, new and old in turn.
func (s *system) admit() {
	for len(s.turns) < s.memory {
		old := s.due > 0 && (s.rules.aged == 0 || s.aged < s.memory*s.rules.aged/100)
		if !old && len(s.incoming) == 0 {
			return
		}
		s.turn = !s.turn
		if old && (s.turn || len(s.incoming) == 0) {
			s.due--
			m := heap.Pop(&s.deferred).(*mail)
			m.aged = true
			s.aged++
			s.load(m)
			continue
		}
		m := s.incoming[0]
		s.incoming[0] = nil
		s.incoming = s.incoming[1:]
		s.load(m)
	}
}

// share is what a party may have in memory: so that its percentage would be used
// if it were the only one, and there is always something left.
func (s *system) share(party int32) int {
	percent := s.rules.share
	if party < none {
		percent = (percent + 100) / 2
	}
	return max(1, (s.memory-len(s.turns))*percent/(100-percent))
}

// load has the deliveries of a message scheduled.
func (s *system) load(m *mail) {
	sender := ""
	if s.rules.senders {
		sender = strconv.Itoa(int(m.sender))
	}
	if from := m.party(); s.rules.share > 0 && m.outside == none && s.isCrowded(from) {
		s.leaveMemory(m)
		s.putAside(m, from)
		return
	}
	turn := s.sched.NewMessage(s.time(), sender)
	s.turns[m] = turn
	s.loads[m.party()]++
	m.open, m.next = 1, 0
	to := m.to
	m.to = nil
	for i, d := range to {
		if s.rules.share > 0 && m.outside != d && s.isCrowded(d) {
			m.crowded = d
			m.to = append(m.to, d)
			continue
		}
		turn.Unread(len(to) - i - 1)
		if s.sched.Add(s.time(), turn, schedule.Destination{Transport: "smtp", Nexthop: s.places[d].name}, delivery{m, d}) != nil {
			s.fail(m, d)
			continue
		}
		s.loads[d]++
		m.open++
	}
	s.end(m)
}

// fail has a recipient tried again.
func (s *system) fail(m *mail, d int32) {
	m.to = append(m.to, d)
	if at := s.now + s.wait(m); m.next == 0 || at < m.next {
		m.next = at
	}
}

// wait is the time to the next attempt.
func (s *system) wait(m *mail) time.Duration {
	wait := max(leastWait, min(s.now-m.arrival, mostWait))
	if !s.rules.chance {
		return wait
	}
	change := wait / 4
	if wait+change > mostWait {
		change = -wait / 5
	}
	return wait + time.Duration(s.rand.Float64()*float64(change))
}

// end notes that a delivery has ended; with the last one the message leaves.
func (s *system) end(m *mail) {
	if m.open--; m.open > 0 {
		return
	}
	delete(s.turns, m)
	s.unload(m.party())
	s.leaveMemory(m)
	switch {
	case m.crowded != none:
		s.putAside(m, m.crowded)
	case len(m.to) > 0:
		m.outside = none
		heap.Push(&s.deferred, m)
	}
	s.letIn(m.party())
}

func (s *system) leaveMemory(m *mail) {
	if m.aged {
		m.aged = false
		s.aged--
	}
}

func (s *system) unload(party int32) {
	if s.loads[party]--; s.loads[party] == 0 {
		delete(s.loads, party)
	}
}

// isCrowded reports whether a destination or a sender has more than its share.
func (s *system) isCrowded(party int32) bool {
	return s.loads[party] >= s.share(party) || len(s.outside[party]) > 0
}

// putAside has a message wait outside, or where there are too many with the
// deferred.
func (s *system) putAside(m *mail, party int32) {
	m.outside, m.crowded = party, none
	if len(s.outside[party]) >= 5*max(s.memory, 1000)-s.away {
		m.outside = none
		if m.next == 0 {
			m.next = s.now + s.wait(m)
		}
		heap.Push(&s.deferred, m)
		return
	}
	s.outside[party] = append(s.outside[party], m)
	s.away++
}

// letIn takes back what waits outside for a destination or a sender.
func (s *system) letIn(d int32) {
	for len(s.outside[d]) > 0 && s.loads[d] < s.share(d) && len(s.turns) < s.memory {
		m := s.outside[d][0]
		if s.outside[d] = s.outside[d][1:]; len(s.outside[d]) == 0 {
			delete(s.outside, d)
		}
		s.away--
		s.load(m)
	}
}

// dispatch begins what may begin.
func (s *system) dispatch() {
	for {
		e, _, ok := s.sched.Next(s.time())
		if !ok {
			return
		}
		d := &s.places[e.to]
		d.now++
		ev := event{delivery: e, signal: schedule.Positive, ok: true}
		latency := d.latency
		switch {
		case d.kind == dead || d.kind == limited && d.now > d.most:
			ev.signal, ev.ok = schedule.Negative, false
			if d.kind == limited {
				latency = 100 * time.Millisecond
			}
		case d.kind == overloaded && s.isOverloaded(s.now):
			latency = s.traffic.overloaded
		}
		ev.at = s.now + latency/2 + time.Duration(s.rand.Int63n(int64(latency)))
		heap.Push(&s.flying, ev)
	}
}

var refused = dsn.Errorf("4.4.1", "connection refused")

func (s *system) done(e event) {
	d := &s.places[e.to]
	d.now--
	given := s.sched.Done(s.time(), schedule.Destination{Transport: "smtp", Nexthop: d.name}, e.signal, refused)
	if e.ok {
		s.report.delivered(s, e.mail, d)
	} else {
		s.fail(e.mail, e.to)
	}
	s.leave(e.delivery)
	for _, other := range given {
		s.fail(other.mail, other.to)
		s.leave(other)
	}
}

func (s *system) leave(e delivery) {
	s.unload(e.to)
	s.end(e.mail)
	s.letIn(e.to)
}
