// Package recipient is the protocol by which rewrite asks local whether there
// is anybody behind the local-part of an address in a local domain: an alias,
// or an account.
//
// Trust: the client is rewrite, the local-parts come from anywhere. They select
// entries of aliases and of the system's database of users. rewrite refuses
// mail by the answers; without one it is not known now.
package recipient

import (
	"context"
	"fmt"

	"posthouse/pkg/ipc"
	"posthouse/pkg/wire"
)

// Protocol is what the socket greets with.
var Protocol = ipc.Protocol{Name: "recipient", Version: 1, MaxRequest: 1 << 20, MaxReply: 4096}

// Path is where the server is.
const Path = "/run/posthouse/private/recipient"

// Limits of a request.
const (
	MaxLocalParts = 1000
	maxLocalPart  = 256 // octets
)

// Outcome is what there is. The zero value is: not known now.
type Outcome uint8

// The outcomes.
const (
	Unknown Outcome = iota // the answer may be known later
	Alias                  // an alias, or a name that is always taken, such as postmaster
	Account
	None
)

// EncodeRequest appends a question about local-parts, extensions included, to m.
func EncodeRequest(m *ipc.Message, localParts []string) {
	m.Uint32(uint32(len(localParts)))
	for _, s := range localParts {
		m.String(s)
	}
}

// DecodeRequest reads a question. On an error the result is nil.
func DecodeRequest(b []byte) ([]string, error) {
	d := wire.NewDecoder(b)
	var list []string
	for range d.Count(MaxLocalParts) {
		list = append(list, d.Text(maxLocalPart))
	}
	if err := d.End(); err != nil {
		return nil, fmt.Errorf("recipient request: %w", err)
	}
	return list, nil
}

// EncodeReply appends one outcome for each local-part to m.
func EncodeReply(m *ipc.Message, outcomes []Outcome) {
	m.Uint32(uint32(len(outcomes)))
	for _, o := range outcomes {
		m.Uint8(uint8(o))
	}
}

// DecodeReply reads a reply. On an error the result is nil.
func DecodeReply(b []byte) ([]Outcome, error) {
	d := wire.NewDecoder(b)
	var list []Outcome
	for range d.Count(MaxLocalParts) {
		list = append(list, Outcome(d.Enum(uint8(None))))
	}
	if err := d.End(); err != nil {
		return nil, fmt.Errorf("recipient reply: %w", err)
	}
	return list, nil
}

// Client asks.
type Client struct{ ipc *ipc.Client }

// NewClient returns a client for the server at path.
func NewClient(path string) *Client { return &Client{ipc.NewClient(path, Protocol)} }

// Ask returns an outcome for each of at most MaxLocalParts local-parts. It is an
// *ipc.UnavailableError where local is switched off.
func (c *Client) Ask(ctx context.Context, localParts []string) (outcomes []Outcome, err error) {
	m := ipc.NewMessage()
	EncodeRequest(m, localParts)
	err = c.ipc.Call(ctx, m, nil, func(b []byte) error {
		outcomes, err = DecodeReply(b)
		if err == nil && len(outcomes) != len(localParts) {
			err = fmt.Errorf("%d outcomes for %d local-parts", len(outcomes), len(localParts))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return outcomes, nil
}
