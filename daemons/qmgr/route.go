package main

import (
	"context"
	"regexp"
	"slices"
	"time"

	"posthouse/daemons/qmgr/internal/schedule"
	"posthouse/pkg/dsn"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/queue"
)

// transportName is what a transport may be called: it names a socket.
var transportName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// piece is how many recipients of a message become deliveries at once. The next
// ones do when half of them have ended.
const piece = rewrite.MaxAddresses

// timely returns the recipients that are to be tried now: all that are pending, but
// for those whose time has not come. A time that this clock and configuration
// cannot have given counts for nothing. What the administrator has asked for is tried
// at once, but not again when it comes back from where it had to wait.
func (m *manager) timely(msg *message) []uint32 {
	list := msg.pending()
	if msg.isForAll() {
		return list
	}
	now := m.now()
	last := now.Add(m.longestWait())
	return slices.DeleteFunc(list, func(i uint32) bool {
		next := msg.q.Recipients[i].Next
		return next.After(now) && !next.After(last)
	})
}

// route has the message delivered, piece by piece.
func (m *manager) route(msg *message) {
	list := m.timely(msg)
	m.mu.Lock()
	msg.unread, msg.reading, msg.left = list, true, 1
	m.mu.Unlock()
	m.readOn(msg)
}

// readOn makes entries of the next recipients, until there are enough of them or
// no recipients are left.
func (m *manager) readOn(msg *message) {
	for more := true; more; {
		m.mu.Lock()
		next := msg.unread[:min(len(msg.unread), piece)]
		msg.unread = msg.unread[len(next):]
		m.mu.Unlock()
		first, failed, entries := m.resolve(msg, next)
		m.mu.Lock()
		msg.left += len(entries) + 1
		for _, e := range entries {
			msg.open += len(e.rcpts)
		}
		msg.open += len(first.rcpts)
		m.mu.Unlock()
		for k, e := range entries {
			m.submit(e, len(entries)-k-1)
		}
		m.record(first, failed, true)
		m.mu.Lock()
		end := len(msg.unread) == 0
		more = !end && msg.open <= piece/2
		msg.reading = more
		m.mu.Unlock()
		if end && m.isLast(msg) {
			m.completeLoad(msg)
		}
		m.dispatch()
	}
}

// refill has more recipients become entries when few of them are left. m.mu is
// held.
func (m *manager) refill(msg *message) {
	if len(msg.unread) == 0 || msg.reading || msg.open > piece/2 || m.stopping {
		return
	}
	msg.reading = true
	m.wg.Go(func() {
		m.slots <- struct{}{}
		defer func() { <-m.slots }()
		m.readOn(msg)
	})
}

// resolve asks where recipients are, and makes entries. What is failed is so for
// now; first has these recipients.
func (m *manager) resolve(msg *message, rcpts []uint32) (first *entry, failed []queue.IndexedResult, entries []*entry) {
	open := make(map[schedule.Destination]*entry) // the last of each destination
	first = &entry{message: msg}
	if len(rcpts) == 0 {
		return first, nil, nil
	}
	answers, err := m.ask(msg, rewrite.Resolve, rcpts)
	for k, i := range rcpts {
		var reason *dsn.Error
		switch {
		case err != nil:
			reason = dsn.Errorf("4.3.0", "address resolver failure")
		case answers[k].Err != nil:
			reason = answers[k].Err
		case len(answers[k].Addresses) != 1 || !transportName.MatchString(answers[k].Transport):
			reason = dsn.Errorf("4.3.5", "malformed answer of the address resolver")
		case slices.Contains(m.config().Queue.DeferTransports, answers[k].Transport) && !msg.isAsked():
			reason = dsn.Errorf("4.3.2", "deferred transport")
		}
		if reason != nil {
			failed = append(failed, queue.IndexedResult{Index: i, Result: result(reason)})
			first.rcpts = append(first.rcpts, i)
			first.addresses = append(first.addresses, msg.q.Envelope.Recipients[i].Address)
			continue
		}
		d := m.destination(&answers[k])
		e := open[d]
		if e == nil || len(e.rcpts) >= m.config().Transport(d.Transport).Recipients {
			e = &entry{message: msg, destination: d, nexthop: answers[k].Nexthop}
			open[d] = e
			entries = append(entries, e)
		}
		e.rcpts = append(e.rcpts, i)
		e.addresses = append(e.addresses, answers[k].Addresses[0])
	}
	return first, failed, entries
}

// destination is what an answer of rewrite is scheduled by. For local each account is one,
// as with Postfix: one whose command, or disk, is slow is not to keep the others from theirs.
func (m *manager) destination(a *rewrite.Answer) schedule.Destination {
	d := schedule.Destination{Transport: a.Transport, Nexthop: a.Nexthop}
	if d.Transport == "local" {
		account, _ := a.Addresses[0].Fold().SplitExtension(m.config().RecipientDelimiter)
		d.Nexthop = account.Local() + "@" + d.Nexthop
	}
	return d
}

// isForAll reports whether the administrator has asked for an attempt of which nothing has
// been done yet: the times of recipients do not count. Where it has had to wait for
// others they do, for stillDue has written them.
func (msg *message) isForAll() bool {
	return msg.isAsked() && !msg.before && !isAskedBeyond(msg.from.bucket)
}

// isAsked reports whether the administrator has asked for this attempt.
func (msg *message) isAsked() bool {
	return msg.asked || msg.from.queue == queue.Deferred && (isAsked(msg.from.bucket) || isAskedBeyond(msg.from.bucket))
}

func (m *manager) ask(msg *message, op rewrite.Op, rcpts []uint32) ([]rewrite.Answer, error) {
	ctx, cancel := context.WithTimeout(m.ctx, rewriteTimeout)
	defer cancel()
	req := rewrite.Request{Op: op, Sender: msg.q.Envelope.Sender}
	for _, i := range rcpts {
		req.Addresses = append(req.Addresses, msg.q.Envelope.Recipients[i].Address)
	}
	answers, err := m.rewrite.Ask(ctx, req)
	if err != nil {
		m.log.Warn(msg.fields(), "%s: %v", msg.id, err)
	}
	return answers, err
}

// submit has an entry wait for its turn; behind it come more others of its
// message, and those of recipients that are not read yet.
func (m *manager) submit(e *entry, more int) {
	switch e.destination.Transport {
	case "error", "retry", "discard":
		m.record(e, e.all(ownResult(e.destination)), true)
		return
	}
	m.mu.Lock()
	to := party{Destination: e.destination}
	crowded := e.outside != to && m.isCrowded(to) // who has waited has his place
	if crowded {
		e.crowded = to
	}
	if crowded || e.want != wantDelivery {
		m.mu.Unlock()
		m.record(e, nil, false)
		return
	}
	e.counted = true
	m.burden(to, len(e.rcpts))
	e.turn.Unread(more + len(e.unread))
	reason := m.sched.Add(m.now(), e.turn, e.destination, e)
	m.mu.Unlock()
	if reason != nil {
		m.record(e, e.all(suspended(reason)), true)
	}
}

// delay is how long a recipient waits for the next attempt: the longer the
// message waits already, the longer. Up to a quarter is added by chance, or, where
// that is more than the configuration allows, taken off.
func (m *manager) delay(msg *message) time.Duration {
	return m.wait(msg, m.now().Sub(msg.begun()))
}

// wait is delay for a message that has been waiting so long.
func (m *manager) wait(msg *message, long time.Duration) time.Duration {
	retry := &m.config().Queue.Retry
	least, most := time.Duration(retry.Min), time.Duration(retry.Max)
	from := max(least, min(long, most))
	to := from + from/4
	if to > most {
		to = max(least, from-from/5)
	}
	return from + time.Duration(msg.luck*float64(to-from))
}

// longestWait is for how long anything can be filed.
func (m *manager) longestWait() time.Duration {
	retry := &m.config().Queue.Retry
	return max(time.Duration(retry.Min), time.Duration(retry.Max)) + 2*queue.BucketTime
}

// times returns when the message is to be tried again, which is when the first
// of its recipients is, and those who are to wait for longer. msg.file is held.
func (m *manager) times(msg *message) (next time.Time, later []queue.Retry) {
	now := m.now()
	pending := msg.pending()
	if len(pending) == 0 {
		return now.Add(retryPause), nil // a notification is owed
	}
	at := func(i uint32) time.Time {
		if t, ok := msg.next[i]; ok {
			return t
		}
		if t := msg.q.Recipients[i].Next; t.After(msg.active) {
			return t // due while others were in flight, or later
		}
		return now.Add(m.wait(msg, 0)) // not tried: that he has waited long is no reason to wait longer
	}
	for _, i := range pending {
		if t := at(i); next.IsZero() || t.Before(next) {
			next = t
		}
	}
	// Those that are about as early go with it.
	first := next
	for _, i := range pending {
		if t := at(i); t.After(next) && t.Sub(first) <= queue.BucketTime {
			next = t
		}
	}
	for _, i := range pending {
		if t := at(i); t.After(next) {
			later = append(later, queue.Retry{Index: i, Next: t})
		}
	}
	return next, later
}
