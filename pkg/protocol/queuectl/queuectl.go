// Package queuectl is the protocol by which the administrator's command steers
// the queue through qmgr, its owner.
//
// Trust: the socket's mode admits root and the group _ph-admin. A request
// selects messages by queue ID, never by path.
package queuectl

import (
	"context"
	"errors"
	"fmt"

	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
)

// Protocol is what the socket greets with.
var Protocol = ipc.Protocol{Name: "queuectl", Version: 1, MaxRequest: 4 << 20, MaxReply: 4 << 20}

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

// Request names an operation and the messages that it is for.
type Request struct {
	Op  Op
	All bool // every message for which the operation means something
	IDs []queueid.ID
}

// Encode appends r to m.
func (r Request) Encode(m *ipc.Message) {
	m.Uint8(uint8(r.Op))
	m.Bool(r.All)
	encodeIDs(&m.Encoder, r.IDs)
}

// DecodeRequest reads a request. On an error the result is zero.
func DecodeRequest(b []byte) (Request, error) {
	d := wire.NewDecoder(b)
	r := Request{Op: Op(d.Enum(uint8(Delete))), All: d.Bool(), IDs: decodeIDs(d)}
	if r.Op == 0 || r.All == (len(r.IDs) > 0) {
		d.Fail(errors.New("no operation, or not either all or some"))
	}
	if err := d.End(); err != nil {
		return Request{}, fmt.Errorf("queuectl request: %w", err)
	}
	return r, nil
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
