package queue

import (
	"bytes"
	"errors"
	"hash/crc32"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/wire"
	"posthouse/pkg/wire/wiretest"
)

// formatVersion is the digit in magic: files of a version are read for as long
// as there may be any.
var formatVersion = magic[len(magic)-1] - '0'

// fullEnvelope is an envelope with everything.
func fullEnvelope(t testing.TB) *envelope.Envelope {
	return &envelope.Envelope{
		Arrival: wiretest.Time, Sender: wiretest.Mailbox(t, "alice@example.org"), Return: dsn.ReturnHeaders, EnvID: "an id",
		Body: envelope.Body8BitMIME, SMTPUTF8: true, Recipients: wiretest.Recipients(t), Trace: envelope.Trace{
			Origin: envelope.FromLocal, Protocol: "ESMTP", Helo: "h.example", ClientName: "c.example",
			ClientAddr: netip.MustParseAddr("192.0.2.1"), UID: 1000,
		},
	}
}

// buffer is a file in memory under construction.
type buffer struct{ bytes.Buffer }

func (b *buffer) WriteAt(p []byte, off int64) (int, error) { return copy(b.Bytes()[off:], p), nil }

// file is a whole queue file without outcomes.
type file struct {
	Envelope *envelope.Envelope
	Content  []byte
}

// disk is a file that is written again and again.
type disk struct{ *os.File }

func newDisk(t testing.TB) disk {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return disk{f}
}

// read reads a file with this in it.
func (d disk) read(t testing.TB, b []byte) (*Message, error) {
	_, err := d.WriteAt(b, 0)
	if err := errors.Join(err, d.Truncate(int64(len(b)))); err != nil {
		t.Fatal(err)
	}
	m, err := Read(d.File)
	switch {
	case err != nil && m != nil:
		t.Fatalf("%v, and yet %+v", err, m)
	case err == nil:
		err = m.CheckContent(d.File)
	}
	return m, err
}

// files reads and writes whole files.
func (d disk) files(t testing.TB) wiretest.Codec[file] {
	return wiretest.Codec[file]{
		Encode: func(v file) []byte {
			var b buffer
			w := NewWriter(&b, v.Envelope)
			_, _ = w.Write(v.Content) // Finish says it
			if err := w.Finish(); err != nil {
				t.Fatal(err)
			}
			return b.Bytes()
		},
		Decode: func(b []byte) (file, error) {
			m, err := d.read(t, b)
			if err != nil {
				return file{}, err
			}
			return file{m.Envelope, b[m.Offset : m.Offset+m.Length]}, nil
		},
	}
}

func TestFileFormat(t *testing.T) {
	v := file{fullEnvelope(t), []byte("Subject: x\r\n\r\nbody\r\n")}
	newDisk(t).files(t).Golden(t, "file", formatVersion, v)
	wiretest.Complete(t, v)
}

// TestUnreadable: what could not be read back is not written, and nobody is told
// that it is in the queue.
func TestUnreadable(t *testing.T) {
	for what, spoil := range map[string]func(*envelope.Envelope){
		"no recipient":        func(e *envelope.Envelope) { e.Recipients = nil },
		"too many recipients": func(e *envelope.Envelope) { e.Recipients = make([]envelope.Recipient, envelope.MaxRecipients+1) },
		"a line break":        func(e *envelope.Envelope) { e.Trace.Helo = "a\r\nb" },
		"no year":             func(e *envelope.Envelope) { e.Arrival = e.Arrival.AddDate(9000, 0, 0) },
		"too many octets": func(e *envelope.Envelope) {
			e.Recipients = wiretest.LongRecipients(t, 1+maxEnvelope/2047)
		},
	} {
		e := fullEnvelope(t)
		spoil(e)
		var b buffer
		w := NewWriter(&b, e)
		if _, err := w.Write([]byte("x\r\n")); err == nil {
			t.Errorf("%s: content is taken", what)
		}
		if err := w.Finish(); err == nil || b.Len() > 0 {
			t.Errorf("%s: %v, %d octets are written", what, err, b.Len())
		}
	}
}

// outcomes are of a message with three recipients that is to be treated as new.
var outcomes = wiretest.Codec[Outcome]{
	Encode: func(o Outcome) []byte { return o.encode()[recordHead:] },
	Decode: (&Message{Recipients: make([]RecipientState, 3), Requeued: wiretest.Time}).decodeOutcome,
}

func kinds(t testing.TB) map[string]Outcome {
	return map[string]Outcome{
		"results": {Results: []IndexedResult{
			{1, delivery.Result{Status: dsn.MustParse("2.1.5"), Text: "ok", RemoteMTA: "mx.example", Diagnostic: "250 ok", Relayed: true}},
			{2, delivery.Result{Status: dsn.MustParse("4.4.1"), Text: "no route"}},
		}},
		"reported": {Reported: []uint32{0, 2}},
		"schedule": {Schedule: &Schedule{Next: wiretest.Time, Warned: true}},
		"requeue":  {Requeue: wiretest.Time},
		"retries":  {Retries: []Retry{{0, wiretest.Time}, {2, wiretest.Time}}},
		"renewal":  {Renewal: wiretest.Recipients(t)},
	}
}

func TestOutcomeFormat(t *testing.T) {
	var all []any
	for name, o := range kinds(t) {
		outcomes.Golden(t, name, formatVersion, o)
		outcomes.Whole(t, name, o)
		all = append(all, o)
	}
	wiretest.Complete(t, all...)
	outcomes.RefusesOctets(t, "another kind", []byte{kindRetries + 1})
	outcomes.RefusesOctets(t, "kind 0", []byte{0})
	outcomes.Refuses(t, "a fourth recipient", Outcome{Reported: []uint32{3}})
	outcomes.Refuses(t, "a fourth recipient's time", Outcome{Retries: []Retry{{Index: 3}}})
	outcomes.Refuses(t, "a fourth recipient's result", Outcome{Results: []IndexedResult{{Index: 3}}})
	outcomes.Refuses(t, "more results than recipients", Outcome{Results: make([]IndexedResult, 4)})
	outcomes.Limit(t, "octets of text", wire.MaxText, func(n int) Outcome {
		return Outcome{Results: []IndexedResult{{0, delivery.Result{Text: wiretest.Text(n)}}}}
	})
}

// TestAppendRefuses: an outcome that could not be read back is not written; the
// file is as it was.
func TestAppendRefuses(t *testing.T) {
	f := write(t, testEnvelope(t, 1), []byte("x\r\n"))
	m, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	long := Outcome{Results: []IndexedResult{{0, delivery.Result{Status: dsn.MustParse("2.0.0"), Text: wiretest.Text(wire.MaxText + 1)}}}}
	if err := m.Append(f, long); err == nil || !m.Recipients[0].Pending() {
		t.Errorf("%v, %+v", err, m.Recipients)
	}
	if _, err := Read(f); err != nil {
		t.Error(err)
	}
}

func FuzzOutcome(f *testing.F) {
	var seeds []Outcome
	for _, o := range kinds(f) {
		seeds = append(seeds, o)
	}
	outcomes.Fuzz(f, seeds...)
}

// FuzzFile gives right checksums to whatever envelope, content and outcome: a
// file is accepted if these are, what is read is what was written, and of what
// is refused nothing is left.
func FuzzFile(f *testing.F) {
	d := newDisk(f)
	var e wire.Encoder
	fullEnvelope(f).Encode(&e)
	for _, o := range kinds(f) {
		f.Add(e.Data(), []byte("x\r\n"), outcomes.Encode(o))
	}
	f.Fuzz(func(t *testing.T, env, content, outcome []byte) {
		h := header{uint32(len(env)), crc32.Checksum(env, castagnoli), int64(len(content)), crc32.Checksum(content, castagnoli)}
		b := append(append(h.encode(), env...), content...)
		plain := bytes.Clone(b)
		if len(outcome) > 0 {
			b = append(b, record(outcome)...)
		}
		m, err := d.read(t, b)
		if err != nil {
			return
		}
		if string(b[m.Offset:m.Offset+m.Length]) != string(content) || m.tail != int64(len(b)) || len(m.Recipients) != len(m.Envelope.Recipients) {
			t.Fatalf("%+v of %d octets", m, len(b))
		}
		if v, err := d.files(t).Decode(plain); err != nil || !bytes.Equal(d.files(t).Encode(v), plain) {
			t.Fatalf("%x is written again as another file, %v", plain, err)
		}
	})
}

// record is what Append writes for an encoded outcome.
func record(outcome []byte) []byte {
	e := wire.NewEncoder(nil)
	e.Uint32(uint32(len(outcome)))
	e.Uint32(crc32.Checksum(outcome, castagnoli))
	e.Raw(outcome)
	return e.Data()
}

// FuzzRead: whatever is in a queue file, reading gives a message that is
// consistent with the file's size, or an error and nothing else.
func FuzzRead(f *testing.F) {
	d := newDisk(f)
	seed := d.files(f).Encode(file{fullEnvelope(f), []byte("x\r\n")})
	f.Add(seed)
	f.Add(append(bytes.Clone(seed), record(outcomes.Encode(kinds(f)["results"]))...))
	f.Add(make([]byte, 100))
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := d.read(t, in)
		if err == nil && (m.Offset < headerLen || m.Offset+m.Length > m.tail || m.tail > int64(len(in)) || len(m.Recipients) != len(m.Envelope.Recipients)) {
			t.Fatalf("%+v of %d octets", m, len(in))
		}
	})
}
