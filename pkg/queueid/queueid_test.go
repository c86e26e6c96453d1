package queueid

import (
	"testing"
	"time"
)

func TestNew(t *testing.T) {
	a := time.Date(2026, 11, 23, 20, 0, 0, 123456000, time.UTC)
	first, second := New(a, 7311615), New(a.Add(time.Microsecond), 0)
	if len(first.String()) != Len || first.String() >= second.String() {
		t.Errorf("%s does not sort before %s", first, second)
	}
	if !first.Time().Equal(a) {
		t.Errorf("time of %s is %v", first, first.Time())
	}
	if late := New(time.Date(2057, 1, 1, 0, 0, 0, 0, time.UTC), 0); late.String() <= second.String() {
		t.Errorf("%s does not sort last", late)
	}
}

func TestParse(t *testing.T) {
	for _, s := range []string{"", "../../etc/pas", "0123456789BC", "0123456789BCDF", "0123456789BCA", "0123456789BC\n"} {
		if id, err := Parse(s); err == nil || id != (ID{}) {
			t.Errorf("Parse(%q) = %v, %v; want an error", s, id, err)
		}
	}
	id := New(time.Unix(1, 0), 5)
	if back, err := Parse(id.String()); err != nil || back != id {
		t.Errorf("Parse(%q) = %v, %v", id, back, err)
	}
}
