package addr

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	tests := []struct {
		in, local, domain, out string // out: external form where it differs
	}{
		{in: "a@b", local: "a", domain: "b"},
		{in: "postmaster", local: "postmaster"},
		{in: `"a b"@example.org`, local: "a b", domain: "example.org"},
		{in: `"ab"@example.org`, local: "ab", domain: "example.org", out: "ab@example.org"},
		{in: `"a@b"@c`, local: "a@b", domain: "c"},
		{in: `"a\"\\b"@c`, local: `a"\b`, domain: "c"},
		{in: "a@[192.0.2.1]", local: "a", domain: "[192.0.2.1]"},
		{in: "a@[IPv6:::1]", local: "a", domain: "[IPv6:::1]"},
		{in: "dörte@müller.example", local: "dörte", domain: "müller.example"},
		{in: "a+x=b@c_d.example", local: "a+x=b", domain: "c_d.example"},
		{in: "a@example.org.", local: "a", domain: "example.org", out: "a@example.org"},
		{in: "a..b@c", local: "a..b", domain: "c", out: `"a..b"@c`},
		{in: ".a.@c", local: ".a.", domain: "c", out: `".a."@c`},
	}
	for _, tt := range tests {
		m, err := Parse(tt.in)
		if err != nil || m.Local() != tt.local || m.Domain() != tt.domain {
			t.Errorf("Parse(%q) = %q, %q, %v", tt.in, m.Local(), m.Domain(), err)
		}
		want := tt.out
		if want == "" {
			want = tt.in
		}
		if m.String() != want {
			t.Errorf("Parse(%q).String() = %q, want %q", tt.in, m.String(), want)
		}
	}
	bad := []string{
		"", "@b", "a@", "a@.b", "a@b..", "a@.", "a@b..c", "a@[192.0.2.1].", ".@b", "..@b", "a b@c", "a@b c", "a@-b", "a@b-", "<a@b>", "a@b@c",
		`"a@b`, `"a\`, "a\r@b", "\"a\nb\"@c", "\"a\x00\"@c", "a@[1.2.3]", "a@[::1]", "a@[IPv6:1.2.3.4]", "a@[x", "a@\xff",
		"a@b\u2028", "\"\u0085\"@b", strings.Repeat("a", MaxLocal+1) + "@b", "a@" + strings.Repeat("a.", 130) + "a",
		"a@" + strings.Repeat("b", 64),
	}
	for _, in := range bad {
		if m, err := Parse(in); err == nil || m != (Mailbox{}) {
			t.Errorf("Parse(%q) = %v, %v; want an error and nothing", in, m, err)
		}
	}
}

func TestParsePath(t *testing.T) {
	tests := []struct{ in, want, rest string }{
		{"<>", "", ""},
		{"<> SIZE=1", "", " SIZE=1"},
		{"<a@b> BODY=8BITMIME", "a@b", " BODY=8BITMIME"},
		{"<@x,@y.example:a@b>", "a@b", ""},
		{"<a.@b.>", `"a."@b`, ""},
		{`<"a>b"@c>`, `"a>b"@c`, ""},
		{"<postmaster>", "postmaster", ""},
	}
	for _, tt := range tests {
		m, rest, err := ParsePath(tt.in)
		if err != nil || m.String() != tt.want || rest != tt.rest {
			t.Errorf("ParsePath(%q) = %q, %q, %v", tt.in, m, rest, err)
		}
	}
	for _, in := range []string{"", "a@b", "<a@b", "< a@b>", "<a@b >", "<@x:>", "<@x>", "<@x,y:a@b>", "<<a@b>>", "<a@b> "[:4]} {
		if m, _, err := ParsePath(in); err == nil || !m.IsNull() {
			t.Errorf("ParsePath(%q) = %v, %v; want an error", in, m, err)
		}
	}
}

func TestSplitExtension(t *testing.T) {
	for _, tt := range []struct{ in, delims, base, ext string }{
		{"a+b@c", "+", "a@c", "b"},
		{"a+b+d@c", "+", "a@c", "b+d"},
		{"+b@c", "+", "+b@c", ""},
		{"a+b@c", "", "a+b@c", ""},
		{"a-b+d@c", "+-", "a@c", "b+d"},
		{"owner-a@c", "-", "owner-a@c", ""},
		{"a-request@c", "-", "a-request@c", ""},
		{"a+@c", "+", "a@c", ""},
	} {
		m, err := Parse(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		base, ext := m.SplitExtension(tt.delims)
		if base.String() != tt.base || ext != tt.ext {
			t.Errorf("%q split at %q: %q, %q", tt.in, tt.delims, base, ext)
		}
	}
}

// FuzzParse: what is accepted has one external form, which gives it back; what
// is refused leaves nothing.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"a@b", `"a b"@c`, "a@[1.2.3.4]", "postmaster", `"\""@x`, "ü@ü"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := Parse(s)
		if err != nil {
			if m != (Mailbox{}) {
				t.Fatalf("%q: error %v with a result", s, err)
			}
			return
		}
		back, err := Parse(m.String())
		if err != nil || back != m {
			t.Fatalf("%q: external form %q gives %v, %v", s, m.String(), back, err)
		}
		if strings.ContainsAny(m.String(), "\r\n\x00") {
			t.Fatalf("%q: control character in %q", s, m.String())
		}
		p, rest, err := ParsePath(m.Path())
		if err != nil || p != m || rest != "" {
			t.Fatalf("path %q gives %v, %q, %v", m.Path(), p, rest, err)
		}
	})
}
