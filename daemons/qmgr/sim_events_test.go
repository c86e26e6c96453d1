package main

import (
	"context"
	"os"
	"slices"
	"time"

	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/arrival"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// What cleanup does.

func (s *sim) create(m *mail, id queueid.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.id = id
	m.arrival = s.now()
	s.byID[id] = m
	var buf buffer
	w := queue.NewWriter(&buf, m.envelope())
	_, err := w.Write([]byte(m.text))
	if err = firstOf(err, w.Finish()); err == nil {
		m.file, err = s.newFile(id)
	}
	if err != nil {
		panic(err)
	}
	m.bytes = buf
	s.disk.files[id] = &simFile{at: queue.Incoming, sealed: int64(len(buf))}
	s.touch(s.disk.path(queue.Incoming, m.id.String()))
}

// newFile makes the file of a new message, or takes that of an old one.
func (s *sim) newFile(id queueid.ID) (*os.File, error) {
	d := s.disk
	dir, err := queue.OpenDirectory(d.path(queue.Incoming))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	before := make(map[queueid.ID][]byte)
	for _, old := range s.ids() {
		if d.files[old].at == queue.Spare {
			before[old], _ = os.ReadFile(d.path(queue.Spare, old.String()))
		}
	}
	f, err := s.spares.Take(dir, id)
	if err != nil || f == nil {
		d.changes = append(d.changes, simChange{name: "create", id: id, to: queue.Incoming})
		if f, err = dir.Create(id); err == nil {
			err = f.Chmod(queue.FileMode)
		}
		return f, err
	}
	for old, content := range before {
		if _, err := os.Lstat(d.path(queue.Spare, old.String())); err != nil {
			s.saw("spare to writing")
			d.files[old].at = ""
			d.changes = append(d.changes, simChange{name: "take", id: id, from: queue.Spare, to: queue.Incoming, old: old, content: content})
		}
	}
	return f, nil
}

// buffer is a file in memory.
type buffer []byte

func (b *buffer) Write(p []byte) (int, error) { *b = append(*b, p...); return len(p), nil }

func (b *buffer) WriteAt(p []byte, off int64) (int, error) { return copy((*b)[off:], p), nil }

const simHeader = 64 // octets, which are written last

// write writes the file as far as n, but for the header.
func (s *sim) write(m *mail, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.file == nil {
		return
	}
	b := slices.Clone(m.bytes[:n])
	clear(b[:min(n, simHeader)])
	m.put(b, 0)
	if s.disk.files[m.id].at == queue.Incoming {
		s.touch(s.disk.path(queue.Incoming, m.id.String()))
	}
}

func (m *mail) put(b []byte, at int64) {
	if _, err := m.file.WriteAt(b, at); err != nil {
		panic(err)
	}
}

func (s *sim) header(m *mail) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.file != nil {
		m.put(m.bytes[:simHeader], 0)
	}
}

// accept is the flush, and what the client hears of it.
func (s *sim) accept(m *mail) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.file == nil {
		return
	}
	m.endWriting()
	d := s.disk
	if at := d.files[m.id].at; at != queue.Incoming {
		s.failf("message %d: its file is in %q before it is accepted", m.n, at)
		return
	}
	d.flushed(m.id)
	m.accepted = true
	s.saw("writing to incoming")
	s.notef("message %d is accepted: %s", m.n, m.id)
}

func (m *mail) endWriting() {
	if m.file != nil {
		_ = m.file.Close()
		m.file, m.ended = nil, true
	}
}

func (s *sim) giveUp(m *mail) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.file == nil {
		return
	}
	c := call{name: "unlink", id: m.id, from: s.disk.path(queue.Incoming)}
	if f := s.disk.files[m.id]; f.at == queue.Incoming {
		_ = s.disk.carryOut(s, c, func() error { return os.Remove(s.disk.path(queue.Incoming, m.id.String())) })
	}
	m.endWriting()
}

func (s *sim) cleanupDies(m *mail) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.file != nil {
		s.saw("cleanup dies")
		m.endWriting()
	}
}

func (s *sim) tell(m *mail) {
	s.mu.Lock()
	lost := !m.accepted
	s.mu.Unlock()
	if lost {
		return
	}
	msg := ipc.NewMessage()
	arrival.Encode(msg, []queueid.ID{m.id})
	if err := s.present().m.handleArrival(context.Background(), nil, msg.Data()[1:], nil); err != nil {
		panic(err)
	}
}

func (s *sim) look() {
	s.present().m.look()
}

// command is one of the administrator, for list or for all.
func (s *sim) command(op queuectl.Op, list []*mail) {
	p := s.present()
	r := queuectl.Request{Op: op, All: list == nil}
	s.mu.Lock()
	about := s.mails
	if list != nil {
		about = list
	}
	for _, m := range about {
		if m.id == (queueid.ID{}) {
			continue
		}
		if !r.All && !slices.Contains(r.IDs, m.id) {
			r.IDs = append(r.IDs, m.id)
		}
		if f := s.disk.files[m.id]; op == queuectl.Delete && f.there() {
			m.mayGo = true
		}
		if op == queuectl.Requeue {
			m.warnings++
			m.renewed = true
			s.age(m)
		}
		if op != queuectl.Hold && op != queuectl.Delete {
			m.dueNow()
		}
		if op == queuectl.Release || op == queuectl.Requeue {
			m.held = time.Time{}
		}
	}
	well := len(s.disk.trouble.what) == 0
	s.mu.Unlock()
	if !r.All && len(r.IDs) == 0 {
		return
	}
	s.commanded = true
	s.locked(func() { p.commanding = true })()
	reply := p.m.control(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	p.commanding = false
	if p.gone {
		return
	}
	s.saw(simOps[op] + map[bool]string{true: " all", false: ""}[r.All])
	s.notef("%d done, %d missing", reply.Done, len(reply.Missing))
	for _, m := range about {
		if s.disk.files[m.id] == nil || r.All && (!well || !m.accepted) || slices.Contains(reply.Missing, m.id) {
			continue
		}
		carriedOut(op, m)
	}
}

// knows reports whether a message is in the memory of qmgr, where it has its turn.
func (p *process) knows(id queueid.ID) bool {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	return p.m.known[id] != nil
}

// retry is the command for a destination. Afterwards nobody there has to wait.
func (s *sim) retry(domain string) {
	p := s.present()
	s.mu.Lock()
	for _, m := range s.mails {
		m.dueNow()
	}
	well := len(s.disk.trouble.what) == 0
	s.mu.Unlock()
	p.m.control(queuectl.Request{Op: queuectl.Retry, Destination: domain})
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.gone || !well {
		return
	}
	s.saw("retry destination")
	for _, m := range s.mails {
		f := s.disk.files[m.id]
		if f == nil || queueOf(f.at) != queue.Deferred || p.knows(m.id) {
			continue
		}
		states, _ := s.onDisk(m, f)
		for a, state := range states {
			if state.Pending() && a.Domain() == domain {
				s.failf("message %d: waits in %s for %s, which is to be tried", m.n, f.at, a)
			}
		}
	}
}

// carriedOut notes what qmgr has promised.
func carriedOut(op queuectl.Op, m *mail) {
	m.wished = m.failures
	switch op {
	case queuectl.Hold:
		m.held = time.Now()
	case queuectl.Delete:
		m.deleted = time.Now()
	case queuectl.Release, queuectl.Requeue, queuectl.Retry:
	}
}
