package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"posthouse/daemons/deliver/internal/answer"
	"posthouse/daemons/deliver/internal/become"
	"posthouse/daemons/deliver/internal/user"
	"posthouse/pkg/account"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/mailbox"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/deliver"
)

// spool is where the group of mailboxes is seen, whatever it is called.
const spool = "/var/mail"

// ours is what the names of the mail system's own users begin with.
const ours = "_ph-"

// How long an answer may take. A command has a limit of its own, below this, that
// its child keeps; others wait for locks and for disks.
const (
	commandTime = user.MaxTimeout + 5*time.Minute
	otherTime   = 10 * time.Minute
	// placeTime is how long a request waits for a place among those of its user, and all.
	placeTime = time.Minute
	// leaveTime is how long a thread may go on that the client, or who stops this
	// daemon, does not want to wait for any longer. A lock is waited for less long.
	leaveTime = 30 * time.Second
)

type service struct {
	log     *maillog.Logger
	pool    *pool
	places  *places
	sync    mailbox.Syncer
	become  func(become.Identity, func(*become.Thread) error, func(error))
	regroup func(*become.Thread, []uint32) error
	lookup  func(context.Context, string) (*account.Account, error)
	self    uint32 // the user of this process
	group   uint32 // and its group, which need not have the same number
	spool   string
}

func newService(log *maillog.Logger, p *pool, s mailbox.Syncer) *service {
	return &service{
		log: log, pool: p, places: newPlaces(), sync: s, become: become.Go, regroup: (*become.Thread).Regroup, lookup: account.NewCache().Lookup,
		self: uint32(os.Getuid()), group: uint32(os.Getgid()), spool: spool,
	}
}

// request is what came from the client.
type request struct {
	conn *ipc.Conn
	head deliver.Head
	msg  []byte
	file *os.File
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
	r := request{c, head, msg, file}
	if head.Kind == deliver.Command {
		err = s.command(ctx, r, m)
	} else {
		err = s.files(ctx, r, m)
	}
	var wrong *requestError
	if errors.As(err, &wrong) {
		return err
	}
	if err != nil {
		s.log.Warn(nil, "%s: %s", head.User, dsn.Of(err).Text)
		m.Reset()
		answer.Done("", err).Encode(m)
	}
	return c.Send(m)
}

// requestError is one of who asks.
type requestError struct{ err error }

func (e *requestError) Error() string { return e.err.Error() }

func (e *requestError) Unwrap() error { return e.err }

// identity is an account, and who acts for it.
type identity struct {
	become.Identity
	account *account.Account
}

// identify says as whom a request is done. What it refuses is for an administrator
// to mend: mail waits for that.
func (s *service) identify(ctx context.Context, name string, kind deliver.Kind) (*identity, error) {
	a, err := s.lookup(ctx, name)
	if errors.Is(err, account.ErrNone) {
		return nil, dsn.Errorf("4.3.5", "there is no account %s", name)
	}
	if err != nil {
		return nil, err
	}
	id := &identity{become.Identity{UID: a.UID, GID: a.GID}, a}
	switch {
	case strings.HasPrefix(name, ours) || a.UID == s.self:
		return nil, dsn.Errorf("4.3.5", "%s is a user of the mail system, and gets no mail", name)
	case a.UID == 0 && inSpool(kind):
		id.UID, id.GID = s.self, s.group // a file of its own group is made by the directory
	case a.UID == 0:
		return nil, dsn.Errorf("4.3.5", "nothing is done as root; give %s an alias", name)
	case a.GID == 0:
		return nil, dsn.Errorf("4.3.5", "nothing is done with the group of root, to which %s belongs", name)
	}
	groups := a.Groups
	if inSpool(kind) {
		// With this group it could get at the mailboxes of others: it has no other, and
		// does nothing that the user has said.
		group, err := groupOf(s.spool)
		if err != nil {
			return nil, dsn.Errorf("4.3.5", "spool of mailboxes: %v", err)
		}
		groups = []uint32{group}
	}
	for _, g := range groups {
		if g != 0 { // group root is no group to have either
			id.Groups = append(id.Groups, g)
		}
	}
	return id, nil
}

// inSpool reports whether k is done in the spool of mailboxes.
func inSpool(k deliver.Kind) bool { return k == deliver.Spool || k == deliver.Make }

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

// command has a child do it, and puts its answer into m, unread.
func (s *service) command(ctx context.Context, r request, m *ipc.Message) error {
	id, err := s.identify(ctx, r.head.User, r.head.Kind)
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, placeTime)
	defer cancel()
	who := user.User{Name: r.head.User, Home: id.account.Home, Shell: id.account.Shell}
	ch, err := s.pool.get(wait, &childID{who, id.UID, id.GID, id.Groups})
	if err != nil {
		return err
	}
	_ = ch.conn.SetDeadline(time.Now().Add(commandTime)) // an error is one of every use
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
