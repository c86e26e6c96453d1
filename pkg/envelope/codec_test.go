package envelope

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/wire"
)

func sample(t testing.TB) *Envelope {
	m, err := addr.Parse("user@example.org")
	if err != nil {
		t.Fatal(err)
	}
	return &Envelope{
		Arrival: time.UnixMicro(1790000000000001), Sender: m, Return: dsn.ReturnHeaders, EnvID: "an id", Body: Body8BitMIME,
		Trace: Trace{Origin: FromLocal, Protocol: "ESMTP", Helo: "h", ClientName: "unknown", ClientAddr: netip.MustParseAddr("::1"), UID: 1000},
		Recipients: []Recipient{
			{Address: m, Original: m, Notify: dsn.NotifyDelay, ORCPT: dsn.OriginalRecipient{Type: "rfc822", Address: "a@b"}},
			{Address: m},
		},
	}
}

// FuzzDecode: an accepted envelope has one encoding.
func FuzzDecode(f *testing.F) {
	var e wire.Encoder
	sample(f).Encode(&e)
	f.Add(e.Data())
	f.Fuzz(func(t *testing.T, in []byte) {
		d := wire.NewDecoder(in)
		env := Decode(d)
		if d.End() != nil {
			return
		}
		var out wire.Encoder
		env.Encode(&out)
		if !bytes.Equal(out.Data(), in) {
			t.Fatalf("accepted %x, encodes as %x", in, out.Data())
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Envelope){
		"null recipient":     func(e *Envelope) { e.Recipients[0].Address = addr.Mailbox{} },
		"bad notify":         func(e *Envelope) { e.Recipients[0].Notify = dsn.NotifyNever | dsn.NotifyDelay },
		"half ORCPT":         func(e *Envelope) { e.Recipients[0].ORCPT.Type = "" },
		"line break in helo": func(e *Envelope) { e.Trace.Helo = "a\r\nX-Evil: 1" },
		"long envid":         func(e *Envelope) { e.EnvID = string(make([]byte, 200)) },
		"unknown origin":     func(e *Envelope) { e.Trace.Origin = 9 },
	} {
		env := sample(t)
		spoil(env)
		var e wire.Encoder
		env.Encode(&e)
		d := wire.NewDecoder(e.Data())
		Decode(d)
		if d.End() == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
