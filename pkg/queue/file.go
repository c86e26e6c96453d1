// Package queue holds what a queue file is and where queue files are.
//
// A queue file is complete in itself:
//
//	header     64 octets: magic, lengths and checksums
//	envelope   as pkg/envelope encodes it
//	content    the message as it was received, lines end in CRLF
//	outcomes   what became of the recipients, appended by qmgr
//
// The header is written last. A file whose header is all zero is still being
// written, or was given up by a writer that died; nobody has been promised
// anything about it. A file with a header that contradicts the rest is damaged.
//
// docs/queue.md has the states, the transitions and their crash rules.
package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"time"

	"posthouse/pkg/envelope"
	"posthouse/pkg/wire"
)

const (
	headerLen   = 64
	magic       = "PHQUEUE1" // the digit is the version of the format
	maxEnvelope = 64 << 20
)

// ErrIncomplete is returned for a file whose writer has not finished.
var ErrIncomplete = errors.New("queue file is incomplete")

// ErrLocked is returned by ReadNew.
var ErrLocked = errors.New("queue file is locked by its writer")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type header struct {
	envelopeLen uint32
	envelopeCRC uint32
	contentLen  int64
	contentCRC  uint32
}

func (h header) encode() []byte {
	b := make([]byte, headerLen)
	copy(b, magic)
	binary.BigEndian.PutUint32(b[8:], h.envelopeLen)
	binary.BigEndian.PutUint32(b[12:], h.envelopeCRC)
	binary.BigEndian.PutUint64(b[16:], uint64(h.contentLen))
	binary.BigEndian.PutUint32(b[24:], h.contentCRC)
	binary.BigEndian.PutUint32(b[headerLen-4:], crc32.Checksum(b[:headerLen-4], castagnoli))
	return b
}

var noHeader [headerLen]byte

func decodeHeader(b []byte) (header, error) {
	h := header{
		envelopeLen: binary.BigEndian.Uint32(b[8:]),
		envelopeCRC: binary.BigEndian.Uint32(b[12:]),
		contentLen:  int64(binary.BigEndian.Uint64(b[16:])),
		contentCRC:  binary.BigEndian.Uint32(b[24:]),
	}
	switch {
	case bytes.Equal(b, noHeader[:]):
		return header{}, ErrIncomplete
	case string(b[:len(magic)]) != magic || !bytes.Equal(b[28:headerLen-4], noHeader[28:headerLen-4]) ||
		binary.BigEndian.Uint32(b[headerLen-4:]) != crc32.Checksum(b[:headerLen-4], castagnoli):
		return header{}, errors.New("header is damaged, or of another version")
	case h.envelopeLen > maxEnvelope || h.contentLen < 0:
		return header{}, errors.New("header with impossible lengths")
	}
	return h, nil
}

// WriteTarget is the file under construction.
type WriteTarget interface {
	io.Writer
	io.WriterAt
}

// Writer writes a queue file. It buffers; the caller makes the file durable
// after Finish.
type Writer struct {
	f    WriteTarget
	h    header
	buf  []byte
	kept *[]byte // for the next one
	err  error
}

// writeBuffer is a compromise: most messages are written by two calls, and a
// writer for each of many sessions costs little.
const writeBuffer = 32 << 10

// writeBuffers are those of messages that are finished. One with a large envelope may
// have grown beyond what is kept.
var writeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, writeBuffer/4); return &b }}

// NewWriter begins a queue file with its envelope in the empty file f. An
// envelope that could not be read back is an error of Write and Finish: nobody
// must be promised anything about it.
func NewWriter(f WriteTarget, e *envelope.Envelope) *Writer {
	w := &Writer{f: f, kept: writeBuffers.Get().(*[]byte)}
	w.buf = (*w.kept)[:headerLen]
	clear(w.buf) // until the end the file has no header
	enc := wire.NewEncoder(w.buf)
	e.Encode(enc)
	w.buf = enc.Data()
	w.h.envelopeLen = uint32(len(w.buf) - headerLen)
	w.h.envelopeCRC = crc32.Checksum(w.buf[headerLen:], castagnoli)
	_, w.err = decodeEnvelope(w.buf[headerLen:])
	return w
}

// Write adds to the content.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	w.h.contentCRC = crc32.Update(w.h.contentCRC, castagnoli, p)
	w.h.contentLen += int64(len(p))
	w.buf = append(w.buf, p...)
	if len(w.buf) >= writeBuffer {
		w.flush()
	}
	return len(p), w.err
}

// Len returns the length of the content so far, in octets.
func (w *Writer) Len() int64 { return w.h.contentLen }

func (w *Writer) flush() {
	if w.err == nil && len(w.buf) > 0 {
		_, w.err = w.f.Write(w.buf)
		w.buf = w.buf[:0]
	}
}

// Finish writes what is left, and last the header. Only then is the file a
// message; it is not on disk yet.
func (w *Writer) Finish() error {
	w.flush()
	if w.err == nil {
		_, w.err = w.f.WriteAt(w.h.encode(), 0)
	}
	if w.kept != nil && cap(w.buf) <= 2*writeBuffer {
		*w.kept = w.buf
		writeBuffers.Put(w.kept)
	}
	w.buf, w.kept = nil, nil
	return w.err
}

// Message is what a queue file says.
type Message struct {
	Envelope   *envelope.Envelope
	Offset     int64 // of the content
	Length     int64 // of the content
	Recipients []RecipientState
	Schedule   Schedule
	Requeued   time.Time // when it was asked to be treated as new; zero: not, or that has been done

	contentCRC uint32
	tail       int64 // where the next outcome goes
	size       int64 // of the file: larger than tail where a record is torn
	lost       bool  // see Flush
}

// Read reads all of a queue file but its content. Damage gives an error that
// says what and where; ErrIncomplete is kept apart.
func Read(f *os.File) (*Message, error) { return readFile(f, headTries) }

// ReadNew is Read of a file that may be new. Where its writer has not let go of it the
// error is ErrLocked, complete though it may be: it may be about to be given up,
// because it cannot be made durable.
func ReadNew(f *os.File) (*Message, error) {
	m, err := Read(f)
	if !errors.Is(err, ErrIncomplete) && isBeingWritten(f) {
		return nil, ErrLocked
	}
	return m, err
}

// ReadFinished is Read of a file of which nobody is writing the header: it does not
// wait for the rest of that.
func ReadFinished(f *os.File) (*Message, error) { return readFile(f, 1) }

func readFile(f *os.File, tries int) (*Message, error) {
	size := func() (int64, error) {
		info, err := f.Stat()
		if err != nil {
			return 0, fmt.Errorf("queue file: %w", err)
		}
		if !info.Mode().IsRegular() {
			return 0, errNotRegular
		}
		return info.Size(), nil
	}
	if _, err := size(); err != nil {
		return nil, err
	}
	b := windows.Get().(*[windowSize]byte)
	defer windows.Put(b)
	return read(&window{f: f, b: b[:0]}, tries, size)
}

// windowSize is how much of a file is read at once, in octets: all but the content of
// most messages.
const windowSize = 4 << 10

var windows = sync.Pool{New: func() any { return new([windowSize]byte) }}

var errNotRegular = errors.New("queue file: not a regular file")

// read is Read of a file of which size tells the number of octets.
func read(w *window, tries int, size func() (int64, error)) (*Message, error) {
	h, err := readHead(w, tries)
	if err != nil {
		return nil, err
	}
	m := &Message{Offset: headerLen + int64(h.envelopeLen), Length: h.contentLen, contentCRC: h.contentCRC, size: w.end()}
	if w.full() || m.size-m.Offset < m.Length {
		// Now that the header is there the file is complete. Its end before may be one
		// that it had while it was written.
		if m.size, err = size(); err != nil {
			return nil, err
		}
	}
	if m.Offset > m.size || m.Length > m.size-m.Offset {
		return nil, fmt.Errorf("queue file: %d octets, header says %d or more", m.size, m.Offset+m.Length)
	}
	m.tail = m.Offset + m.Length
	if err := m.readEnvelope(w, h); err != nil {
		return nil, err
	}
	m.Recipients = make([]RecipientState, len(m.Envelope.Recipients))
	if err := m.readOutcomes(w); err != nil {
		return nil, err
	}
	return m, nil
}

// window is the part of a file that is in memory.
type window struct {
	f   io.ReaderAt
	off int64
	b   []byte // what is there at off; all of its capacity is used
}

// end is where the window ends.
func (w *window) end() int64 { return w.off + int64(len(w.b)) }

// full reports whether the file may go on behind the window.
func (w *window) full() bool { return len(w.b) == cap(w.b) }

// move has the window begin at off. It is shorter than it may be at the end of the file.
func (w *window) move(off int64) error {
	n, err := w.f.ReadAt(w.b[:cap(w.b)], off)
	w.off, w.b = off, w.b[:n]
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// octets returns n octets at off, which are valid until the next call.
func (w *window) octets(off int64, n int) ([]byte, error) {
	if off < w.off || off+int64(n) > w.end() {
		if n > cap(w.b) {
			w.b = make([]byte, 0, n)
		}
		if err := w.move(off); err != nil {
			return nil, err
		}
		if n > len(w.b) {
			return nil, io.ErrUnexpectedEOF
		}
	}
	return w.b[off-w.off:][:n:n], nil
}

// A header may be read while it is written, and then be there in part. That takes
// no longer than a system call.
const (
	headTries = 3
	headPause = time.Millisecond
)

// readHead reads the header, and what is behind it.
func readHead(w *window, tries int) (header, error) {
	for i := 1; ; i++ {
		if err := w.move(0); err != nil {
			return header{}, fmt.Errorf("queue file: %w", err)
		}
		// A file shorter than its header was given up early, or has just been begun.
		if len(w.b) < headerLen {
			return header{}, ErrIncomplete
		}
		h, err := decodeHeader(w.b[:headerLen])
		switch {
		case err == nil:
			return h, nil
		case errors.Is(err, ErrIncomplete):
			return header{}, err
		case i == tries:
			return header{}, fmt.Errorf("queue file: %w", err)
		}
		time.Sleep(headPause)
	}
}

// IsIncomplete reports whether f has nothing of a header, as long as it is written,
// or its writer has not let go of it. It does not wait for the rest of a header that
// is there in part.
func IsIncomplete(f *os.File) bool {
	var b [headerLen]byte
	n, err := f.ReadAt(b[:], 0)
	return (err == nil || errors.Is(err, io.EOF)) && (n < headerLen || b == [headerLen]byte{}) || isBeingWritten(f)
}

func (m *Message) readEnvelope(w *window, h header) error {
	b, err := w.octets(headerLen, int(h.envelopeLen))
	if err != nil {
		return fmt.Errorf("queue file: envelope: %w", err)
	}
	if crc32.Checksum(b, castagnoli) != h.envelopeCRC {
		return errors.New("queue file: envelope is damaged")
	}
	m.Envelope, err = decodeEnvelope(b)
	return err
}

func decodeEnvelope(b []byte) (*envelope.Envelope, error) {
	d := wire.NewListDecoder(b)
	e := envelope.Decode(d)
	switch err := d.End(); {
	case err != nil:
		return nil, fmt.Errorf("queue file: envelope: %w", err)
	case len(e.Recipients) == 0:
		return nil, errors.New("queue file: no recipient")
	case len(b) > maxEnvelope:
		return nil, fmt.Errorf("queue file: envelope of %d octets, limit %d", len(b), maxEnvelope)
	}
	return e, nil
}

// CheckContent reads the content and compares its checksum. It is for files
// that this boot of the machine has not seen being written.
func (m *Message) CheckContent(f *os.File) error {
	sum := crc32.New(castagnoli)
	if _, err := io.Copy(sum, io.NewSectionReader(f, m.Offset, m.Length)); err != nil {
		return fmt.Errorf("queue file: content: %w", err)
	}
	if sum.Sum32() != m.contentCRC {
		return errors.New("queue file: content is damaged")
	}
	return nil
}
