package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"posthouse/pkg/agent"
	"posthouse/pkg/dsn"
	"posthouse/pkg/protocol/bounce"
	"posthouse/pkg/queue"
)

// finishedBy reports whether results leave nothing to do for the message.
func (msg *message) finishedBy(results []queue.IndexedResult) bool {
	final := make(map[uint32]bool, len(results))
	for _, r := range results {
		final[r.Index] = true
		state := queue.RecipientState{Tried: true, Last: r.Result}
		if state.Pending() || msg.wants(r.Index, &state) != 0 {
			return false
		}
	}
	for i := range msg.q.Recipients {
		r := &msg.q.Recipients[i]
		if !final[uint32(i)] && (r.Pending() || msg.wants(uint32(i), r) != 0) {
			return false
		}
	}
	return true
}

// wants returns the notification that is owed for the recipient i in the state
// r, or 0 (RFC 3461, section 6). Who relays to a host that sends notifications
// itself leaves them to it. Of what cannot be returned to anybody the postmaster
// may want to hear, whatever the sender wants.
func (msg *message) wants(i uint32, r *queue.RecipientState) bounce.Kind {
	notify := msg.q.Envelope.Recipients[i].Notify
	switch {
	case r.Reported || r.Pending():
	case r.Last.Status.Class() == dsn.Permanent && (notify.Wants(dsn.NotifyFailure) || msg.q.Envelope.Sender.IsNull()):
		return bounce.Failure
	case r.Last.Status.Class() == dsn.Success && notify.Wants(dsn.NotifySuccess) && (r.Last.Relayed || r.Last.RemoteMTA == ""):
		return bounce.Success
	}
	return 0
}

// append writes an outcome into the queue file. msg.file is held.
func (m *manager) append(msg *message, o queue.Outcome) error {
	return m.spool.append(m.spool.active, msg.id, msg.q, o)
}

// maxResults keeps a record within what queue.Append takes.
const maxResults = 1000

// note records an outcome. What the disk does not take is remembered, and
// written before the message is filed: otherwise who has got the message would
// get it again with every attempt. msg.file is held.
func (m *manager) note(msg *message, o queue.Outcome) {
	for len(o.Results) > maxResults {
		m.note(msg, queue.Outcome{Results: o.Results[:maxResults]})
		o.Results = o.Results[maxResults:]
	}
	if len(msg.unwritten) > 0 { // some of what msg.q says is not in the file
		msg.unwritten = append(msg.unwritten, o)
	} else {
		msg.unwritten = msg.q.News(o)
	}
	if err := m.write(msg); err != nil {
		m.log.Error(msg.fields(), "%s: %v", msg.id, err)
	}
}

// write writes what is noted. msg.file is held.
func (m *manager) write(msg *message) error {
	for len(msg.unwritten) > 0 {
		if err := m.append(msg, msg.unwritten[0]); err != nil {
			for _, o := range msg.unwritten {
				msg.q.Apply(o)
			}
			return err
		}
		msg.unwritten = msg.unwritten[1:]
	}
	return nil
}

// complete decides what becomes of a message of which nothing is in flight.
// Where the disk does not let it, it tries again later; until then the message
// stays in memory.
func (m *manager) complete(msg *message) {
	m.mu.Lock()
	msg.stuck = false
	m.mu.Unlock()
	if m.conclude(msg) {
		return // and it may be somebody else's by now
	}
	m.mu.Lock()
	msg.stuck = true
	m.mu.Unlock()
	time.AfterFunc(retryPause, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if !m.stopping {
			m.wg.Go(func() { m.complete(msg) })
		}
	})
}

// completeLoad is complete for who reads messages: the next one is not to wait for a
// notification to be made.
func (m *manager) completeLoad(msg *message) {
	if !m.mayNotify(msg) {
		m.complete(msg)
		return
	}
	m.wg.Go(func() { m.complete(msg) })
}

// mayNotify reports whether somebody is to be told of msg now.
func (m *manager) mayNotify(msg *message) bool {
	for i := range msg.q.Recipients {
		if msg.wants(uint32(i), &msg.q.Recipients[i]) != 0 {
			return true
		}
	}
	return m.expired(msg) || m.isLate(msg)
}

// conclude takes the last step with a message and ends its life in memory, or
// reports false.
func (m *manager) conclude(msg *message) bool {
	want := m.wishFor(msg)
	if want == wantDeletion {
		return m.removed(msg, m.spool.remove(m.spool.active, msg.id), "removed by the administrator")
	}
	if want != wantHold {
		if pending := msg.pending(); want == wantDelivery && len(pending) > 0 && m.expired(msg) && !m.isUntried(msg) {
			m.expire(msg, pending)
		}
		m.report(msg, bounce.Failure)
		m.report(msg, bounce.Success)
	}
	if msg.finishedBy(nil) {
		return m.removed(msg, m.spool.retire(msg.id, msg.q), "removed") || m.staysDone(msg)
	}
	if want == wantDelivery {
		if msg.crowded != (party{}) && m.sendOut(msg) {
			return true
		}
		m.warn(msg)
	}
	return m.file(msg, want)
}

func (m *manager) wishFor(msg *message) wish {
	m.mu.Lock()
	defer m.mu.Unlock()
	return msg.want
}

// removed ends the life of a message whose file has been removed, if it has.
func (m *manager) removed(msg *message, err error, how string) bool {
	if err == nil {
		m.log.Info(msg.fields(), "%s: %s", msg.id, how)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil && !m.hasGone(msg, err) {
		m.log.Error(msg.fields(), "%s: %v", msg.id, err)
		return false
	}
	if err == nil {
		m.forget(msg)
	}
	return true
}

// staysDone writes what was left to the end of a file that does not go, so that nobody gets
// the message again from the next process. It reports false: msg has not ended.
func (m *manager) staysDone(msg *message) bool {
	msg.file.Lock()
	defer msg.file.Unlock()
	if err := m.write(msg); err != nil {
		m.log.Error(msg.fields(), "%s: %v", msg.id, err)
	}
	return false
}

// hasGone ends the life of a message whose file somebody has taken away, if err is for
// want of it. m.mu is held.
func (m *manager) hasGone(msg *message, err error) bool {
	if !errors.Is(err, fs.ErrNotExist) || !m.spool.active.Lacks(msg.id) {
		return false
	}
	m.log.Error(msg.fields(), "%s: has gone from %s: %v", msg.id, queue.Active, err)
	m.forget(msg)
	return true
}

// staysActive says that a message could not be put away, or reports that there is none
// any more. m.mu is held.
func (m *manager) staysActive(msg *message, err error) bool {
	if m.hasGone(msg, err) {
		return true
	}
	m.log.Error(msg.fields(), "%s: stays in %s: %v", msg.id, queue.Active, err)
	return false
}

func (m *manager) expires(msg *message) time.Time {
	q := &m.config().Queue
	lifetime := time.Duration(q.Lifetime)
	if msg.q.Envelope.Sender.IsNull() {
		lifetime = min(lifetime, time.Duration(q.BounceLifetime))
	}
	return msg.begun().Add(lifetime)
}

// begun is what the age of msg counts from: its arrival or, where it is to be new and
// its recipients could not be expanded again so far, when that was asked for.
func (msg *message) begun() time.Time {
	if t := msg.q.Requeued; !t.IsZero() {
		return t
	}
	return msg.q.Envelope.Arrival
}

// isUntried reports whether msg was too old already when it came to be active, and has only
// been found to have to wait for others: before it is returned it is to be tried once.
func (m *manager) isUntried(msg *message) bool {
	return msg.crowded != party{} && len(msg.next) == 0 && !isBeyond(msg.from.bucket) && !m.expires(msg).After(msg.active)
}

func (m *manager) expired(msg *message) bool { return !m.now().Before(m.expires(msg)) }

// expire turns the last word on each recipient into a failure.
func (m *manager) expire(msg *message, pending []uint32) {
	m.log.Info(msg.fields(), "%s: from=<%s>, status=expired, returned to sender", msg.id, msg.q.Envelope.Sender)
	var o queue.Outcome
	for _, i := range pending {
		r := msg.q.Recipients[i].Last
		if !msg.q.Recipients[i].Tried {
			r.Text = "delivery was not tried"
		}
		r.Status = dsn.MustParse("5.4.7")
		r.Text = clip("delivery time expired: " + r.Text)
		o.Results = append(o.Results, queue.IndexedResult{Index: i, Result: r})
	}
	msg.file.Lock()
	defer msg.file.Unlock()
	m.note(msg, o)
}

// clip keeps a text within what a report may have.
func clip(s string) string { return agent.Line(s) }

// report has the notifications of one kind made that are owed. What it does not
// achieve is still owed.
func (m *manager) report(msg *message, kind bounce.Kind) {
	var list []uint32
	for i := range msg.q.Recipients {
		if msg.wants(uint32(i), &msg.q.Recipients[i]) == kind {
			list = append(list, uint32(i))
		}
	}
	for len(list) > 0 {
		piece := list[:min(len(list), bounce.MaxRecipients)]
		list = list[len(piece):]
		if err := m.notify(msg, kind, piece); err != nil {
			m.log.Warn(msg.fields(), "%s: notification of %d recipients: %v", msg.id, len(piece), err)
			return
		}
	}
}

// notify has one notification made, and notes that it is in the queue. What it
// says is on disk before: nobody is delivered to after having been reported as
// failed.
func (m *manager) notify(msg *message, kind bounce.Kind, rcpts []uint32) error {
	m.dispatch() // it may take long, and a delivery has ended
	m.notice <- struct{}{}
	defer func() { <-m.notice }()
	msg.file.Lock()
	defer msg.file.Unlock()
	err := m.write(msg)
	if err == nil {
		err = m.spool.flush(m.spool.active, msg.id, msg.q)
	}
	if err != nil {
		return fmt.Errorf("outcomes: %w", err)
	}
	file, err := m.spool.open(m.spool.active, msg.id)
	if err != nil {
		return err
	}
	defer file.Close() // opened for reading
	r := &bounce.Request{
		Kind: kind, QueueID: msg.id, Envelope: *msg.q.Envelope, Offset: msg.q.Offset, Length: msg.q.Length, Expires: m.expires(msg),
	}
	r.Envelope.Recipients = nil
	for _, i := range rcpts {
		r.Recipients = append(r.Recipients, bounce.Recipient{Recipient: msg.q.Envelope.Recipients[i], Result: msg.q.Recipients[i].Last})
	}
	ctx, cancel := context.WithTimeout(m.ctx, bounceTimeout)
	defer cancel()
	if _, err := m.bounce.Notify(ctx, r, file); err != nil {
		return err
	}
	if kind != bounce.Delay {
		m.note(msg, queue.Outcome{Reported: rcpts})
	}
	return nil
}

// isLate reports whether the sender is to hear that a message is still on its way.
func (m *manager) isLate(msg *message) bool {
	after := time.Duration(m.config().Queue.DelayWarning)
	return after != 0 && !msg.q.Schedule.Warned && !msg.q.Envelope.Sender.IsNull() && m.now().Sub(msg.begun()) >= after
}

// warn tells the sender, once, that a message is still on its way.
func (m *manager) warn(msg *message) {
	if !m.isLate(msg) {
		return
	}
	var list []uint32
	for _, i := range msg.pending() {
		if msg.q.Recipients[i].Tried && msg.q.Envelope.Recipients[i].Notify.Wants(dsn.NotifyDelay) && len(list) < bounce.MaxRecipients {
			list = append(list, i)
		}
	}
	if len(list) == 0 {
		return
	}
	if err := m.notify(msg, bounce.Delay, list); err != nil {
		m.log.Warn(msg.fields(), "%s: delay notification: %v", msg.id, err)
		return
	}
	msg.q.Schedule.Warned = true // file writes it
}

// appendRetries writes who is to wait for longer than the message, if the file does not
// say so already: else one with many recipients, each with a time of his own, would
// grow by all of them with each attempt. msg.file is held, and nothing is unwritten.
func (m *manager) appendRetries(msg *message, later []queue.Retry) error {
	later = slices.DeleteFunc(later, func(r queue.Retry) bool { return r.Next.Equal(msg.q.Recipients[r.Index].Next) })
	if len(later) == 0 {
		return nil
	}
	return m.append(msg, queue.Outcome{Retries: later})
}

// file puts a message away: until its next attempt, or as the administrator
// wants it.
func (m *manager) file(msg *message, want wish) bool {
	msg.file.Lock()
	next, later := m.times(msg)
	keys, beyond := keysOf(msg.q), msg.crowded != party{} && len(msg.next) == 0
	bucket := queue.Bucket(next)
	if beyond { // not tried: that it has waited long is no reason to wait longer
		next = m.now().Add(m.wait(msg, 0))
		keys, bucket = append(keys, msg.crowded.key()), beyondBucket(next, msg.isAsked())
		later = m.stillDue(msg)
	}
	err := m.write(msg)
	if err == nil {
		switch want {
		case wantRequeue:
			err = m.append(msg, queue.Outcome{Requeue: m.now()})
		case wantDelivery:
			if err := m.append(msg, queue.Outcome{Schedule: &queue.Schedule{Next: next, Warned: msg.q.Schedule.Warned}}); err != nil {
				m.log.Error(msg.fields(), "%s: %v", msg.id, err) // the name of the bucket says it too
			}
			if err := m.appendRetries(msg, later); err != nil {
				m.log.Error(msg.fields(), "%s: %v", msg.id, err) // they are tried sooner
			}
		case wantHold, wantDeletion:
		}
	}
	msg.file.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		return m.staysActive(msg, err)
	}
	if msg.want != want {
		m.wg.Go(func() { m.complete(msg) }) // the administrator has spoken meanwhile
		return true
	}
	switch {
	case want == wantHold:
		err = m.spool.move(m.spool.active, msg.id, m.spool.held)
	case want == wantRequeue, msg.anew && !beyond, m.ctx.Err() != nil && msg.isAsked():
		err = m.fileDue(m.spool.active, msg.id)
	default:
		if m.ctx.Err() != nil { // not its fault: the next process tries at once
			bucket = interruptedBucket
		} else if beyond {
			m.goesBeyond(msg.crowded, bucket)
		}
		err = m.fileIn(bucket, msg.id, keys)
	}
	if err != nil {
		return m.staysActive(msg, err)
	}
	switch want {
	case wantHold:
		m.log.Info(msg.fields(), "%s: placed on hold", msg.id)
	case wantRequeue:
		m.log.Info(msg.fields(), "%s: requeued", msg.id)
	case wantDelivery, wantDeletion:
	}
	m.forget(msg)
	return true
}
