package wire

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/queueid"
)

func encodeAll(e *Encoder, m addr.Mailbox, at time.Time, ip netip.Addr, verdict *dsn.Error) {
	e.Uint8(7)
	e.Uint32(1 << 30)
	e.Int64(-5)
	e.Bool(true)
	e.String("any\r\n\x00octets")
	e.Time(at)
	e.Mailbox(m)
	e.QueueID(queueid.New(at, 9))
	e.Addr(ip)
	e.Error(verdict)
}

func TestRoundTrip(t *testing.T) {
	m, _ := addr.Parse(`"a b"@example.org`)
	at := time.UnixMicro(1790000000123456)
	ip := netip.MustParseAddr("2001:db8::1")
	var e Encoder
	encodeAll(&e, m, at, ip, dsn.Errorf("5.1.1", "nobody"))
	for _, decoder := range []func([]byte) *Decoder{NewDecoder, NewListDecoder} {
		b := bytes.Clone(e.Data())
		d := decoder(b)
		n, n32, n64, yes, octets := d.Uint8(), d.Uint32(), d.Int64(), d.Bool(), d.String(100)
		gotAt, gotM, gotID, gotIP, verdict := d.Time(), d.Mailbox(), d.QueueID(), d.Addr(), d.Error()
		clear(b) // nothing is in it
		if n != 7 || n32 != 1<<30 || n64 != -5 || !yes || octets != "any\r\n\x00octets" || !gotAt.Equal(at) || gotM != m ||
			gotID != queueid.New(at, 9) || gotIP != ip || verdict.Error() != "5.1.1 nobody" || d.End() != nil {
			t.Errorf("not what was encoded: %v", d.End())
		}
	}
	// Every prefix is an error.
	for n := range 2 * len(e.Data()) {
		d := NewDecoder(e.Data()[:n/2])
		if n%2 == 1 {
			d = NewListDecoder(e.Data()[:n/2])
		}
		d.Uint8()
		d.Uint32()
		d.Int64()
		d.Bool()
		d.String(100)
		d.Time()
		d.Mailbox()
		d.QueueID()
		d.Addr()
		d.Error()
		if d.End() == nil {
			t.Errorf("%d octets of %d are taken for the whole", n/2, len(e.Data()))
		}
	}
}

func TestLimits(t *testing.T) {
	for name, read := range map[string]func(d *Decoder){
		"string":  func(d *Decoder) { d.String(3) },
		"bool":    func(d *Decoder) { d.Bool() },
		"count":   func(d *Decoder) { d.Count(1 << 20) },
		"mailbox": func(d *Decoder) { d.Mailbox() },
		"addr":    func(d *Decoder) { d.Addr() },
		"status":  func(d *Decoder) { d.Status() },
	} {
		d := NewDecoder([]byte{4, 0, 0, 0, 'a', 'b', 'c', 'd'})
		read(d)
		if d.Err() == nil {
			t.Errorf("%s: no error", name)
		}
	}
	var e Encoder
	e.String("a\nb")
	if d := NewDecoder(e.Data()); d.Text(10) != "" || d.End() == nil {
		t.Error("a line break is text")
	}
	e = Encoder{}
	e.Error(&dsn.Error{Status: dsn.MustParse("2.0.0")})
	if d := NewDecoder(e.Data()); d.Error() == nil || d.End() == nil {
		t.Error("a success is an error")
	}
}

// FuzzDecoder: whatever is accepted encodes to the same octets.
func FuzzDecoder(f *testing.F) {
	var e Encoder
	m, _ := addr.Parse("a@b")
	encodeAll(&e, m, time.UnixMicro(1790000000123456), netip.MustParseAddr("192.0.2.1"), nil)
	f.Add(e.Data())
	f.Fuzz(func(t *testing.T, in []byte) {
		d := NewDecoder(in)
		var out Encoder
		out.Uint8(d.Uint8())
		out.Uint32(d.Uint32())
		out.Int64(d.Int64())
		out.Bool(d.Bool())
		out.String(d.String(1000))
		out.Time(d.Time())
		out.Mailbox(d.Mailbox())
		out.QueueID(d.QueueID())
		out.Addr(d.Addr())
		out.Error(d.Error())
		if d.End() == nil && !bytes.Equal(out.Data(), in) {
			t.Fatalf("accepted %x, encodes as %x", in, out.Data())
		}
	})
}
