package simulate

import (
	"flag"
	"fmt"
	"runtime"
	"testing"
	"time"

	"posthouse/daemons/qmgr/internal/schedule"
)

var (
	wholeDay = flag.Bool("day", false, "play a whole day of ten million messages")
	only     = flag.String("only", "", "rules to play the day by; all")
	seed     = flag.Int64("seed", 1, "of the traffic")
)

func limits(deliveries int) schedule.Limits {
	one := schedule.Feedback{Step: 1}
	return schedule.Limits{Deliveries: deliveries, Concurrency: 20, Initial: 5, Positive: one, Negative: one, Cohorts: 1, Slots: schedule.DefaultSlots}
}

// TestDay plays ten million messages in a day, by both rules.
func TestDay(t *testing.T) {
	if !*wholeDay {
		t.Skip("only with -day, as make simulate has it")
	}
	day := traffic{
		seed: *seed, day: 24 * time.Hour, messages: 9_700_000, flood: 300_000, lists: 200, listSize: 5000, senders: 20_000,
		destinations: 100_000, overloaded: 40 * time.Second,
	}
	var reports []*report
	for _, r := range []rules{ours, postfix} {
		if *only != "" && *only != r.name {
			continue
		}
		begun := time.Now()
		reports = append(reports, newSystem(&day, r, 20_000, limits(1000)).run())
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		t.Logf("%s: played in %v, %d MiB from the system", r.name, time.Since(begun).Round(time.Second), mem.Sys>>20)
	}
	fmt.Print(table(reports...))
}

// TestSmall plays the same on a small scale: one destination that is popular and
// slow, and a sender who floods, delay nobody else's mail, as they do by Postfix's
// rules; everything that can be delivered is.
func TestSmall(t *testing.T) {
	small := traffic{
		seed: *seed, day: time.Hour, messages: 40_000, flood: 3000, lists: 4, listSize: 200, senders: 200,
		destinations: 1000, overloaded: 40 * time.Second,
	}
	our, theirs := newSystem(&small, ours, 300, limits(40)).run(), newSystem(&small, postfix, 300, limits(40)).run()
	t.Logf("\n%s", table(our, theirs))
	for _, r := range []*report{our, theirs} {
		if r.inMemory > 300 {
			t.Errorf("%s: %d messages in memory", r.name, r.inMemory)
		}
		if r.rows[dead].n > 0 {
			t.Errorf("%s: delivers to the dead", r.name)
		}
	}
	meanwhile := int(kinds)
	if got := our.rows[meanwhile].at(.99); got > time.Minute {
		t.Errorf("while a popular destination is slow, mail to others takes %v", got)
	}
	if got, was := our.rows[meanwhile].at(.99), theirs.rows[meanwhile].at(.99); got*5 > was {
		t.Errorf("it takes %v, by Postfix's rules %v", got, was)
	}
	if again := newSystem(&small, ours, 300, limits(40)).run(); *again != *our {
		t.Error("the same traffic has another outcome")
	}
}
