package dsn

import (
	"errors"
	"fmt"
	"testing"
)

func TestStatus(t *testing.T) {
	var zero Status
	if zero.String() != "4.0.0" || zero.Class() != Transient {
		t.Errorf("zero status is %s", zero)
	}
	for _, s := range []string{"2.0.0", "4.4.1", "5.1.10", "5.999.999"} {
		st, err := Parse(s)
		if err != nil || st.String() != s {
			t.Errorf("Parse(%q) = %v, %v", s, st, err)
		}
	}
	for _, s := range []string{"", "5", "5.1", "5.1.", "3.0.0", "05.1.1", "5.01.1", "5.1.1000", "5.1.-1", "5.1.+1", "5.1.1.1", " 5.1.1", "5.1.1\n"} {
		if st, err := Parse(s); err == nil || st != zero {
			t.Errorf("Parse(%q) = %v, %v; want an error", s, st, err)
		}
	}
}

func TestCut(t *testing.T) {
	for in, want := range map[string]string{
		"5.1.6 has moved": "5.1.6|has moved", " 4.2.0  later ": "4.2.0|later", "has moved": "5.0.0|has moved", "": "5.0.0|", "5.7.1": "5.7.1|",
		"2.0.0 fine": "5.0.0|2.0.0 fine", "5.1 x": "5.0.0|5.1 x",
	} {
		status, rest := Cut(in, MustParse("5.0.0"))
		if got := status.String() + "|" + rest; got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestOf(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{errors.New("boom"), "4.3.0"},
		{fmt.Errorf("looking: %w", Errorf("5.1.1", "nobody")), "5.1.1"},
		{Errorf("2.0.0", "an error that claims success"), "4.3.0"},
	} {
		if got := Of(tt.err).Status.String(); got != tt.want {
			t.Errorf("Of(%v) = %s, want %s", tt.err, got, tt.want)
		}
	}
}

func TestNotify(t *testing.T) {
	for in, want := range map[string]Notify{"NEVER": NotifyNever, "success,FAILURE": NotifySuccess | NotifyFailure, "DELAY": NotifyDelay} {
		if n, err := ParseNotify(in); err != nil || n != want {
			t.Errorf("ParseNotify(%q) = %v, %v", in, n, err)
		}
	}
	for _, in := range []string{"", "NEVER,DELAY", "X", "DELAY,DELAY", "DELAY,"} {
		if _, err := ParseNotify(in); err == nil {
			t.Errorf("ParseNotify(%q): no error", in)
		}
	}
	var unset Notify
	if !unset.Wants(NotifyFailure) || unset.Wants(NotifySuccess) || NotifyNever.Wants(NotifyFailure) {
		t.Error("Wants")
	}
}

func TestOriginalRecipient(t *testing.T) {
	o, err := ParseOriginalRecipient("RFC822;a+2Bb@c")
	if err != nil || o.String() != "rfc822;a+b@c" {
		t.Errorf("%v, %v", o, err)
	}
	for _, in := range []string{"", "a@b", ";a", "rfc822;", "rfc822;a+0Ab", "rfc822;a+00", "rfc822;a+2", "rfc822;a=b", "rfc822;a b", "r c;a"} {
		if o, err := ParseOriginalRecipient(in); err == nil || o != (OriginalRecipient{}) {
			t.Errorf("%q: %v, %v; want an error", in, o, err)
		}
	}
}

// FuzzXtext: what decodes is printable and encodes to something that decodes to the same.
func FuzzXtext(f *testing.F) {
	f.Add("a+2Bb")
	f.Add("+0A")
	f.Fuzz(func(t *testing.T, s string) {
		out, err := DecodeXtext(s)
		if err != nil {
			if out != "" {
				t.Fatalf("%q: error with result %q", s, out)
			}
			return
		}
		if err := CheckText(out); err != nil {
			t.Fatalf("%q decodes to %q: %v", s, out, err)
		}
		if back, err := DecodeXtext(EncodeXtext(out)); err != nil || back != out {
			t.Fatalf("%q: %q, %v", out, back, err)
		}
	})
}

// FuzzParseStatus: one spelling for each status.
func FuzzParseStatus(f *testing.F) {
	f.Add("5.1.1")
	f.Fuzz(func(t *testing.T, s string) {
		st, err := Parse(s)
		if err == nil && st.String() != s || err != nil && st != (Status{}) {
			t.Fatalf("%q: %v, %v", s, st, err)
		}
	})
}
