package dsn

import (
	"errors"
	"fmt"
	"strings"
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

func TestUTF8OriginalRecipient(t *testing.T) {
	for in, want := range map[string]string{
		`utf-8;\x{E9}@b`: "é@b", "UTF-8;é@b": "é@b", `utf-8;a+b=c@\x{1F600}.example`: "a+b=c@\U0001F600.example", `utf-8;a\x{5C}b`: `a\b`,
	} {
		if o, err := ParseOriginalRecipient(in); err != nil || o.Type != "utf-8" || o.Address != want {
			t.Errorf("%q: %v, %v", in, o, err)
		}
	}
	for _, in := range []string{`utf-8;a\`, `utf-8;a\b}`, `utf-8;\x{}`, `utf-8;\x{E9`, `utf-8;\x{0A}`, `utf-8;\x{D800}`, `utf-8;\x{110000}`, `utf-8;\x{e9}`, "utf-8;\xff", "rfc822;é@b"} {
		if o, err := ParseOriginalRecipient(in); err == nil || o != (OriginalRecipient{}) {
			t.Errorf("%q: %v, %v; want an error", in, o, err)
		}
	}
	if s := (OriginalRecipient{"utf-8", "ü+x@b"}).Encode(); s != `utf-8;\x{FC}\x{2B}x@b` {
		t.Error(s)
	}
}

// FuzzOriginalRecipient: what is accepted is printable, and is encoded in ASCII
// to what gives the same again, unless that is too long to be said.
func FuzzOriginalRecipient(f *testing.F) {
	for _, s := range []string{"rfc822;a+2Bb@c", `utf-8;\x{E9}@b`, "UTF-8;é+\\@b", "x-400;+20", "rfc822;+C3+A9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := ParseOriginalRecipient(s)
		if err != nil {
			if o != (OriginalRecipient{}) {
				t.Fatalf("%q: %v with %v", s, err, o)
			}
			return
		}
		if o.Type == "" || o.Address == "" || CheckText(o.String()) != nil || len(o.String()) > MaxRecipient {
			t.Fatalf("%q: %q", s, o)
		}
		enc := o.Encode()
		if strings.Trim(enc, printable) != "" || len(enc) > MaxRecipient {
			t.Fatalf("%q is encoded as %q", o, enc)
		}
		if enc == "" {
			if 10*len(s) < MaxRecipient {
				t.Fatalf("%q is not encoded", o)
			}
			return
		}
		if back, err := ParseOriginalRecipient(enc); err != nil || back != o {
			t.Fatalf("%q: %q gives %q, %v", s, enc, back, err)
		}
	})
}

// printable are the characters of ASCII that a parameter may have.
const printable = "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"

// FuzzNotify: what is accepted has one form, which gives it back; of what is
// refused nothing is left.
func FuzzNotify(f *testing.F) {
	for _, s := range []string{"NEVER", "success,FAILURE", "DELAY", "NEVER,DELAY", ","} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseNotify(s)
		if err != nil {
			if n != 0 {
				t.Fatalf("%q: %v with %v", s, err, n)
			}
			return
		}
		if back, err := ParseNotify(n.String()); n == 0 || !n.Valid() || err != nil || back != n {
			t.Fatalf("%q: %v gives %v, %v", s, n, back, err)
		}
	})
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
		if err := CheckText(out); err != nil || strings.Trim(s, printable) != "" || strings.Trim(EncodeXtext(out), printable) != "" {
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
