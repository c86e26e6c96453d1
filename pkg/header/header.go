// Package header reads the header of a message (RFC 5322, section 2.2) as it
// streams by: which fields there are, octet for octet, and where the body
// begins. It never holds more than one field.
//
// What counts as a field is what other mail systems take for one, not only what
// the RFC allows: white space before the colon is let through. The header ends
// with an empty line, or before the first line that is neither a field nor the
// continuation of one.
//
// A line ends with LF; a CR before it is part of the ending. A CR elsewhere is
// an octet like any other.
package header

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrTooLarge is returned for a header over its limit.
var ErrTooLarge = errors.New("header is too large")

// Field is one field with its continuation lines.
type Field struct {
	// Raw is the field as it came, with its line endings. It is valid until the
	// next field is read.
	Raw []byte

	nameLen int
}

// Name returns the name as it was written, without white space before the colon.
func (f Field) Name() string { return string(f.Raw[:f.nameLen]) }

// Is reports whether the field has this name, in whatever case.
func (f Field) Is(name string) bool {
	return len(name) == f.nameLen && bytes.EqualFold(f.Raw[:f.nameLen], []byte(name))
}

// unfolding takes line breaks out.
var unfolding = strings.NewReplacer("\r\n", "", "\n", "")

// Value returns what follows the colon, unfolded: line breaks removed, and
// white space at both ends.
func (f Field) Value() string {
	v := f.Raw[bytes.IndexByte(f.Raw, ':')+1:]
	return strings.Trim(unfolding.Replace(string(v)), " \t\r")
}

// Splitter splits a header that comes in pieces. It stops by itself at the body.
type Splitter struct {
	limit int
	total int    // octets of header that are behind buf
	buf   []byte // a field that may not be complete, then the beginning of a line
	line  int    // where that line begins in buf
	name  int    // length of the field's name
	done  bool
	blank bool
}

// NewSplitter returns a Splitter for a header of at most limit octets, the empty
// line that ends it included.
func NewSplitter(limit int) *Splitter { return &Splitter{limit: limit} }

// Done reports whether the body has begun.
func (s *Splitter) Done() bool { return s.done }

// Blank reports whether the header ended with an empty line, which is not in
// what Feed returns.
func (s *Splitter) Blank() bool { return s.blank }

// Feed takes the next piece of a message and calls each for every field that is
// complete. Once the body has begun, body is the beginning of it, and Feed must
// not be called any more. An error of each ends it.
func (s *Splitter) Feed(p []byte, each func(Field) error) (body []byte, err error) {
	for len(p) > 0 {
		n := bytes.IndexByte(p, '\n') + 1
		if n == 0 {
			s.buf = append(s.buf, p...)
			// A body without a header may be one long line: it is recognised
			// before it is too large to hold.
			if s.checkSize(len(s.buf)) != nil && s.isBody(s.buf[s.line:]) {
				return s.endBefore(nil, each)
			}
			return nil, s.checkSize(len(s.buf))
		}
		s.buf = append(s.buf, p[:n]...)
		p = p[n:]
		line := s.buf[s.line:]
		switch {
		case s.line > 0 && isSpace(line[0]):
		case isBlank(line):
			if err := s.checkSize(len(s.buf)); err != nil {
				return nil, err
			}
			s.done, s.blank = true, true
			return p, s.emit(each)
		case s.isBody(line):
			return s.endBefore(p, each)
		default:
			if err := s.emit(each); err != nil {
				return nil, err
			}
			s.name, _ = fieldName(s.buf)
		}
		if err := s.checkSize(len(s.buf)); err != nil {
			return nil, err
		}
		s.line = len(s.buf)
	}
	return nil, nil
}

// Close ends a message that has no more: what is left is a last field, or a body.
func (s *Splitter) Close(each func(Field) error) (body []byte, err error) {
	if s.done {
		return nil, nil
	}
	s.done = true
	if line := s.buf[s.line:]; len(line) > 0 && (s.line == 0 || !isSpace(line[0])) {
		n, complete := fieldName(line)
		if !complete {
			return s.endBefore(nil, each)
		}
		if err := s.emit(each); err != nil {
			return nil, err
		}
		s.name = n
	}
	s.line = len(s.buf)
	return nil, s.emit(each)
}

// emit passes on the field before the current line, which becomes the start of
// the buffer.
func (s *Splitter) emit(each func(Field) error) error {
	if s.line == 0 {
		return nil
	}
	err := each(Field{Raw: s.buf[:s.line:s.line], nameLen: s.name})
	s.total += s.line
	s.buf = s.buf[:copy(s.buf, s.buf[s.line:])]
	s.line = 0
	return err
}

// endBefore ends the header before the current line. The limit holds for as
// much of that line as could have been a header, or the size of the pieces
// would matter.
func (s *Splitter) endBefore(rest []byte, each func(Field) error) ([]byte, error) {
	if err := s.checkSize(s.line + undecided(s.buf[s.line:])); err != nil {
		return nil, err
	}
	s.done = true
	err := s.emit(each)
	return append(s.buf, rest...), err
}

// checkSize checks the size of a header that ends at n in the buffer.
func (s *Splitter) checkSize(n int) error {
	if s.total+n > s.limit {
		return fmt.Errorf("%w: over %d octets", ErrTooLarge, s.limit)
	}
	return nil
}

// isBody reports whether a line, complete or not, cannot belong to a header.
func (s *Splitter) isBody(line []byte) bool {
	if isSpace(line[0]) {
		return s.line == 0
	}
	if isBlank(line) || len(line) == 1 && line[0] == '\r' {
		return false // an empty line, or the beginning of one
	}
	n, complete := fieldName(line)
	return !complete && (n < 0 || line[len(line)-1] == '\n')
}

// maxName bounds the name of a field, in octets: a longer word is text, as a line in
// base64.
const maxName = 2048

// fieldName returns the length of the name at the start of a line, and whether
// its colon is there. The length is negative where there cannot be one.
func fieldName(line []byte) (n int, complete bool) {
	for n < len(line) && line[n] > ' ' && line[n] < 0x7f && line[n] != ':' {
		n++
	}
	if n > maxName {
		return -1, false
	}
	i := n
	for i < len(line) && isSpace(line[i]) {
		i++
	}
	switch {
	case i == len(line):
		return n, false
	case n == 0 || line[i] != ':':
		return -1, false
	}
	return n, true
}

// undecided returns how much of a line that is not of a header could be of one.
func undecided(line []byte) int {
	if line[0] == '\r' {
		return 1
	}
	n := 0
	for n < len(line) && line[n] > ' ' && line[n] < 0x7f && line[n] != ':' {
		n++
	}
	if n > maxName {
		return maxName
	}
	for n > 0 && n < len(line) && isSpace(line[n]) {
		n++
	}
	return n
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

func isBlank(line []byte) bool {
	return len(line) == 1 && line[0] == '\n' || len(line) == 2 && line[0] == '\r' && line[1] == '\n'
}

// Scan reads the header of the message in r, at most limit octets of it, and
// calls each for every field, until each returns false. It may read into the
// body. It returns ErrTooLarge after the fields that are within the limit.
func Scan(r io.Reader, limit int, each func(Field) bool) error {
	s := NewSplitter(limit)
	yield := func(f Field) error {
		if !each(f) {
			return errStop
		}
		return nil
	}
	b := make([]byte, 4<<10)
	for !s.Done() {
		n, err := r.Read(b)
		if _, err := s.Feed(b[:n], yield); err != nil {
			return stopped(err)
		}
		switch {
		case errors.Is(err, io.EOF):
			_, err := s.Close(yield)
			return stopped(err)
		case err != nil:
			return fmt.Errorf("header: %w", err)
		}
	}
	return nil
}

var errStop = errors.New("stop")

func stopped(err error) error {
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}
