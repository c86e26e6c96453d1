package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

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

	mu    sync.Mutex
	users map[uint32]int
}

// messageTimeout bounds one submission: a program may take its time to write,
// but not hold a place for ever.
const messageTimeout = time.Hour

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
		return fmt.Errorf("uid %d: %w", uid, err)
	case r.Kind != cleanup.KindBegin:
		return fmt.Errorf("uid %d: content without an envelope", uid)
	}
	if !s.enter(uid) {
		s.log.Warn(nil, "uid=%d: more than %d messages at once", uid, s.perUser)
		return reply(c, cleanup.Reply{Err: dsn.Errorf("4.3.2", "you have too many messages under way")})
	}
	defer s.leave(uid)

	ctx, cancel := context.WithTimeout(ctx, messageTimeout)
	defer cancel()
	r.Envelope.Arrival = time.Now()
	r.Envelope.Trace = envelope.Trace{Origin: envelope.FromLocal, UID: uid}
	id, t, err := s.queue.begin(ctx, r.Envelope)
	if err != nil {
		return reply(c, cleanup.Reply{Err: s.verdict(uid, err)})
	}
	defer t.Abort() // harmless after Commit
	s.log.Info(maillog.Fields{"QUEUE_ID": id.String(), "UID": strconv.Itoa(int(uid)), "SENDER": r.Envelope.Sender.String()},
		"%s: uid=%d from=<%s>", id, uid, r.Envelope.Sender)
	if err := reply(c, cleanup.Reply{ID: id}); err != nil {
		return err
	}
	if err := receive(c, t); err != nil {
		return fmt.Errorf("%s: %w", id, err)
	}
	if err := t.Commit(); err != nil {
		return reply(c, cleanup.Reply{Err: s.verdict(uid, err)})
	}
	return reply(c, cleanup.Reply{ID: id})
}

// receive passes the content on up to its end. What cleanup does not take it
// reports at the end.
func receive(c *ipc.Conn, t transaction) error {
	if err := c.SetReadDeadline(time.Now().Add(messageTimeout)); err != nil {
		return err
	}
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
			return c.SetReadDeadline(time.Time{})
		}
	}
}

// verdict is what the client is told. Trouble of ours is for the log.
func (s *service) verdict(uid uint32, err error) *dsn.Error {
	var e *dsn.Error
	if errors.As(err, &e) {
		return dsn.Of(e)
	}
	s.log.Warn(nil, "uid=%d: %v", uid, err)
	return dsn.Errorf("4.3.0", "the mail system cannot take the message now")
}

func reply(c *ipc.Conn, r cleanup.Reply) error {
	m := ipc.NewMessage()
	r.Encode(m)
	return c.Send(m)
}

func (s *service) enter(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users[uid] >= s.perUser {
		return false
	}
	if s.users == nil {
		s.users = make(map[uint32]int)
	}
	s.users[uid]++
	return true
}

func (s *service) leave(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users[uid]--; s.users[uid] == 0 {
		delete(s.users, uid)
	}
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
