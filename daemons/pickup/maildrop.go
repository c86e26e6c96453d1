package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maildrop"
	"posthouse/pkg/maillog"
)

// drops takes the messages that lie in the maildrop. One process does at a time,
// and one message at a time.
type drops struct {
	*service
	path   string
	uid    uint32       // of pickup itself
	size   func() int64 // octets that a message may have
	hold   func() (release func())
	ending func() bool

	wake     chan struct{} // with room for one
	lastWait time.Duration
	// taken are messages that are in the queue, but could not be removed.
	taken map[string]bool
	// told are those that were refused for good, and could not be set aside.
	told map[string]bool
	held func() // releases the hold; nil: there is none
	said string // the last trouble with the directory
}

const (
	// Messages stay there for a while if the mail system does not take them now,
	// and nobody tells of those that another machine has dropped into a directory
	// that the two share.
	lookAgain = time.Minute
	// A daemon that is about to go finishes a message that it has begun, unless
	// that takes longer.
	lastWait = 10 * time.Second
	// One look takes so many messages of each user, in turn, and of all; then it
	// looks again. So nobody waits for another one's thousands.
	perUserLook = 100
	perLook     = 10000
)

func newDrops(s *service, path string) *drops {
	return &drops{service: s, path: path, wake: make(chan struct{}, 1), lastWait: lastWait, taken: make(map[string]bool), told: make(map[string]bool)}
}

// look has run look once more.
func (d *drops) look() {
	select {
	case d.wake <- struct{}{}:
	default: // it is about to
	}
}

// loop returns what daemon.Loop asks for. It looks at once, when it is told, and
// from time to time. No order to stop cuts off the message that is on its way, which may
// be in the queue by then, and would be submitted again: nothing does but lastWait.
func (d *drops) loop() (end, run func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	end = sync.OnceFunc(func() {
		close(ended)
		time.AfterFunc(d.lastWait, cancel)
	})
	return end, func() {
		tick := time.NewTicker(lookAgain)
		defer tick.Stop()
		for !d.ending() {
			d.stay(func() { d.all(ctx) })
			select {
			case <-d.wake:
			case <-tick.C:
			case <-ended:
			}
		}
		d.last()
	}
}

// longLook is how long a look may take before it keeps the daemon. A variable for tests.
var longLook = 10 * time.Second

// stay has the daemon stay while look takes long, as where the directory is on a file
// server that is away: one that goes waits for the look, and serves nobody meanwhile.
func (d *drops) stay(look func()) {
	held := make(chan func(), 1)
	t := time.AfterFunc(longLook, func() { held <- d.hold() })
	look()
	if !t.Stop() {
		(<-held)()
	}
}

// last tries once more to remove what is in the queue already: the next process does
// not know that it is, and would submit it again.
func (d *drops) last() {
	if len(d.taken) == 0 {
		return
	}
	dir, err := maildrop.OpenDirectory(d.path)
	if err != nil {
		d.trouble(err)
		return
	}
	defer dir.Close() // opened for reading
	for name := range d.taken {
		_ = d.remove(dir, name) // that it cannot be has been logged
	}
}

// all takes what is there. Where something is left the daemon stays: nobody else
// would start it for that.
func (d *drops) all(ctx context.Context) {
	left, failed := false, make(map[string]bool)
	for more := true; more && !d.ending(); {
		var err error
		more, left, err = d.pass(ctx, failed)
		d.trouble(err)
	}
	left = left || len(failed) > 0
	if !left && d.held != nil {
		d.held()
		d.held = nil
	}
}

// trouble logs what is the matter with the directory, once. One that is not there
// is none.
func (d *drops) trouble(err error) {
	said := ""
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		said = err.Error()
	}
	if said != "" && said != d.said {
		d.log.Warn(nil, "maildrop: %s", said)
	}
	d.said = said
}

// pass takes the messages of one look, and adds to failed those that could not be taken
// now: they are passed over then. more says that there are others, left that none can be
// taken now.
func (d *drops) pass(ctx context.Context, failed map[string]bool) (more, left bool, err error) {
	dir, err := maildrop.OpenDirectory(d.path)
	if err != nil {
		return false, false, err
	}
	defer dir.Close() // opened for reading
	users, more, err := list(dir, failed)
	if err != nil {
		return false, false, err
	}
	if len(users) > 0 && d.held == nil {
		d.held = d.hold()
	}
	for len(users) > 0 {
		for uid, names := range users {
			if d.ending() {
				return false, true, nil
			}
			name := names[0]
			err := d.one(ctx, dir, name)
			if users[uid] = names[1:]; len(names) == 1 {
				delete(users, uid)
			}
			var off *ipc.UnavailableError
			if errors.As(err, &off) {
				return false, true, nil // nor will the others be taken
			}
			if err != nil {
				failed[name] = true
			}
		}
	}
	return more, false, nil
}

// list reads the names of messages, by owner, without those that have failed.
func list(dir *maildrop.Directory, failed map[string]bool) (users map[uint32][]string, more bool, err error) {
	users = make(map[uint32][]string)
	all := 0
	err = dir.List(func(name string, uid uint32) bool {
		if failed[name] {
			return true
		}
		if len(users[uid]) >= perUserLook {
			more = true
			return true
		}
		users[uid] = append(users[uid], name)
		all++
		more = more || all >= perLook
		return all < perLook
	})
	return users, more, err
}

// one takes one message. An error says that it is to be tried again.
func (d *drops) one(ctx context.Context, dir *maildrop.Directory, name string) error {
	if d.taken[name] {
		return d.remove(dir, name)
	}
	f, err := dir.Open(name)
	var bad *maildrop.BadError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.As(err, &bad):
		return d.setAside(dir, name, err)
	case err != nil:
		d.log.Warn(nil, "maildrop: %v", err)
		return err
	}
	defer f.Close()
	m := &message{service: d.service, uid: f.UID, id: noQueue, e: f.Envelope}
	if !d.enter(f.UID, 0) {
		return errors.New("too many messages of one user at once")
	}
	defer d.leave(f.UID, 0)
	ctx, cancel := context.WithTimeout(ctx, messageTimeout)
	defer cancel()
	m.own()
	verb, err := m.submit(ctx, f, d.size())
	var off *ipc.UnavailableError
	switch {
	case err == nil:
		return d.remove(dir, name)
	case errors.Is(err, maildrop.ErrDamaged):
		return d.setAside(dir, name, err)
	case errors.As(err, &off) || ctx.Err() != nil:
		d.log.Warn(m.fields(), "maildrop: uid=%d: %v", m.uid, err)
		return err
	}
	verdict := m.reject(verb, err)
	if verdict.Status.Class() != dsn.Permanent {
		return verdict
	}
	// Once, though it may not be possible to set it aside; and nobody else who has not sent it.
	if !d.told[name] && !errors.Is(err, errSender) {
		if err := d.tell(ctx, f, verdict); err != nil {
			return err
		}
		d.told[name] = true
	}
	err = d.setAside(dir, name, verdict)
	if err == nil {
		delete(d.told, name)
	}
	return err
}

// submit puts the message into the queue, and says at which point it could not.
func (m *message) submit(ctx context.Context, f *maildrop.File, limit int64) (verb string, err error) {
	if f.Length > limit { // before it is read: it may be a hole of any size
		return "MAIL", dsn.Errorf("5.3.4", "message size exceeds the limit of %d octets", limit)
	}
	id, t, err := m.begin(ctx)
	if err != nil {
		return "MAIL", err
	}
	defer t.Abort() // harmless after Commit
	m.id = id.String()
	m.log.Info(m.fields(), "%s: uid=%d from=<%s>", m.id, m.uid, m.e.Sender)
	if err := f.CopyTo(t); err != nil {
		return "DATA", err
	}
	return "END-OF-MESSAGE", t.Commit()
}

// remove removes a message that is in the queue. Until it can be it must not be
// submitted again.
func (d *drops) remove(dir *maildrop.Directory, name string) error {
	err := dir.Remove(name)
	if err == nil {
		delete(d.taken, name)
		return nil
	}
	if !d.taken[name] {
		d.log.Warn(nil, "maildrop: the message is in the queue, but is still here: %v", err)
	}
	d.taken[name] = true
	return err
}

func (d *drops) setAside(dir *maildrop.Directory, name string, why error) error {
	to, err := dir.SetAside(name)
	if err != nil {
		d.log.Warn(nil, "maildrop: %s: %v, and cannot be set aside: %v", name, why, err)
		return err
	}
	d.log.Warn(nil, "maildrop: %s: set aside as %s: %v", name, to, why)
	return nil
}

// maxShown bounds what a sender is shown of a message that was refused.
const maxShown = 4 << 10

// tell tells the sender that a message is refused for good: whoever dropped it was
// told that all is well. Where nothing can be sent to him the log has to do.
func (d *drops) tell(ctx context.Context, f *maildrop.File, why *dsn.Error) error {
	to := f.Envelope.Sender
	if to.IsNull() {
		return nil
	}
	var text strings.Builder
	fmt.Fprintf(&text, "From: Mail system <MAILER-DAEMON>\r\nTo: %s\r\nSubject: Your message was not sent\r\nAuto-Submitted: auto-replied\r\n"+
		"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n", to.Path())
	fmt.Fprintf(&text, "The mail system was off when you sent this message, and now it refuses it:\r\n\r\n    %s %s\r\n\r\nTo:\r\n\r\n", why.Status, maillog.Printable(why.Text))
	for i, r := range f.Envelope.Recipients {
		if i == 10 {
			fmt.Fprintf(&text, "    and %d more\r\n", len(f.Envelope.Recipients)-i)
			break
		}
		fmt.Fprintf(&text, "    %s\r\n", r.Address)
	}
	text.WriteString("\r\nIts header:\r\n\r\n")
	for line := range bytes.Lines(f.Beginning(maxShown)) {
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}
		fmt.Fprintf(&text, "    %.200s\r\n", maillog.Printable(string(line)))
	}
	e := &envelope.Envelope{
		Sender: addr.Mailbox{}, Body: envelope.Body8BitMIME, SMTPUTF8: !to.IsASCII(),
		Recipients: []envelope.Recipient{{Address: to, Notify: dsn.NotifyNever}},
	}
	m := &message{service: d.service, uid: d.uid, id: noQueue, e: e}
	m.own()
	id, t, err := m.queue.begin(ctx, e)
	if err == nil {
		defer t.Abort()
		m.id = id.String()
		m.log.Info(m.fields(), "%s: uid=%d from=<>", m.id, m.uid)
		if _, err = t.Write([]byte(text.String())); err == nil {
			err = t.Commit()
		}
	}
	if err == nil || m.reject("MAIL", err).Status.Class() == dsn.Permanent {
		return nil
	}
	return err
}
