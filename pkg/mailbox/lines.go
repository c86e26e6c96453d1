package mailbox

import "bufio"

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
	for _, c := range p {
		if l.held >= 0 && l.form.From && c == fromMark[l.held] {
			if l.held++; l.held == len(fromMark) {
				_, _ = l.out.WriteString(">" + fromMark)
				l.held = -1
			}
			l.last = c
			continue
		}
		if l.held > 0 {
			_, _ = l.out.WriteString(fromMark[:l.held])
		}
		if l.held == 0 && l.form.Dot && c == '.' {
			_ = l.out.WriteByte('.')
		}
		l.held, l.last = -1, c
		var err error
		if c == '\n' {
			l.held = 0
			_, err = l.out.WriteString(l.form.EOL)
		} else {
			err = l.out.WriteByte(c)
		}
		if err != nil {
			return 0, err
		}
	}
	return len(p), nil
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
