package smtpclient

import (
	"bufio"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"posthouse/pkg/dsn"
)

func parseReply(s string) (*Reply, string, error) {
	r := bufio.NewReader(strings.NewReader(s))
	reply, err := readReply(r)
	if err != nil {
		return nil, "", err
	}
	rest := new(strings.Builder)
	_, _ = r.WriteTo(rest)
	return reply, rest.String(), nil
}

func TestReply(t *testing.T) {
	for in, want := range map[string]struct{ text, status string }{
		"250 2.1.0 Ok\r\n":        {"250 2.1.0 Ok", "2.1.0"},
		"250\r\n":                 {"250", "2.0.0"},
		"250 \r\n":                {"250", "2.0.0"},
		"550 no\n":                {"550 no", "5.0.0"},
		"450 5.1.1 two minds\r\n": {"450 5.1.1 two minds", "4.0.0"},
		"550 5.1.1\r\n":           {"550 5.1.1", "5.1.1"},
		"550 5.01.1 x\r\n":        {"550 5.01.1 x", "5.0.0"},
		"550-5.1.1 no such\r\n550-5.1.1 user\r\n550 5.1.2 x\r\n": {"550 5.1.1 no such user 5.1.2 x", "5.1.1"},
		"354 2.0.0 go\r\n":            {"354 2.0.0 go", "4.5.0"},
		"550 \x1b[31mred\x00\xff\r\n": {"550 ?[31mred??", "5.0.0"},
		"250 a\rb\r\n":                {"250 a?b", "2.0.0"},
		"550-" + strings.Repeat("x", 900) + "\r\n550 5.0.0 " + strings.Repeat("y", 900) + "\r\n": {
			"550 " + strings.Repeat("x", 900) + " 5.0.0 " + strings.Repeat("y", maxText-911), "5.0.0"},
	} {
		r, rest, err := parseReply(in)
		if err != nil || rest != "" || r.String() != want.text || r.Status().String() != want.status {
			t.Errorf("%q: %v %q %v, want %v", in, r, rest, err, want)
		}
	}
}

func TestReplyRefused(t *testing.T) {
	long := strings.Repeat("x", maxReplyLine)
	for _, in := range []string{
		"", "2", "250", "\r\n", "25\r\n", "2500 x\r\n", "150 x\r\n", "650 x\r\n", "2x0 x\r\n", "HTTP/1.1 400 Bad Request\r\n", " 250 x\r\n",
		"250-a\r\n550 b\r\n", "250-a\r\n\r\n", "250-a\r\n", "250 " + long + "\r\n", strings.Repeat("250-a\r\n", maxReplyLines) + "250 a\r\n",
		strings.Repeat("250-"+long[:2000]+"\r\n", 40) + "250 a\r\n",
	} {
		if r, _, err := parseReply(in); err == nil {
			t.Errorf("%.40q is accepted as %v", in, r)
		}
	}
}

// FuzzReply: an accepted reply is printable and bounded, says the same when it
// is written out again, and takes no more of the input than its own lines.
func FuzzReply(f *testing.F) {
	f.Add("250-a\r\n250 2.0.0 b\r\n354 more\r\n")
	f.Add("550 5.1.1 \xff\x00\n")
	f.Fuzz(func(t *testing.T, in string) {
		r, rest, err := parseReply(in)
		if err != nil {
			var e *errReply
			if errors.As(err, &e) && dsn.CheckText(e.why) != nil {
				t.Fatalf("error %q", e.why)
			}
			return
		}
		if !strings.HasSuffix(in, rest) || strings.Count(in[:len(in)-len(rest)], "\n") != len(r.Lines) {
			t.Fatalf("%q: %d lines, %q left", in, len(r.Lines), rest)
		}
		if err := dsn.CheckText(r.String()); err != nil || len(r.String()) > 3*maxReplySize {
			t.Fatalf("%q: %v", r.String(), err)
		}
		if c := r.Status().Class(); c == dsn.Success != (r.Code/100 == 2) || c == dsn.Permanent != (r.Code/100 == 5) {
			t.Fatalf("code %d, status %v", r.Code, r.Status())
		}
		var out strings.Builder
		for i, line := range r.Lines {
			sep := "-"
			if i == len(r.Lines)-1 {
				sep = " "
			}
			fmt.Fprintf(&out, "%03d%s%s\r\n", r.Code, sep, line)
		}
		if out.Len() > maxReplySize { // a question mark may be shorter than what it stands for, never longer
			t.Fatal("grown")
		}
		again, rest, err := parseReply(out.String())
		if err != nil || rest != "" || again.Code != r.Code || !slices.Equal(again.Lines, r.Lines) {
			t.Fatalf("%q reads back as %v, %v", out.String(), again, err)
		}
	})
}
