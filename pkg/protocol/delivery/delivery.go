// Package delivery is the protocol between qmgr and every delivery agent. It
// is meant for outsiders too: an agent of your own needs a socket and this.
//
// qmgr sends a request together with a read-only descriptor of the queue file;
// the agent reads the content, Length octets at Offset, with pread, delivers,
// and answers with one result for each recipient, in their order. An agent that
// dies, times out or mumbles has deferred all of them.
//
// A qmgr that has to go ends what it sends, and waits for the answer a little
// longer. The agent begins nothing more then, and answers what has become of the
// recipients so far. Where it does not, those that it delivers to get the
// message twice.
//
// Trust: qmgr says what to deliver to whom; the agent checks all of it before
// it touches anything. What the agent reports comes from programs that talk to
// the network or to mailboxes: it can finish the recipients of this request and
// say so in the log and in notifications, nothing else.
package delivery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
)

// Protocol is what an agent greets with.
var Protocol = ipc.Protocol{Name: "delivery", Version: 1, MaxRequest: 2 << 20, MaxReply: 8 << 20, Grace: 40 * time.Second}

// Path returns the socket of an agent, such as smtp or virtual.
func Path(agent string) string { return "/run/posthouse/private/" + agent }

// Limits.
const (
	MaxRecipients = 1000 // of one request
	MaxName       = 512  // octets of a transport, a next hop, a remote host
)

// Request asks for the delivery of one message to some of its recipients.
type Request struct {
	QueueID   queueid.ID
	Transport string // how the agent is meant to deliver: smtp, lmtp, virtual...
	Nexthop   string // where to; what it means is the transport's affair

	Sender   addr.Mailbox
	Return   dsn.Return
	EnvID    string
	Body     envelope.Body
	SMTPUTF8 bool

	Arrival time.Time // when the message arrived
	Active  time.Time // when it became due for this attempt

	Offset, Length int64 // of the content within the queue file

	Recipients []envelope.Recipient
}

// Encode appends r to m.
func (r *Request) Encode(m *ipc.Message) {
	m.QueueID(r.QueueID)
	m.String(r.Transport)
	m.String(r.Nexthop)
	m.Mailbox(r.Sender)
	m.Uint8(uint8(r.Return))
	m.String(r.EnvID)
	m.Uint8(uint8(r.Body))
	m.Bool(r.SMTPUTF8)
	m.Time(r.Arrival)
	m.Time(r.Active)
	m.Int64(r.Offset)
	m.Int64(r.Length)
	envelope.EncodeRecipients(&m.Encoder, r.Recipients)
}

// DecodeRequest reads a request. On an error the result is nil.
func DecodeRequest(b []byte) (*Request, error) {
	d := wire.NewDecoder(b)
	r := &Request{
		QueueID: d.QueueID(), Transport: d.Text(MaxName), Nexthop: d.Text(MaxName),
		Sender: d.Mailbox(), Return: dsn.Return(d.Enum(uint8(dsn.ReturnHeaders))), EnvID: d.Text(dsn.MaxEnvID),
		Body: envelope.Body(d.Enum(uint8(envelope.Body8BitMIME))), SMTPUTF8: d.Bool(),
		Arrival: d.Time(), Active: d.Time(), Offset: d.Int64(), Length: d.Int64(),
	}
	r.Recipients = envelope.DecodeRecipients(d, MaxRecipients)
	if r.Offset < 0 || r.Length < 0 {
		d.Fail(errors.New("negative offset or length"))
	}
	if len(r.Recipients) == 0 {
		d.Fail(errors.New("no recipient"))
	}
	if err := d.End(); err != nil {
		return nil, fmt.Errorf("delivery request: %w", err)
	}
	return r, nil
}

// Result is the outcome of one attempt for one recipient. Status is the only
// record of success or failure: 2 is delivered, 5 is bounced, and 4 stays in
// the queue. The zero Result defers.
type Result struct {
	Status     dsn.Status
	Text       string // one line, for people
	RemoteMTA  string // the host that decided; "" where it was this one
	Diagnostic string // its reply: "550 5.1.1 No such user"; "" without RemoteMTA
	Relayed    bool   // delivered to a host that sends no success notifications
}

// Encode appends r to e.
func (r *Result) Encode(e *wire.Encoder) {
	e.Status(r.Status)
	e.String(r.Text)
	e.String(r.RemoteMTA)
	e.String(r.Diagnostic)
	e.Bool(r.Relayed)
}

// DecodeResult reads one result.
func DecodeResult(d *wire.Decoder) Result {
	return Result{d.Status(), d.Text(wire.MaxText), d.Text(MaxName), d.Text(wire.MaxText), d.Bool()}
}

// maxReport is the length of the longest report about n recipients, in octets.
func maxReport(n int) int {
	const status, text, name = 4 + 16, 4 + wire.MaxText, 4 + MaxName
	return 1 + status + text + 4 + n*(status+text+name+text+1)
}

// Report is an agent's answer.
type Report struct {
	// Hop is set where the destination as a whole is in trouble: it cannot be
	// reached, or does not speak. qmgr then asks for less at once, or waits.
	Hop     *dsn.Error
	Results []Result // one for each recipient of the request
}

// Encode appends r to m.
func (r *Report) Encode(m *ipc.Message) {
	m.Error(r.Hop)
	m.Uint32(uint32(len(r.Results)))
	for i := range r.Results {
		r.Results[i].Encode(&m.Encoder)
	}
}

// DecodeReport reads a report for a request with n recipients. On an error the
// result is nil.
func DecodeReport(b []byte, n int) (*Report, error) {
	d := wire.NewDecoder(b)
	r := &Report{Hop: d.Error()}
	count := d.Count(MaxRecipients)
	for range count {
		r.Results = append(r.Results, DecodeResult(d))
	}
	err := d.End()
	if err == nil && count != n {
		err = fmt.Errorf("%d results for %d recipients", count, n)
	}
	if err != nil {
		return nil, fmt.Errorf("delivery report: %w", err)
	}
	return r, nil
}

// Client asks one agent.
type Client struct{ ipc *ipc.Client }

// NewClient returns a client for the agent at path.
func NewClient(path string) *Client { return &Client{ipc.NewClient(path, Protocol)} }

// Wake has systemd start the agent.
func (c *Client) Wake(ctx context.Context) { c.ipc.Wake(ctx) }

// Deliver has r carried out; file is the queue file, open for reading only. When
// ctx ends the agent is told, and may still say what it has done. An
// error says that nothing is known of the recipients: defer them. It is an
// *ipc.UnavailableError where the agent is switched off.
func (c *Client) Deliver(ctx context.Context, r *Request, file *os.File) (report *Report, err error) {
	m := ipc.NewMessage()
	r.Encode(m)
	err = c.ipc.CallFor(ctx, m, file, ipc.Answer{Max: maxReport(len(r.Recipients)), Decode: func(b []byte) error {
		report, err = DecodeReport(b, len(r.Recipients))
		return err
	}})
	if err != nil {
		return nil, err
	}
	return report, nil
}
