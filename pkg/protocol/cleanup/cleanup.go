// Package cleanup is the protocol by which a message enters the queue: smtpd,
// pickup, bounce and local speak it to cleanup, and sendmail speaks it to pickup,
// which checks the envelope, says itself who submitted, and passes it on.
//
// The client sends Begin with the envelope and gets the queue ID or a refusal;
// then the content in pieces, as lines that end in CRLF; then End, and gets the
// verdict. A connection carries one message after another. A client that
// closes the connection, or sends anything else, cancels its message.
//
// Trust: a client of cleanup has talked to the network, one of pickup is any
// local user. Nothing that they send names a file or a command.
package cleanup

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
)

// Protocol is what the socket greets with. The largest message is Begin, with
// all recipients.
var Protocol = ipc.Protocol{Name: "cleanup", Version: 1, MaxRequest: 16 << 20, MaxReply: 4096}

// SubmitProtocol is what pickup greets with: whoever calls it is any local user, and
// what he sends is in memory. There is room for the addresses of some ten thousand
// recipients.
var SubmitProtocol = ipc.Protocol{Name: Protocol.Name, Version: Protocol.Version, MaxRequest: 1 << 20, MaxReply: Protocol.MaxReply}

// Where the servers are.
const (
	Path       = "/run/posthouse/private/cleanup"
	SubmitPath = "/run/posthouse/public/submit"
	// SubmitFIFOPath is a FIFO: a byte has pickup look into the maildrop.
	SubmitFIFOPath = "/run/posthouse/public/pickup"
)

// Kind is what a message of the client is.
type Kind uint8

// The kinds.
const (
	KindBegin Kind = 1 + iota
	KindData
	KindEnd
)

// Request is one message of a client.
type Request struct {
	Kind     Kind
	Envelope *envelope.Envelope // for KindBegin
	Data     []byte             // for KindData and KindEnd; valid until the next message is received
}

// DecodeRequest reads one message of a client. On an error the result is zero.
func DecodeRequest(b []byte) (Request, error) {
	d := wire.NewDecoder(b)
	r := Request{Kind: Kind(d.Uint8())}
	switch r.Kind {
	case KindBegin:
		r.Envelope = envelope.Decode(d)
	case KindData, KindEnd:
		r.Data = d.Raw()
	default:
		d.Fail(fmt.Errorf("message of kind %d", r.Kind))
	}
	if err := d.End(); err != nil {
		return Request{}, fmt.Errorf("cleanup request: %w", err)
	}
	return r, nil
}

// EncodeBegin fills m with the opening of a message.
func EncodeBegin(m *ipc.Message, e *envelope.Envelope) {
	m.Uint8(uint8(KindBegin))
	e.Encode(&m.Encoder)
}

// Reply is the answer to Begin and to End: a refusal, or the queue ID.
type Reply struct {
	Err *dsn.Error
	ID  queueid.ID // zero with a refusal
}

// Encode appends r to m.
func (r Reply) Encode(m *ipc.Message) {
	m.Error(r.Err)
	if r.Err == nil {
		m.QueueID(r.ID)
	}
}

// DecodeReply reads a reply. On an error the result is zero.
func DecodeReply(b []byte) (Reply, error) {
	d := wire.NewDecoder(b)
	r := Reply{Err: d.Error()}
	if r.Err == nil {
		r.ID = d.QueueID()
	}
	if err := d.End(); err != nil {
		return Reply{}, fmt.Errorf("cleanup reply: %w", err)
	}
	return r, nil
}

// Client puts messages into the queue.
type Client struct {
	ipc        *ipc.Client
	maxRequest int
}

// NewClient returns a client for Path.
func NewClient(path string) *Client { return newClient(path, Protocol) }

// NewSubmitClient returns a client for SubmitPath.
func NewSubmitClient(path string) *Client { return newClient(path, SubmitProtocol) }

func newClient(path string, p ipc.Protocol) *Client {
	return &Client{ipc.NewClient(path, p), p.MaxRequest}
}

// Wake has systemd start the server.
func (c *Client) Wake(ctx context.Context) { c.ipc.Wake(ctx) }

// Transaction is one message on its way into the queue. It ends with Commit
// or Abort.
type Transaction struct {
	ID queueid.ID

	client *Client
	conn   *ipc.Conn
	buf    *ipc.Message
	stop   func() bool
	err    error // of a write; sticky
}

// Begin opens a message. ctx bounds the whole transaction. A refusal is a
// *dsn.Error; any other error is trouble on the way, and temporary.
func (c *Client) Begin(ctx context.Context, e *envelope.Envelope) (*Transaction, error) {
	m := messages.Get().(*ipc.Message)
	m.Reset()
	EncodeBegin(m, e)
	if m.Len() > c.maxRequest {
		return nil, dsn.Errorf("5.5.3", "%d recipients are too many", len(e.Recipients))
	}
	for {
		conn, kept, err := c.ipc.Get(ctx)
		if err != nil {
			return nil, err
		}
		t := &Transaction{client: c, conn: conn, buf: m}
		t.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
		reply, err := t.exchange()
		if err != nil {
			t.Abort()
			if kept {
				continue // a server that was about to go away
			}
			return nil, err
		}
		if reply.Err != nil {
			t.release()
			return nil, reply.Err
		}
		t.ID = reply.ID
		t.startData()
		return t, nil
	}
}

func (t *Transaction) exchange() (Reply, error) {
	if err := t.conn.Send(t.buf); err != nil {
		return Reply{}, fmt.Errorf("cleanup: %w", err)
	}
	b, err := t.conn.Receive(Protocol.MaxReply)
	if err != nil {
		return Reply{}, fmt.Errorf("cleanup: %w", err)
	}
	return DecodeReply(b)
}

// kindAt is where the kind is in a message, behind the flag of the packet.
const kindAt = 1

func (t *Transaction) startData() {
	t.buf.Reset()
	t.buf.Uint8(uint8(KindData))
}

// Write adds to the content. The pieces need not be lines.
func (t *Transaction) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && t.err == nil {
		room := ipc.MaxChunk - t.buf.Len()
		if room == 0 {
			t.err = t.flush()
			continue
		}
		piece := p[:min(room, len(p))]
		t.buf.Raw(piece)
		p = p[len(piece):]
	}
	return n - len(p), t.err
}

func (t *Transaction) flush() error {
	if err := t.conn.Send(t.buf); err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	t.startData()
	return nil
}

// Commit ends the content and waits for the verdict: nil means that the
// message is in the queue for good. A refusal is a *dsn.Error. After any other
// error the message may be in the queue or not; the client is told to try
// again, for twice is the lesser evil.
func (t *Transaction) Commit() error {
	if t.err == nil {
		t.buf.Data()[kindAt] = uint8(KindEnd) // what is left goes with it
		var reply Reply
		reply, t.err = t.exchange()
		switch {
		case t.err != nil:
		case reply.Err != nil:
			t.release()
			return reply.Err
		case reply.ID == t.ID:
			t.release()
			return nil
		default:
			t.err = errors.New("cleanup: the answer is for another message")
		}
	}
	err := t.err
	t.Abort()
	return err
}

// Abort cancels the message. It is harmless after Commit.
func (t *Transaction) Abort() {
	if t.conn != nil {
		t.stop()
		_ = t.conn.Close() // this is what cancels
		t.conn = nil
	}
}

// messages are those of transactions that have come to an end in order.
var messages = sync.Pool{New: func() any { return ipc.NewMessage() }}

// keepMessage is the most room that one is kept with, in octets: that of a full piece.
// One with many recipients may have taken more.
const keepMessage = 2 * ipc.MaxChunk

// release gives the connection back after an answer. t is not used any more.
func (t *Transaction) release() {
	if cap(t.buf.Data()) <= keepMessage {
		messages.Put(t.buf)
	}
	t.buf = nil
	if t.stop() {
		t.client.ipc.Put(t.conn)
		t.conn = nil
		return
	}
	t.Abort()
}
