// Package queuectl is the protocol by which the administrator's command steers
// the queue through qmgr, its owner.
//
// Trust: the socket's mode admits root and the group _ph-admin. A request
// selects messages by queue ID or destination, never by path.
package queuectl

import (
	"context"
	"errors"
	"fmt"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
)

// Protocol is what the socket greets with.
var Protocol = ipc.Protocol{Name: "queuectl", Version: 2, MaxRequest: 4 << 20, MaxReply: 4 << 20}

// Path is where the server is.
const Path = "/run/posthouse/private/queue"

// Op is what to do.
type Op uint8

// The operations.
const (
	Hold    Op = 1 + iota // set aside until released
	Release               // end hold
	Retry                 // deliver now what is deferred (flush)
	Requeue               // treat as new: resolve again, forget back-off
	Delete                // remove without notice to anybody
)

// MaxIDs bounds a request and a reply.
const MaxIDs = 100000

// Request names an operation and the messages that it is for: all, some by ID, or
// those for a destination.
type Request struct {
	Op  Op
	All bool // every message for which the operation means something
	IDs []queueid.ID
	// Buckets says of each of IDs in which bucket of deferred/ it was seen, by the
	// time in its name, so that it need not be looked for. 0: that is not known. It
	// may be empty as a whole.
	Buckets []int64
	// Destination is for Retry: every deferred message that has a recipient in this
	// domain to whom it is still to be delivered. "": not used.
	Destination string
}

// Encode appends r to m.
func (r Request) Encode(m *ipc.Message) {
	m.Uint8(uint8(r.Op))
	m.Bool(r.All)
	m.String(r.Destination)
	encodeIDs(&m.Encoder, r.IDs)
	m.Uint32(uint32(len(r.Buckets)))
	for _, b := range r.Buckets {
		m.Int64(b)
	}
}

// DecodeRequest reads a request. On an error the result is zero.
func DecodeRequest(b []byte) (Request, error) {
	d := wire.NewDecoder(b)
	r := Request{Op: Op(d.Enum(uint8(Delete))), All: d.Bool(), Destination: d.Text(addr.MaxDomain), IDs: decodeIDs(d)}
	for range d.Count(MaxIDs) {
		r.Buckets = append(r.Buckets, d.Int64())
		if d.Err() == nil && r.Buckets[len(r.Buckets)-1] < 0 {
			d.Fail(errors.New("a bucket before all time"))
		}
	}
	if d.Err() == nil {
		d.Fail(r.check())
	}
	if err := d.End(); err != nil {
		return Request{}, fmt.Errorf("queuectl request: %w", err)
	}
	return r, nil
}

func (r *Request) check() error {
	ways := 0
	for _, used := range []bool{r.All, len(r.IDs) > 0, r.Destination != ""} {
		if used {
			ways++
		}
	}
	switch {
	case r.Op == 0 || ways != 1:
		return errors.New("no operation, or not one way to select")
	case len(r.Buckets) > 0 && len(r.Buckets) != len(r.IDs):
		return fmt.Errorf("%d buckets for %d messages", len(r.Buckets), len(r.IDs))
	case r.Destination == "":
		return nil
	case r.Op != Retry:
		return errors.New("an operation that is not for destinations")
	}
	return addr.CheckDomain(r.Destination)
}

// Reply tells what was done.
type Reply struct {
	Err     *dsn.Error   // why it went no further
	Done    uint32       // messages
	Missing []queueid.ID // not in the queue, or not in a state for the operation
}

// Encode appends r to m.
func (r Reply) Encode(m *ipc.Message) {
	m.Error(r.Err)
	m.Uint32(r.Done)
	encodeIDs(&m.Encoder, r.Missing)
}

// DecodeReply reads a reply. On an error the result is zero.
func DecodeReply(b []byte) (Reply, error) {
	d := wire.NewDecoder(b)
	r := Reply{d.Error(), d.Uint32(), decodeIDs(d)}
	if err := d.End(); err != nil {
		return Reply{}, fmt.Errorf("queuectl reply: %w", err)
	}
	return r, nil
}

func encodeIDs(e *wire.Encoder, ids []queueid.ID) {
	e.Uint32(uint32(len(ids)))
	for _, id := range ids {
		e.QueueID(id)
	}
}

func decodeIDs(d *wire.Decoder) []queueid.ID {
	var ids []queueid.ID
	for range d.Count(MaxIDs) {
		ids = append(ids, d.QueueID())
	}
	return ids
}

// Do has r carried out by the server at path.
func Do(ctx context.Context, path string, r Request) (reply Reply, err error) {
	m := ipc.NewMessage()
	r.Encode(m)
	client := ipc.NewClient(path, Protocol)
	defer client.Close()
	err = client.Call(ctx, m, nil, func(b []byte) error {
		reply, err = DecodeReply(b)
		return err
	})
	return reply, err
}
