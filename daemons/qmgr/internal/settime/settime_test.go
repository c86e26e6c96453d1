package settime

import (
	"testing"
	"time"
)

// TestNow: a clock that is set changes what is shown, and not how long something takes.
func TestNow(t *testing.T) {
	wall := time.Date(2026, 5, 4, 3, 2, 1, 123456789, time.UTC)
	a, b := Now(wall, time.Hour), Now(wall.AddDate(-1, 0, 0), time.Hour+time.Minute)
	if !a.Equal(wall) || !a.Round(0).Equal(wall) || a.UnixNano() != wall.UnixNano() {
		t.Errorf("shows %v, want %v", a, wall)
	}
	if b.Sub(a) != time.Minute || !b.After(a) || a.Add(time.Minute).After(b) || !b.Round(0).Before(a.Round(0)) {
		t.Errorf("from %v to %v: %v", a, b, b.Sub(a))
	}
	if b.Year() != 2025 {
		t.Errorf("a year before %v it shows %v", wall, b)
	}
	real := time.Now()
	if got := Now(real, 0); got.Sub(got.Add(time.Second)) != -time.Second || !got.Round(0).Equal(real.Round(0)) {
		t.Errorf("%v is %v", real, got)
	}
}
