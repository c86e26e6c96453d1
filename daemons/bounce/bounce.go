package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/bounce"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/queueid"
)

// doubleBounce is the local-part from which the postmaster hears of what cannot
// be returned. Mail to it is thrown away, and nothing that it sent comes back:
// here a loop ends.
const doubleBounce = "double-bounce"

// queue is where notifications go.
type queue interface {
	submit(ctx context.Context, e *envelope.Envelope, content []byte) (queueid.ID, error)
}

type service struct {
	config func() *config.Config
	queue  queue
	log    *maillog.Logger
	now    func() time.Time
}

// handle answers one request.
func (s *service) handle(ctx context.Context, c *ipc.Conn, msg []byte, file *os.File) error {
	if file != nil {
		defer file.Close() // read-only
	}
	r, err := bounce.DecodeRequest(msg)
	if err != nil {
		return err
	}
	var reply bounce.Reply
	if _, err := ipc.Part(file, r.Offset, r.Length); err != nil {
		return fmt.Errorf("%s: %w", r.QueueID, err)
	}
	id, err := s.notify(ctx, r, file)
	if err != nil {
		s.log.Warn(maillog.Fields{"QUEUE_ID": r.QueueID.String()}, "%s: notification is put off: %v", r.QueueID, err)
		// Whatever cleanup said, qmgr is to ask again.
		e := dsn.Of(err)
		reply.Err = &dsn.Error{Status: e.Status.With(dsn.Transient), Text: maillog.Printable(e.Text)}
	} else if id != (queueid.ID{}) {
		reply.ID = id.String()
	}
	m := ipc.NewMessage()
	reply.Encode(m)
	return c.Send(m)
}

// isDoubleBounce reports whether a sender is ours; other mail systems have one of
// that name, too.
func isDoubleBounce(m addr.Mailbox, cfg *config.Config) bool {
	return strings.EqualFold(m.Local(), doubleBounce) && strings.EqualFold(m.Domain(), cfg.Origin)
}

var events = map[bounce.Kind]struct {
	notify dsn.Notify
	word   string
}{
	bounce.Failure: {dsn.NotifyFailure, "non-delivery"},
	bounce.Delay:   {dsn.NotifyDelay, "delay"},
	bounce.Success: {dsn.NotifySuccess, "delivery status"},
}

// notify queues the notification that r asks for. Where nobody is to be told the
// ID is zero.
func (s *service) notify(ctx context.Context, r *bounce.Request, file *os.File) (queueid.ID, error) {
	cfg := s.config()
	rep := &report{
		Request: r, to: r.Envelope.Sender, hostname: cfg.Hostname, origin: cfg.Origin,
		limit: int64(cfg.Bounce.SizeLimit), content: file, now: s.now(),
	}
	if r.Envelope.Sender.IsNull() || isDoubleBounce(r.Envelope.Sender, cfg) {
		return s.toPostmaster(ctx, rep)
	}
	rep.filter(events[r.Kind].notify)
	if len(r.Recipients) == 0 {
		return queueid.ID{}, nil
	}
	id, err := s.send(ctx, rep)
	if refused(err) {
		// It would be so for ever: the sender's address is one to which nothing can be sent.
		s.log.Warn(maillog.Fields{"QUEUE_ID": r.QueueID.String()}, "%s: from=<%s> cannot be notified: %v", r.QueueID, r.Envelope.Sender, err)
		return s.toPostmaster(ctx, rep)
	}
	return id, err
}

// refused reports whether err is a verdict on the notification itself.
func refused(err error) bool { return err != nil && dsn.Of(err).Status.Class() == dsn.Permanent }

// toPostmaster queues the notification for the postmaster instead of the sender,
// if that is wanted.
func (s *service) toPostmaster(ctx context.Context, rep *report) (queueid.ID, error) {
	cfg := s.config()
	to, err := s.double(rep.Request, cfg)
	if err != nil || to.IsNull() {
		return queueid.ID{}, err
	}
	rep.to, rep.postmaster = to, true
	if rep.from, err = addr.New(doubleBounce, cfg.Origin); err != nil {
		return queueid.ID{}, err
	}
	return s.send(ctx, rep)
}

// send queues the notification, with less in it where it is refused as it is.
func (s *service) send(ctx context.Context, rep *report) (queueid.ID, error) {
	id, err := s.sendAs(ctx, rep)
	if refused(err) {
		rep.limit = -1 // it may be too large
		id, err = s.sendAs(ctx, rep)
	}
	if refused(err) && dsn.Of(err).Status == dsn.MustParse("5.3.4") { // as it is
		rep.shorten()
		id, err = s.sendAs(ctx, rep)
	}
	return id, err
}

func (s *service) sendAs(ctx context.Context, rep *report) (queueid.ID, error) {
	content, err := rep.compose()
	if err != nil {
		return queueid.ID{}, err
	}
	id, err := s.queue.submit(ctx, rep.envelope(), content)
	if err != nil {
		return queueid.ID{}, err
	}
	s.log.Info(maillog.Fields{"QUEUE_ID": rep.QueueID.String()}, "%s: %s %s notification: %s", rep.QueueID,
		choose(rep.postmaster, "postmaster", "sender"), events[rep.Kind].word, id)
	return id, nil
}

// double says who hears of a message that can be neither delivered nor
// returned: the postmaster if so configured, of failures only, and never of a
// message that was a notification of this kind itself.
func (s *service) double(r *bounce.Request, cfg *config.Config) (addr.Mailbox, error) {
	if r.Kind != bounce.Failure {
		return addr.Mailbox{}, nil
	}
	fields := maillog.Fields{"QUEUE_ID": r.QueueID.String()}
	if isDoubleBounce(r.Envelope.Sender, cfg) || cfg.Bounce.DoubleBounceRecipient == "" {
		for i := range r.Recipients {
			s.log.Warn(fields, "%s: nobody is told that this cannot be delivered: to=<%s>, dsn=%s (%s)",
				r.QueueID, r.Recipients[i].Address, r.Recipients[i].Status, r.Recipients[i].Text)
		}
		return addr.Mailbox{}, nil
	}
	to, err := addr.Parse(cfg.Bounce.DoubleBounceRecipient)
	if err != nil {
		return addr.Mailbox{}, err
	}
	if to.Domain() == "" {
		return to.WithDomain(cfg.Origin)
	}
	return to, nil
}

// filter keeps the recipients of which the sender wants to hear.
func (r *report) filter(event dsn.Notify) {
	var keep []bounce.Recipient
	for _, rcpt := range r.Recipients {
		if rcpt.Notify.Wants(event) {
			keep = append(keep, rcpt)
		}
	}
	r.Recipients = keep
}

// shorten leaves the beginning of what was said of each recipient.
func (r *report) shorten() {
	for i := range r.Recipients {
		rcpt := &r.Recipients[i]
		rcpt.Text, rcpt.Diagnostic = beginning(rcpt.Text), beginning(rcpt.Diagnostic)
	}
}

func beginning(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

func (r *report) envelope() *envelope.Envelope {
	return &envelope.Envelope{
		Arrival: r.now, Sender: r.from, Body: envelope.Body8BitMIME, SMTPUTF8: r.isUTF8() && !r.to.IsASCII(),
		Trace: envelope.Trace{Origin: envelope.FromSystem},
		Recipients: []envelope.Recipient{{
			Address: r.to, Original: r.to, Notify: dsn.NotifyNever,
		}},
	}
}

// cleanupQueue submits to cleanup.
type cleanupQueue struct{ client *cleanup.Client }

// submitTimeout bounds one submission; qmgr waits longer.
const submitTimeout = 40 * time.Second

func (q cleanupQueue) submit(ctx context.Context, e *envelope.Envelope, content []byte) (queueid.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	t, err := q.client.Begin(ctx, e)
	if err != nil {
		return queueid.ID{}, err
	}
	defer t.Abort()
	if _, err := t.Write(content); err != nil {
		return queueid.ID{}, err
	}
	if err := t.Commit(); err != nil {
		return queueid.ID{}, err
	}
	return t.ID, nil
}
