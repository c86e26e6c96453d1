package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"regexp"
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
	unwritten []queue.Outcome // what the disk did not take; guarded by file

	// Guarded by manager.mu.
	turn    *schedule.Message[*entry]
	counted int  // recipients
	again   bool // somebody has told of it since it was taken up
	left    int  // entries that have not ended
	want    wish
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
	rcpts       []uint32       // by index
	addresses   []addr.Mailbox // final address of each
}

func (msg *message) fields() maillog.Fields {
	f := maillog.Fields{"QUEUE_ID": msg.id.String()}
	if msg.q != nil {
		f["SENDER"] = msg.q.Envelope.Sender.String()
	}
	return f
}

// load moves a message into active/, reads it, and schedules its deliveries.
func (m *manager) load(msg *message) {
	if !m.read(msg) {
		m.notLoaded(msg)
		return
	}
	if !msg.q.Requeued.IsZero() {
		m.renew(msg)
	}
	e := msg.q.Envelope
	key := senderKey(e.Sender, m.config().RecipientDelimiter)
	m.mu.Lock()
	msg.turn = m.sched.NewMessage(m.now(), key)
	msg.counted = len(e.Recipients)
	m.recipients += msg.counted
	m.mu.Unlock()
	fields := msg.fields()
	m.log.Info(fields, "%s: from=<%s>, size=%d, nrcpt=%d (queue active)", msg.id, e.Sender, msg.q.Length, len(e.Recipients))
	msg.active = m.now()
	m.route(msg)
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
		msg.q, err = queue.Read(f)
	}
	if err == nil && msg.id.Time().Before(m.started) {
		err = msg.q.CheckContent(f) // the power may have gone since
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		m.said.forget(msg.id.String())
		return false // an old notice, or deleted
	case errors.Is(err, queue.ErrIncomplete) && msg.from.queue == queue.Incoming:
		m.clear(msg, f)
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

// clear removes a file that its writer must have given up: it would have been
// finished, or removed, in that time.
func (m *manager) clear(msg *message, f *os.File) {
	info, err := f.Stat()
	limit := 2 * (m.config().LongestSession() + time.Hour)
	if err != nil || m.now().Sub(info.ModTime()) < limit {
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

// transportName is what a transport may be called: it names a socket.
var transportName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// route asks where the recipients are, and makes entries.
func (m *manager) route(msg *message) {
	pending := msg.pending()
	var entries []*entry
	open := make(map[schedule.Destination]*entry) // the last of each destination
	var failed []queue.IndexedResult
	for len(pending) > 0 {
		piece := pending[:min(len(pending), rewrite.MaxAddresses)]
		pending = pending[len(piece):]
		answers, err := m.ask(msg, rewrite.Resolve, piece)
		for k, i := range piece {
			switch {
			case err != nil:
				failed = append(failed, queue.IndexedResult{Index: i, Result: result(dsn.Errorf("4.3.0", "address resolver failure"))})
				continue
			case answers[k].Err != nil:
				failed = append(failed, queue.IndexedResult{Index: i, Result: result(answers[k].Err)})
				continue
			case len(answers[k].Addresses) != 1 || !transportName.MatchString(answers[k].Transport):
				failed = append(failed, queue.IndexedResult{Index: i, Result: result(dsn.Errorf("4.3.5", "malformed answer of the address resolver"))})
				continue
			}
			d := schedule.Destination{Transport: answers[k].Transport, Nexthop: answers[k].Nexthop}
			e := open[d]
			if e == nil || len(e.rcpts) >= m.config().Transport(d.Transport).Recipients {
				e = &entry{message: msg, destination: d}
				open[d] = e
				entries = append(entries, e)
			}
			e.rcpts = append(e.rcpts, i)
			e.addresses = append(e.addresses, answers[k].Addresses[0])
		}
	}
	// One more, so that the message is not complete before all are in.
	first := &entry{message: msg}
	for i := range failed {
		first.rcpts = append(first.rcpts, failed[i].Index)
		first.addresses = append(first.addresses, msg.q.Envelope.Recipients[failed[i].Index].Address)
	}
	m.mu.Lock()
	msg.left = len(entries) + 1
	m.mu.Unlock()
	for k, e := range entries {
		m.submit(e, len(entries)-k-1)
	}
	m.record(first, failed, true)
	m.dispatch()
}

func (m *manager) ask(msg *message, op rewrite.Op, piece []uint32) ([]rewrite.Answer, error) {
	ctx, cancel := context.WithTimeout(m.ctx, rewriteTimeout)
	defer cancel()
	req := rewrite.Request{Op: op, Sender: msg.q.Envelope.Sender}
	for _, i := range piece {
		req.Addresses = append(req.Addresses, msg.q.Envelope.Recipients[i].Address)
	}
	answers, err := m.rewrite.Ask(ctx, req)
	if err != nil {
		m.log.Warn(msg.fields(), "%s: %v", msg.id, err)
	}
	return answers, err
}

// submit has an entry wait for its turn; behind it come as many others of its
// message as more says.
func (m *manager) submit(e *entry, more int) {
	switch e.destination.Transport {
	case "error", "retry", "discard":
		m.record(e, e.all(ownResult(e.destination)), true)
		return
	}
	m.mu.Lock()
	e.turn.Unread(more)
	reason := m.sched.Add(m.now(), e.turn, e.destination, e)
	m.mu.Unlock()
	if reason != nil {
		m.record(e, e.all(suspended(reason)), true)
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
