// Package settime makes times as time.Now gives them on a machine whose clock is set,
// for simulations: nothing of it is in a program. Such a time has two readings, of the
// clock on the wall and of one that nobody sets, and two of them are compared by the
// second. In a bubble of testing/synctest time.Now has the first alone.
package settime

import (
	"time"
	"unsafe"
)

// reading is what a time.Time with both readings is: a flag, 33 bits of seconds since
// 1885, 30 bits of nanoseconds; and the nanoseconds of the other clock.
type reading struct {
	wall  uint64
	other int64
	zone  *time.Location
}

var first = time.Date(1885, 1, 1, 0, 0, 0, 0, time.UTC)

// Now returns the time at which the clock on the wall shows wall, and the other one
// that long since it has begun.
func Now(wall time.Time, since time.Duration) time.Time {
	r := reading{zone: time.Local}
	seconds := uint64(wall.Unix() - first.Unix())
	r.wall, r.other = 1<<63|seconds<<30|uint64(wall.Nanosecond()), int64(since)
	return *(*time.Time)(unsafe.Pointer(&r))
}
