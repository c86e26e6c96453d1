package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/wire"
)

// RecipientState is what became of one recipient so far. The zero value has
// not been tried.
type RecipientState struct {
	Tried    bool
	Last     delivery.Result // of the last attempt
	Reported bool            // the notification that Last asks for is in the queue, or is not wanted
	Next     time.Time       // of its next attempt, where that is later than the message's; zero: not
}

// Pending reports whether the message is still to be delivered to it.
func (r *RecipientState) Pending() bool {
	return !r.Tried || r.Last.Status.Class() == dsn.Transient
}

// Schedule is when a deferred message is tried again.
type Schedule struct {
	Next   time.Time // zero: at once
	Warned bool      // the delay notification is in the queue
}

// Outcome is one record that qmgr appends. Exactly one field is set.
type Outcome struct {
	Results  []IndexedResult // of one delivery attempt
	Reported []uint32        // recipients, by index
	Schedule *Schedule
	Retries  []Retry   // of recipients that are to wait for longer than the message
	Requeue  time.Time // when the administrator asked for the message to be treated as new
	// Renewal are the recipients that take the place of those that are pending;
	// it is what becomes of a message that is to be treated as new, whose age
	// counts from Requeue on.
	Renewal []envelope.Recipient
}

// Retry is when a recipient is tried again, by its index in the envelope.
type Retry struct {
	Index uint32
	Next  time.Time
}

// IndexedResult is the result for one recipient, by its index in the envelope.
type IndexedResult struct {
	Index uint32
	delivery.Result
}

// A record is its length and its checksum, 4 octets each, and the record. A
// record that the power cut off, and whatever is behind it, is as if it had not
// been written: its recipients are tried again.
const (
	recordHead = 8
	maxRecord  = 16 << 20
)

const (
	kindResults = 1 + iota
	kindReported
	kindSchedule
	kindRequeue
	kindRenewal
	kindRetries
)

func (o Outcome) encode() []byte {
	e := wire.NewEncoder(make([]byte, recordHead, 256))
	switch {
	case o.Results != nil:
		e.Uint8(kindResults)
		e.Uint32(uint32(len(o.Results)))
		for i := range o.Results {
			e.Uint32(o.Results[i].Index)
			o.Results[i].Encode(e)
		}
	case o.Reported != nil:
		e.Uint8(kindReported)
		e.Uint32(uint32(len(o.Reported)))
		for _, i := range o.Reported {
			e.Uint32(i)
		}
	case o.Schedule != nil:
		e.Uint8(kindSchedule)
		e.Time(o.Schedule.Next)
		e.Bool(o.Schedule.Warned)
	case !o.Requeue.IsZero():
		e.Uint8(kindRequeue)
		e.Time(o.Requeue)
	case o.Retries != nil:
		e.Uint8(kindRetries)
		e.Uint32(uint32(len(o.Retries)))
		for _, r := range o.Retries {
			e.Uint32(r.Index)
			e.Time(r.Next)
		}
	case o.Renewal != nil:
		e.Uint8(kindRenewal)
		envelope.EncodeRecipients(e, o.Renewal)
	}
	b := e.Data()
	binary.BigEndian.PutUint32(b, uint32(len(b)-recordHead))
	binary.BigEndian.PutUint32(b[4:], crc32.Checksum(b[recordHead:], castagnoli))
	return b
}

func (m *Message) decodeOutcome(b []byte) (Outcome, error) {
	d := wire.NewListDecoder(b)
	recipients := len(m.Recipients)
	var o Outcome
	switch kind := d.Uint8(); kind {
	case kindResults:
		o.Results = []IndexedResult{}
		for range d.Count(recipients) {
			o.Results = append(o.Results, IndexedResult{index(d, recipients), delivery.DecodeResult(d)})
		}
	case kindReported:
		o.Reported = []uint32{}
		for range d.Count(recipients) {
			o.Reported = append(o.Reported, index(d, recipients))
		}
	case kindSchedule:
		o.Schedule = &Schedule{d.Time(), d.Bool()}
	case kindRequeue:
		if o.Requeue = d.Time(); o.Requeue.IsZero() {
			d.Fail(errors.New("requeued at no time"))
		}
	case kindRetries:
		o.Retries = []Retry{}
		for range d.Count(recipients) {
			o.Retries = append(o.Retries, Retry{index(d, recipients), d.Time()})
		}
	case kindRenewal:
		o.Renewal = envelope.DecodeRecipients(d, envelope.MaxRecipients-m.done())
		if m.Requeued.IsZero() || len(o.Renewal) == 0 {
			d.Fail(errors.New("new recipients that nobody has asked for, or none"))
		}
	default:
		d.Fail(fmt.Errorf("outcome of kind %d", kind))
	}
	if err := d.End(); err != nil {
		return Outcome{}, err
	}
	return o, nil
}

func index(d *wire.Decoder, recipients int) uint32 {
	i := d.Uint32()
	if uint64(i) >= uint64(recipients) {
		d.Fail(fmt.Errorf("recipient %d of %d", i, recipients))
		return 0
	}
	return i
}

// Apply records o in memory alone: for the last outcome of a message whose file
// is about to be removed.
func (m *Message) Apply(o Outcome) {
	for _, r := range o.Results {
		m.Recipients[r.Index] = RecipientState{Tried: true, Last: r.Result}
	}
	for _, i := range o.Reported {
		m.Recipients[i].Reported = true
	}
	for _, r := range o.Retries {
		m.Recipients[r.Index].Next = r.Next
	}
	switch {
	case o.Schedule != nil:
		m.Schedule = *o.Schedule
	case !o.Requeue.IsZero():
		m.Requeued = o.Requeue
	case o.Renewal != nil:
		m.renew(o.Renewal)
	}
}

// done returns the number of recipients that are not pending.
func (m *Message) done() int {
	n := 0
	for i := range m.Recipients {
		if !m.Recipients[i].Pending() {
			n++
		}
	}
	return n
}

// renew puts list in the place of the recipients that are pending.
func (m *Message) renew(list []envelope.Recipient) {
	var rcpts []envelope.Recipient
	var states []RecipientState
	for i := range m.Recipients {
		if !m.Recipients[i].Pending() {
			rcpts, states = append(rcpts, m.Envelope.Recipients[i]), append(states, m.Recipients[i])
		}
	}
	m.Envelope.Recipients = append(rcpts, list...)
	m.Recipients = append(states, make([]RecipientState, len(list))...)
	m.Envelope.Arrival, m.Requeued, m.Schedule = m.Requeued, time.Time{}, Schedule{}
}

// readOutcomes applies every whole record and leaves m.tail behind the last.
func (m *Message) readOutcomes(w *window) error {
	for m.size-m.tail >= recordHead {
		head, err := w.octets(m.tail, recordHead)
		if err != nil {
			return fmt.Errorf("queue file: outcomes: %w", err)
		}
		n, sum := binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[4:])
		if n == 0 || n > maxRecord || int64(n) > m.size-m.tail-recordHead {
			return nil
		}
		b, err := w.octets(m.tail+recordHead, int(n))
		if err != nil {
			return fmt.Errorf("queue file: outcomes: %w", err)
		}
		if crc32.Checksum(b, castagnoli) != sum {
			return nil
		}
		o, err := m.decodeOutcome(b)
		if err != nil {
			// A record with a right checksum and wrong content was not torn.
			return fmt.Errorf("queue file: outcome at offset %d: %w", m.tail, err)
		}
		m.Apply(o)
		m.tail += recordHead + int64(n)
	}
	return nil
}

// Target is a file to which outcomes are appended.
type Target interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
}

// News returns what o, which has a recipient once, has that m has not: it is what is to
// be appended where the file has all that m has. A result that is the last one already
// is left out: else a message to many who wait for the same host would grow with each
// attempt, and be read as a whole for the next. What is left of it is that the recipient
// has no time of his own any more.
func (m *Message) News(o Outcome) (list []Outcome) {
	if o.Results == nil {
		return []Outcome{o}
	}
	var results []IndexedResult
	var retries []Retry
	for _, r := range o.Results {
		state := m.Recipients[r.Index]
		switch {
		case state != RecipientState{Tried: true, Last: r.Result, Next: state.Next}:
			results = append(results, r)
		case !state.Next.IsZero():
			retries = append(retries, Retry{Index: r.Index})
		}
	}
	if results != nil {
		list = append(list, Outcome{Results: results})
	}
	if retries != nil {
		list = append(list, Outcome{Retries: retries})
	}
	return list
}

// Append records o at the end of f, which is m's file open for writing, and in
// m. It does not sync: an outcome that the power takes away makes a second
// delivery, no loss. On an error m is as before, and the outcome may or may not
// be in the file.
func (m *Message) Append(f Target, o Outcome) error {
	b := o.encode()
	if len(b) > recordHead+maxRecord {
		return errors.New("queue file: outcome is too large")
	}
	// What cannot be read would make the file a damaged one.
	if _, err := m.decodeOutcome(b[recordHead:]); err != nil {
		return fmt.Errorf("queue file: malformed outcome: %w", err)
	}
	if m.size > m.tail {
		if err := f.Truncate(m.tail); err != nil {
			return fmt.Errorf("queue file: drop torn record: %w", err)
		}
		m.size = m.tail
	}
	n, err := f.WriteAt(b, m.tail)
	m.size = m.tail + int64(n)
	if err != nil {
		return fmt.Errorf("queue file: append outcome: %w", err)
	}
	m.tail = m.size
	m.Apply(o)
	return nil
}

// flushPiece is how much of the outcomes Flush has in memory, in octets.
const flushPiece = 1 << 20

// Flush makes the outcomes in f durable, which is m's file open for writing, by sync.
// After a flush that failed the kernel takes what it could not write for written, and
// may forget it: all outcomes are written again, whoever wrote them, so that the next
// flush means what it says. Where there are very many, and some have been forgotten
// already, no flush of m succeeds any more: read again, it has what there is.
func (m *Message) Flush(f Target, sync func() error) error {
	if m.lost {
		return errors.New("queue file: outcomes were lost when it was flushed")
	}
	from := m.Offset + m.Length
	b := make([]byte, min(m.tail-from, flushPiece))
	var sums []uint32
	for at := from; at < m.tail; at += flushPiece {
		p := b[:min(m.tail-at, flushPiece)]
		if _, err := f.ReadAt(p, at); err != nil {
			return fmt.Errorf("queue file: outcomes: %w", err)
		}
		sums = append(sums, crc32.Checksum(p, castagnoli))
	}
	err := sync()
	if err == nil {
		return nil
	}
	for i, sum := range sums {
		at := from + int64(i)*flushPiece
		p := b[:min(m.tail-at, flushPiece)]
		if len(sums) > 1 {
			if _, again := f.ReadAt(p, at); again != nil || crc32.Checksum(p, castagnoli) != sum {
				m.lost = true
				return fmt.Errorf("%w; queue file: outcomes are lost", err)
			}
		}
		if _, again := f.WriteAt(p, at); again != nil {
			return fmt.Errorf("%w; queue file: write outcomes again: %w", err, again)
		}
	}
	return err
}
