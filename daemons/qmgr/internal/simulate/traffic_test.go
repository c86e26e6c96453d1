package simulate

import (
	"math"
	"math/rand"
	"sort"
	"time"
)

// traffic is what comes in over a day.
type traffic struct {
	seed         int64
	day          time.Duration
	messages     int // without those of the flood
	flood        int // messages of one sender within a hundredth of the day
	lists        int // of the messages, how many go to many
	listSize     int
	senders      int
	destinations int
	overloaded   time.Duration // how long a popular destination takes for a delivery while it is slow
}

type kind uint8

const (
	fast kind = iota
	slow
	dead
	limited
	overloaded // slow for a quarter of the day
	kinds
)

type destination struct {
	name    string
	kind    kind
	latency time.Duration
	most    int // connections, of limited
	now     int // connections
}

// mail is a message.
type mail struct {
	arrival time.Duration
	next    time.Duration // attempt
	sender  int32
	group   group
	aged    bool    // from deferred
	to      []int32 // destinations, one for each recipient that has not got it
	open    int
	outside int32 // party for which it waits outside of memory, or has waited
	crowded int32 // the same, when its other deliveries have ended
}

// none is no party. A destination is the party of its rank.
const none int32 = -1

// party is the sender as one who takes memory.
func (m *mail) party() int32 { return -m.sender - 3 }

// group is whose delays are looked at together.
type group uint8

const (
	ordinary group = iota
	list
	flood
)

// source makes the traffic, in order of time.
type source struct {
	*traffic
	*rand.Rand
	popularity []float64 // summed up
	now        time.Duration
	left       int
	flooded    int
}

func (t *traffic) source() *source {
	s := &source{traffic: t, Rand: rand.New(rand.NewSource(t.seed)), left: t.messages}
	sum := 0.0
	for i := range t.destinations {
		sum += 1 / float64(i+1)
		s.popularity = append(s.popularity, sum)
	}
	return s
}

// kinds of destinations, by their rank.
func (t *traffic) places() []destination {
	r := rand.New(rand.NewSource(t.seed + 1))
	list := make([]destination, t.destinations)
	for i := range list {
		d := &list[i]
		d.name = string(binaryName(i))
		d.latency = time.Duration(200+r.Intn(1000)) * time.Millisecond
		switch n := r.Intn(100); {
		case i == 0:
			d.kind, d.most = limited, 10
		case i == 1:
			d.kind = overloaded
		case n < 2:
			d.kind, d.latency = slow, time.Duration(5+r.Intn(15))*time.Second
		case n < 5 && i > 20:
			d.kind, d.latency = dead, 30*time.Second
		case n < 10:
			d.kind, d.most = limited, 2+r.Intn(8)
		}
	}
	return list
}

func binaryName(i int) []byte { return []byte{'d', byte(i >> 16), byte(i >> 8), byte(i)} }

func (s *source) destination() int32 {
	x := s.Float64() * s.popularity[len(s.popularity)-1]
	return int32(sort.SearchFloat64s(s.popularity, x))
}

// floodBegins is when the flood does.
func (t *traffic) floodBegins() time.Duration { return t.day / 2 }

// isOverloaded reports whether the popular destination is slow.
func (t *traffic) isOverloaded(now time.Duration) bool { return now > t.day/3 && now < t.day/3+t.day/4 }

// next returns the next message, or nil behind the last one.
func (s *source) next() *mail {
	if s.left == 0 {
		return nil
	}
	if at := s.floodBegins() + time.Duration(s.flooded)*s.day/100/time.Duration(max(1, s.traffic.flood)); s.flooded < s.traffic.flood && s.now >= at {
		s.flooded++
		return &mail{arrival: s.now, sender: -1, group: flood, to: []int32{s.destination()}, outside: none, crowded: none}
	}
	s.left--
	m := &mail{sender: int32(float64(s.senders) * math.Pow(s.Float64(), 1.5)), outside: none, crowded: none}
	// Twice as much at noon as at midnight.
	rate := 1 - math.Cos(2*math.Pi*float64(s.now)/float64(s.day))/3
	s.now += time.Duration(s.ExpFloat64() / rate * float64(s.day) / float64(s.messages))
	m.arrival = s.now
	n := 1
	if s.Float64() < float64(s.lists)/float64(s.messages) {
		n, m.group = s.listSize, list
	}
	for range n {
		m.to = append(m.to, s.destination())
	}
	return m
}
