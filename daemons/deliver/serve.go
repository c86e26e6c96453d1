package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"posthouse/daemons/deliver/internal/user"
	"posthouse/pkg/account"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/deliver"
)

// spool is where the group of mailboxes is seen, whatever it is called.
const spool = "/var/mail"

// ours is what the names of the mail system's own users begin with.
const ours = "_ph-"

// How long the answer of a child may take. A command has a limit of its own,
// below this, that its child keeps; others wait for locks and for disks.
const (
	commandTime = user.MaxTimeout + 5*time.Minute
	otherTime   = 10 * time.Minute
	// placeTime is how long a request waits for a place among the children.
	placeTime = time.Minute
)

type service struct {
	log    *maillog.Logger
	pool   *pool
	lookup func(context.Context, string) (*account.Account, error)
	self   uint32 // the user of this process
	group  uint32 // and its group, which need not have the same number
	spool  string
}

func newService(log *maillog.Logger, p *pool) *service {
	return &service{log: log, pool: p, lookup: account.Lookup, self: uint32(os.Getuid()), group: uint32(os.Getgid()), spool: spool}
}

func (s *service) handle(ctx context.Context, c *ipc.Conn, msg []byte, file *os.File) error {
	if file != nil {
		defer file.Close() // read-only
	}
	head, _, err := deliver.DecodeHead(msg)
	if err != nil {
		return err
	}
	m := ipc.NewMessage()
	who, err := s.identify(ctx, head)
	if err == nil {
		err = s.ask(ctx, request{c, head, msg, file}, who, m)
	}
	if err != nil {
		e := dsn.Of(err)
		s.log.Warn(nil, "%s: %s", head.User, e.Text)
		m.Reset()
		(&deliver.Reply{Status: e.Status, Text: maillog.Printable(e.Text)}).Encode(m)
	}
	return c.Send(m)
}

// identify says who the child for a request has to be. What it refuses is for an
// administrator to mend: mail waits for that.
func (s *service) identify(ctx context.Context, h deliver.Head) (*identity, error) {
	a, err := s.lookup(ctx, h.User)
	if errors.Is(err, account.ErrNone) {
		return nil, dsn.Errorf("4.3.5", "there is no account %s", h.User)
	}
	if err != nil {
		return nil, err
	}
	id := &identity{uid: a.UID, gid: a.GID, groups: a.Groups}
	id.user = user.User{Class: user.ClassOf(h.Kind), Name: h.User, Home: a.Home, Shell: a.Shell}
	inSpool := id.user.Class == user.ForSpool
	switch {
	case strings.HasPrefix(h.User, ours) || a.UID == s.self:
		return nil, dsn.Errorf("4.3.5", "%s is a user of the mail system, and gets no mail", h.User)
	case a.UID == 0 && inSpool:
		id.uid, id.gid = s.self, s.group // a file of its own group is made by the directory
	case a.UID == 0:
		return nil, dsn.Errorf("4.3.5", "nothing is done as root; give %s an alias", h.User)
	case a.GID == 0:
		return nil, dsn.Errorf("4.3.5", "nothing is done with the group of root, to which %s belongs", h.User)
	}
	// Group root is no group to have either.
	id.groups = nil
	for _, g := range a.Groups {
		if g != 0 && !inSpool {
			id.groups = append(id.groups, g)
		}
	}
	if inSpool {
		group, err := groupOf(s.spool)
		if err != nil {
			return nil, dsn.Errorf("4.3.5", "spool of mailboxes: %v", err)
		}
		if group != 0 {
			id.groups = []uint32{group}
		}
	}
	return id, nil
}

func groupOf(dir string) (uint32, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return 0, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() {
		return 0, fmt.Errorf("%s is no directory", dir)
	}
	return st.Gid, nil
}

// request is what came from the client.
type request struct {
	conn *ipc.Conn
	head deliver.Head
	msg  []byte
	file *os.File
}

// ask has a child do it, and puts its answer into m, unread.
func (s *service) ask(ctx context.Context, r request, who *identity, m *ipc.Message) error {
	wait, cancel := context.WithTimeout(ctx, placeTime)
	defer cancel()
	ch, err := s.pool.get(wait, who)
	if err != nil {
		return err
	}
	limit := otherTime
	if r.head.Kind == deliver.Command {
		limit = commandTime
	}
	_ = ch.conn.SetDeadline(time.Now().Add(limit)) // an error is one of every use
	// Who asks is not to be kept waiting, and nor is who stops this daemon.
	stopWaiting := context.AfterFunc(ctx, ch.leave)
	stop := r.conn.OnEnd(ch.leave)
	err = ch.conn.SendFile(question(r.msg), r.file)
	var answer []byte
	if err == nil {
		answer, err = ch.conn.Receive(deliver.Protocol.MaxReply)
	}
	stop()
	stopWaiting()
	if err != nil {
		s.pool.drop(ch)
		return dsn.Errorf("4.3.0", "the process of %s has not answered: %v", r.head.User, err)
	}
	m.Raw(answer)
	s.pool.put(ch)
	return nil
}

func question(msg []byte) *ipc.Message {
	m := ipc.NewMessage()
	m.Raw(msg)
	return m
}
