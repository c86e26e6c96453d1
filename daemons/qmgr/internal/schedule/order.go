package schedule

import "math/bits"

// shelved is what an order holds: something with a place in time, and a size.
type shelved interface {
	age() uint64 // smaller: older
	size() int   // deliveries in all
}

// order holds things by age within classes of size, powers of two: so the oldest
// of all, and the oldest among the small ones, are found without a search.
type order[T shelved] struct{ classes []class[T] } // by size; none is empty

type class[T shelved] struct {
	bits int
	heap []T // by age
}

func classOf(size int) int { return bits.Len(uint(max(size, 1) - 1)) }

func (o *order[T]) push(x T) {
	c := classOf(x.size())
	i := 0
	for i < len(o.classes) && o.classes[i].bits < c {
		i++
	}
	if i == len(o.classes) || o.classes[i].bits != c {
		o.classes = append(o.classes, class[T]{})
		copy(o.classes[i+1:], o.classes[i:])
		o.classes[i] = class[T]{bits: c}
	}
	o.classes[i].push(x)
}

// settle moves what is the oldest of class i, and has another size by now, to
// where it belongs.
func (o *order[T]) settle(i int) {
	for i < len(o.classes) && classOf(o.classes[i].heap[0].size()) != o.classes[i].bits {
		o.push(o.remove(i))
	}
}

// oldest returns the class of the oldest thing, or -1.
func (o *order[T]) oldest() int {
	best := -1
	for i := range o.classes {
		if best < 0 || o.classes[i].heap[0].age() < o.classes[best].heap[0].age() {
			best = i
		}
	}
	return best
}

// remove takes the oldest thing out of class i.
func (o *order[T]) remove(i int) T {
	x := o.classes[i].pop()
	if len(o.classes[i].heap) == 0 {
		o.classes = append(o.classes[:i], o.classes[i+1:]...)
	}
	return x
}

func older[T shelved](a, b T) bool { return a.age() < b.age() }

func (c *class[T]) push(x T) { c.heap = pushed(c.heap, x, older[T]) }

func (c *class[T]) pop() (x T) {
	x, c.heap = popped(c.heap, older[T])
	return x
}
