package main

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"posthouse/daemons/qmgr/internal/schedule"
	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

var errStopping = errors.New("stopping")

// message is one message in memory.
type message struct {
	id     queueid.ID
	from   place
	active time.Time // when it was taken up

	file      sync.Mutex // one outcome at a time
	q         *queue.Message
	unwritten []queue.Outcome      // what the disk did not take; guarded by file
	next      map[uint32]time.Time // when recipients that have failed are tried again; guarded by file
	luck      float64              // from 0 to 1: of how long it waits for its next attempt
	before    bool                 // it has been in memory before
	asked     bool                 // the administrator has asked for this attempt

	// Guarded by manager.mu.
	turn      *schedule.Message[*entry]
	counted   int      // recipients, see manager.weight
	weight    int      // what that was, or is
	deferred  bool     // in manager.deferred
	unread    []uint32 // recipients that have no entry yet
	reading   bool     // some of those get one
	open      int      // recipients of entries that have not ended
	left      int      // entries that have not ended, and one while there are unread recipients
	postponed bool     // could not be read
	again     place    // where somebody has told of it since it was taken up
	stuck     bool     // nothing of it is in flight, and the disk did not let it go
	ended     bool     // all that was tried, and it is about to be put away
	anew      bool     // the administrator has asked for another attempt since
	want      wish
	sender    party // in manager.loads with counted recipients
	crowded   party // who has more than its share, and more of it here
	outside   party // for whom it waits outside of memory, or has waited
	coming    bool  // it has come back from there, or is about to

	requeued time.Time // when the administrator asked for it to be new, for which it has been taken up

	moving *sync.WaitGroup // of who waits until it has left its bucket; or nil
}

// wish is what the administrator wants done with a message that is active, as
// soon as nothing of it is in flight.
type wish uint8

const (
	wantDelivery wish = iota
	wantRequeue
	wantHold
	wantDeletion
)

// entry is one delivery: some recipients of a message with one destination.
type entry struct {
	*message
	destination schedule.Destination
	nexthop     string         // what the agent is told
	counted     bool           // in manager.loads
	rcpts       []uint32       // by index
	addresses   []addr.Mailbox // final address of each
}

func (msg *message) fields() maillog.Fields { return maillog.Fields{"QUEUE_ID": msg.id.String()} }

// load moves a message into active/, reads it, and schedules its deliveries.
func (m *manager) load(msg *message) {
	msg.postponed = false
	is := m.read(msg)
	if msg.moving != nil {
		msg.moving.Done()
		msg.moving = nil
	}
	if !is {
		m.notLoaded(msg)
		return
	}
	requeued := msg.q.Requeued
	if !requeued.IsZero() && !msg.before { // who has been tried meanwhile would be new, too
		m.renew(msg)
	}
	e := msg.q.Envelope
	sender := senderKey(e.Sender, m.config().RecipientDelimiter)
	if !msg.before {
		m.log.Info(maillog.Fields{"QUEUE_ID": msg.id.String(), "SENDER": e.Sender.String()}, "%s: from=<%s>, size=%d, nrcpt=%d (queue active)", msg.id, e.Sender, msg.q.Length, len(e.Recipients))
		msg.active, msg.luck = m.now(), m.random()
	}
	m.mu.Lock()
	msg.sender = party{sender: sender}
	msg.requeued = requeued
	crowded := msg.outside == party{} && msg.want == wantDelivery && m.isCrowded(msg.sender)
	if crowded {
		msg.crowded = msg.sender
	}
	msg.turn = m.sched.NewMessage(m.now(), sender)
	msg.weight = m.weight(len(e.Recipients))
	msg.counted = msg.weight
	m.recipients += msg.counted
	m.burden(msg.sender, msg.counted)
	m.mu.Unlock()
	if crowded {
		m.completeLoad(msg)
		return
	}
	m.route(msg)
}

// maxWeight is which part of all recipients in memory a single message may count
// for: one with more of them than that would keep all other mail out, for as long as
// the slowest of them takes.
const maxWeight = 4

// weight is what a message with n recipients counts for.
func (m *manager) weight(n int) int {
	return min(n, max(1, m.config().Queue.ActiveRecipients/maxWeight))
}

// read opens the file and checks it. It reports false where there is nothing to
// deliver.
func (m *manager) read(msg *message) bool {
	var f *os.File
	err := m.spool.in(msg.from, func(d *queue.Directory) (err error) {
		f, err = m.spool.open(d, msg.id)
		return err
	})
	if err == nil {
		defer f.Close() // opened for reading
		if msg.from.queue == queue.Incoming {
			msg.q, err = queue.ReadNew(f) // a scan may find what cleanup still has
		} else {
			msg.q, err = queue.Read(f)
		}
	}
	if came := msg.id.Time(); err == nil && !msg.before && (came.Before(m.started) || came.After(m.now())) {
		err = msg.q.CheckContent(f) // the power may have gone since, and the clock be behind
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		m.said.forget(msg.id.String())
		return false // an old notice, or deleted
	case errors.Is(err, queue.ErrIncomplete) && msg.from.queue == queue.Incoming:
		m.clear(msg, f)
		return false
	case errors.Is(err, queue.ErrLocked):
		// Its writer tells of it; or it is locked for a moment by who took it for a spare file, and has been told of.
		m.lookAgain(msg)
		return false
	case err != nil && isDamage(err):
		m.setAside(msg, err)
		return false
	case err != nil:
		m.postpone(msg, err)
		return false
	}
	m.said.forget(msg.id.String())
	if msg.from.queue == queue.Active {
		return true
	}
	if err := m.spool.in(msg.from, func(d *queue.Directory) error { return m.spool.move(d, msg.id, m.spool.active) }); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			m.postpone(msg, err)
		}
		return false
	}
	return true
}

// setAside moves what is damaged out of the way. Where that cannot be, as with a
// directory of somebody else, it stays where it is and stops nobody.
func (m *manager) setAside(msg *message, damage error) {
	err := m.spool.in(msg.from, func(d *queue.Directory) error { return m.spool.move(d, msg.id, m.spool.damaged) })
	switch {
	case err == nil:
		m.said.forget(msg.id.String())
		m.log.Error(msg.fields(), "%s: moved to %s: %v", msg.id, queue.Corrupt, damage)
	case m.said.isNew(msg.id.String(), short(err)):
		m.log.Error(msg.fields(), "%s: left alone in %s: %v; %v", msg.id, msg.from.queue, damage, err)
	}
}

// clear removes a file that its writer has given up: it would have been finished, or
// removed, in that time. The clock may have been set, so who still writes it is heard, too.
func (m *manager) clear(msg *message, f *os.File) {
	info, err := f.Stat()
	limit := 2 * (m.config().LongestSession() + time.Hour)
	if err != nil || m.now().Sub(info.ModTime()) < limit || !queue.IsAbandoned(f) {
		return
	}
	m.log.Info(msg.fields(), "%s: removed: was never completed", msg.id)
	if err := m.spool.remove(m.spool.incoming, msg.id); err != nil {
		m.log.Warn(msg.fields(), "%s: %v", msg.id, err)
	}
}

// pending returns the recipients to whom the message is still to be delivered.
func (msg *message) pending() []uint32 {
	var list []uint32
	for i := range msg.q.Recipients {
		if msg.q.Recipients[i].Pending() {
			list = append(list, uint32(i))
		}
	}
	return list
}

// renew makes a message new that the administrator has requeued: its recipients
// are expanded again, and its age counts anew. Without an answer it stays as it
// is, and the next attempt asks again.
func (m *manager) renew(msg *message) {
	pending := msg.pending()
	most := envelope.MaxRecipients - len(msg.q.Recipients) + len(pending)
	list := make([]envelope.Recipient, 0, len(pending))
	seen := make(map[envelope.Recipient]bool, len(pending))
	add := func(r envelope.Recipient) {
		if !seen[r] {
			seen[r] = true
			list = append(list, r)
		}
	}
	for len(pending) > 0 {
		piece := pending[:min(len(pending), rewrite.MaxAddresses)]
		pending = pending[len(piece):]
		answers, err := m.ask(msg, rewrite.Expand, piece)
		if err != nil {
			return // it is in the log
		}
		for k, i := range piece {
			r := msg.q.Envelope.Recipients[i]
			if answers[k].Err != nil || len(answers[k].Addresses) == 0 {
				m.log.Warn(msg.fields(), "%s: to=<%s> is not expanded: %v", msg.id, r.Address, answers[k].Err)
				add(r)
				continue
			}
			for _, a := range answers[k].Addresses {
				r.Address = a
				add(r)
			}
		}
	}
	if len(list) == 0 {
		return
	}
	if len(list) > most {
		m.log.Warn(msg.fields(), "%s: is not expanded: more than %d recipients", msg.id, most)
		return
	}
	msg.file.Lock()
	defer msg.file.Unlock()
	if err := m.append(msg, queue.Outcome{Renewal: list}); err != nil {
		m.log.Error(msg.fields(), "%s: %v", msg.id, err)
	}
}

// ownResult is the outcome of the transports that end here. The next hop of
// error, which bounces, and of retry, which defers, is a status and a text.
func ownResult(d schedule.Destination) delivery.Result {
	text := clip(strings.TrimSpace(d.Nexthop))
	if d.Transport == "discard" {
		if text == "" {
			text = "discarded"
		}
		return delivery.Result{Status: dsn.MustParse("2.0.0"), Text: text}
	}
	status, text := dsn.Cut(text, dsn.MustParse("5.0.0"))
	if d.Transport == "retry" {
		status = status.With(dsn.Transient)
	}
	if text == "" {
		text = "mail to this address is refused"
	}
	return delivery.Result{Status: status, Text: text}
}

func result(e *dsn.Error) delivery.Result {
	return delivery.Result{Status: e.Status, Text: e.Text}
}

func suspended(reason *dsn.Error) delivery.Result {
	return delivery.Result{Status: reason.Status.With(dsn.Transient), Text: clip("delivery temporarily suspended: " + reason.Text)}
}

// all gives every recipient of e the same result.
func (e *entry) all(r delivery.Result) []queue.IndexedResult {
	list := make([]queue.IndexedResult, len(e.rcpts))
	for k, i := range e.rcpts {
		list[k] = queue.IndexedResult{Index: i, Result: r}
	}
	return list
}
