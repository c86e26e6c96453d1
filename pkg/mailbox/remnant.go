package mailbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// dropRemnant removes the beginning of m from the end of f, which has size octets,
// and returns how many it has then. It is there when a process was killed, or the
// power went, while m was written; nobody else writes a part of m, with the queue ID
// that is in it. The file is locked.
//
// When the power goes, a file may have got its new size, but not all that was written
// there: NULs, of which mail has none, are in its place. They are taken for what m
// has there, and those that the file ends with are removed whoever wrote them.
func (m message) dropRemnant(f *os.File, size int64) (int64, error) {
	most, err := m.longest()
	if err != nil {
		return 0, err
	}
	end, err := beforeNULs(f, size)
	if err != nil {
		return 0, fmt.Errorf("read its end: %w", err)
	}
	at, nul, err := lastFrom(f, end, most)
	if err == nil {
		err = m.compare(f, at, end, "")
	}
	if errors.Is(err, errOther) {
		// No more than a part of the word may be there.
		if at, err = lastLine(f, end); err == nil {
			err = m.compare(f, at, end, "")
		}
	}
	if errors.Is(err, errOther) && nul < end {
		// Or its beginning is lost, with what was put before it.
		var before string
		if at, err = lastLine(f, nul); err == nil && at == nul {
			before, err = separator(f, nul)
		}
		if err == nil {
			err = m.compare(f, at, end, before)
		}
	}
	switch {
	case errors.Is(err, errRemnant):
		end = at
	case errors.Is(err, errOther), err == nil: // all of it is there
	default:
		return 0, fmt.Errorf("read its end: %w", err)
	}
	if end == size {
		return size, nil
	}
	return end, f.Truncate(end)
}

// maxNULs bounds the NULs that are removed: a user may make a file that has any number.
// No mail has any, and few messages are longer.
const maxNULs = 64 << 20

// beforeNULs returns where in the size octets of f the NULs begin that it ends with; or
// size, where they are too many.
func beforeNULs(f *os.File, size int64) (int64, error) {
	buf := make([]byte, 1)
	for end := size; end > 0 && size-end <= maxNULs; {
		start := max(end-int64(len(buf)), 0)
		b := buf[:end-start]
		if _, err := f.ReadAt(b, start); err != nil {
			return 0, err
		}
		if text := bytes.TrimRight(b, "\x00"); len(text) > 0 {
			return start + int64(len(text)), nil
		}
		if end = start; len(buf) == 1 {
			buf = make([]byte, 16*tail)
		}
	}
	if size > maxNULs {
		return size, nil
	}
	return 0, nil
}

// longest is a bound of the octets of m in a mailbox file.
func (m message) longest() (int64, error) {
	n, err := m.content.Seek(0, io.SeekEnd)
	// A line that gets an octet has more than one, and one more may be ended.
	return int64(len(m.first)+len(m.head)) + 2*n + 2, err
}

// compare returns nil if m, with before before it, is in f at that place, and errRemnant
// or errOther if not.
func (m message) compare(f *os.File, at, size int64, before string) error {
	begin := before + m.first
	first := make([]byte, min(int64(len(begin)), size-at))
	if _, err := f.ReadAt(first, at); err != nil {
		return err
	}
	if same, _ := covers([]byte(begin[:len(first)]), first); len(first) == 0 || !same {
		return errOther // as nearly always
	}
	c := &comparison{f: f, at: at, size: size}
	switch err := m.render(c, before); {
	case err != nil || !c.nuls:
		return err
	case c.at < size:
		return errOther
	}
	return errRemnant
}

// covers reports whether have is what was written, or what is left of it; and whether
// it is not all.
func covers(written, have []byte) (same, nuls bool) {
	if bytes.Equal(written, have) {
		return true, false
	}
	for i := range have {
		if have[i] != written[i] && have[i] != 0 {
			return false, false
		}
		nuls = nuls || have[i] == 0
	}
	return true, nuls
}

// tail is how much of a mailbox is looked at first: most messages are smaller.
const tail = 8 << 10

// lastFrom returns where in the size octets of f the last message begins, if that is in
// the last most of them; or size. So a large file costs no more than the message. nul is
// where the first NUL is of what it has read for that; or size.
func lastFrom(f *os.File, size, most int64) (at, nul int64, err error) {
	mark := []byte("\n" + fromMark)
	buf := make([]byte, tail)
	nul = size
	for end := size; end > 0; {
		start := max(end-int64(len(buf)), 0)
		b := buf[:end-start]
		if _, err := f.ReadAt(b, start); err != nil {
			return 0, 0, err
		}
		from := bytes.LastIndex(b, mark)
		if i := bytes.IndexByte(b[from+1:], 0); i >= 0 {
			nul = start + int64(from+1+i)
		}
		if from >= 0 {
			return start + int64(from) + 1, nul, nil
		}
		if start == 0 {
			if bytes.HasPrefix(b, mark[1:]) {
				return 0, nul, nil
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
	return size, nul, nil
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
	nuls     bool // there are some
}

func (c *comparison) Write(p []byte) (int, error) {
	have := make([]byte, min(int64(len(p)), c.size-c.at))
	if _, err := c.f.ReadAt(have, c.at); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	same, nuls := covers(p[:len(have)], have)
	c.nuls = c.nuls || nuls
	switch {
	case !same:
		return 0, errOther
	case len(have) < len(p):
		return 0, errRemnant
	}
	c.at += int64(len(p))
	return len(p), nil
}
