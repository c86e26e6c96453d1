package schedule

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/dsn"
)

// TestWindow has the traces that Postfix's rules give.
func TestWindow(t *testing.T) {
	one, inverse := Feedback{Step: 1}, Feedback{Step: 1, PerWindow: true}
	nines := func(n, size int) []int { return slices.Repeat([]int{size}, n) }
	for _, tt := range []struct {
		start    int
		feedback Feedback
		input    string // + success, - failure
		want     []int  // sizes; 0: dead
	}{
		{5, one, "---", []int{3, 2, 0}},
		{10, one, "-------", []int{8, 7, 6, 5, 4, 3, 0}},
		{20, one, "-------------", []int{18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 0}},
		{5, inverse, "-----", []int{4, 4, 4, 3, 0}},
		{10, inverse, "----------", slices.Concat(nines(8, 9), []int{8, 0})},
		{20, inverse, strings.Repeat("-", 20), slices.Concat(nines(18, 19), []int{18, 0})},
		{5, one, "+-+-+-+-+-+-", []int{6, 4, 5, 3, 4, 2, 3, 1, 2, 1, 2, 1}},
		{5, one, strings.Repeat("+", 17), []int{6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 20, 20}},
		{5, inverse, strings.Repeat("+", 18), slices.Concat(nines(4, 5), nines(6, 6), nines(7, 7), nines(1, 8))},
	} {
		l := Limits{Concurrency: 20, Initial: tt.start, Positive: tt.feedback, Negative: tt.feedback, Cohorts: 1}
		w := newWindow(&l)
		var got []int
		for _, c := range tt.input {
			if c == '+' {
				w.positive(&l, w.size)
			} else if w.negative(&l) {
				got = append(got, 0)
				break
			}
			got = append(got, w.size)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%d, %v, %s: %v, want %v", tt.start, tt.feedback, tt.input, got, tt.want)
		}
	}
	l := Limits{Concurrency: 20, Initial: 5, Negative: one}
	w := newWindow(&l)
	for range 100 {
		if w.negative(&l) || w.size < 1 {
			t.Fatalf("without a limit of cohorts: size %d", w.size)
		}
	}
	l.Positive = one
	for range 100 {
		if w.positive(&l, 1); w.size > 6 {
			t.Fatal("the window runs ahead of what is used")
		}
	}
}

var epoch = time.Unix(1790000000, 0)

func simple(deliveries, concurrency, initial int) Limits {
	return Limits{
		Deliveries: deliveries, Concurrency: concurrency, Initial: initial,
		Positive: Feedback{Step: 1}, Negative: Feedback{Step: 1}, Cohorts: 1, Slots: DefaultSlots,
	}
}

func newScheduler(l *Limits) *Scheduler[string] {
	return New[string](func(string) Limits { return *l }, func() time.Duration { return time.Minute })
}

// message adds a message with a delivery to each of to, which are named after it.
func message(s *Scheduler[string], sender, name string, to ...string) *Message[string] {
	m := s.NewMessage(epoch, sender)
	for i, d := range to {
		m.Unread(len(to) - i - 1)
		s.Add(epoch, m, Destination{"smtp", d}, name)
	}
	return m
}

// many are n destinations of their own.
func many(name string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%s%d", name, i)
	}
	return list
}

// serve has n deliveries made, one after the other, and returns their names.
func serve(t *testing.T, s *Scheduler[string], n int) []string {
	t.Helper()
	var got []string
	for len(got) < n {
		e, d, ok := s.Next(epoch)
		if !ok {
			break
		}
		got = append(got, e)
		s.Done(epoch, d, Positive, nil)
		check(t, s)
	}
	return got
}

// runs writes repeated names as "name*times".
func runs(list []string) string {
	var out []string
	for i := 0; i < len(list); {
		n := i
		for n < len(list) && list[n] == list[i] {
			n++
		}
		out = append(out, fmt.Sprintf("%s*%d", list[i], n-i))
		i = n
	}
	return strings.Join(out, " ")
}

// TestPassing has the order in which messages of one sender pass a list, as
// Postfix's rules with their defaults have it.
func TestPassing(t *testing.T) {
	l := simple(100, 20, 5)
	s := newScheduler(&l)
	message(s, "a", "list", many("l", 1000)...)
	message(s, "a", "one", "x")
	message(s, "a", "two", "y", "z")
	message(s, "a", "ten", many("t", 10)...)
	const want = "list*1 one*1 list*5 two*2 list*19 ten*10 list*975"
	if got := runs(serve(t, s, 2000)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	// Who could not earn three slots is not passed, nor anybody with slots that are free.
	for _, tt := range []struct {
		size, cost int
		want       string
	}{{14, 5, "list*14 one*1"}, {15, 5, "list*1 one*1 list*14"}, {100, 1, "list*100 one*1"}} {
		l.Slots.Cost = tt.cost
		message(s, "a", "list", many("l", tt.size)...)
		message(s, "a", "one", "x")
		if got := runs(serve(t, s, 2000)); got != tt.want {
			t.Errorf("%d deliveries, cost %d: %s, want %s", tt.size, tt.cost, got, tt.want)
		}
	}
	if s.Len() != 0 || len(s.transports["smtp"].flows) != 0 {
		t.Errorf("%d destinations, %d senders are left", s.Len(), len(s.transports["smtp"].flows))
	}
}

// TestRefund: who passes and can not go on gives back what it has not used.
func TestRefund(t *testing.T) {
	l := simple(1000, 1, 1)
	s := newScheduler(&l)
	message(s, "a", "list", many("l", 100)...)
	message(s, "a", "two", "x", "x")
	var got []string
	for range 30 {
		e, _, _ := s.Next(epoch) // nothing ends
		got = append(got, e)
		if e == "two" {
			message(s, "a", "one", "y")
		}
		check(t, s)
	}
	if got := runs(got); got != "list*1 two*1 list*5 one*1 list*22" {
		t.Error(got)
	}
}

// TestTurns: destinations of a message, senders, and transports take turns.
func TestTurns(t *testing.T) {
	l := simple(4, 3, 2)
	s := newScheduler(&l)
	m := s.NewMessage(epoch, "s")
	for _, e := range []string{"a1", "a2", "a3", "b1", "b2", "c1"} {
		s.Add(epoch, m, Destination{"smtp", e[:1]}, e)
	}
	s.Add(epoch, m, Destination{"virtual", "v"}, "v1")
	next := func() string {
		e, _, _ := s.Next(epoch)
		check(t, s)
		return e
	}
	var got []string
	for e := next(); e != ""; e = next() {
		got = append(got, e)
	}
	if want := []string{"a1", "v1", "b1", "c1", "a2"}; !slices.Equal(got, want) {
		t.Fatalf("%v, want %v", got, want)
	}
	s.Done(epoch, Destination{"smtp", "b"}, Positive, nil)
	if e := next(); e != "b2" {
		t.Errorf("then %q", e)
	}
	for _, d := range []string{"a", "a", "b", "c"} {
		s.Done(epoch, Destination{"smtp", d}, Positive, nil)
	}
	if e := next(); e != "a3" {
		t.Errorf("at last %q", e)
	}
	s.Done(epoch, Destination{"smtp", "a"}, Nothing, nil)
	s.Done(epoch, Destination{"virtual", "v"}, Nothing, nil)
	if s.Len() != 0 {
		t.Errorf("%d destinations are left", s.Len())
	}
}

// TestBlocked: a message with two destinations goes on at either of them as soon
// as it can, whatever waits at the other.
func TestBlocked(t *testing.T) {
	l := simple(100, 1, 1)
	s := newScheduler(&l)
	message(s, "a", "both", "x", "x", "y", "y")
	message(s, "b", "other", "x", "y")
	x, y := Destination{"smtp", "x"}, Destination{"smtp", "y"}
	want := func(name string, to Destination) {
		t.Helper()
		if e, d, _ := s.Next(epoch); e != name || name != "" && d != to {
			t.Fatalf("%s to %v, want %s", e, d, name)
		}
		check(t, s)
	}
	want("both", x)
	want("other", y)
	want("", x)
	s.Done(epoch, y, Positive, nil)
	want("both", y)
	want("", x)
	s.Done(epoch, x, Positive, nil)
	want("other", x)
	want("", x)
	s.Done(epoch, x, Positive, nil)
	want("both", x)
	s.Done(epoch, y, Positive, nil)
	want("both", y)
	want("", x)
}

// TestPieces: a message whose deliveries come in pieces keeps its place between
// them, and earns slots over all of them.
func TestPieces(t *testing.T) {
	l := simple(1, 20, 5)
	s := newScheduler(&l)
	list := s.NewMessage(epoch, "a")
	list.Unread(20)
	for i := range 10 {
		list.Unread(19 - i)
		s.Add(epoch, list, Destination{"smtp", fmt.Sprint(i)}, "list")
	}
	if got := runs(serve(t, s, 20)); got != "list*10" {
		t.Fatal(got)
	}
	message(s, "a", "later", many("l", 20)...)
	for i := range 10 {
		list.Unread(9 - i)
		s.Add(epoch, list, Destination{"smtp", fmt.Sprint(i)}, "list")
	}
	message(s, "a", "one", "x")
	if got := runs(serve(t, s, 100)); got != "one*1 list*10 later*20" {
		t.Error(got)
	}
}

func TestDead(t *testing.T) {
	l := simple(100, 3, 2)
	s := New[int](func(string) Limits { return l }, func() time.Duration { return time.Minute })
	d := Destination{"smtp", "dead.example"}
	m := s.NewMessage(epoch, "a")
	for i := range 10 {
		s.Add(epoch, m, d, i)
	}
	reason := dsn.Errorf("4.4.1", "connection refused")
	var back []int
	for n := 0; back == nil; n++ {
		if _, _, ok := s.Next(epoch); !ok || n > 5 {
			t.Fatal("does not die")
		}
		back = s.Done(epoch, d, Negative, reason)
	}
	if !slices.Equal(back, []int{2, 3, 4, 5, 6, 7, 8, 9}) {
		t.Errorf("given back %v", back)
	}
	if err := s.Add(epoch.Add(59*time.Second), m, d, 1); err != reason {
		t.Errorf("dead, and takes a delivery: %v", err)
	}
	if err := s.Add(epoch.Add(time.Minute), m, d, 1); err != nil {
		t.Errorf("dead for too long: %v", err)
	}
	if _, _, ok := s.Next(epoch.Add(time.Minute)); !ok {
		t.Error("alive, and does not deliver")
	}
	if _, _, ok := s.Next(epoch.Add(2 * time.Minute)); ok || !s.Wake().IsZero() {
		t.Errorf("something is left to do: %v", s.Wake())
	}
	// What is in flight when it dies, and succeeds, brings it back.
	l.Initial = 3
	for i := range 9 {
		s.Add(epoch, m, d, i)
	}
	s.Next(epoch)
	s.Next(epoch)
	for range 3 {
		s.Done(epoch, d, Negative, reason)
	}
	if s.Add(epoch, m, d, 1) == nil {
		t.Fatal("is not dead")
	}
	s.ReviveAll()
	if err := s.Add(epoch, m, d, 1); err != nil {
		t.Errorf("revived: %v", err)
	}
	check(t, s)
}

// TestManyDead: of very many dead destinations the last ones are remembered.
func TestManyDead(t *testing.T) {
	l := simple(100, 1, 1)
	s := newScheduler(&l)
	reason := dsn.Errorf("4.4.1", "no")
	for i := range maxDead + 100 {
		d := Destination{"smtp", fmt.Sprint(i)}
		s.Add(epoch, s.NewMessage(epoch, "a"), d, "x")
		s.Next(epoch)
		s.Done(epoch, d, Negative, reason)
	}
	if s.Add(epoch, s.NewMessage(epoch, "a"), Destination{"smtp", "0"}, "x") != nil {
		t.Error("the first is remembered")
	}
	if s.Add(epoch, s.NewMessage(epoch, "a"), Destination{"smtp", fmt.Sprint(maxDead)}, "x") == nil {
		t.Error("one of the last is not remembered")
	}
	s.Next(epoch)
	s.Next(epoch.Add(time.Hour))
	if s.Len() != 1 {
		t.Errorf("%d are known an hour later", s.Len())
	}
}

// TestPauses: rate delays of destinations and of transports.
func TestPauses(t *testing.T) {
	l := simple(100, 20, 5)
	l.DestinationPause = 10 * time.Second
	s := newScheduler(&l)
	message(s, "a", "x", "x", "x", "x", "y")
	at := func(seconds int) string {
		var list []string
		for {
			e, d, ok := s.Next(epoch.Add(time.Duration(seconds) * time.Second))
			if !ok {
				return fmt.Sprint(list, d.Nexthop)
			}
			list = append(list, e+d.Nexthop)
			s.Done(epoch.Add(time.Duration(seconds)*time.Second), d, Positive, nil)
		}
	}
	for _, tt := range []struct {
		at   int
		want string
	}{{0, "[xx xy]"}, {9, "[]"}, {10, "[xx]"}, {15, "[]"}, {20, "[xx]"}, {40, "[]"}} {
		if got := at(tt.at); got != tt.want {
			t.Errorf("destination, at %d s: %s, want %s", tt.at, got, tt.want)
		}
	}
	if s.Len() != 0 {
		t.Errorf("%d destinations are left", s.Len())
	}
	l.DestinationPause, l.Pause = 0, 10*time.Second
	message(s, "a", "x", "x", "y", "z")
	for _, tt := range []struct {
		at   int
		want string
	}{{0, "[xx]"}, {9, "[]"}, {10, "[xy]"}, {20, "[xz]"}, {29, "[]"}, {30, "[]"}} {
		if got := at(tt.at); got != tt.want {
			t.Errorf("transport, at %d s: %s, want %s", tt.at, got, tt.want)
		}
	}
	if s.Len() != 0 || !s.Wake().IsZero() {
		t.Errorf("%d destinations are left", s.Len())
	}
}

// TestManyTransports: those that have nothing to do are not remembered for ever.
func TestManyTransports(t *testing.T) {
	l := simple(1, 1, 1)
	s := newScheduler(&l)
	for i := range 1000 {
		s.Add(epoch, s.NewMessage(epoch, "a"), Destination{fmt.Sprint("t", i), "x"}, "x")
	}
	serve(t, s, 1000)
	if len(s.transports) > maxTransports || len(s.turn) != len(s.transports) {
		t.Errorf("%d transports are known, %d take turns", len(s.transports), len(s.turn))
	}
}
