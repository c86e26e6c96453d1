// Package rewrite is the protocol by which daemons ask about addresses: smtpd
// whether a recipient exists and may be reached from a client, cleanup what an
// address expands to, qmgr where a recipient's mail goes; root's sendmail -bv all
// of that.
//
// Trust: the addresses may come from anywhere. They select table entries,
// nothing else. The server's answers decide where mail goes; a client that gets
// none defers.
package rewrite

import (
	"context"
	"fmt"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/wire"
)

// Protocol is what the socket greets with.
var Protocol = ipc.Protocol{Name: "rewrite", Version: 2, MaxRequest: 1 << 20, MaxReply: 32 << 20}

// Path is where the server is.
const Path = "/run/posthouse/private/rewrite"

// Op is the question.
type Op uint8

// The questions.
const (
	// Complete asks for the full form of addresses that local users wrote:
	// one address each.
	Complete Op = 1 + iota
	// Verify asks whether recipients exist: the class, and an error for those
	// that do not or of which it is not known now.
	Verify
	// Expand asks what recipients stand for: at least one full address each,
	// the address itself where no alias knows it. An answer after more than
	// MaxExpansion addresses is an error.
	Expand
	// Resolve asks where to deliver: the route and one final address each.
	Resolve
)

// Class is how the domain of an address is handled here (Postfix's address
// classes). The zero value is the one that relays for nobody.
type Class uint8

// The classes.
const (
	ClassDefault Class = iota // somebody else's
	ClassRelay                // somebody else's, for whom we take mail
	ClassLocal                // UNIX accounts and aliases
	ClassVirtual              // virtual mailboxes
	ClassAlias                // virtual aliases only
)

// String returns the word for the log.
func (c Class) String() string {
	return [...]string{"default", "relay", "local", "virtual", "alias"}[c]
}

// Limits of a request.
const (
	MaxAddresses = 1000  // addresses in a request
	MaxExpansion = 50000 // addresses in an answer
	MaxTransport = 64    // octets
	MaxNexthop   = 512
)

// Request is one question about several addresses.
type Request struct {
	Op        Op
	Sender    addr.Mailbox // for Resolve: the reverse-path
	Addresses []addr.Mailbox
}

// Answer is the answer for one address. With Err set the rest means nothing
// but for Class.
type Answer struct {
	Err       *dsn.Error
	Class     Class
	Transport string         // for Resolve: smtp, lmtp, virtual, local, error, discard...
	Nexthop   string         // for Resolve: what the transport is told
	Addresses []addr.Mailbox // see Op

	// Unverified is for Verify: there may be such a recipient, but whoever knows is
	// switched off, or does not know now.
	Unverified bool
}

// Encode appends r to m.
func (r Request) Encode(m *ipc.Message) {
	m.Uint8(uint8(r.Op))
	m.Mailbox(r.Sender)
	encodeAddresses(&m.Encoder, r.Addresses)
}

// DecodeRequest reads a request. On an error the result is zero.
func DecodeRequest(b []byte) (Request, error) {
	d := wire.NewDecoder(b)
	r := Request{Op: Op(d.Enum(uint8(Resolve))), Sender: d.Mailbox(), Addresses: decodeAddresses(d, MaxAddresses)}
	if r.Op == 0 {
		d.Fail(fmt.Errorf("question of kind 0"))
	}
	if err := d.End(); err != nil {
		return Request{}, fmt.Errorf("rewrite request: %w", err)
	}
	return r, nil
}

// EncodeAnswers appends answers to m.
func EncodeAnswers(m *ipc.Message, answers []Answer) {
	m.Uint32(uint32(len(answers)))
	for i := range answers {
		a := &answers[i]
		m.Error(a.Err)
		m.Uint8(uint8(a.Class))
		m.String(a.Transport)
		m.String(a.Nexthop)
		encodeAddresses(&m.Encoder, a.Addresses)
		m.Bool(a.Unverified)
	}
}

// DecodeAnswers reads what EncodeAnswers wrote. On an error the result is nil.
func DecodeAnswers(b []byte) ([]Answer, error) {
	d := wire.NewDecoder(b)
	n := d.Count(MaxAddresses)
	answers := make([]Answer, 0, n)
	for range n {
		answers = append(answers, Answer{
			Err: d.Error(), Class: Class(d.Enum(uint8(ClassAlias))),
			Transport: d.Text(MaxTransport), Nexthop: d.Text(MaxNexthop),
			Addresses: decodeAddresses(d, MaxExpansion), Unverified: d.Bool(),
		})
	}
	if err := d.End(); err != nil {
		return nil, fmt.Errorf("rewrite answer: %w", err)
	}
	return answers, nil
}

func encodeAddresses(e *wire.Encoder, list []addr.Mailbox) {
	e.Uint32(uint32(len(list)))
	for _, m := range list {
		e.Mailbox(m)
	}
}

func decodeAddresses(d *wire.Decoder, limit int) []addr.Mailbox {
	n := d.Count(limit)
	if n == 0 {
		return nil
	}
	list := make([]addr.Mailbox, 0, min(n, 1024))
	for range n {
		list = append(list, d.Mailbox())
		if d.Err() != nil {
			return nil
		}
	}
	return list
}

// Client asks. What has just been answered it does not ask again.
type Client struct {
	ipc    *ipc.Client
	memory memory
}

// NewClient returns a client for the server at path.
func NewClient(path string) *Client {
	return &Client{ipc: ipc.NewClient(path, Protocol), memory: memory{now: time.Now}}
}

// Wake has systemd start the server.
func (c *Client) Wake(ctx context.Context) { c.ipc.Wake(ctx) }

// Ask returns an answer for each address of r, at most MaxAddresses of them,
// in their order. An error means that nothing is known: try again later.
func (c *Client) Ask(ctx context.Context, r Request) ([]Answer, error) {
	answers := make([]Answer, len(r.Addresses))
	open := r
	open.Addresses = nil
	var at []int // the places of what is not known
	for i, address := range r.Addresses {
		a, ok := c.memory.recall(question{r.Op, r.Sender, address})
		if ok {
			answers[i] = a
			continue
		}
		open.Addresses = append(open.Addresses, address)
		at = append(at, i)
	}
	if len(at) == 0 {
		return answers, nil
	}
	got, err := c.ask(ctx, open)
	if err != nil {
		return nil, err
	}
	for i, a := range got {
		c.memory.remember(question{r.Op, r.Sender, open.Addresses[i]}, a)
		answers[at[i]] = a
	}
	return answers, nil
}

func (c *Client) ask(ctx context.Context, r Request) (answers []Answer, err error) {
	m := ipc.NewMessage()
	r.Encode(m)
	err = c.ipc.Call(ctx, m, nil, func(b []byte) error {
		answers, err = DecodeAnswers(b)
		if err == nil && len(answers) != len(r.Addresses) {
			err = fmt.Errorf("%d answers for %d addresses", len(answers), len(r.Addresses))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return answers, nil
}
