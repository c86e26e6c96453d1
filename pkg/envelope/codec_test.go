package envelope_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/wire"
	"posthouse/pkg/wire/wiretest"
)

var envelopes = wiretest.Codec[*envelope.Envelope]{
	Encode: func(e *envelope.Envelope) []byte {
		var enc wire.Encoder
		e.Encode(&enc)
		return enc.Data()
	},
	Decode: func(b []byte) (*envelope.Envelope, error) {
		d := wire.NewDecoder(b)
		e := envelope.Decode(d)
		if err := d.End(); err != nil {
			return nil, err // what Decode gave means nothing
		}
		return e, nil
	},
}

// sample is an envelope with everything.
func sample(t testing.TB) *envelope.Envelope {
	return &envelope.Envelope{
		Arrival: wiretest.Time, Sender: wiretest.Mailbox(t, "alice@example.org"), Return: dsn.ReturnHeaders, EnvID: "an id",
		Body: envelope.Body8BitMIME, SMTPUTF8: true, Recipients: wiretest.Recipients(t), Trace: envelope.Trace{
			Origin: envelope.FromLocal, Protocol: "ESMTP", Helo: "h", ClientName: "unknown", ClientAddr: netip.MustParseAddr("::1"), UID: 1000,
		},
	}
}

func with(t testing.TB, change func(*envelope.Envelope)) *envelope.Envelope {
	e := sample(t)
	change(e)
	return e
}

func TestCodec(t *testing.T) {
	envelopes.Whole(t, "envelope", sample(t))
	envelopes.Accepts(t, "envelope", sample(t))
	envelopes.Accepts(t, "nothing but zeros", &envelope.Envelope{})
	wiretest.Complete(t, sample(t))
	envelopes.Enum(t, ".", "Body", func(v uint8) *envelope.Envelope {
		return with(t, func(e *envelope.Envelope) { e.Body = envelope.Body(v) })
	})
	envelopes.Enum(t, ".", "Origin", func(v uint8) *envelope.Envelope {
		return with(t, func(e *envelope.Envelope) { e.Trace.Origin = envelope.Origin(v) })
	})
	envelopes.Enum(t, "../dsn", "Return", func(v uint8) *envelope.Envelope {
		return with(t, func(e *envelope.Envelope) { e.Return = dsn.Return(v) })
	})
	for v := range 256 { // a set, not an enumeration
		e := with(t, func(e *envelope.Envelope) { e.Recipients[0].Notify = dsn.Notify(v) })
		if dsn.Notify(v).Valid() {
			envelopes.Accepts(t, "NOTIFY", e)
		} else {
			envelopes.Refuses(t, "NOTIFY", e)
		}
	}
}

func TestLimits(t *testing.T) {
	rcpt := wiretest.Recipients(t)[:1]
	envelopes.Limit(t, "recipients", envelope.MaxRecipients, func(n int) *envelope.Envelope {
		return with(t, func(e *envelope.Envelope) { e.Recipients = slices.Repeat(rcpt, n) })
	})
	for what, field := range map[string]struct {
		limit int
		set   func(*envelope.Envelope, string)
	}{
		"envelope ID":        {dsn.MaxEnvID, func(e *envelope.Envelope, s string) { e.EnvID = s }},
		"protocol":           {16, func(e *envelope.Envelope, s string) { e.Trace.Protocol = s }},
		"HELO":               {envelope.MaxName, func(e *envelope.Envelope, s string) { e.Trace.Helo = s }},
		"client's name":      {envelope.MaxName, func(e *envelope.Envelope, s string) { e.Trace.ClientName = s }},
		"ORCPT type":         {dsn.MaxRecipient, func(e *envelope.Envelope, s string) { e.Recipients[0].ORCPT.Type = s }},
		"original recipient": {dsn.MaxRecipient, func(e *envelope.Envelope, s string) { e.Recipients[0].ORCPT.Address = s }},
	} {
		envelopes.Limit(t, "octets of "+what, field.limit, func(n int) *envelope.Envelope {
			return with(t, func(e *envelope.Envelope) { field.set(e, strings.Repeat("x", n)) })
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	for what, spoil := range map[string]func(*envelope.Envelope){
		"null recipient":            func(e *envelope.Envelope) { e.Recipients[0].Address = addr.Mailbox{} },
		"an address without a type": func(e *envelope.Envelope) { e.Recipients[0].ORCPT.Type = "" },
		"a type without an address": func(e *envelope.Envelope) { e.Recipients[0].ORCPT.Address = "" },
		"a parameter in the type":   func(e *envelope.Envelope) { e.Recipients[0].ORCPT.Type = "rfc822;x NOTIFY=NEVER X" },
		"a type in capitals":        func(e *envelope.Envelope) { e.Recipients[0].ORCPT.Type = "RFC822" },
		"line break in HELO":        func(e *envelope.Envelope) { e.Trace.Helo = "a\r\nX-Evil: 1" },
		"escape in the envelope ID": func(e *envelope.Envelope) { e.EnvID = "\x1b[2J" },
		"no year":                   func(e *envelope.Envelope) { e.Arrival = e.Arrival.AddDate(9000, 0, 0) },
	} {
		envelopes.Refuses(t, what, with(t, spoil))
	}
}

// FuzzDecode: an accepted envelope has one encoding.
func FuzzDecode(f *testing.F) { envelopes.Fuzz(f, sample(f), &envelope.Envelope{}) }
