// Package resolve is the protocol by which daemons without a network ask dns.
//
// Trust: the client is smtpd, the question an address that connected. The
// answer comes from the network: a name that was checked to be one, and to
// belong to the address.
package resolve

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"posthouse/pkg/addr"
	"posthouse/pkg/ipc"
	"posthouse/pkg/wire"
)

// Protocol is what the socket greets with.
var Protocol = ipc.Protocol{Name: "resolve", Version: 1, MaxRequest: 1024, MaxReply: 1024}

// Path is where the server is.
const Path = "/run/posthouse/private/dns"

// Outcome says how far to trust an answer. The zero value is: not known now.
type Outcome uint8

// The outcomes.
const (
	Unknown  Outcome = iota // DNS did not answer; may be known later
	Verified                // the name leads back to the address
	None                    // there is no such name
)

// EncodeRequest appends a question for the name of ip to m.
func EncodeRequest(m *ipc.Message, ip netip.Addr) { m.Addr(ip) }

// DecodeRequest reads a question.
func DecodeRequest(b []byte) (netip.Addr, error) {
	d := wire.NewDecoder(b)
	ip := d.Addr()
	if !ip.IsValid() {
		d.Fail(errors.New("no address"))
	}
	if err := d.End(); err != nil {
		return netip.Addr{}, fmt.Errorf("dns request: %w", err)
	}
	return ip, nil
}

// Reply is the name of a client.
type Reply struct {
	Outcome Outcome
	Name    string // with Verified
}

// Encode appends r to m.
func (r Reply) Encode(m *ipc.Message) {
	m.Uint8(uint8(r.Outcome))
	m.String(r.Name)
}

// DecodeReply reads a reply. On an error the result is zero.
func DecodeReply(b []byte) (Reply, error) {
	d := wire.NewDecoder(b)
	r := Reply{Outcome(d.Enum(uint8(None))), d.Text(addr.MaxDomain)}
	if (r.Outcome == Verified) != (addr.CheckDomain(r.Name) == nil) {
		d.Fail(fmt.Errorf("outcome %d with name %q", r.Outcome, r.Name))
	}
	if err := d.End(); err != nil {
		return Reply{}, fmt.Errorf("dns reply: %w", err)
	}
	return r, nil
}

// Client asks.
type Client struct{ ipc *ipc.Client }

// NewClient returns a client for the server at path.
func NewClient(path string) *Client { return &Client{ipc.NewClient(path, Protocol)} }

// Name returns the verified name of ip. An error is the same as Unknown.
func (c *Client) Name(ctx context.Context, ip netip.Addr) (reply Reply, err error) {
	m := ipc.NewMessage()
	EncodeRequest(m, ip)
	err = c.ipc.Call(ctx, m, nil, func(b []byte) error {
		reply, err = DecodeReply(b)
		return err
	})
	return reply, err
}
