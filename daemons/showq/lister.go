package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

// clientTimeout bounds how long a client may take for one entry: a listing that
// nobody reads must not hold a place.
const clientTimeout = time.Minute

// list sends every message, queue by queue, and the end of the listing.
func (l *lister) list(c *ipc.Conn) error {
	for q := showq.Active; q <= showq.Corrupt; q++ {
		dirs := []string{q.String()}
		if q == showq.Deferred {
			var err error
			if dirs, err = l.buckets(); err != nil {
				return err
			}
		}
		for _, dir := range dirs {
			if err := l.directory(c, q, filepath.Join(l.base, dir)); err != nil {
				if q != showq.Deferred || !errors.As(err, new(*fs.PathError)) {
					return err
				}
				l.log.Warn(nil, "%v", err) // one of many: the others can be shown
			}
		}
	}
	return send(c, nil)
}

func (l *lister) buckets() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(l.base, queue.Deferred))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if _, err := queue.BucketDue(e.Name()); err == nil {
			names = append(names, filepath.Join(queue.Deferred, e.Name()))
		}
	}
	slices.Sort(names)
	return names, nil
}

func (l *lister) directory(c *ipc.Conn, q showq.Queue, path string) error {
	d, err := queue.OpenDirectory(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a bucket that is empty by now
	}
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Names(func(name string) error {
		id, err := queueid.Parse(name)
		if err != nil {
			return nil
		}
		e, err := l.entry(d, q, id)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, queue.ErrIncomplete) {
				l.log.Warn(maillog.Fields{"QUEUE_ID": name}, "%s: %v", name, err)
			}
			return nil
		}
		return send(c, e)
	})
}

// entry reads one message. Of a damaged one no more is known than its name.
func (l *lister) entry(d *queue.Directory, q showq.Queue, id queueid.ID) (*showq.Entry, error) {
	f, err := d.Open(id)
	if err != nil {
		return nil, err
	}
	defer f.Close() // opened for reading
	if q == showq.Corrupt {
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		return &showq.Entry{Queue: q, ID: id, Size: info.Size(), Arrival: id.Time()}, nil
	}
	m, err := queue.Read(f)
	if err != nil {
		return nil, err
	}
	e := &showq.Entry{Queue: q, ID: id, Size: m.Length, Arrival: m.Envelope.Arrival, Next: m.Schedule.Next, Sender: m.Envelope.Sender}
	for i := range m.Recipients {
		state, rcpt := &m.Recipients[i], &m.Envelope.Recipients[i]
		if state.Pending() || unreported(m, i) {
			e.Recipients = append(e.Recipients, showq.Recipient{
				Address: rcpt.Address, Original: rcpt.Original, Status: state.Last.Status, Reason: state.Last.Text,
			})
		}
	}
	return e, nil
}

func send(c *ipc.Conn, e *showq.Entry) error {
	if err := c.SetDeadline(time.Now().Add(clientTimeout)); err != nil {
		return fmt.Errorf("showq: %w", err)
	}
	m := ipc.NewMessage()
	showq.EncodeEntry(m, e)
	return c.Send(m)
}

// unreported reports whether a recipient has failed and keeps the message here
// until somebody has been told.
func unreported(m *queue.Message, i int) bool {
	state := &m.Recipients[i]
	return !state.Reported && state.Last.Status.Class() == dsn.Permanent &&
		(m.Envelope.Recipients[i].Notify.Wants(dsn.NotifyFailure) || m.Envelope.Sender.IsNull())
}
