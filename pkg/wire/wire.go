// Package wire encodes and decodes the records that daemons exchange and that
// queue files hold.
//
// The form is binary and has one spelling for each value: fixed-width numbers
// in big-endian order and octet strings behind a 32-bit length. There is no
// line and no separator, so that text can never become structure.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/queueid"
)

// Encoder appends fields to a buffer. The zero Encoder is ready for use.
type Encoder struct{ b []byte }

// NewEncoder returns an Encoder that appends to b.
func NewEncoder(b []byte) *Encoder { return &Encoder{b} }

// Data returns what was encoded.
func (e *Encoder) Data() []byte { return e.b }

// Uint8 appends one octet.
func (e *Encoder) Uint8(v uint8) { e.b = append(e.b, v) }

// Uint32 appends four octets.
func (e *Encoder) Uint32(v uint32) { e.b = binary.BigEndian.AppendUint32(e.b, v) }

// Int64 appends eight octets.
func (e *Encoder) Int64(v int64) { e.b = binary.BigEndian.AppendUint64(e.b, uint64(v)) }

// Bool appends one octet, 0 or 1.
func (e *Encoder) Bool(v bool) {
	if v {
		e.Uint8(1)
	} else {
		e.Uint8(0)
	}
}

// String appends a string behind its length.
func (e *Encoder) String(s string) {
	e.Uint32(uint32(len(s)))
	e.b = append(e.b, s...)
}

// Raw appends octets as they are; it is the last field of a record.
func (e *Encoder) Raw(p []byte) { e.b = append(e.b, p...) }

// Time appends a time, to the microsecond; the zero time is kept apart.
func (e *Encoder) Time(t time.Time) {
	if t.IsZero() {
		e.Int64(math.MinInt64)
	} else {
		e.Int64(t.UnixMicro())
	}
}

// Mailbox appends an address in its two parts.
func (e *Encoder) Mailbox(m addr.Mailbox) {
	e.String(m.Local())
	e.String(m.Domain())
}

// QueueID appends a queue ID.
func (e *Encoder) QueueID(id queueid.ID) { e.String(id.String()) }

// Addr appends an IP address; the zero address gives the empty string.
func (e *Encoder) Addr(a netip.Addr) {
	if a.IsValid() {
		e.String(a.String())
	} else {
		e.String("")
	}
}

// Status appends an enhanced status code.
func (e *Encoder) Status(s dsn.Status) { e.String(s.String()) }

// Error appends a verdict; nil is kept apart.
func (e *Encoder) Error(err *dsn.Error) {
	e.Bool(err != nil)
	if err != nil {
		e.Status(err.Status)
		e.String(err.Text)
	}
}

// Decoder reads fields from a buffer that comes from elsewhere. The first
// error sticks: later reads return zero values, and End returns that error. A
// caller checks End, once, and uses nothing before.
type Decoder struct {
	b   []byte
	all string // what strings are parts of; "": each is by itself
	err error
}

// NewDecoder reads from b, which the decoded strings do not alias.
func NewDecoder(b []byte) *Decoder { return &Decoder{b: b} }

// NewListDecoder is NewDecoder for a record that is mostly strings, which are kept
// together: they are parts of one copy of b, and each of them keeps all of it.
func NewListDecoder(b []byte) *Decoder { return &Decoder{b: b, all: string(b)} }

// Fail makes err the error of d unless there is one already.
func (d *Decoder) Fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// Err returns the first error so far, for loops that must not go on.
func (d *Decoder) Err() error { return d.err }

// End checks that the record ends here and returns the first error.
func (d *Decoder) End() error {
	if d.err == nil && len(d.b) > 0 {
		d.err = fmt.Errorf("%d octets after the last field", len(d.b))
	}
	return d.err
}

// Left returns the number of octets not read yet.
func (d *Decoder) Left() int { return len(d.b) }

var errShort = errors.New("record is cut short")

func (d *Decoder) take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n > len(d.b) {
		d.err = errShort
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

// Uint8 reads one octet.
func (d *Decoder) Uint8() uint8 {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

// Uint32 reads four octets.
func (d *Decoder) Uint32() uint32 {
	if p := d.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

// Int64 reads eight octets.
func (d *Decoder) Int64() int64 {
	if p := d.take(8); p != nil {
		return int64(binary.BigEndian.Uint64(p))
	}
	return 0
}

// Bool reads one octet that must be 0 or 1.
func (d *Decoder) Bool() bool {
	v := d.Uint8()
	if v > 1 {
		d.Fail(fmt.Errorf("%d is not a truth value", v))
		return false
	}
	return v == 1
}

// Enum reads one octet that must be at most limit.
func (d *Decoder) Enum(limit uint8) uint8 {
	v := d.Uint8()
	if v > limit {
		d.Fail(fmt.Errorf("value %d, limit %d", v, limit))
		return 0
	}
	return v
}

// Count reads the number of items that follow, at most limit. Each takes an
// octet at least, so no short record makes its reader allocate much.
func (d *Decoder) Count(limit int) int {
	n := d.Uint32()
	if d.err == nil && (uint64(n) > uint64(limit) || int(n) > len(d.b)) {
		d.Fail(fmt.Errorf("%d items, limit %d, in %d octets", n, limit, len(d.b)))
	}
	if d.err != nil {
		return 0
	}
	return int(n)
}

// String reads any octets, at most limit.
func (d *Decoder) String(limit int) string {
	n := d.Uint32()
	if d.err == nil && uint64(n) > uint64(limit) {
		d.Fail(fmt.Errorf("string of %d octets, limit %d", n, limit))
	}
	at := len(d.all) - len(d.b)
	p := d.take(int(min(n, math.MaxInt32)))
	if d.all != "" {
		return d.all[at:][:len(p)]
	}
	return string(p)
}

// Text reads a printable line of UTF-8, at most limit octets.
func (d *Decoder) Text(limit int) string {
	s := d.String(limit)
	if err := dsn.CheckText(s); d.err == nil && err != nil {
		d.Fail(fmt.Errorf("text: %w", err))
	}
	if d.err != nil {
		return ""
	}
	return s
}

// Raw reads all that is left. The result aliases the decoder's buffer.
func (d *Decoder) Raw() []byte { return d.take(len(d.b)) }

// Time reads a time.
func (d *Decoder) Time() time.Time {
	v := d.Int64()
	if d.err != nil || v == math.MinInt64 {
		return time.Time{}
	}
	// Years 0 to 9999, so that every time can be shown and computed with.
	if t := time.UnixMicro(v); v > -62167219200e6 && v < 253402300800e6 {
		return t
	}
	d.Fail(fmt.Errorf("time %d is out of range", v))
	return time.Time{}
}

// Mailbox reads an address; the null reverse-path is one.
func (d *Decoder) Mailbox() addr.Mailbox {
	local, domain := d.String(addr.MaxLocal), d.String(addr.MaxDomain)
	if d.err != nil || local == "" && domain == "" {
		return addr.Mailbox{}
	}
	m, err := addr.New(local, domain)
	if err != nil {
		d.Fail(err)
	}
	return m
}

// QueueID reads a queue ID.
func (d *Decoder) QueueID() queueid.ID {
	s := d.String(queueid.Len)
	if d.err != nil {
		return queueid.ID{}
	}
	id, err := queueid.Parse(s)
	if err != nil {
		d.Fail(err)
	}
	return id
}

// Addr reads an IP address, or the zero address.
func (d *Decoder) Addr() netip.Addr {
	s := d.String(64)
	if d.err != nil || s == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err == nil && (a.Zone() != "" || a.String() != s) {
		err = fmt.Errorf("address %q is not in its one form", s)
	}
	if err != nil {
		d.Fail(err)
		return netip.Addr{}
	}
	return a
}

// Status reads an enhanced status code.
func (d *Decoder) Status() dsn.Status {
	s := d.String(16)
	if d.err != nil {
		return dsn.Status{}
	}
	st, err := dsn.Parse(s)
	if err != nil {
		d.Fail(err)
	}
	return st
}

// MaxText is the longest reason, in octets, that one daemon tells another.
const MaxText = 2048

// Error reads a verdict, which is never a success; nil where there is none.
func (d *Decoder) Error() *dsn.Error {
	if !d.Bool() {
		return nil
	}
	e := &dsn.Error{Status: d.Status(), Text: d.Text(MaxText)}
	if e.Status.Class() == dsn.Success {
		d.Fail(errors.New("error with a success status"))
	}
	return e
}
