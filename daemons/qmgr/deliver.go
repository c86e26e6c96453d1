package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"posthouse/daemons/qmgr/internal/schedule"
	"posthouse/pkg/agent"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queue"
)

// dispatch begins every delivery that may begin now.
func (m *manager) dispatch() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for !m.stopping {
		e, _, ok := m.sched.Next(m.now())
		if !ok {
			m.setAlarm()
			return
		}
		m.wg.Go(func() { m.deliver(e) })
	}
}

// setAlarm has dispatch called when a pause between deliveries is over. m.mu is
// held.
func (m *manager) setAlarm() {
	at := m.sched.Wake()
	if at.IsZero() || !m.alarm.IsZero() && !at.Before(m.alarm) {
		return
	}
	m.alarm = at
	time.AfterFunc(at.Sub(m.now()), func() {
		m.mu.Lock()
		m.alarm = time.Time{}
		m.mu.Unlock()
		m.dispatch()
	})
}

// program is the agent behind a transport: lmtp is a way to deliver, not a
// daemon; relay is smtp with limits of its own, as in Postfix.
func program(transport string) string {
	if transport == "lmtp" || transport == "relay" {
		return "smtp"
	}
	return transport
}

// socketUnit is what has to be enabled for an agent: commands are instances of
// one unit.
func socketUnit(program string) string {
	if name, ok := config.PipeOf(program); ok {
		return "posthouse-pipe@" + name + ".socket"
	}
	return "posthouse-" + program + ".socket"
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
		QueueID: e.id, Transport: e.destination.Transport, Nexthop: e.nexthop,
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
	if len(dead) > 0 {
		m.wg.Go(func() { // e may have a notification made first
			m.suspend(dead, a.reason)
			m.dispatch()
		})
	}
	m.record(e, a.results, a.own)
	m.dispatch()
}

// suspend notes of many entries that they are not tried for now, several at a time.
func (m *manager) suspend(entries []*entry, reason *dsn.Error) {
	next := make(chan *entry)
	var wg sync.WaitGroup
	for range min(len(entries), loaders) {
		wg.Go(func() {
			for e := range next {
				m.record(e, e.all(suspended(reason)), true)
			}
		})
	}
	for _, e := range entries {
		next <- e
	}
	close(next)
	wg.Wait()
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
	file, err := m.spool.open(m.spool.active, e.id)
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
		return failed(dsn.Errorf("4.3.5", "mail transport %s is switched off: enable %s", name, socketUnit(name)), schedule.Negative)
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

// record notes what became of an entry.
func (m *manager) record(e *entry, results []queue.IndexedResult, own bool) {
	if own && len(results) > 0 {
		m.logOwn(e, results)
	}
	m.mu.Lock()
	last := e.left == 1
	e.ended = last // who looks at the queue sees the results from now on
	m.mu.Unlock()
	if len(results) > 0 {
		o := queue.Outcome{Results: results}
		e.file.Lock()
		if last && e.finishedBy(results) {
			e.q.Apply(o) // the file goes now; if it does not, staysDone writes this
			e.unwritten = append(e.unwritten, o)
		} else {
			m.note(e.message, o)
			m.plan(e.message, results)
		}
		e.file.Unlock()
	}
	m.mu.Lock()
	e.open -= len(e.rcpts)
	if e.counted {
		m.burden(party{Destination: e.destination}, -len(e.rcpts))
	}
	m.refill(e.message)
	m.letIn(party{Destination: e.destination})
	m.mu.Unlock()
	if m.isLast(e.message) {
		m.complete(e.message)
	}
}

// isLast notes the end of an entry, and reports whether it was the last one of its
// message, which is to be completed then.
func (m *manager) isLast(msg *message) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	msg.left--
	msg.ended = msg.left == 0
	return msg.ended
}

// plan notes when recipients are tried again: whom the end of this process has interrupted
// at once, though others of the message, who had failed before, wait. msg.file is held.
func (m *manager) plan(msg *message, results []queue.IndexedResult) {
	next := m.now()
	if m.ctx.Err() == nil {
		next = next.Add(m.delay(msg))
	}
	for k := range results {
		if results[k].Status.Class() == dsn.Transient {
			if msg.next == nil {
				msg.next = make(map[uint32]time.Time)
			}
			msg.next[results[k].Index] = next
		}
	}
}

// logOwn writes the log lines for recipients that no agent has seen.
func (m *manager) logOwn(e *entry, results []queue.IndexedResult) {
	r := m.request(e)
	now := m.now()
	for k := range results {
		agent.Log(m.log, r, k, agent.LogTimes{Start: now, End: now}, &agent.Outcome{Result: results[k].Result, Relay: "none"})
	}
}
