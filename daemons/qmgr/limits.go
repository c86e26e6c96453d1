package main

import (
	"time"

	"posthouse/daemons/qmgr/internal/schedule"
	"posthouse/pkg/addr"
	"posthouse/pkg/config"
)

// transports has the limits of transports, as the scheduler wants them.
type transports struct {
	config *config.Config // that they come from
	known  map[string]schedule.Limits
}

// maxKnownLimits bounds what is remembered: rewrite names transports.
const maxKnownLimits = 1000

func (t *transports) limits(c *config.Config, name string) schedule.Limits {
	if t.config != c || len(t.known) > maxKnownLimits {
		t.config, t.known = c, make(map[string]schedule.Limits)
	}
	l, ok := t.known[name]
	if !ok {
		s := c.Transport(name)
		l = schedule.Limits{
			Deliveries: s.Deliveries, Concurrency: s.Concurrency, Initial: s.InitialConcurrency,
			Positive: feedback(s.PositiveFeedback), Negative: feedback(s.NegativeFeedback), Cohorts: s.FailedCohorts,
			DestinationPause: time.Duration(s.DestinationDelay), Pause: time.Duration(s.Delay),
			Slots: schedule.Slots{Cost: s.SlotCost, Loan: s.SlotLoan, Discount: s.SlotDiscount, Minimum: s.MinimumSlots},
		}
		t.known[name] = l
	}
	return l
}

func feedback(s string) schedule.Feedback {
	step, divided, _ := config.ParseFeedback(s) // config has checked it
	return schedule.Feedback{Step: step, PerWindow: divided}
}

// senderKey is who has to share with himself: the address of the sender without
// its extension, so that a list that gives each recipient a sender of his own
// (VERP) is still one sender.
func senderKey(sender addr.Mailbox, delimiters string) string {
	if sender.IsNull() {
		return "<>"
	}
	base, _ := sender.SplitExtension(delimiters)
	return base.Fold().String()
}
