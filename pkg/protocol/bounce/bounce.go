// Package bounce is the protocol by which qmgr has delivery status
// notifications made (RFC 3464).
//
// Trust: the client is qmgr. The server puts what it is told, and what it reads
// from the descriptor, into a new message to the sender; it selects no file.
package bounce

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
)

// Protocol is what the socket greets with.
var Protocol = ipc.Protocol{Name: "bounce", Version: 1, MaxRequest: 8 << 20, MaxReply: 4096}

// Path is where the server is.
const Path = "/run/posthouse/private/bounce"

// Kind is what the notification says.
type Kind uint8

// The kinds.
const (
	Failure Kind = 1 + iota // could not be delivered
	Delay                   // not yet delivered
	Success                 // delivered or relayed, where the sender asked to know
)

// MaxRecipients bounds a notification.
const MaxRecipients = 1000

// Recipient is one recipient and what became of it.
type Recipient struct {
	envelope.Recipient
	delivery.Result
}

// Request asks for one notification. The descriptor of the queue file comes
// with it.
type Request struct {
	Kind           Kind
	QueueID        queueid.ID
	Envelope       envelope.Envelope // of the message, without recipients
	Offset, Length int64             // of its content
	Expires        time.Time         // for Delay: until when it is tried
	Recipients     []Recipient
}

// Encode appends r to m.
func (r *Request) Encode(m *ipc.Message) {
	m.Uint8(uint8(r.Kind))
	m.QueueID(r.QueueID)
	r.Envelope.Encode(&m.Encoder)
	m.Int64(r.Offset)
	m.Int64(r.Length)
	m.Time(r.Expires)
	list := make([]envelope.Recipient, len(r.Recipients))
	for i := range list {
		list[i] = r.Recipients[i].Recipient
	}
	envelope.EncodeRecipients(&m.Encoder, list)
	for i := range r.Recipients {
		r.Recipients[i].Result.Encode(&m.Encoder)
	}
}

// DecodeRequest reads a request. On an error the result is nil.
func DecodeRequest(b []byte) (*Request, error) {
	d := wire.NewDecoder(b)
	r := &Request{Kind: Kind(d.Enum(uint8(Success))), QueueID: d.QueueID(), Envelope: *envelope.Decode(d),
		Offset: d.Int64(), Length: d.Int64(), Expires: d.Time()}
	for _, rcpt := range envelope.DecodeRecipients(d, MaxRecipients) {
		r.Recipients = append(r.Recipients, Recipient{Recipient: rcpt})
	}
	for i := range r.Recipients {
		r.Recipients[i].Result = delivery.DecodeResult(d)
	}
	if r.Kind == 0 || r.Offset < 0 || r.Length < 0 || len(r.Recipients) == 0 || len(r.Envelope.Recipients) != 0 {
		d.Fail(errors.New("no kind, no recipient, recipients in the envelope, or a negative offset"))
	}
	if err := d.End(); err != nil {
		return nil, fmt.Errorf("bounce request: %w", err)
	}
	return r, nil
}

// Reply is the answer. Where nobody is to be told, both fields are zero: the
// recipients are dealt with all the same.
type Reply struct {
	Err *dsn.Error // the notification is not in the queue: ask again later
	ID  string     // of the notification
}

// Encode appends r to m.
func (r Reply) Encode(m *ipc.Message) {
	m.Error(r.Err)
	m.String(r.ID)
}

// DecodeReply reads a reply. On an error the result is zero.
func DecodeReply(b []byte) (Reply, error) {
	d := wire.NewDecoder(b)
	r := Reply{d.Error(), d.Text(queueid.Len)}
	if err := d.End(); err != nil {
		return Reply{}, fmt.Errorf("bounce reply: %w", err)
	}
	return r, nil
}

// Client asks.
type Client struct{ ipc *ipc.Client }

// NewClient returns a client for the server at path.
func NewClient(path string) *Client { return &Client{ipc.NewClient(path, Protocol)} }

// Notify has the notification made and queued. An error, of whatever kind,
// means that it is not known to be in the queue.
func (c *Client) Notify(ctx context.Context, r *Request, file *os.File) (id string, err error) {
	m := ipc.NewMessage()
	r.Encode(m)
	var reply Reply
	err = c.ipc.Call(ctx, m, file, func(b []byte) error {
		reply, err = DecodeReply(b)
		return err
	})
	if err != nil {
		return "", err
	}
	if reply.Err != nil {
		return "", reply.Err
	}
	return reply.ID, nil
}
