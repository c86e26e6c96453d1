package header

import (
	"fmt"
	"strings"
	"testing"

	"posthouse/pkg/addr"
)

func TestParseAddressList(t *testing.T) {
	tests := []struct {
		in   string
		want []string // nil: an error
	}{
		{"", []string{}},
		{" , ,\r\n ", []string{}},
		{"a@example.org", []string{"a@example.org"}},
		{"root", []string{"root"}},
		{"a@example.org, b@example.net,c", []string{"a@example.org", "b@example.net", "c"}},
		{"A B <a@example.org>", []string{"a@example.org"}},
		{"J. R. \"D.\" Doe (x) <a@example.org> (y), b@c", []string{"a@example.org", "b@c"}},
		{"a@example.org <b@example.org>", []string{"b@example.org"}},
		{"\"Doe, J.\" <a@example.org>", []string{"a@example.org"}},
		{"=?utf-8?q?J=C3=BCrgen?= <a@example.org>", []string{"a@example.org"}},
		{"[list] <a@example.org>", []string{"a@example.org"}},
		{"a . b @ example . org (c(d)\\))", []string{"a.b@example.org"}},
		{"a\r\n @example.org", []string{"a@example.org"}},
		{"\"a b\"@example.org", []string{"\"a b\"@example.org"}},
		{"\"a\\\"b\".c@example.org", []string{"\"a\\\"b.c\"@example.org"}},
		{"\"a\r\n b\"@example.org", []string{"\"a b\"@example.org"}},
		{"a..b@example.org", []string{"\"a..b\"@example.org"}},
		{"a@example.org., A <b@example.org.>", []string{"a@example.org", "b@example.org"}},
		{"a@[192.0.2.1]", []string{"a@[192.0.2.1]"}},
		{"<@x,@y.z:a@example.org>", []string{"a@example.org"}},
		{"<@x,,@y.z:a@example.org>", []string{"a@example.org"}},
		{"undisclosed-recipients:;", []string{}},
		{"team: a@b, C <c@d>;, e@f", []string{"a@b", "c@d", "e@f"}},
		{"team: a@b", []string{"a@b"}},
		{"a@b; c@d", []string{"a@b", "c@d"}},
		{"<>", []string{}},
		{"J\xc3\xbcrgen <j\xc3\xbcrgen@b\xc3\xbccher.example>", []string{"j\xc3\xbcrgen@b\xc3\xbccher.example"}},
		{"user%host@relay, host!user", []string{"user%host@relay", "host!user"}},

		{"a b@c", nil},
		{"a@b c@d", nil},
		{"a@b@c", nil},
		{"a@", nil},
		{"@a", nil},
		{"<a@b", nil},
		{"<a@b> c", nil},
		{"<a@b> <c@d>", nil},
		{"<a, b@c>", nil},
		{"<@a>", nil},
		{"a@b>", nil},
		{"a@b: c@d", nil},
		{"x: y: a@b;", nil},
		{"a@b (c", nil},
		{"a) @b", nil},
		{"\"a@b", nil},
		{"a@[192.0.2.1", nil},
		{"[192.0.2.1]@a", nil},
		{"a@\"b\"", nil},
		{"\"a\x00b\"@c", nil},
		{"\"a\\\nb\"@c", nil},
		{"a\x1b@c", nil},
		{"a@b\x7f", nil},
		{"\xff@b", nil},
		{"a@b\\", nil},
		{strings.Repeat("(", 1000) + strings.Repeat(")", 1000) + "a@b", nil},
		{strings.Repeat("x", addr.MaxLocal+1) + "@b", nil},
	}
	for _, tt := range tests {
		list, err := ParseAddressList(tt.in)
		if (err != nil) != (tt.want == nil) || err != nil && list != nil {
			t.Errorf("%.50q: %v, %v", tt.in, list, err)
			continue
		}
		got := []string{}
		for _, m := range list {
			got = append(got, m.String())
		}
		if err == nil && fmt.Sprintf("%q", got) != fmt.Sprintf("%q", tt.want) {
			t.Errorf("%q: %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestAddressLimits(t *testing.T) {
	for n, ok := range map[int]bool{MaxAddresses - 1: true, MaxAddresses: true, MaxAddresses + 1: false} {
		list, err := ParseAddressList(strings.Repeat("a@b,", n))
		if ok != (err == nil) || ok && len(list) != n {
			t.Errorf("%d addresses: %d, %v", n, len(list), err)
		}
	}
	for n, ok := range map[int]bool{MaxComments - 1: true, MaxComments: true, MaxComments + 1: false} {
		if _, err := ParseAddressList(strings.Repeat("(", n) + strings.Repeat(")", n) + "a"); ok != (err == nil) {
			t.Errorf("%d comments: %v", n, err)
		}
	}
}

// FuzzParseAddressList: what is accepted reads the same again, alone and as a
// list, and holds no control character.
func FuzzParseAddressList(f *testing.F) {
	for _, s := range []string{"a@b, C <c@d>", "g: \"a b\"@c;, <@x:y@z>", "(a(b)\\)) c . d @ [192.0.2.1]", "<>,;:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		list, err := ParseAddressList(in)
		if err != nil {
			if list != nil {
				t.Fatal("a result with an error")
			}
			return
		}
		if len(list) > len(in) {
			t.Fatalf("%d addresses of %d octets", len(list), len(in))
		}
		var texts []string
		for _, m := range list {
			again, err := addr.Parse(m.String())
			if err != nil || again != m {
				t.Fatalf("%q reads as %q, %v", m, again, err)
			}
			if strings.ContainsAny(m.String(), "\x00\r\n\x1b\x7f") {
				t.Fatalf("control character in %q", m)
			}
			texts = append(texts, m.Path())
		}
		again, err := ParseAddressList(strings.Join(texts, ","))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(list) {
			t.Fatalf("%q read again: %q, %v", list, again, err)
		}
	})
}

func TestComplete(t *testing.T) {
	for in, want := range map[string]string{
		"To: a\r\n":                         "To: a@x.example\r\n",
		"To: a@b\r\n":                       "To: a@b\r\n",
		"To : a , b@c,d (e@f)\r\n\t, g\r\n": "To : a@x.example , b@c,d@x.example (e@f)\r\n\t, g@x.example\r\n",
		"From: Full Name <a>\r\n":           "From: Full Name <a@x.example>\r\n",
		"From: \"q@r\" <\"s t\">\r\n":       "From: \"q@r\" <\"s t\"@x.example>\r\n",
		"From: a . b\r\n":                   "From: a . b@x.example\r\n",
		"To: friends: a, b@c;, d\r\n":       "To: friends: a@x.example, b@c;, d@x.example\r\n",
		"To: nobody:;\r\n":                  "To: nobody:;\r\n",
		"To: <>\r\n":                        "To: <>\r\n",
		"To: <@r:a>\r\n":                    "To: <@r:a@x.example>\r\n",
		"To: a b\r\n":                       "To: a b\r\n",
		"To: a, <b\r\n":                     "To: a, <b\r\n",
		"To:\r\n":                           "To:\r\n",
	} {
		var got string
		s := NewSplitter(1000)
		if _, err := s.Feed([]byte(in+"\r\n"), func(f Field) error { got = string(f.Complete("x.example")); return nil }); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
