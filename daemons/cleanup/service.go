package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// logger is the mail log.
type logger interface {
	Info(fields maillog.Fields, format string, args ...any)
	Warn(fields maillog.Fields, format string, args ...any)
}

// service serves the protocol cleanup.
type service struct {
	config  func() *config.Config
	rewrite asker
	spool   spool
	log     logger
	now     func() time.Time
	arrived func(queueid.ID) // tells qmgr; does not wait

	ids idSource
}

// margin is how much longer than its client, whose timeout bounds it, cleanup waits for a
// message to come to its end: smtpd, or pickup for a program of this machine. That a
// client is gone it sees at once.
const (
	margin       = time.Minute
	localSession = time.Hour
)

var past = time.Unix(1, 0)

// handle takes one message, of which msg is the opening.
func (s *service) handle(ctx context.Context, c *ipc.Conn, msg []byte, file *os.File) error {
	if file != nil {
		_ = file.Close() // nobody's
		return errors.New("a descriptor that was not asked for")
	}
	r, err := cleanup.DecodeRequest(msg)
	if err != nil {
		return err
	}
	if r.Kind != cleanup.KindBegin {
		return errors.New("content without an envelope")
	}
	t, refusal := s.begin(ctx, r.Envelope)
	if refusal != nil {
		return reply(c, cleanup.Reply{Err: refusal})
	}
	// From here on the file goes whichever way this ends, unless it is committed.
	defer t.cancel()
	if err := reply(c, cleanup.Reply{ID: t.id}); err != nil {
		return err
	}
	if err := s.receive(ctx, c, t); err != nil {
		if t.refusal == nil {
			s.log.Info(t.fields(), "%s: removed (canceled)", t.id)
		}
		return err
	}
	return reply(c, t.end())
}

// reply answers. That the client is not there any more changes nothing.
func reply(c *ipc.Conn, r cleanup.Reply) error {
	if r.Err != nil {
		const enough = 1000 // octets, far less than cleanup.Protocol.MaxReply
		text := r.Err.Text
		if len(text) > enough {
			text = strings.ToValidUTF8(text[:enough], "")
		}
		r.Err = &dsn.Error{Status: r.Err.Status, Text: maillog.Printable(text)}
	}
	m := ipc.NewMessage()
	r.Encode(m)
	return c.Send(m)
}

// receive takes the content up to its end.
func (s *service) receive(ctx context.Context, c *ipc.Conn, t *transaction) error {
	if err := c.SetReadDeadline(time.Now().Add(max(t.cfg.LongestSession(), localSession) + margin)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(past) })
	defer stop()
	for {
		b, err := c.Receive(ipc.MaxChunk)
		if err != nil {
			return err
		}
		r, err := cleanup.DecodeRequest(b)
		switch {
		case err != nil:
			return err
		case r.Kind == cleanup.KindBegin:
			return errors.New("a message within a message")
		}
		t.write(r.Data)
		if r.Kind != cleanup.KindEnd {
			continue
		}
		if stop() {
			return c.SetReadDeadline(time.Time{})
		}
		return nil
	}
}

// transaction is one message on its way into the queue.
type transaction struct {
	*service
	cfg     *config.Config
	id      queueid.ID
	e       *envelope.Envelope // as it came, until open
	only    addr.Mailbox
	ready   chan addressed
	file    spoolFile // nil when it is committed or given up
	w       *queue.Writer
	content *content // nil until open
	refusal *dsn.Error
}

// addressed is an envelope with what its addresses stand for.
type addressed struct {
	e   *envelope.Envelope
	err error
}

// begin opens a message, or says why not.
func (s *service) begin(ctx context.Context, e *envelope.Envelope) (*transaction, *dsn.Error) {
	cfg := s.config()
	if e.Arrival.IsZero() {
		e.Arrival = s.now()
	}
	t := &transaction{service: s, cfg: cfg, e: e, ready: make(chan addressed, 1)}
	switch n := len(e.Recipients); {
	case n == 0:
		return nil, dsn.Errorf("5.5.1", "no recipients")
	case n > cfg.Limits.Recipients && (e.Trace.Origin == envelope.FromNetwork || e.Trace.ClientAddr.IsValid()):
		// smtpd has another limit only while the configuration changes.
		return nil, dsn.Errorf("4.5.3", "%d recipients, the limit is %d", n, cfg.Limits.Recipients)
	case n == 1:
		t.only = given(&e.Recipients[0])
	}
	if err := s.checkSpace(cfg); err != nil {
		return nil, err
	}
	if err := t.create(); err != nil {
		s.log.Warn(t.fields(), "queue file: %v", err)
		t.cancel()
		return nil, diskError(err)
	}
	// While the client sends the content.
	full := *e
	full.Recipients = slices.Clone(e.Recipients)
	go func() { t.ready <- addressed{&full, addresses(ctx, s.rewrite, &full)} }()
	return t, nil
}

// open writes what comes before the content.
func (t *transaction) open() error {
	a := <-t.ready
	if a.err != nil {
		return t.unsure(a.err)
	}
	t.e = a.e
	stored := *t.e
	if stored.Trace.Origin == envelope.FromGateway { // which nobody else has to know
		stored.Trace.Origin = envelope.FromLocal
	}
	t.w = queue.NewWriter(t.file, &stored)
	r := rules{
		hostname: t.cfg.Hostname, origin: t.cfg.Origin, size: int64(t.cfg.Limits.MessageSize),
		header: int(t.cfg.Limits.HeaderSize), hops: t.cfg.Limits.Hops,
	}
	if t.e.Trace.Origin == envelope.FromSystem {
		// It has been taken before, or is a notification of such a message: that it has
		// got a trace since is no reason to refuse it now.
		r.size += traceSize
		r.header += traceSize
	}
	t.content = newContent(r, t.e, t.id, t.w)
	_, err := io.WriteString(t.w, received(r.hostname, t.e, t.id, t.only))
	return err
}

// traceSize is for what a message gets on its way through this system, as often as
// it may pass: Received and Delivered-To fields.
const traceSize = 64 << 10

// checkSpace refuses messages while there is room for a few more, so that those
// that are under way get through (Postfix's queue_minfree).
func (s *service) checkSpace(cfg *config.Config) *dsn.Error {
	need := max(uint64(cfg.Limits.MessageSize)/2*3, uint64(cfg.Limits.FreeSpace))
	free, err := s.spool.free()
	if err == nil && free < need {
		s.spool.reclaim()
		free, err = s.spool.free()
	}
	if err != nil {
		s.log.Warn(nil, "%v", err)
		return diskError(err)
	}
	if free < need {
		s.log.Warn(nil, "not enough free space in the queue: %d octets, %d are needed", free, need)
		return dsn.Errorf("4.3.1", "Insufficient system storage")
	}
	return nil
}

// unsure makes a verdict of an error in answers about addresses. Trouble with
// rewrite is for the log; the client is told to come back.
func (s *service) unsure(err error) *dsn.Error {
	var e *dsn.Error
	if errors.As(err, &e) {
		return dsn.Of(e)
	}
	s.log.Warn(nil, "%v", err)
	return dsn.Errorf("4.3.0", "temporary lookup failure")
}

// maxTries bounds the search for a queue ID that is free. IDs have the time and
// a random number in them; two tries are more than will be needed.
const maxTries = 10

// create makes the queue file.
func (t *transaction) create() error {
	for range maxTries {
		id := t.ids.next(t.now())
		f, err := t.spool.create(id)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		t.id, t.file = id, f
		return nil
	}
	return fmt.Errorf("no free queue ID in %d tries", maxTries)
}

// write adds to the content. After a refusal what follows is thrown away: the
// client hears of it at the end.
func (t *transaction) write(p []byte) {
	if t.refusal == nil && t.content == nil {
		t.fail(t.open())
	}
	if t.refusal == nil {
		t.fail(t.content.write(p))
	}
}

// fail gives the message up if err is not nil.
func (t *transaction) fail(err error) {
	if err == nil {
		return
	}
	var e *dsn.Error
	if errors.As(err, &e) {
		t.refusal = dsn.Of(e)
		t.log.Info(t.fields(), "%s: refused: %v", t.id, t.refusal)
	} else {
		t.refusal = diskError(err)
		t.log.Warn(t.fields(), "%s: queue file: %v", t.id, err)
	}
	t.cancel()
}

// end ends the content, and returns the verdict.
func (t *transaction) end() cleanup.Reply {
	if t.refusal == nil {
		t.fail(t.content.close())
	}
	if t.refusal == nil {
		t.logMessageID()
		t.fail(t.commit())
	}
	if t.refusal != nil {
		return cleanup.Reply{Err: t.refusal}
	}
	return cleanup.Reply{ID: t.id}
}

// commit is the commit point: when it returns nil the message is in the queue,
// and nothing that comes later can be allowed to fail it.
func (t *transaction) commit() error {
	if err := t.w.Finish(); err != nil {
		return err
	}
	if err := t.spool.commit(t.file); err != nil {
		return err
	}
	_ = t.file.Close() // there is nothing left to write
	t.file = nil
	t.arrived(t.id)
	return nil
}

// cancel removes the file of a message that was not committed.
func (t *transaction) cancel() {
	if t.file == nil {
		return
	}
	// While it is open qmgr leaves it alone, and it may be complete.
	if err := t.spool.remove(t.id); err != nil {
		t.log.Warn(t.fields(), "%s: queue file: %v", t.id, err)
	}
	_ = t.file.Close() // its content does not matter
	t.file = nil
}

func (t *transaction) fields() maillog.Fields {
	return maillog.Fields{"QUEUE_ID": t.id.String()}
}

// maxLoggedID bounds what the log shows of a Message-Id.
const maxLoggedID = 1000

func (t *transaction) logMessageID() {
	s := &t.content.seen
	id := s.id
	if id == "" {
		id = "<>"
	}
	fields := t.fields()
	fields["MESSAGE_ID"] = clip(id)
	t.log.Info(fields, "%s: message-id=%s", t.id, clip(id))
	if s.resentID != "" {
		t.log.Info(t.fields(), "%s: resent-message-id=%s", t.id, clip(s.resentID))
	}
}

func clip(s string) string {
	if len(s) > maxLoggedID {
		return s[:maxLoggedID]
	}
	return s
}
