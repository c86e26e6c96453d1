package mailbox

import (
	"bufio"
	"strings"
	"testing"
)

func TestLines(t *testing.T) {
	for _, tt := range []struct {
		form     Form
		in, want string
	}{
		{Form{EOL: "\n"}, "From x\n.\n..y\nz", "From x\n.\n..y\nz\n"},
		{Form{EOL: "\r\n"}, "a\n\nb\n", "a\r\n\r\nb\r\n"},
		{Form{EOL: "\n", From: true}, "From x\n From\nFrom\nFro", ">From x\n From\nFrom\nFro\n"},
		{Form{EOL: "\n", From: true}, ">From x\nFFrom y\nFrom ", ">From x\nFFrom y\n>From \n"},
		{Form{EOL: "\n", Dot: true}, ".\n..\na.\n.From x", "..\n...\na.\n..From x\n"},
		{Form{EOL: "\r\n", From: true, Dot: true}, "From .\n.From \nF", ">From .\r\n..From \r\nF\r\n"},
		{Form{EOL: "\n", Dot: true}, "\n", "\n"},
	} {
		// In one piece; octet by octet, with an empty line at the end.
		for size, blank := range map[int]bool{len(tt.in) + 1: false, 1: true} {
			var b strings.Builder
			out := bufio.NewWriter(&b)
			l := NewLines(out, tt.form)
			for rest := tt.in; rest != ""; {
				n, err := l.Write([]byte(rest[:min(size, len(rest))]))
				if err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			l.End(blank)
			if err := out.Flush(); err != nil {
				t.Fatal(err)
			}
			want := tt.want
			if blank {
				want += tt.form.EOL
			}
			if got := b.String(); got != want {
				t.Errorf("%+v, %q by %d: %q, want %q", tt.form, tt.in, size, got, want)
			}
		}
	}
}
