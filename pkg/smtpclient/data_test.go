package smtpclient

import (
	"bufio"
	"bytes"
	"strings"
	"testing"
)

func encode(limit int, parts ...string) string {
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	d := dataWriter{w: w, limit: limit}
	for _, p := range parts {
		d.write([]byte(p))
	}
	d.finish()
	_ = w.Flush()
	return b.String()
}

func octets(s string) []string {
	var parts []string
	for i := range len(s) {
		parts = append(parts, s[i:i+1])
	}
	return parts
}

func TestData(t *testing.T) {
	x := strings.Repeat("x", 64)
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"a\r\n", "a\r\n"},
		{"a", "a\r\n"},
		{"\r\n", "\r\n"},
		{".\r\n", "..\r\n"},
		{".", "..\r\n"},
		{"a\r\n.\r\nb\r\n", "a\r\n..\r\nb\r\n"},
		{"a\n.\nb\n", "a\r\n..\r\nb\r\n"},
		{"a\r\n.\nb", "a\r\n..\r\nb\r\n"},
		{"a\n.\r\nb", "a\r\n..\r\nb\r\n"},
		{"a\r.\rb", "a . b\r\n"},
		{"a\r\r\n.\r\r\n", "a \r\n.. \r\n"},
		{"\r.\r\n", " .\r\n"},
		{"\r", " \r\n"},
		{".\r", ".. \r\n"},
		{"a\x00\r\n", "a\x00\r\n"},
		{x + "\r\n", x + "\r\n"},
		{x + "y\r\n", x + "\r\n y\r\n"},
		{x + ".\r\n", x + "\r\n .\r\n"},
		{x + x + "\r\n", x + "\r\n " + x[:63] + "\r\n x\r\n"},
		{x + "\r", x + "\r\n  \r\n"},
		{"." + x[:63] + "\r\n", ".." + x[:63] + "\r\n"},
		{x[:63] + "é\r\n", x[:63] + "\r\n é\r\n"},
		{x[:62] + "é\r\n", x[:62] + "é\r\n"},
		{x[:63] + "\xff\xff\r\n", x[:63] + "\xff\r\n \xff\r\n"},
	} {
		if got := encode(64, c.in); got != c.want+".\r\n" {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
		// In single octets a character may be torn, nothing else may differ.
		if got := encode(64, octets(c.in)...); got != c.want+".\r\n" && !strings.Contains(c.in, "é") {
			t.Errorf("%q by octets: got %q, want %q", c.in, got, c.want)
		}
	}
	// A character that does not fit at the end of a block goes on the next line.
	if got := encode(64, x[1:], "é\r\n"); got != x[1:]+"\r\n é\r\n.\r\n" {
		t.Errorf("at the end of a block: %q", got)
	}
	if got := encode(0, x+x+x); got != x+x+x+"\r\n.\r\n" {
		t.Errorf("without limit: %q", got)
	}
}

// FuzzData: whatever the content, the strictest and the laxest server see one
// end of data, at the end; and without folding the content can be had back.
func FuzzData(f *testing.F) {
	for _, s := range []string{"a\r\n.\r\nb", "\n.\n", "\r.\r", "\r\n.\r", "a\r\r\n.\r\r\n"} {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, in string, cut int) {
		cut = min(max(cut, 0), len(in))
		for _, limit := range []int{0, minLine} {
			out := encode(limit, in[:cut], in[cut:])
			body, ok := strings.CutSuffix(out, ".\r\n")
			if !ok || body != "" && !strings.HasSuffix(body, "\r\n") {
				t.Fatalf("%q: %q does not end", in, out)
			}
			lines := strings.Split(body, "\r\n")
			for i, line := range lines {
				if strings.ContainsAny(line, "\r\n") || line == "." {
					t.Fatalf("%q: line %q", in, line)
				}
				if limit > 0 && len(strings.TrimPrefix(line, ".")) > limit {
					t.Fatalf("line of %d octets", len(line))
				}
				lines[i] = strings.TrimPrefix(line, ".")
			}
			if limit > 0 {
				continue
			}
			want := strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(in, "\r\n", "\n"), "\r", " "), "\n", "\r\n")
			if want != "" && !strings.HasSuffix(want, "\r\n") {
				want += "\r\n"
			}
			if got := strings.Join(lines, "\r\n"); got != want {
				t.Fatalf("%q: got %q, want %q", in, got, want)
			}
		}
	})
}
