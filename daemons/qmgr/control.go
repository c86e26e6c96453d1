package main

import (
	"context"
	"os"

	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// handleControl carries out a command of the administrator.
func (m *manager) handleControl(_ context.Context, c *ipc.Conn, msg []byte, file *os.File) error {
	if file != nil {
		_ = file.Close() // not asked for
	}
	r, err := queuectl.DecodeRequest(msg)
	if err != nil {
		return err
	}
	reply := m.control(r)
	out := ipc.NewMessage()
	reply.Encode(out)
	return c.Send(out)
}

// sources are the queues in which an operation finds messages, beside active.
var sources = map[queuectl.Op][]string{
	queuectl.Hold:    {queue.Incoming, queue.Deferred},
	queuectl.Release: {queue.Hold},
	queuectl.Retry:   {queue.Deferred},
	queuectl.Requeue: {queue.Deferred, queue.Hold},
	queuectl.Delete:  {queue.Incoming, queue.Deferred, queue.Hold},
}

func (m *manager) control(r queuectl.Request) queuectl.Reply {
	if r.Op == queuectl.Retry || r.Op == queuectl.Requeue {
		m.mu.Lock()
		m.sched.ReviveAll()
		m.mu.Unlock()
	}
	places, err := m.places(r.Op)
	if err != nil {
		m.log.Error(nil, "%v", err)
	}
	var reply queuectl.Reply
	if r.All {
		reply.Done = m.controlAll(r.Op, places)
	} else {
		for _, id := range r.IDs {
			if m.controlOne(r.Op, places, id) {
				reply.Done++
			} else {
				reply.Missing = append(reply.Missing, id)
			}
		}
	}
	m.mu.Lock()
	m.settle()
	m.mu.Unlock()
	m.dispatch()
	wake(m.kick)
	return reply
}

// places lists where an operation has to look.
func (m *manager) places(op queuectl.Op) ([]place, error) {
	var list []place
	for _, name := range sources[op] {
		if name != queue.Deferred {
			list = append(list, place{queue: name})
			continue
		}
		buckets, err := m.spool.buckets()
		if err != nil {
			return list, err
		}
		for _, b := range buckets {
			list = append(list, place{queue.Deferred, b})
		}
	}
	return list, nil
}

func (m *manager) controlAll(op queuectl.Op, places []place) (done uint32) {
	m.mu.Lock()
	var active []queueid.ID
	for id := range m.known {
		active = append(active, id)
	}
	m.mu.Unlock()
	if op != queuectl.Release {
		for _, id := range active {
			if m.controlActive(op, id) {
				done++
			}
		}
	}
	for _, p := range places {
		err := m.spool.names(p, func(id queueid.ID) error {
			if m.controlAt(op, p, id) {
				done++
			}
			return nil
		})
		if err != nil && !os.IsNotExist(err) {
			m.log.Warn(nil, "%v", err)
		}
	}
	return done
}

func (m *manager) controlOne(op queuectl.Op, places []place, id queueid.ID) bool {
	if op != queuectl.Release && m.controlActive(op, id) {
		return true
	}
	for _, p := range places {
		if m.controlAt(op, p, id) {
			return true
		}
	}
	return false
}

// controlActive deals with a message in memory; what is in flight ends first.
func (m *manager) controlActive(op queuectl.Op, id queueid.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	msg := m.known[id]
	if msg == nil {
		return false
	}
	switch op {
	case queuectl.Hold:
		msg.want = wantHold
	case queuectl.Delete:
		msg.want = wantDeletion
	case queuectl.Release, queuectl.Retry, queuectl.Requeue: // it is under way
	}
	return true
}

// controlAt deals with a message on disk, if it is at p.
func (m *manager) controlAt(op queuectl.Op, p place, id queueid.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known[id] != nil {
		return false
	}
	err := m.spool.in(p, func(d *queue.Directory) error {
		switch op {
		case queuectl.Hold:
			return d.Move(id, m.spool.held)
		case queuectl.Delete:
			return d.Remove(id)
		case queuectl.Release, queuectl.Retry, queuectl.Requeue:
		}
		f, err := d.Open(id)
		if err != nil {
			return err
		}
		m.fresh = append(m.fresh, located{p, id})
		return f.Close()
	})
	if err != nil {
		if !os.IsNotExist(err) {
			m.log.Warn(nil, "%s: %v", id, err)
		}
		return false
	}
	switch op {
	case queuectl.Hold:
		m.log.Info(nil, "%s: placed on hold", id)
	case queuectl.Delete:
		m.log.Info(nil, "%s: removed by the administrator", id)
	case queuectl.Release:
		m.log.Info(nil, "%s: released from hold", id)
	case queuectl.Retry, queuectl.Requeue:
	}
	return true
}
