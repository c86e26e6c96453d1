// Package maildrop holds the messages that sendmail leaves in a directory where
// the mail system is off, or runs on another machine.
//
// A file is complete in itself:
//
//	header     28 octets: magic, lengths and checksums
//	envelope   as pkg/envelope encodes it
//	content    the message as sendmail would have submitted it
//
// Whose file it is says who submits: nothing in it is more than what a user
// claims. The header is written last, and a file gets its name when it is on
// disk.
package maildrop

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"posthouse/pkg/envelope"
	"posthouse/pkg/wire"
)

const (
	headerLen = 28
	magic     = "PHMDROP1" // the digit is the version of the format
	// maxEnvelope is what fits into the opening of a message in the protocol cleanup.
	maxEnvelope = 15 << 20
)

// castagnoli is made when it is needed: in a program as short as sendmail, which does
// not need it for mail that is not dropped, it is a tenth of all.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

type header struct {
	envelopeLen uint32
	contentLen  int64
	sum         uint32 // of envelope and content
}

func (h header) encode() []byte {
	b := make([]byte, 0, headerLen)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint32(b, h.envelopeLen)
	b = binary.BigEndian.AppendUint64(b, uint64(h.contentLen))
	b = binary.BigEndian.AppendUint32(b, h.sum)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

// decodeHeader reads the header of a file of size octets.
func decodeHeader(b []byte, size int64) (header, error) {
	h := header{
		envelopeLen: binary.BigEndian.Uint32(b[8:]),
		contentLen:  int64(binary.BigEndian.Uint64(b[12:])),
		sum:         binary.BigEndian.Uint32(b[20:]),
	}
	switch {
	case !bytes.Equal(b, h.encode()):
		return header{}, errors.New("header is damaged, or of another version")
	case h.envelopeLen > maxEnvelope:
		return header{}, fmt.Errorf("envelope of %d octets, limit %d", h.envelopeLen, maxEnvelope)
	case h.contentLen < 0 || h.contentLen != size-headerLen-int64(h.envelopeLen):
		return header{}, fmt.Errorf("%d octets, which is not what the header says", size)
	}
	return h, nil
}

// Message is what a file says.
type Message struct {
	Envelope *envelope.Envelope
	Length   int64 // octets of content

	f      io.ReaderAt
	h      header
	sumEnv uint32 // checksum so far
}

// Read reads all of a file of size octets but its content.
func Read(f io.ReaderAt, size int64) (*Message, error) {
	if size < headerLen {
		return nil, fmt.Errorf("%d octets are no message", size)
	}
	b := make([]byte, headerLen)
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	h, err := decodeHeader(b, size)
	if err != nil {
		return nil, err
	}
	b = make([]byte, h.envelopeLen)
	if _, err := f.ReadAt(b, headerLen); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	e, err := decodeEnvelope(b)
	if err != nil {
		return nil, err
	}
	return &Message{Envelope: e, Length: h.contentLen, f: f, h: h, sumEnv: crc32.Checksum(b, castagnoli())}, nil
}

func decodeEnvelope(b []byte) (*envelope.Envelope, error) {
	d := wire.NewDecoder(b)
	e := envelope.Decode(d)
	switch err := d.End(); {
	case err != nil:
		return nil, fmt.Errorf("envelope: %w", err)
	case len(e.Recipients) == 0:
		return nil, errors.New("no recipient")
	case len(b) > maxEnvelope:
		return nil, fmt.Errorf("envelope of %d octets, limit %d", len(b), maxEnvelope)
	}
	return e, nil
}

// ErrDamaged is the error of CopyTo for content that is not what was written.
var ErrDamaged = errors.New("content is damaged")

// CopyTo writes the content to w. Only where it returns nil was that all of the
// message, and undamaged.
func (m *Message) CopyTo(w io.Writer) error {
	sum := &summer{w, m.sumEnv}
	n, err := io.Copy(sum, io.NewSectionReader(m.f, headerLen+int64(m.h.envelopeLen), m.Length))
	switch {
	case err != nil:
		return err
	case n != m.Length || sum.crc != m.h.sum:
		return ErrDamaged
	}
	return nil
}

// Beginning returns up to limit octets of the content.
func (m *Message) Beginning(limit int64) []byte {
	b := make([]byte, min(limit, m.Length))
	n, _ := m.f.ReadAt(b, headerLen+int64(m.h.envelopeLen)) // what cannot be read is not shown
	return b[:n]
}

type summer struct {
	w   io.Writer
	crc uint32
}

func (s *summer) Write(p []byte) (int, error) {
	s.crc = crc32.Update(s.crc, castagnoli(), p)
	return s.w.Write(p)
}

// target is a file under construction.
type target interface {
	io.Writer
	io.WriterAt
}

// encoder writes a file.
type encoder struct {
	f   target
	buf *bufio.Writer
	h   header
}

// begin writes what comes before the content. An envelope that could not be read
// back is an error: nobody must be promised anything about it.
func begin(f target, e *envelope.Envelope) (*encoder, error) {
	enc := wire.NewEncoder(make([]byte, headerLen))
	e.Encode(enc)
	b := enc.Data()
	if _, err := decodeEnvelope(b[headerLen:]); err != nil {
		return nil, err
	}
	w := &encoder{f: f, buf: bufio.NewWriterSize(f, 64<<10)}
	w.h.envelopeLen, w.h.sum = uint32(len(b)-headerLen), crc32.Checksum(b[headerLen:], castagnoli())
	_, err := w.buf.Write(b)
	return w, err
}

// Write adds to the content.
func (w *encoder) Write(p []byte) (int, error) {
	w.h.contentLen += int64(len(p))
	w.h.sum = crc32.Update(w.h.sum, castagnoli(), p)
	return w.buf.Write(p)
}

// end writes what is left, and last the header. Only then is the file a message.
func (w *encoder) end() error {
	if err := w.buf.Flush(); err != nil {
		return err
	}
	_, err := w.f.WriteAt(w.h.encode(), 0)
	return err
}
