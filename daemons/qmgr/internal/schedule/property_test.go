package schedule

import (
	"fmt"
	"math/rand"
	"slices"
	"testing"
	"time"

	"posthouse/pkg/dsn"
)

// check compares the counters and lists of s with each other.
func check[E any](t testing.TB, s *Scheduler[E]) {
	t.Helper()
	flows, transports := make(map[*flow[E]]int), make(map[*transport[E]]int)
	for d, q := range s.queues {
		if d != q.destination || s.transports[q.transport.name] != q.transport {
			t.Fatalf("%v is not what it is known as", d)
		}
		waiting, readies, parkedN := 0, 0, 0
		for p := q.first; p != nil; p = p.behind {
			waiting += len(p.todo)
			flows[p.job.flow] += len(p.todo)
			switch p.state {
			case idle:
				t.Fatalf("%v: an idle peer", d)
			case parked:
				parkedN++
			default:
				readies++
				if !p.job.listed || !p.job.flow.listed {
					t.Fatalf("%v: ready, and not listed", d)
				}
			}
		}
		lanes := 0
		for _, n := range q.turn {
			if q.lanes[n.flow] != n {
				t.Fatalf("%v: a lane that is not known", d)
			}
			for _, c := range n.peers.classes {
				lanes += len(c.heap)
			}
		}
		if waiting != q.waiting || readies != len(q.ready) || parkedN != lanes {
			t.Fatalf("%v: %d waiting, counted %d; %d ready, counted %d; %d parked, in lanes %d", d, waiting, q.waiting, readies, len(q.ready), parkedN, lanes)
		}
		if parkedN > 0 && readies == 0 && q.room() || readies > 0 && !q.room() {
			t.Fatalf("%v: has room, and all is parked, or the other way round", d)
		}
		transports[q.transport]++
	}
	for f, n := range flows {
		if f.waiting != n || f.transport.flows[f.sender] != f {
			t.Fatalf("sender %s: %d waiting, counted %d", f.sender, n, f.waiting)
		}
	}
	for _, tr := range s.transports {
		if transports[tr] != tr.queues {
			t.Fatalf("%s: %d destinations, counted %d", tr.name, tr.queues, transports[tr])
		}
	}
}

// traffic is random traffic through a scheduler, with a model of what has to
// come of it.
type traffic struct {
	*testing.T
	*rand.Rand
	s        *Scheduler[int]
	limits   map[string]Limits
	now      time.Time
	messages []*Message[int]
	entries  int
	waiting  map[int]Destination
	flying   []Destination
	busy     map[Destination]int
	total    map[string]int
}

func (f *traffic) limitsFor(i int) Limits {
	l := simple(1+f.Intn(20), 1+f.Intn(10), 1+f.Intn(10))
	l.Positive, l.Negative = Feedback{f.Float64(), i%2 == 0}, Feedback{f.Float64(), i%3 == 0}
	l.Cohorts = f.Intn(3)
	l.Slots.Cost = f.Intn(6)
	if i == 1 {
		l.DestinationPause = time.Duration(f.Intn(3)) * time.Second
	}
	if i == 2 {
		l.Pause = time.Duration(f.Intn(2)) * time.Second
	}
	return l
}

func (f *traffic) add() {
	var m *Message[int]
	if len(f.messages) > 0 && f.Intn(3) == 0 { // another piece
		m = f.messages[f.Intn(len(f.messages))]
	} else {
		m = f.s.NewMessage(f.now, fmt.Sprint("sender", f.Intn(5)))
		f.messages = append(f.messages, m)
		if len(f.messages) > 50 {
			f.messages = f.messages[1:]
		}
	}
	n := 1 + f.Intn(3)
	if f.Intn(10) == 0 {
		n = 1 + f.Intn(60)
	}
	m.Unread(f.Intn(3) * n)
	for range n {
		d := Destination{fmt.Sprint("t", f.Intn(3)), fmt.Sprint("d", f.Intn(12))}
		f.entries++
		if f.s.Add(f.now, m, d, f.entries) == nil {
			f.waiting[f.entries] = d
		}
	}
}

// next takes what may start, and verifies that it might, or that nothing might.
func (f *traffic) next() {
	e, d, ok := f.s.Next(f.now)
	if !ok {
		for e, d := range f.waiting {
			q := f.s.queues[d]
			if q == nil {
				f.Fatalf("entry %d waits nowhere", e)
			}
			if t := q.transport; q.room() && t.busy < f.limits[t.name].Deliveries && !t.pausing {
				f.Fatalf("entry %d to %v might start", e, d)
			}
		}
		return
	}
	if f.waiting[e] != d || d == (Destination{}) {
		f.Fatalf("entry %d is given out for %v, and was %v", e, d, f.waiting[e])
	}
	delete(f.waiting, e)
	f.flying = append(f.flying, d)
	f.busy[d]++
	f.total[d.Transport]++
	l := f.limits[d.Transport]
	if f.busy[d] > l.window() || f.total[d.Transport] > l.Deliveries {
		f.Fatalf("%d at once to %v, %d in all; %+v", f.busy[d], d, f.total[d.Transport], l)
	}
}

func (f *traffic) done() {
	if len(f.flying) == 0 {
		return
	}
	i := f.Intn(len(f.flying))
	d := f.flying[i]
	f.flying[i] = f.flying[len(f.flying)-1]
	f.flying = f.flying[:len(f.flying)-1]
	f.busy[d]--
	f.total[d.Transport]--
	signal := Positive
	switch {
	case d.Nexthop == "d0" || f.Intn(10) == 0:
		signal = Negative
	case f.Intn(10) == 0:
		signal = Nothing
	}
	for _, e := range f.s.Done(f.now, d, signal, dsn.Errorf("4.4.1", "no")) {
		if f.waiting[e] != d {
			f.Fatalf("entry %d is given back, and was not there", e)
		}
		delete(f.waiting, e)
	}
}

// TestProperties: never more at once than the limits allow; every delivery is
// given out once, or given back; whatever may start does; and all counters are
// right after each step.
func TestProperties(t *testing.T) {
	for seed := range int64(25) {
		f := &traffic{
			T: t, Rand: rand.New(rand.NewSource(seed)), now: epoch, limits: make(map[string]Limits),
			waiting: make(map[int]Destination), busy: make(map[Destination]int), total: make(map[string]int),
		}
		for i := range 3 {
			f.limits[fmt.Sprint("t", i)] = f.limitsFor(i)
		}
		f.s = New[int](func(name string) Limits { return f.limits[name] }, func() time.Duration { return 20 * time.Second })
		for range 1500 {
			switch n := f.Intn(10); {
			case n == 0:
				f.add()
			case n < 6:
				f.next()
			case n < 9:
				f.done()
			default:
				f.now = f.now.Add(time.Duration(f.Intn(2000)) * time.Millisecond)
				if f.Intn(100) == 0 {
					f.s.ReviveAll()
				}
			}
			check(t, f.s)
		}
		for n := 0; len(f.waiting)+len(f.flying) > 0; n++ {
			if n > 100000 {
				t.Fatalf("seed %d: %d deliveries never start", seed, len(f.waiting))
			}
			f.now = f.now.Add(100 * time.Millisecond)
			f.next()
			f.done()
		}
		f.s.Next(f.now.Add(time.Hour))
		if f.s.Len() != 0 {
			t.Fatalf("seed %d: %d destinations are left", seed, f.s.Len())
		}
	}
}

// one has a delivery made, and returns it.
func one(t *testing.T, s *Scheduler[string]) string {
	t.Helper()
	e, d, ok := s.Next(epoch)
	if !ok {
		t.Fatal("nothing may start")
	}
	s.Done(epoch, d, Positive, nil)
	return e
}

// TestPassingBound: a list is slowed down by those that pass it by a factor of
// k/(k-1) at most, whether it has many destinations or one for which all of them
// wait; and each of those waits for k deliveries at most.
func TestPassingBound(t *testing.T) {
	const n = 1000
	for _, shared := range []bool{false, true} {
		for _, cost := range []int{2, 5, 10} {
			l := simple(1, 1, 1)
			l.Slots.Cost = cost
			s := newScheduler(&l)
			to, single := many("l", n), "x"
			if shared {
				for i := range to {
					to[i] = "x"
				}
			}
			message(s, "a", "list", to...)
			message(s, "a", "one", single)
			decisions, waited := 0, 0
			for left := n; left > 0; decisions++ {
				waited++
				if one(t, s) == "list" {
					left--
				} else {
					if waited > cost+2 && s.Len() > 0 && left > 2*cost {
						t.Errorf("cost %d, shared %v: a single message waited for %d", cost, shared, waited)
					}
					waited = 0
					message(s, "a", "one", single)
				}
			}
			if most := n*cost/(cost-1) + cost; decisions > most {
				t.Errorf("cost %d, shared %v: %d decisions for %d deliveries, want %d at most", cost, shared, decisions, n, most)
			}
			if decisions < n+n/cost/2 {
				t.Errorf("cost %d, shared %v: %d decisions: hardly anybody passes", cost, shared, decisions)
			}
		}
	}
}

// TestSenders: with however much from some senders, each gets his share; a
// message of another one is next but for one of each.
func TestSenders(t *testing.T) {
	for _, shared := range []bool{false, true} {
		l := simple(1, 1, 1)
		s := newScheduler(&l)
		const floods = 4
		n := 0
		flood := func(sender string) {
			n++
			to := fmt.Sprint("d", n)
			if shared {
				to = "x"
			}
			message(s, sender, sender, to)
		}
		for i := range floods {
			for range 2000 {
				flood(fmt.Sprint("flood", i))
			}
		}
		message(s, "list", "list", many("l", 500)...)
		counts := make(map[string]int)
		for range 100 {
			counts[one(t, s)]++
		}
		for i := range floods {
			if c := counts[fmt.Sprint("flood", i)]; c < 19 || c > 34 {
				t.Errorf("shared %v: %v", shared, counts)
			}
		}
		// A backlog of ten of one more sender takes ten rounds.
		for range 10 {
			flood("other")
		}
		rounds, got := 0, 0
		for ; got < 10 && rounds < 1000; rounds++ {
			if one(t, s) == "other" {
				got++
			}
		}
		if rounds > 11*(floods+2) {
			t.Errorf("shared %v: ten messages of one sender take %d decisions", shared, rounds)
		}
		check(t, s)
	}
}

// TestNoStarvation: whatever else comes in, what waits starts within a number of
// decisions that depends on what was there before.
func TestNoStarvation(t *testing.T) {
	for seed := range int64(20) {
		r := rand.New(rand.NewSource(seed))
		l := simple(1+r.Intn(4), 1+r.Intn(3), 1)
		s := newScheduler(&l)
		before := 0
		add := func(name string, most int) {
			to := make([]string, 1+r.Intn(most))
			for i := range to {
				to[i] = fmt.Sprint("d", r.Intn(4))
			}
			before += len(to)
			message(s, fmt.Sprint("s", r.Intn(3)), name, to...)
		}
		for range 30 {
			add("old", 20)
		}
		left, senders := before, 3
		for decisions := 0; left > 0; decisions++ {
			if decisions > 4*before*senders {
				t.Fatalf("seed %d: %d of %d still wait after %d decisions", seed, left, before, decisions)
			}
			if one(t, s) == "old" {
				left--
			}
			add("new", 2)
		}
	}
}

// TestPlaceIsUsed: a place at a destination that many want is not kept by somebody
// whose turn it is not for long: neither one with other mail that comes first,
// nor one of very many senders.
func TestPlaceIsUsed(t *testing.T) {
	l := simple(1, 1, 1)
	s := newScheduler(&l)
	message(s, "b", "b", "d")
	message(s, "a", "list", many("l", 5000)...)
	message(s, "a", "second", slices.Repeat([]string{"d"}, 5000)...)
	for range 19 {
		message(s, "b", "b", "d")
	}
	decisions := 0
	for got := 0; got < 20; decisions++ {
		if one(t, s) == "b" {
			got++
		}
	}
	if decisions > 20*2*(l.Slots.Cost+2) {
		t.Errorf("behind somebody with other mail 20 deliveries take %d decisions", decisions)
	}

	const busy = 50
	s = newScheduler(&l)
	for i := range busy {
		message(s, fmt.Sprint("busy", i), "busy", many(fmt.Sprint("b", i, "-"), 200)...)
	}
	for i := range 20 {
		message(s, fmt.Sprint("at d", i%2), "d", slices.Repeat([]string{"d"}, 10)...)
	}
	got := 0
	for range 100 * busy {
		if one(t, s) == "d" {
			got++
		}
	}
	if got < 150 {
		t.Errorf("two of %d senders, who want the same place, get %d of %d turns", busy+2, got, 100*busy)
	}
}
