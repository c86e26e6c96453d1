package smtpclient

import (
	"bufio"
	"bytes"
	"unicode/utf8"
)

// minLine is the least line length that folding is done for: below that it
// would tear everything to pieces.
const minLine = 64

// dataWriter turns content into the data of the protocol (RFC 5321, sections
// 2.3.8 and 4.5.2), whatever the content is:
//
//   - every line ends in CRLF; a bare LF ends a line too and is sent as CRLF;
//   - a bare CR becomes a space, as it does in Postfix: there are servers that
//     take it for the end of a line;
//   - a dot that starts a line is doubled;
//   - a line of more than limit octets is folded, that is, CRLF and a space are
//     put in, but not within a character of UTF-8.
//
// So CRLF.CRLF, in whatever spelling, never gets through but from finish.
type dataWriter struct {
	w     *bufio.Writer // keeps its first error
	limit int           // 0: any
	col   int           // octets of the current line, without an added dot
	cr    bool          // a CR came last
}

// write takes the next part of the content.
func (d *dataWriter) write(p []byte) {
	for len(p) > 0 {
		line, rest, full := bytes.Cut(p, []byte{'\n'})
		d.line(line)
		if full {
			d.cr = false // it belongs to this end of line
			d.newline()
		}
		p = rest
	}
}

// line takes a part of the content without LF.
func (d *dataWriter) line(p []byte) {
	for len(p) > 0 {
		if d.cr {
			d.text([]byte{' '})
			d.cr = false
		}
		text, rest, found := bytes.Cut(p, []byte{'\r'})
		d.text(text)
		d.cr = found
		p = rest
	}
}

func (d *dataWriter) text(p []byte) {
	if len(p) == 0 {
		return
	}
	if d.col == 0 && p[0] == '.' {
		d.put([]byte{'.'})
	}
	for d.limit > 0 && d.col+len(p) > d.limit {
		n := foldAt(p, d.limit-d.col)
		d.put(p[:n])
		d.put([]byte("\r\n "))
		p, d.col = p[n:], 1
	}
	d.put(p)
	d.col += len(p)
}

// foldAt returns how much of p goes on a line that has room for that many.
func foldAt(p []byte, room int) int {
	for n := room; n >= 0 && n > room-utf8.UTFMax; n-- {
		if utf8.RuneStart(p[n]) {
			return n
		}
	}
	return room
}

func (d *dataWriter) newline() {
	d.put([]byte("\r\n"))
	d.col = 0
}

// finish ends the last line and the data.
func (d *dataWriter) finish() {
	if d.cr {
		d.text([]byte{' '})
		d.cr = false
	}
	if d.col > 0 {
		d.newline()
	}
	d.put([]byte(".\r\n"))
}

func (d *dataWriter) put(p []byte) { _, _ = d.w.Write(p) } // the error comes up at Flush
