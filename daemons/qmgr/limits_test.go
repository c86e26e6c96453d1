package main

import (
	"slices"
	"testing"
	"time"

	"posthouse/daemons/qmgr/internal/schedule"
	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queue"
)

// TestLimits: the scheduler gets what the configuration says, also when it changes.
func TestLimits(t *testing.T) {
	var known transports
	fallback := &config.Config{Transports: map[string]config.Transport{"smtp": {PositiveFeedback: "0", NegativeFeedback: "0"}}}
	known.limits(fallback, "smtp")
	c := &config.Config{Transports: map[string]config.Transport{"smtp": {
		Deliveries: 1, Concurrency: 2, InitialConcurrency: 3, PositiveFeedback: "0.5", NegativeFeedback: "1/concurrency", FailedCohorts: 4,
		DestinationDelay: config.Duration(time.Second), Delay: config.Duration(time.Minute), SlotCost: 6, SlotLoan: 7, SlotDiscount: 8, MinimumSlots: 9,
	}}}
	want := schedule.Limits{
		Deliveries: 1, Concurrency: 2, Initial: 3,
		Positive: schedule.Feedback{Step: 0.5}, Negative: schedule.Feedback{Step: 1, PerWindow: true}, Cohorts: 4,
		DestinationPause: time.Second, Pause: time.Minute, Slots: schedule.Slots{Cost: 6, Loan: 7, Discount: 8, Minimum: 9},
	}
	if got := known.limits(c, "smtp"); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := known.limits(c, "smtp"); got != want {
		t.Errorf("the second time %+v", got)
	}
}

func TestSenderKey(t *testing.T) {
	for in, want := range map[string]string{
		"a@x.example": "a@x.example", "A@X.example": "a@x.example", "list-bounces+user=example.com@x.example": "list-bounces@x.example",
	} {
		if got := senderKey(mbox(t, in), "+"); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	if senderKey(addr.Mailbox{}, "+") == senderKey(mbox(t, "a@x.example"), "+") {
		t.Error("notifications are somebody's")
	}
}

// TestPause: with a pause between deliveries the next begins when it is over,
// though nothing else happens.
func TestPause(t *testing.T) {
	for _, setting := range []string{"destination_delay", "delay"} {
		in(t, "transports: {smtp: {"+setting+": 10s}}\n", func(w *world) {
			begun := time.Now()
			var at []time.Duration
			w.answer = func(envelope.Recipient) delivery.Result {
				at = append(at, time.Since(begun))
				return success
			}
			for n := range uint32(4) {
				w.put(queue.Incoming, n, "a@x.example")
			}
			w.run(time.Minute)
			w.expect("")
			if want := []time.Duration{0, 10 * time.Second, 20 * time.Second, 30 * time.Second}; !slices.Equal(at, want) {
				t.Errorf("%s: deliveries at %v", setting, at)
			}
		})
	}
}
