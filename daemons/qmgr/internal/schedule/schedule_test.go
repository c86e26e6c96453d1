package schedule

import (
	"slices"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/dsn"
)

// TestWindow has the traces that Postfix's rules give.
func TestWindow(t *testing.T) {
	for _, tt := range []struct {
		start int
		input string // + success, - failure
		want  []int  // sizes; 0: dead
	}{
		{5, "---", []int{3, 2, 0}},
		{10, "-------", []int{8, 7, 6, 5, 4, 3, 0}},
		{20, "-------------", []int{18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 0}},
		{5, "+-+-+-+-+-+-", []int{6, 4, 5, 3, 4, 2, 3, 1, 2, 1, 2, 1}},
		{5, strings.Repeat("+", 17), []int{6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 20, 20}},
	} {
		w := newWindow(Limits{Concurrency: 20, Initial: tt.start})
		var got []int
		for _, c := range tt.input {
			if c == '+' {
				w.positive(w.size)
			} else if w.negative() {
				got = append(got, 0)
				break
			}
			got = append(got, w.size)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%d, %s: %v, want %v", tt.start, tt.input, got, tt.want)
		}
	}
}

var epoch = time.Unix(1790000000, 0)

func limits(string) Limits { return Limits{Deliveries: 4, Concurrency: 3, Initial: 2} }

func TestTurns(t *testing.T) {
	s := New[string](limits, time.Minute)
	for _, e := range []string{"a1", "a2", "a3", "b1", "b2", "c1"} {
		s.Add(epoch, Destination{"smtp", e[:1]}, e)
	}
	s.Add(epoch, Destination{"virtual", "v"}, "v1")
	var got []string
	for {
		e, _, ok := s.Next()
		if !ok {
			break
		}
		got = append(got, e)
	}
	// Destinations take turns, transports take turns, and smtp has four at once.
	if want := []string{"a1", "v1", "b1", "c1", "a2"}; !slices.Equal(got, want) {
		t.Fatalf("%v, want %v", got, want)
	}
	s.Done(epoch, Destination{"smtp", "b"}, Positive, nil)
	if e, _, _ := s.Next(); e != "b2" {
		t.Errorf("then %q", e)
	}
	for _, d := range []string{"a", "a", "b", "c"} {
		s.Done(epoch, Destination{"smtp", d}, Positive, nil)
	}
	if e, _, _ := s.Next(); e != "a3" {
		t.Errorf("at last %q", e)
	}
	s.Done(epoch, Destination{"smtp", "a"}, Nothing, nil)
	s.Done(epoch, Destination{"virtual", "v"}, Nothing, nil)
	if s.Len() != 0 {
		t.Errorf("%d destinations are left", s.Len())
	}
}

func TestDead(t *testing.T) {
	s := New[int](limits, time.Minute)
	d := Destination{"smtp", "dead.example"}
	for i := range 10 {
		s.Add(epoch, d, i)
	}
	reason := dsn.Errorf("4.4.1", "connection refused")
	var back []int
	for n := 0; back == nil; n++ {
		if _, _, ok := s.Next(); !ok || n > 5 {
			t.Fatal("does not die")
		}
		back = s.Done(epoch, d, Negative, reason)
	}
	if !slices.Equal(back, []int{2, 3, 4, 5, 6, 7, 8, 9}) {
		t.Errorf("given back %v", back)
	}
	if err := s.Add(epoch.Add(59*time.Second), d, 1); err != reason {
		t.Errorf("dead, and takes a delivery: %v", err)
	}
	if err := s.Add(epoch.Add(time.Minute), d, 1); err != nil {
		t.Errorf("dead for too long: %v", err)
	}
	if _, _, ok := s.Next(); !ok {
		t.Error("alive, and does not deliver")
	}
}
