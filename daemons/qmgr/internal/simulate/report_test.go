package simulate

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// delays are counted in steps of five percent, from a millisecond on.
type delays struct {
	steps [600]int64
	n     int64
	most  time.Duration
}

const step = 1.05

func (d *delays) add(t time.Duration) {
	i := 0
	if t > time.Millisecond {
		i = min(len(d.steps)-1, int(math.Log(float64(t)/float64(time.Millisecond))/math.Log(step)))
	}
	d.steps[i]++
	d.n++
	d.most = max(d.most, t)
}

// at returns the delay that the share x of all does not exceed.
func (d *delays) at(x float64) time.Duration {
	left := int64(math.Ceil(x * float64(d.n)))
	for i, n := range d.steps {
		if left -= n; left <= 0 {
			return min(d.most, time.Duration(float64(time.Millisecond)*math.Pow(step, float64(i+1))))
		}
	}
	return d.most
}

const rows = int(kinds) + 3

var rowNames = [rows]string{"fast destinations", "slow", "dead", "limited", "overloaded", "fast, meanwhile", "lists", "flood"}

// report is what came of it.
type report struct {
	name                              string
	rows                              [rows]delays
	recipients                        int64 // that came
	inMemory, incoming, away, waiting int   // most at any time
	left, deferred                    int   // messages, at the end
}

func (r *report) arrived(m *mail) { r.recipients += int64(len(m.to)) }

func (r *report) delivered(s *system, m *mail, d *destination) {
	delay := s.now - m.arrival
	switch {
	case m.group == list:
		r.rows[kinds+1].add(delay)
	case m.group == flood:
		r.rows[kinds+2].add(delay)
	default:
		r.rows[d.kind].add(delay)
		if d.kind == fast && s.isOverloaded(m.arrival) {
			r.rows[kinds].add(delay)
		}
	}
}

func (r *report) watch(s *system) {
	r.inMemory = max(r.inMemory, len(s.turns))
	r.incoming = max(r.incoming, len(s.incoming))
	r.away = max(r.away, s.away)
	r.waiting = max(r.waiting, len(s.deferred))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()) }

// table compares reports, with delays in seconds.
func table(reports ...*report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-20s %-15s %10s %9s %9s %9s %9s\n", "delay, s", "", "deliveries", "p50", "p90", "p99", "max")
	for i, name := range rowNames {
		for _, r := range reports {
			d := &r.rows[i]
			if d.n > 0 {
				fmt.Fprintf(&b, "%-20s %-15s %10d %9s %9s %9s %9s\n", name, r.name, d.n, seconds(d.at(.5)), seconds(d.at(.9)), seconds(d.at(.99)), seconds(d.most))
			}
		}
	}
	fmt.Fprintf(&b, "\n%-36s %10s %10s %10s %10s %10s %10s\n", "messages, most at a time", "in memory", "outside", "incoming", "deferred", "left", "left def.")
	for _, r := range reports {
		fmt.Fprintf(&b, "%-36s %10d %10d %10d %10d %10d %10d\n", r.name, r.inMemory, r.away, r.incoming, r.waiting, r.left, r.deferred)
	}
	return b.String()
}
