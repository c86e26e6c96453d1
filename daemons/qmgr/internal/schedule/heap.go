package schedule

// pushed is the heap h with x; its first is before all others.
func pushed[T any](h []T, x T, before func(a, b T) bool) []T {
	h = append(h, x)
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !before(h[i], h[up]) {
			break
		}
		h[up], h[i] = h[i], h[up]
		i = up
	}
	return h
}

// popped is the first of the heap h, and h without it.
func popped[T any](h []T, before func(a, b T) bool) (first T, rest []T) {
	var zero T
	n := len(h) - 1
	first, h[0], h[n] = h[0], h[n], zero
	h = h[:n]
	for i := 0; ; {
		least := i
		for _, down := range [2]int{2*i + 1, 2*i + 2} {
			if down < n && before(h[down], h[least]) {
				least = down
			}
		}
		if least == i {
			return first, h
		}
		h[least], h[i] = h[i], h[least]
		i = least
	}
}
