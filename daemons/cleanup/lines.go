package main

import (
	"bytes"
	"io"
)

// lines writes text that comes in pieces to out as lines that all end in CRLF.
//
// What smtpd and sendmail send has such lines already and passes unchanged. For
// what gets here past them the queue keeps its promise to the delivery agents,
// for whom a lone CR or LF is a way to smuggle: a lone LF becomes the end of a
// line, a lone CR becomes a space (as in Postfix since 3.9), and the last line
// gets its end.
type lines struct {
	out  io.Writer
	cr   bool // a CR ended the last piece
	open bool // the last line has no end yet
}

var (
	crlf  = []byte("\r\n")
	space = []byte(" ")
)

// write takes the next piece.
func (l *lines) write(p []byte) error {
	if l.cr && len(p) > 0 {
		l.cr = false
		end := space
		if p[0] == '\n' {
			end, p = crlf, p[1:]
		}
		if err := l.put(end); err != nil {
			return err
		}
	}
	clean := 0 // p[clean:at] is as it should be
	end := -1  // of the line at p[at:], its LF not included
	for at := 0; at < len(p); {
		if end < at {
			if end = bytes.IndexByte(p[at:], '\n') + at; end < at {
				end = len(p)
			}
		}
		line, ended := p[at:end], end < len(p)
		cr := bytes.IndexByte(line, '\r')
		switch {
		case cr >= 0 && cr+1 < len(line): // within the line
			if err := l.replace(p[clean:at+cr], space); err != nil {
				return err
			}
			at += cr + 1
			clean = at
		case cr >= 0 && ended: // CRLF
			at = end + 1
		case cr >= 0: // at the end of the piece
			l.cr = true
			return l.put(p[clean : at+cr])
		case ended: // LF alone
			if err := l.replace(p[clean:end], crlf); err != nil {
				return err
			}
			at = end + 1
			clean = at
		default:
			at = len(p)
		}
	}
	return l.put(p[clean:])
}

func (l *lines) replace(before, instead []byte) error {
	if err := l.put(before); err != nil {
		return err
	}
	return l.put(instead)
}

func (l *lines) put(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	l.open = p[len(p)-1] != '\n'
	_, err := l.out.Write(p)
	return err
}

// close ends the last line.
func (l *lines) close() error {
	if l.cr {
		if err := l.put(space); err != nil {
			return err
		}
	}
	if !l.open {
		return nil
	}
	return l.put(crlf)
}
