package agent

import (
	"testing"
	"time"
)

func TestSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                        "0",
		-time.Second:             "0",
		4 * time.Millisecond:     "0",
		6 * time.Millisecond:     "0.01",
		123 * time.Millisecond:   "0.12",
		100 * time.Millisecond:   "0.1",
		1234 * time.Millisecond:  "1.2",
		2 * time.Second:          "2",
		12345 * time.Millisecond: "12",
		100 * time.Second:        "100",
	} {
		if got := Seconds(d); got != want {
			t.Errorf("Seconds(%v) = %s, want %s", d, got, want)
		}
	}
}
