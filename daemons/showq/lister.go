package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/showq"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

type logger interface {
	Warn(fields maillog.Fields, format string, args ...any)
}

// lister reads the queue beneath base.
type lister struct {
	base string
	log  logger
}

// clientTimeout bounds how long a client may take for one page: a listing that
// nobody reads must not hold a place.
const clientTimeout = time.Minute

// list sends every message, queue by queue, and the end of the listing.
func (l *lister) list(c *ipc.Conn) error {
	p := newPager(&output{conn: c})
	for q := showq.Active; q <= showq.Corrupt; q++ {
		places := []place{{queue: q}}
		if q == showq.Deferred {
			var err error
			if places, err = l.buckets(); err != nil {
				return err
			}
		}
		for _, at := range places {
			if err := l.directory(p, at); err != nil {
				if q != showq.Deferred || !errors.As(err, new(*fs.PathError)) {
					return err
				}
				l.log.Warn(nil, "%v", err) // one of many: the others can be shown
			}
		}
	}
	p.page.Last = true
	return p.send()
}

// place is a directory: a queue, or a bucket of deferred/.
type place struct {
	queue  showq.Queue
	name   string // of the bucket
	bucket int64  // its time
}

func (l *lister) buckets() ([]place, error) {
	entries, err := os.ReadDir(filepath.Join(l.base, queue.Deferred)) // in order
	if err != nil {
		return nil, err
	}
	var list []place
	for _, e := range entries {
		if due, err := queue.BucketDue(e.Name()); err == nil {
			list = append(list, place{showq.Deferred, e.Name(), due.Unix()})
		}
	}
	return list, nil
}

func (l *lister) directory(p *pager, at place) error {
	d, err := queue.OpenDirectory(filepath.Join(l.base, at.queue.String(), at.name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a bucket that is empty by now
	}
	if err != nil {
		return err
	}
	defer d.Close()
	r := reading{l, d, at}
	var ids []queueid.ID
	err = d.Names(func(name string) error {
		id, err := queueid.Parse(name)
		if err != nil {
			return nil
		}
		if ids = append(ids, id); len(ids) < piece {
			return nil
		}
		err = r.both(p, ids)
		ids = ids[:0]
		return err
	})
	return errors.Join(err, r.both(p, ids))
}

// reading is that of a directory.
type reading struct {
	*lister
	dir *queue.Directory
	at  place
}

// piece is how many messages of a directory are shared out at once.
const piece = 1000

// both reads messages, two at a time if they are many. In a directory they have no
// order, but what comes from the one before is sent first.
func (r reading) both(p *pager, ids []queueid.ID) error {
	half := len(ids) / 2
	if half < mostInPage {
		return r.one(p, ids)
	}
	if err := p.flush(); err != nil {
		return err
	}
	other := p.beside()
	done := make(chan error)
	go func() { done <- errors.Join(r.one(other, ids[half:]), other.flush()) }()
	return errors.Join(r.one(p, ids[:half]), p.flush(), <-done)
}

// one reads messages one after the other.
func (r reading) one(p *pager, ids []queueid.ID) error {
	for _, id := range ids {
		e := p.next()
		e.Queue, e.ID, e.Bucket = r.at.queue, id, r.at.bucket
		err := p.fill(r.dir, e)
		switch {
		case err == nil:
			if err := p.add(e); err != nil {
				return err
			}
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, queue.ErrIncomplete):
			name := id.String()
			r.log.Warn(maillog.Fields{"QUEUE_ID": name}, "%s: %v", name, err)
		}
	}
	return nil
}

// A page is sent when it has enough: a single message at first, for somebody is
// waiting for it, and twice as many each time. What takes long is sent as it is.
const (
	mostInPage = 128 // messages and recipients, but for a single message with more
	longest    = 50 * time.Millisecond
)

// output is what pagers send on, one at a time.
type output struct {
	mu   sync.Mutex
	conn *ipc.Conn
}

func (o *output) send(m *ipc.Message) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.conn.SetDeadline(time.Now().Add(clientTimeout)); err != nil {
		return fmt.Errorf("showq: %w", err)
	}
	return o.conn.Send(m)
}

// pager sends entries in pages. Its memory is used again for each of them.
type pager struct {
	out     *output
	second  *pager // for who reads beside
	message *ipc.Message
	page    showq.Page
	most    int // messages and recipients in this page
	weight  int // what it has of them
	begun   time.Time
	buf     [8 << 10]byte // of a queue file: all of a small one is read at once
}

func newPager(out *output) *pager { return &pager{out: out, message: ipc.NewMessage(), most: 1} }

// beside returns the pager that is used at the same time as p.
func (p *pager) beside() *pager {
	if p.second == nil {
		p.second = newPager(p.out)
	}
	return p.second
}

// next returns an empty entry, which add puts into the page.
func (p *pager) next() *showq.Entry {
	n := len(p.page.Entries)
	if n == cap(p.page.Entries) {
		p.page.Entries = append(p.page.Entries, showq.Entry{})[:n]
	}
	e := &p.page.Entries[:n+1][n]
	*e = showq.Entry{Recipients: e.Recipients[:0]}
	return e
}

// fill reads one message. Of a damaged one no more is known than its name.
func (p *pager) fill(d *queue.Directory, e *showq.Entry) error {
	if e.Queue == showq.Corrupt {
		f, err := d.Open(e.ID)
		if err != nil {
			return err
		}
		defer f.Close() // opened for reading
		info, err := f.Stat()
		if err != nil {
			return err
		}
		e.Size, e.Arrival = info.Size(), e.ID.Time()
		return nil
	}
	m, err := d.Look(e.ID, p.buf[:])
	if err != nil {
		return err
	}
	e.Size, e.Arrival, e.Next, e.Sender = m.Length, m.Envelope.Arrival, m.Schedule.Next, m.Envelope.Sender
	for i := range m.Recipients {
		state, rcpt := &m.Recipients[i], &m.Envelope.Recipients[i]
		if state.Pending() || unreported(m, i) {
			e.Recipients = append(e.Recipients, showq.Recipient{
				Address: rcpt.Address, Original: rcpt.Original, Status: state.Last.Status, Reason: state.Last.Text,
			})
		}
	}
	return nil
}

// add puts what next has returned into the page.
func (p *pager) add(e *showq.Entry) error {
	now := time.Now()
	if len(p.page.Entries) == 0 {
		p.begun = now
	}
	p.page.Entries = p.page.Entries[:len(p.page.Entries)+1]
	p.weight += 1 + len(e.Recipients)
	if p.weight < p.most && now.Sub(p.begun) < longest {
		return nil
	}
	return p.send()
}

// flush sends what there is.
func (p *pager) flush() error {
	if len(p.page.Entries) == 0 {
		return nil
	}
	return p.send()
}

func (p *pager) send() error {
	p.page.Encode(p.message)
	err := p.out.send(p.message)
	p.message.Reset()
	if p.weight > mostInPage {
		*p = pager{out: p.out, second: p.second, message: ipc.NewMessage(), most: mostInPage} // such memory is not kept
	}
	p.page.Entries, p.weight, p.most = p.page.Entries[:0], 0, min(2*p.most, mostInPage)
	return err
}

// unreported reports whether a recipient has failed and keeps the message here
// until somebody has been told.
func unreported(m *queue.Message, i int) bool {
	state := &m.Recipients[i]
	return !state.Reported && state.Last.Status.Class() == dsn.Permanent &&
		(m.Envelope.Recipients[i].Notify.Wants(dsn.NotifyFailure) || m.Envelope.Sender.IsNull())
}
