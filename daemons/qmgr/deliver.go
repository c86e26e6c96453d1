package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"posthouse/daemons/qmgr/internal/schedule"
	"posthouse/pkg/agent"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/bounce"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queue"
)

// dispatch begins every delivery that may begin now.
func (m *manager) dispatch() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for !m.stopping {
		e, _, ok := m.sched.Next()
		if !ok {
			return
		}
		m.wg.Go(func() { m.deliver(e) })
	}
}

// program is the agent behind a transport: lmtp is a way to deliver, not a
// daemon.
func program(transport string) string {
	if transport == "lmtp" {
		return "smtp"
	}
	return transport
}

func (m *manager) agentOf(transport string) deliverer {
	name := program(transport)
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.agents[name]
	if a == nil {
		a = m.agent(name)
		m.agents[name] = a
	}
	return a
}

func (m *manager) request(e *entry) *delivery.Request {
	env := e.q.Envelope
	r := &delivery.Request{
		QueueID: e.id, Transport: e.destination.Transport, Nexthop: e.destination.Nexthop,
		Sender: env.Sender, Return: env.Return, EnvID: env.EnvID, Body: env.Body, SMTPUTF8: env.SMTPUTF8,
		Arrival: env.Arrival, Active: e.active, Offset: e.q.Offset, Length: e.q.Length,
		Recipients: make([]envelope.Recipient, len(e.rcpts)),
	}
	for k, i := range e.rcpts {
		r.Recipients[k] = env.Recipients[i]
		r.Recipients[k].Address = e.addresses[k]
	}
	return r
}

// attempt is what came of handing an entry to its agent.
type attempt struct {
	results []queue.IndexedResult // nil: not tried
	signal  schedule.Signal
	reason  *dsn.Error // with schedule.Negative
	own     bool       // the agent has not logged it
}

// deliver carries out one delivery, whatever becomes of it.
func (m *manager) deliver(e *entry) {
	a := m.try(e)
	m.mu.Lock()
	dead := m.sched.Done(m.now(), e.destination, a.signal, a.reason)
	m.mu.Unlock()
	m.record(e, a.results, a.own)
	for _, other := range dead {
		m.record(other, other.all(suspended(a.reason)), true)
	}
	m.dispatch()
}

func (m *manager) try(e *entry) attempt {
	m.mu.Lock()
	want := e.want
	m.mu.Unlock()
	if want != wantDelivery {
		return attempt{}
	}
	failed := func(reason *dsn.Error, signal schedule.Signal) attempt {
		return attempt{e.all(result(reason)), signal, reason, true}
	}
	file, err := m.spool.active.Open(e.id)
	if err != nil {
		m.log.Error(e.fields(), "%s: %v", e.id, err)
		return failed(dsn.Errorf("4.3.0", "queue file error"), schedule.Nothing)
	}
	defer file.Close() // opened for reading
	ctx, cancel := context.WithTimeout(m.ctx, deliveryTimeout)
	defer cancel()
	report, err := m.agentOf(e.destination.Transport).Deliver(ctx, m.request(e), file)
	var off *ipc.UnavailableError
	switch {
	case errors.As(err, &off):
		name := program(e.destination.Transport)
		return failed(dsn.Errorf("4.3.5", "mail transport %s is switched off: enable posthouse-%s.socket", name, name), schedule.Negative)
	case err != nil:
		m.log.Warn(e.fields(), "%s: transport %s: %v", e.id, e.destination.Transport, err)
		return failed(dsn.Errorf("4.3.0", "unknown mail transport error"), schedule.Negative)
	}
	a := attempt{signal: schedule.Positive}
	if report.Hop != nil {
		a.signal, a.reason = schedule.Negative, report.Hop
	}
	for k, i := range e.rcpts {
		a.results = append(a.results, queue.IndexedResult{Index: i, Result: report.Results[k]})
	}
	return a
}

// record notes what became of an entry; the last one of a message completes it.
func (m *manager) record(e *entry, results []queue.IndexedResult, own bool) {
	if own && len(results) > 0 {
		m.logOwn(e, results)
	}
	m.mu.Lock()
	last := e.left == 1
	m.mu.Unlock()
	if len(results) > 0 {
		o := queue.Outcome{Results: results}
		e.file.Lock()
		if last && e.finishedBy(results) {
			e.q.Apply(o) // the file goes now
		} else if err := m.append(e.message, o); err != nil {
			// The file does not say so: after a crash it is delivered again.
			m.log.Error(e.fields(), "%s: %v", e.id, err)
			e.q.Apply(o)
		}
		e.file.Unlock()
	}
	m.mu.Lock()
	e.left--
	done := e.left == 0
	m.mu.Unlock()
	if done {
		m.complete(e.message)
	}
}

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
// itself leaves them to it.
func (msg *message) wants(i uint32, r *queue.RecipientState) bounce.Kind {
	notify := msg.q.Envelope.Recipients[i].Notify
	switch {
	case r.Reported || r.Pending():
	case r.Last.Status.Class() == dsn.Permanent && notify.Wants(dsn.NotifyFailure):
		return bounce.Failure
	case r.Last.Status.Class() == dsn.Success && notify.Wants(dsn.NotifySuccess) && (r.Last.Relayed || r.Last.RemoteMTA == ""):
		return bounce.Success
	}
	return 0
}

// append writes an outcome into the queue file. msg.file is held.
func (m *manager) append(msg *message, o queue.Outcome) error {
	f, err := m.spool.active.OpenWrite(msg.id)
	if err != nil {
		return err
	}
	err = msg.q.Append(f, o)
	return errors.Join(err, f.Close())
}

// logOwn writes the log lines for recipients that no agent has seen.
func (m *manager) logOwn(e *entry, results []queue.IndexedResult) {
	r := m.request(e)
	now := m.now()
	for k := range results {
		agent.Log(m.log, r, k, agent.LogTimes{Start: now, End: now}, &agent.Outcome{Result: results[k].Result, Relay: "none"})
	}
}

// complete decides what becomes of a message of which nothing is in flight.
func (m *manager) complete(msg *message) {
	defer m.forget(msg)
	m.mu.Lock()
	want := msg.want
	m.mu.Unlock()
	switch want {
	case wantDeletion:
		m.remove(msg, "removed by the administrator")
		return
	case wantHold:
		m.log.Info(msg.fields(), "%s: placed on hold", msg.id)
		if err := m.spool.active.Move(msg.id, m.spool.held); err != nil {
			m.log.Error(msg.fields(), "%s: %v", msg.id, err)
		}
		return
	case wantDelivery:
	}
	if pending := msg.pending(); len(pending) > 0 && m.expired(msg) {
		m.expire(msg, pending)
	}
	reported := m.report(msg, bounce.Failure) && m.report(msg, bounce.Success)
	if reported && len(msg.pending()) == 0 {
		m.remove(msg, "removed")
		return
	}
	m.warn(msg)
	m.file(msg)
}

func (m *manager) remove(msg *message, how string) {
	if err := m.spool.active.Remove(msg.id); err != nil {
		m.log.Error(msg.fields(), "%s: %v", msg.id, err)
		return
	}
	m.log.Info(msg.fields(), "%s: %s", msg.id, how)
}

func (m *manager) expires(msg *message) time.Time {
	q := &m.config().Queue
	lifetime := time.Duration(q.Lifetime)
	if msg.q.Envelope.Sender.IsNull() {
		lifetime = min(lifetime, time.Duration(q.BounceLifetime))
	}
	return msg.q.Envelope.Arrival.Add(lifetime)
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
	if err := m.append(msg, o); err != nil {
		m.log.Error(msg.fields(), "%s: %v", msg.id, err)
	}
}

// clip keeps a text within what a report may have.
func clip(s string) string { return agent.Line(s) }

// report has the notifications of one kind made that are owed. It reports
// whether none is owed any more.
func (m *manager) report(msg *message, kind bounce.Kind) bool {
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
			return false
		}
	}
	return true
}

// notify has one notification made, and notes that it is in the queue. What it
// says is on disk before: nobody is delivered to after having been reported as
// failed.
func (m *manager) notify(msg *message, kind bounce.Kind, rcpts []uint32) error {
	msg.file.Lock()
	defer msg.file.Unlock()
	f, err := m.spool.active.OpenWrite(msg.id)
	if err != nil {
		return err
	}
	err = f.Sync()
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("outcomes: %w", err)
	}
	file, err := m.spool.active.Open(msg.id)
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
	if kind == bounce.Delay {
		return nil
	}
	return m.append(msg, queue.Outcome{Reported: rcpts})
}

// warn tells the sender, once, that a message is still on its way.
func (m *manager) warn(msg *message) {
	after := time.Duration(m.config().Queue.DelayWarning)
	if after == 0 || msg.q.Schedule.Warned || msg.q.Envelope.Sender.IsNull() || m.now().Sub(msg.q.Envelope.Arrival) < after {
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

// file puts a message away until its next attempt: the longer it waits already,
// the longer it waits.
func (m *manager) file(msg *message) {
	retry := &m.config().Queue.Retry
	now := m.now()
	delay := max(time.Duration(retry.Min), min(now.Sub(msg.q.Envelope.Arrival), time.Duration(retry.Max)))
	next := now.Add(delay)
	msg.file.Lock()
	err := m.append(msg, queue.Outcome{Schedule: &queue.Schedule{Next: next, Warned: msg.q.Schedule.Warned}})
	msg.file.Unlock()
	if err != nil {
		m.log.Error(msg.fields(), "%s: %v", msg.id, err) // the name of the bucket says it too
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	bucket, err := m.spool.file(msg.id, next)
	if err != nil {
		m.log.Error(msg.fields(), "%s: stays in %s: %v", msg.id, queue.Active, err)
		m.later = append(m.later, located{place{queue: queue.Active}, msg.id})
		time.AfterFunc(retryPause, func() {
			m.mu.Lock()
			m.laterDue = true
			m.mu.Unlock()
			wake(m.kick)
		})
		return
	}
	if _, ok := m.buckets[bucket]; !ok {
		m.buckets[bucket], _ = queue.BucketDue(bucket)
		wake(m.kick2)
	}
}
