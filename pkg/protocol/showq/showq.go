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
var Protocol = ipc.Protocol{Name: "showq", Version: 2, MaxRequest: 16, MaxReply: 128 << 20}

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

// Entry is one message.
type Entry struct {
	Queue      Queue
	ID         queueid.ID
	Bucket     int64 // of deferred/ that it was seen in: the time in its name
	Size       int64 // octets of content
	Arrival    time.Time
	Next       time.Time // of the next attempt, where known
	Sender     addr.Mailbox
	Recipients []Recipient
}

// Page is a part of a listing, as many messages as the server finds worth a packet.
type Page struct {
	Entries []Entry
	Last    bool // nothing follows
}

// MaxEntries bounds a page.
const MaxEntries = 1000

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

// Encode appends p to m.
func (p *Page) Encode(m *ipc.Message) {
	m.Bool(p.Last)
	m.Uint32(uint32(len(p.Entries)))
	for i := range p.Entries {
		p.Entries[i].encode(m)
	}
}

func (e *Entry) encode(m *ipc.Message) {
	m.Uint8(uint8(e.Queue))
	m.QueueID(e.ID)
	m.Int64(e.Bucket)
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

// DecodePage reads a page. On an error the result is zero.
func DecodePage(b []byte) (Page, error) {
	d := wire.NewListDecoder(b)
	p := Page{Last: d.Bool()}
	for range d.Count(MaxEntries) {
		e := Entry{
			Queue: Queue(d.Enum(uint8(Corrupt))), ID: d.QueueID(), Bucket: d.Int64(), Size: d.Int64(),
			Arrival: d.Time(), Next: d.Time(), Sender: d.Mailbox(),
		}
		for range d.Count(MaxRecipients) {
			e.Recipients = append(e.Recipients, Recipient{d.Mailbox(), d.Mailbox(), d.Status(), d.Text(wire.MaxText)})
			if d.Err() != nil {
				break
			}
		}
		if e.Bucket < 0 {
			d.Fail(fmt.Errorf("bucket %d", e.Bucket))
		}
		if d.Err() != nil {
			break
		}
		p.Entries = append(p.Entries, e)
	}
	if err := d.End(); err != nil {
		return Page{}, fmt.Errorf("showq page: %w", err)
	}
	return p, nil
}

// List asks the server at path for the queue and has each page of it seen, as it
// comes. It ends early with the first error of each. ctx bounds the whole.
func List(ctx context.Context, path string, each func([]Entry) error) error {
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
		p, err := DecodePage(b)
		if err != nil {
			return err
		}
		if err := each(p.Entries); err != nil || p.Last {
			return err
		}
	}
}
