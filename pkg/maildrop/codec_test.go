package maildrop

import (
	"bytes"
	"hash/crc32"
	"io"
	"net/netip"
	"testing"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/wire"
	"posthouse/pkg/wire/wiretest"
)

// whole is a file.
type whole struct {
	Envelope *envelope.Envelope
	Content  string
}

// memory is a file in memory.
type memory struct{ b []byte }

func (m *memory) Write(p []byte) (int, error) {
	m.b = append(m.b, p...)
	return len(p), nil
}

func (m *memory) WriteAt(p []byte, at int64) (int, error) { return copy(m.b[at:], p), nil }

func encode(v whole) []byte {
	var m memory
	w, err := begin(&m, v.Envelope)
	if err != nil {
		return nil
	}
	if _, err := io.WriteString(w, v.Content); err != nil || w.end() != nil {
		return nil
	}
	return m.b
}

func decode(b []byte) (whole, error) {
	m, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return whole{}, err
	}
	var content bytes.Buffer
	if err := m.CopyTo(&content); err != nil {
		return whole{}, err
	}
	return whole{m.Envelope, content.String()}, nil
}

var files = wiretest.Codec[whole]{Encode: encode, Decode: decode}

func sample(t testing.TB) whole {
	return whole{&envelope.Envelope{
		Arrival: wiretest.Time, Sender: wiretest.Mailbox(t, "alice@example.org"), Return: dsn.ReturnHeaders, EnvID: "an id",
		Body: envelope.Body8BitMIME, SMTPUTF8: true, Recipients: wiretest.Recipients(t), Trace: envelope.Trace{
			Origin: envelope.FromLocal, Protocol: "ESMTP", Helo: "h.example", ClientName: "c.example",
			ClientAddr: netip.MustParseAddr("192.0.2.1"), UID: 1000,
		},
	}, "Subject: x\r\n\r\nbody\r\n"}
}

func TestCodec(t *testing.T) {
	files.Golden(t, "file", magic[len(magic)-1]-'0', sample(t))
	files.Whole(t, "a file", sample(t))
	empty := sample(t)
	empty.Content = ""
	files.Accepts(t, "no content", empty)
	big := sample(t)
	big.Content = string(bytes.Repeat([]byte("0123456789abcdef\r\n"), 20000))
	files.Accepts(t, "much content", big)
	nobody := *sample(t).Envelope
	nobody.Recipients = nil
	if _, err := begin(&memory{}, &nobody); err == nil {
		t.Error("a message for nobody is written")
	}
	b := encode(sample(t))
	for i := range b {
		damaged := bytes.Clone(b)
		damaged[i] ^= 4
		files.RefusesOctets(t, "a damaged file", damaged)
	}
	files.RefusesOctets(t, "a file that is not finished", append(make([]byte, headerLen), b[headerLen:]...))
}

// TestLengths: what a header claims is believed only where the file is as long.
func TestLengths(t *testing.T) {
	var e wire.Encoder
	sample(t).Envelope.Encode(&e)
	n := uint32(len(e.Data()))
	for _, h := range []header{
		{envelopeLen: n + 1}, {envelopeLen: n - 1}, {envelopeLen: 1<<32 - 1}, {envelopeLen: maxEnvelope + 1},
		{envelopeLen: n, contentLen: -1}, {envelopeLen: n, contentLen: 1<<63 - 1}, {envelopeLen: n, contentLen: 1},
	} {
		files.RefusesOctets(t, "another length", append(h.encode(), e.Data()...))
	}
}

// FuzzFile gives right checksums to whatever envelope and content.
func FuzzFile(f *testing.F) {
	var e wire.Encoder
	sample(f).Envelope.Encode(&e)
	f.Add(e.Data(), []byte("content"), int64(7))
	f.Fuzz(func(t *testing.T, env, content []byte, length int64) {
		all := append(bytes.Clone(env), content...)
		h := header{envelopeLen: uint32(len(env)), contentLen: length, sum: crc32.Checksum(all, castagnoli())}
		file := append(h.encode(), all...)
		v, err := decode(file)
		switch {
		case err != nil && v.Envelope != nil:
			t.Fatalf("%v, and yet %+v", err, v)
		case err == nil && !bytes.Equal(encode(v), file):
			t.Fatalf("%x is accepted as %+v, which is %x", file, v, encode(v))
		}
	})
}

func FuzzOctets(f *testing.F) { files.Fuzz(f, sample(f)) }
