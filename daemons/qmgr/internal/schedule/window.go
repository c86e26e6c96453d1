package schedule

// window is how many deliveries a destination may have at once. The rules are
// those of Postfix: it grows at the end of as many successes as make up a whole
// step, shrinks at the start of as many failures, and a destination is dead
// after failures that amount to whole windows.
type window struct {
	size             int
	success, failure float64
	cohorts          float64 // failures since the last success, in windows
}

func newWindow(l *Limits) window {
	return window{size: max(1, min(l.Initial, l.window()))}
}

// positive notes a success; busy counts the deliveries under way, that one too.
func (w *window) positive(l *Limits, busy int) {
	w.cohorts = 0
	limit := l.window()
	// The window does not run ahead of what is used.
	if w.size < limit && w.size < busy+l.Initial {
		step := l.Positive.of(w.size)
		w.success += step
		for w.success+step/2 >= 1 {
			w.size++
			w.success--
			w.failure = 0
		}
	}
	w.size = min(w.size, limit)
}

// negative notes a failure, and reports whether the destination is dead.
func (w *window) negative(l *Limits) bool {
	w.cohorts += 1 / float64(w.size)
	if l.Cohorts > 0 && w.cohorts >= float64(l.Cohorts) {
		return true
	}
	step := l.Negative.of(w.size)
	w.failure -= step
	for w.failure-step/2 < 0 {
		w.size--
		w.success = 0
		w.failure++
	}
	w.size = max(w.size, 1)
	return false
}
