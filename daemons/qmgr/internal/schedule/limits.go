package schedule

import "time"

// Limits are those of one transport. They may change at any time.
type Limits struct {
	Deliveries  int // at once, to all its destinations
	Concurrency int // at once, to one destination
	Initial     int // at once, to a destination of which nothing is known

	Positive, Negative Feedback
	// Cohorts is after how many windows of nothing but failures a destination is
	// dead. 0: never.
	Cohorts int

	DestinationPause time.Duration // after each delivery, to its destination; there is one at a time then
	Pause            time.Duration // between the beginnings of two deliveries

	Slots Slots
}

// Feedback is by how much a success or a failure changes a window: by Step, or,
// with PerWindow, by Step divided by the size of the window.
type Feedback struct {
	Step      float64 // 0 to 1
	PerWindow bool
}

func (f Feedback) of(window int) float64 {
	if f.PerWindow {
		return f.Step / float64(window)
	}
	return f.Step
}

// Slots say when a message may pass one of the same sender that came before it.
// A message earns one slot by Cost deliveries; one that needs n deliveries
// takes n slots when it passes.
type Slots struct {
	Cost     int // below 2: nobody passes
	Loan     int // slots that are granted in advance
	Discount int // the percentage that need not have been earned at the start, but is paid later
	Minimum  int // who cannot earn that many is not passed
}

// DefaultSlots are those of Postfix.
var DefaultSlots = Slots{Cost: 5, Loan: 3, Discount: 50, Minimum: 3}

func (l *Limits) window() int {
	if l.DestinationPause > 0 {
		return 1
	}
	return max(l.Concurrency, 1)
}
