package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/queueid"
)

type transaction interface {
	Write(p []byte) (int, error)
	Commit() error
	Abort()
}

type queue interface {
	begin(ctx context.Context, e *envelope.Envelope) (queueid.ID, transaction, error)
}

type logger interface {
	Info(fields maillog.Fields, format string, args ...any)
	Warn(fields maillog.Fields, format string, args ...any)
}

type service struct {
	queue   queue
	log     logger
	perUser int // messages that one user may have under way
	maySend func(uid uint32, sender addr.Mailbox) bool

	mu    sync.Mutex
	users map[uint32]share
}

// share is what a user has under way.
type share struct {
	messages int
	octets   int // of envelopes
}

// maxEnvelopes is what the envelopes of one user, of more than one message, may have
// in memory, in octets as they came.
const maxEnvelopes = 4 << 20

// messageTimeout bounds one submission: a program may take its time to write,
// but not hold a place for ever.
const messageTimeout = time.Hour

// message is one that a local user submits.
type message struct {
	*service
	conn *ipc.Conn
	uid  uint32
	id   string // noQueue until it has one
	e    *envelope.Envelope
}

// noQueue stands for the queue ID of what has none.
const noQueue = "NOQUEUE"

// handle takes one message, of which msg is the opening.
func (s *service) handle(ctx context.Context, c *ipc.Conn, msg []byte, file *os.File) error {
	if file != nil {
		_ = file.Close() // nobody's
		return errors.New("a descriptor that was not asked for")
	}
	uid, err := c.PeerUID()
	if err != nil {
		return err
	}
	r, err := cleanup.DecodeRequest(msg)
	switch {
	case err != nil:
		return fmt.Errorf("uid=%d: %w", uid, err)
	case r.Kind != cleanup.KindBegin:
		return fmt.Errorf("uid=%d: content without an envelope", uid)
	}
	m := &message{service: s, conn: c, uid: uid, id: noQueue, e: r.Envelope}
	if !s.enter(uid, len(msg)) {
		return m.refuse("MAIL", dsn.Errorf("4.3.2", "more than %d messages, or %d octets of envelopes, at once", s.perUser, maxEnvelopes))
	}
	defer s.leave(uid, len(msg))
	ctx, cancel := context.WithTimeout(ctx, messageTimeout)
	defer cancel()
	return m.take(ctx)
}

// take passes the message on to cleanup, and its verdicts back.
func (m *message) take(ctx context.Context) error {
	m.own()
	id, t, err := m.begin(ctx)
	if err != nil {
		return m.refuse("MAIL", err)
	}
	defer t.Abort() // harmless after Commit
	m.id = id.String()
	m.log.Info(m.fields(), "%s: uid=%d from=<%s>", m.id, m.uid, m.e.Sender)
	if err := reply(m.conn, cleanup.Reply{ID: id}); err != nil {
		return err
	}
	if err := receive(ctx, m.conn, t); err != nil {
		return fmt.Errorf("%s: uid=%d: %w", m.id, m.uid, err)
	}
	if err := t.Commit(); err != nil {
		return m.refuse("END-OF-MESSAGE", err)
	}
	return reply(m.conn, cleanup.Reply{ID: id})
}

// errSender is for senders whom the administrator does not let a user be.
var errSender = dsn.Errorf("5.7.1", "Sender address rejected: not for this user")

// begin begins the message, if its sender may be whom he says.
func (m *message) begin(ctx context.Context) (queueid.ID, transaction, error) {
	if !m.maySend(m.uid, m.e.Sender) {
		return queueid.ID{}, nil, errSender
	}
	return m.queue.begin(ctx, m.e)
}

// own replaces what is not for the client to say: how and when the message came,
// and for whom.
func (m *message) own() {
	m.e.Arrival = time.Now()
	origin := envelope.FromLocal
	if m.e.Trace.Origin == envelope.FromGateway { // sendmail -G: it gives up something
		origin = envelope.FromGateway
	}
	m.e.Trace = envelope.Trace{Origin: origin, UID: m.uid}
	for i := range m.e.Recipients {
		m.e.Recipients[i].Original = m.e.Recipients[i].Address
	}
}

func (m *message) fields() maillog.Fields {
	f := maillog.Fields{"UID": strconv.Itoa(int(m.uid)), "SENDER": m.e.Sender.String()}
	if m.id != noQueue {
		f["QUEUE_ID"] = m.id
	}
	return f
}

// refuse tells the client, and the log.
func (m *message) refuse(verb string, err error) error {
	return reply(m.conn, cleanup.Reply{Err: m.reject(verb, err)})
}

// reject logs a refusal in the form in which smtpd does.
func (m *message) reject(verb string, err error) *dsn.Error {
	e := m.verdict(err)
	to := ""
	if len(m.e.Recipients) == 1 { // a line of the log has no room for more
		to = fmt.Sprintf(" to=<%s>", m.e.Recipients[0].Address)
	}
	m.log.Info(m.fields(), "%s: reject: %s from uid=%d: %s %s; from=<%s>%s", m.id, verb, m.uid, e.Status, e.Text, m.e.Sender, to)
	return e
}

// receive passes the content on up to its end. What cleanup does not take it
// reports at the end.
func receive(ctx context.Context, c *ipc.Conn, t transaction) error {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for failed := false; ; {
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
		case !failed:
			_, err := t.Write(r.Data)
			failed = err != nil
		}
		if r.Kind == cleanup.KindEnd {
			return nil
		}
	}
}

// verdict is what the client is told. Trouble of ours is for the log.
func (m *message) verdict(err error) *dsn.Error {
	var e *dsn.Error
	if errors.As(err, &e) {
		return dsn.Of(e)
	}
	m.log.Warn(m.fields(), "uid=%d: %v", m.uid, err)
	return dsn.Errorf("4.3.0", "the mail system cannot take the message now")
}

func reply(c *ipc.Conn, r cleanup.Reply) error {
	m := ipc.NewMessage()
	r.Encode(m)
	return c.Send(m)
}

func (s *service) enter(uid uint32, octets int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	has := s.users[uid]
	if has.messages >= s.perUser || has.messages > 0 && has.octets+octets > maxEnvelopes {
		return false
	}
	if s.users == nil {
		s.users = make(map[uint32]share)
	}
	s.users[uid] = share{has.messages + 1, has.octets + octets}
	return true
}

func (s *service) leave(uid uint32, octets int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	has := s.users[uid]
	if has.messages == 1 {
		delete(s.users, uid)
		return
	}
	s.users[uid] = share{has.messages - 1, has.octets - octets}
}

// cleanupQueue is the queue behind cleanup.
type cleanupQueue struct{ client *cleanup.Client }

func (q cleanupQueue) begin(ctx context.Context, e *envelope.Envelope) (queueid.ID, transaction, error) {
	t, err := q.client.Begin(ctx, e)
	if err != nil {
		return queueid.ID{}, nil, err
	}
	return t.ID, t, nil
}
