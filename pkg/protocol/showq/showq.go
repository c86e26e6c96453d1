// Package showq is the protocol by which commands list the queue.
//
// Trust: any local user may ask. The request selects nothing; what is shown was
// read from queue files by the server, and is made printable by whoever prints it.
package showq

import (
	"context"
	"fmt"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
)

// Protocol is what the socket greets with.
var Protocol = ipc.Protocol{Name: "showq", Version: 1, MaxRequest: 16, MaxReply: 128 << 20}

// Path is where the server is.
const Path = "/run/posthouse/public/showq"

// Queue is the queue that a message is in.
type Queue uint8

// The queues, in the order in which they are listed.
const (
	Active Queue = iota
	Incoming
	Deferred
	Hold
	Corrupt
)

// String returns the name, which is that of the directory.
func (q Queue) String() string {
	return [...]string{"active", "incoming", "deferred", "hold", "corrupt"}[q]
}

// MaxRecipients bounds an entry.
const MaxRecipients = 50000

// Recipient is a recipient to whom the message is still to be delivered, or of
// whose failure the sender has not been told.
type Recipient struct {
	Address  addr.Mailbox
	Original addr.Mailbox
	Status   dsn.Status // of the last attempt; 4.0.0 before the first
	Reason   string     // of the last attempt; "" before the first
}

// Entry is one message. The last entry of a listing is nil.
type Entry struct {
	Queue      Queue
	ID         queueid.ID
	Size       int64 // octets of content
	Arrival    time.Time
	Next       time.Time // of the next attempt, where known
	Sender     addr.Mailbox
	Recipients []Recipient
}

// list is the one request there is.
const list = 1

// DecodeRequest reads a request.
func DecodeRequest(b []byte) error {
	d := wire.NewDecoder(b)
	if kind := d.Uint8(); kind != list {
		d.Fail(fmt.Errorf("request of kind %d", kind))
	}
	if err := d.End(); err != nil {
		return fmt.Errorf("showq request: %w", err)
	}
	return nil
}

// EncodeEntry appends e, or with nil the end of the listing, to m.
func EncodeEntry(m *ipc.Message, e *Entry) {
	m.Bool(e != nil)
	if e == nil {
		return
	}
	m.Uint8(uint8(e.Queue))
	m.QueueID(e.ID)
	m.Int64(e.Size)
	m.Time(e.Arrival)
	m.Time(e.Next)
	m.Mailbox(e.Sender)
	m.Uint32(uint32(len(e.Recipients)))
	for i := range e.Recipients {
		r := &e.Recipients[i]
		m.Mailbox(r.Address)
		m.Mailbox(r.Original)
		m.Status(r.Status)
		m.String(r.Reason)
	}
}

// DecodeEntry reads an entry; nil without error is the end of the listing.
func DecodeEntry(b []byte) (*Entry, error) {
	d := wire.NewDecoder(b)
	var e *Entry
	if d.Bool() {
		e = &Entry{Queue: Queue(d.Enum(uint8(Corrupt))), ID: d.QueueID(), Size: d.Int64(), Arrival: d.Time(), Next: d.Time(), Sender: d.Mailbox()}
		for range d.Count(MaxRecipients) {
			e.Recipients = append(e.Recipients, Recipient{d.Mailbox(), d.Mailbox(), d.Status(), d.Text(wire.MaxText)})
			if d.Err() != nil {
				break
			}
		}
	}
	if err := d.End(); err != nil {
		return nil, fmt.Errorf("showq entry: %w", err)
	}
	return e, nil
}

// List asks the server at path for the queue and has each entry seen. It ends
// early with the first error of each. ctx bounds the whole.
func List(ctx context.Context, path string, each func(*Entry) error) error {
	client := ipc.NewClient(path, Protocol)
	conn, _, err := client.Get(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	m := ipc.NewMessage()
	m.Uint8(list)
	if err := conn.Send(m); err != nil {
		return fmt.Errorf("showq: %w", err)
	}
	for {
		b, err := conn.Receive(Protocol.MaxReply)
		if err != nil {
			return fmt.Errorf("showq: %w", err)
		}
		e, err := DecodeEntry(b)
		if err != nil || e == nil {
			return err
		}
		if err := each(e); err != nil {
			return err
		}
	}
}
