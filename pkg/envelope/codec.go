package envelope

import (
	"errors"
	"fmt"

	"posthouse/pkg/dsn"
	"posthouse/pkg/wire"
)

// Limits of the encoded form. MaxRecipients bounds what one queue file holds;
// the configuration sets a lower one for each message.
const (
	MaxRecipients = 50000
	MaxName       = 255 // Helo, ClientName
	maxProtocol   = 16
)

// Encode appends e to enc in the form that Decode reads.
func (e *Envelope) Encode(enc *wire.Encoder) {
	enc.Time(e.Arrival)
	enc.Mailbox(e.Sender)
	enc.Uint8(uint8(e.Return))
	enc.String(e.EnvID)
	enc.Uint8(uint8(e.Body))
	enc.Bool(e.SMTPUTF8)
	enc.Uint8(uint8(e.Trace.Origin))
	enc.String(e.Trace.Protocol)
	enc.String(e.Trace.Helo)
	enc.String(e.Trace.ClientName)
	enc.Addr(e.Trace.ClientAddr)
	enc.Uint32(e.Trace.UID)
	EncodeRecipients(enc, e.Recipients)
}

// Decode reads one envelope. Where d holds something else the error is in d,
// and the result means nothing.
func Decode(d *wire.Decoder) *Envelope {
	e := &Envelope{
		Arrival:  d.Time(),
		Sender:   d.Mailbox(),
		Return:   dsn.Return(d.Enum(uint8(dsn.ReturnHeaders))),
		EnvID:    d.Text(dsn.MaxEnvID),
		Body:     Body(d.Enum(uint8(Body8BitMIME))),
		SMTPUTF8: d.Bool(),
		Trace: Trace{
			Origin:     Origin(d.Enum(uint8(FromGateway))),
			Protocol:   d.Text(maxProtocol),
			Helo:       d.Text(MaxName),
			ClientName: d.Text(MaxName),
			ClientAddr: d.Addr(),
			UID:        d.Uint32(),
		},
	}
	e.Recipients = DecodeRecipients(d, MaxRecipients)
	return e
}

// EncodeRecipients appends a list of recipients.
func EncodeRecipients(enc *wire.Encoder, list []Recipient) {
	enc.Uint32(uint32(len(list)))
	for i := range list {
		r := &list[i]
		enc.Mailbox(r.Address)
		enc.Mailbox(r.Original)
		enc.Uint8(uint8(r.Notify))
		enc.String(r.ORCPT.Type)
		enc.String(r.ORCPT.Address)
	}
}

// DecodeRecipients reads a list of at most limit recipients.
func DecodeRecipients(d *wire.Decoder, limit int) []Recipient {
	n := d.Count(limit)
	if n == 0 {
		return nil
	}
	list := make([]Recipient, 0, min(n, 1024))
	for range n {
		r := Recipient{Address: d.Mailbox(), Original: d.Mailbox(), Notify: dsn.Notify(d.Uint8())}
		r.ORCPT.Type = d.Text(dsn.MaxRecipient)
		r.ORCPT.Address = d.Text(dsn.MaxRecipient)
		if d.Err() == nil {
			d.Fail(r.check())
		}
		if d.Err() != nil {
			return nil
		}
		list = append(list, r)
	}
	return list
}

func (r *Recipient) check() error {
	switch {
	case r.Address.IsNull():
		return errors.New("recipient without address")
	case !r.Notify.Valid():
		return fmt.Errorf("recipient %s: NOTIFY value %d", r.Address, r.Notify)
	case (r.ORCPT.Type == "") != (r.ORCPT.Address == ""):
		return fmt.Errorf("recipient %s: half an original recipient", r.Address)
	case r.ORCPT.Type != "" && !dsn.IsAddressType(r.ORCPT.Type): // it is sent as it is
		return fmt.Errorf("recipient %s: address type %q", r.Address, r.ORCPT.Type)
	}
	return nil
}
