package mailbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// dropRemnant removes the beginning of m from the end of f, which has size octets,
// and returns how many it has then. It is there when a process was killed, or the
// power went, while m was written; nobody else writes a part of m, with the queue ID
// that is in it. The file is locked.
func (m message) dropRemnant(f *os.File, size int64) (int64, error) {
	most, err := m.longest()
	if err != nil {
		return 0, err
	}
	at, err := lastFrom(f, size, most)
	if err == nil {
		err = m.compare(f, at, size)
	}
	if errors.Is(err, errOther) {
		// No more than a part of the word may be there.
		if at, err = lastLine(f, size); err == nil {
			err = m.compare(f, at, size)
		}
	}
	switch {
	case errors.Is(err, errRemnant):
		return at, f.Truncate(at)
	case errors.Is(err, errOther), err == nil: // all of it is there
		return size, nil
	}
	return 0, fmt.Errorf("read its end: %w", err)
}

// longest is a bound of the octets of m in a mailbox file.
func (m message) longest() (int64, error) {
	n, err := m.content.Seek(0, io.SeekEnd)
	// A line that gets an octet has more than one, and one more may be ended.
	return int64(len(m.first)+len(m.head)) + 2*n + 2, err
}

// compare returns nil if m is in f at that place, and errRemnant or errOther if not.
func (m message) compare(f *os.File, at, size int64) error {
	first := make([]byte, min(int64(len(m.first)), size-at))
	if _, err := f.ReadAt(first, at); err != nil {
		return err
	}
	if len(first) == 0 || !strings.HasPrefix(m.first, string(first)) {
		return errOther // as nearly always
	}
	return m.render(&comparison{f: f, at: at, size: size}, "")
}

// tail is how much of a mailbox is looked at first: most messages are smaller.
const tail = 8 << 10

// lastFrom returns where in the size octets of f the last message begins, if that is in
// the last most of them; or size. So a large file costs no more than the message.
func lastFrom(f *os.File, size, most int64) (int64, error) {
	mark := []byte("\n" + fromMark)
	buf := make([]byte, tail)
	for end := size; end > 0; {
		start := max(end-int64(len(buf)), 0)
		b := buf[:end-start]
		if _, err := f.ReadAt(b, start); err != nil {
			return 0, err
		}
		if i := bytes.LastIndex(b, mark); i >= 0 {
			return start + int64(i) + 1, nil
		}
		if start == 0 {
			if bytes.HasPrefix(b, mark[1:]) {
				return 0, nil
			}
			break
		}
		if size-start > most {
			break
		}
		end = start + int64(len(mark)) - 1 // it may be in both pieces
		if len(buf) == tail {
			buf = make([]byte, 16*tail)
		}
	}
	return size, nil
}

// lastLine returns where in the size octets of f a line begins that has no end, is no
// longer than what begins a message, and is behind the end of one; or size.
func lastLine(f *os.File, size int64) (int64, error) {
	b := make([]byte, min(size, int64(len(fromMark))+1))
	if _, err := f.ReadAt(b, size-int64(len(b))); err != nil {
		return 0, err
	}
	end := []byte("\n\n")
	if int64(len(b)) == size {
		b = append(end, b...) // so does the file
	}
	if i := bytes.LastIndex(b, end); i >= 0 {
		return size - int64(len(b)-i-len(end)), nil
	}
	return size, nil
}

var (
	errRemnant = errors.New("the file ends before the message")
	errOther   = errors.New("the file has another message")
)

// comparison is written a message, to see whether f has it at that place.
type comparison struct {
	f        *os.File
	at, size int64
}

func (c *comparison) Write(p []byte) (int, error) {
	have := make([]byte, min(int64(len(p)), c.size-c.at))
	if _, err := c.f.ReadAt(have, c.at); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	switch {
	case !bytes.Equal(have, p[:len(have)]):
		return 0, errOther
	case len(have) < len(p):
		return 0, errRemnant
	}
	c.at += int64(len(p))
	return len(p), nil
}
