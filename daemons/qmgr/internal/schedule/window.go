package schedule

// window is how many deliveries a destination may have at once. The rules, with
// a feedback of 1 in both directions, are those of Postfix: the window grows at
// the end of a success and shrinks at the start of a failure, and a
// destination is dead after failures that amount to one whole window.
type window struct {
	size             int
	limit, initial   int
	success, failure float64
	cohorts          float64 // failures since the last success, in windows
}

const feedback = 1.0

func newWindow(l Limits) window {
	return window{size: min(l.Initial, l.Concurrency), limit: l.Concurrency, initial: l.Initial}
}

// positive notes a success; busy counts the deliveries under way, that one too.
func (w *window) positive(busy int) {
	w.cohorts = 0
	// The window does not run ahead of what is used.
	if w.size >= w.limit || w.size >= busy+w.initial {
		return
	}
	w.success += feedback
	for w.success+feedback/2 >= 1 {
		w.size++
		w.success--
		w.failure = 0
	}
	w.size = min(w.size, w.limit)
}

// negative notes a failure, and reports whether the destination is dead.
func (w *window) negative() bool {
	w.cohorts += 1 / float64(w.size)
	if w.cohorts >= 1 {
		return true
	}
	w.failure -= feedback
	for w.failure-feedback/2 < 0 {
		w.size--
		w.success = 0
		w.failure++
	}
	w.size = max(w.size, 1)
	return false
}
