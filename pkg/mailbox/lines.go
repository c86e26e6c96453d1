package mailbox

import (
	"bufio"
	"bytes"
)

const fromMark = "From "

// Form is how whoever reads a message wants its lines.
type Form struct {
	EOL  string // what ends a line
	From bool   // > before a line that would begin a message of a mailbox file
	Dot  bool   // another dot before a line that begins with one
}

// Lines writes a message, whose lines end in LF, in a form. Errors are left to
// out, where they stick.
type Lines struct {
	out  *bufio.Writer
	form Form
	held int  // octets of fromMark at the beginning of this line; -1: it is another line
	last byte // that was written
}

// NewLines returns a Lines that is at the beginning of a line.
func NewLines(out *bufio.Writer, form Form) *Lines { return &Lines{out: out, form: form} }

func (l *Lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if l.held >= 0 && l.begin(p[0]) {
			p = p[1:]
			continue
		}
		line, rest, ended := bytes.Cut(p, newline)
		_, err := l.out.Write(line)
		if ended {
			_, err = l.out.WriteString(l.form.EOL) // the same error, if there is one
			l.held, l.last = 0, '\n'
		} else {
			l.last = line[len(line)-1]
		}
		if err != nil {
			return 0, err
		}
		p = rest
	}
	return n, nil
}

var newline = []byte{'\n'}

// begin takes an octet of the beginning of a line. Where that is nothing special any
// more, it leaves it, and the rest of the line.
func (l *Lines) begin(c byte) (taken bool) {
	if l.form.From && c == fromMark[l.held] {
		if l.held++; l.held == len(fromMark) {
			_, _ = l.out.WriteString(">" + fromMark)
			l.held = -1
		}
		l.last = c
		return true
	}
	if l.held > 0 {
		_, _ = l.out.WriteString(fromMark[:l.held])
	} else if l.form.Dot && c == '.' {
		_ = l.out.WriteByte('.')
	}
	l.held = -1
	return false
}

// End ends the last line, and with blank puts an empty line behind it, which is
// what ends a message of a mailbox file.
func (l *Lines) End(blank bool) {
	if l.held > 0 {
		_, _ = l.out.WriteString(fromMark[:l.held])
	}
	if l.last != '\n' {
		_, _ = l.out.WriteString(l.form.EOL)
	}
	if blank {
		_, _ = l.out.WriteString(l.form.EOL)
	}
}
