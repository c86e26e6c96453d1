package main

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// retryPause is how long what could not be read, written or emptied is left
// alone.
const retryPause = time.Minute

// feedDeferred takes up deferred mail when it is due. The clock may be set, and
// timers stand still while the machine sleeps: so nothing is waited for longer
// than a minute.
func (m *manager) feedDeferred() {
	var listed time.Time
	for {
		known := true
		if now := m.now(); listed.IsZero() || now.Sub(listed) >= scanInterval {
			if known = m.listBuckets() == nil; known {
				listed = now
			}
		}
		m.mu.Lock()
		m.feeding |= deferredFeeder
		name, at := m.earliest()
		wait := at.Sub(m.now())
		idle := name == "" || wait > 0
		stopping := m.stopping
		if stopping || idle && known {
			m.feeding &^= deferredFeeder
			m.settle()
		}
		m.mu.Unlock()
		switch {
		case stopping:
			return
		case !idle:
			m.takeBucket(name)
			continue
		case name == "" && known:
			wait = scanInterval
		case name == "" || wait > retryPause:
			wait = retryPause
		}
		timer := time.NewTimer(wait)
		select {
		case <-m.kick2:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// listBuckets looks which buckets there are: others may have put messages into
// the queue, from a backup or another machine. The error is that it cannot; it is in the log.
func (m *manager) listBuckets() error {
	names, strays, err := m.spool.deferred()
	if err != nil {
		if m.said.isNew(queue.Deferred, err.Error()) {
			m.log.Error(nil, "%v", err)
		}
		return err
	}
	m.said.forget(queue.Deferred)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		if _, ok := m.buckets[name]; !ok {
			m.buckets[name], _ = queue.BucketDue(name) // only such names are listed
		}
	}
	for _, id := range strays {
		err := m.spool.in(place{queue: queue.Deferred}, func(d *queue.Directory) error { return m.fileDue(d, id) })
		if err != nil && m.said.isNew(id.String(), err.Error()) {
			m.log.Error(nil, "%v", err)
		}
	}
	return nil
}

// earliest returns the bucket that is due first, and when. Nothing that was
// filed by this clock and configuration is due later than after the longest
// wait; what is was not, and is due now. m.mu is held.
func (m *manager) earliest() (name string, at time.Time) {
	now := m.now()
	last := now.Add(m.longestWait())
	for b, t := range m.buckets {
		if t.After(last) {
			t = now
		}
		if name == "" || t.Before(at) || t.Equal(at) && b < name {
			name, at = b, t
		}
	}
	return name, at
}

func (m *manager) takeBucket(name string) {
	m.mu.Lock()
	left := m.leaveToCrowds(name)
	if left {
		m.buckets[name] = m.now().Add(retryPause)
	}
	delete(m.refilled, name)
	m.mu.Unlock()
	if left {
		return
	}
	var moving sync.WaitGroup
	m.each(place{queue.Deferred, name}, &moving)
	moving.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.dropBucket(name):
	case m.refilled[name]:
		m.buckets[name] = time.Time{}
	default:
		// Something is left that could not be read now.
		m.buckets[name] = m.now().Add(retryPause)
	}
}

// dropBucket forgets a bucket that is empty, and reports whether it was. m.mu is
// held.
func (m *manager) dropBucket(name string) bool {
	if !m.spool.removeBucket(name) {
		return false
	}
	delete(m.buckets, name)
	m.index.drop(name)
	m.settle()
	return true
}

// fileIn moves a message from active/ to a bucket; keys say for whom it waits. m.mu
// is held.
func (m *manager) fileIn(bucket string, id queueid.ID, keys []key) error {
	m.index.prepare(bucket)
	m.index.add(bucket, id, keys)
	if err := m.spool.file(m.spool.active, id, bucket); err != nil {
		return err
	}
	if _, ok := m.buckets[bucket]; !ok {
		m.buckets[bucket], _ = queue.BucketDue(bucket)
		wake(m.kick2)
	}
	return nil
}

// fileDue moves a message to the bucket of what the administrator wants tried
// now. m.mu is held.
func (m *manager) fileDue(from *queue.Directory, id queueid.ID) error {
	if err := m.spool.file(from, id, dueBucket); err != nil {
		return err
	}
	m.due(dueBucket)
	return nil
}

// due has a bucket taken up at once. m.mu is held.
func (m *manager) due(bucket string) {
	m.buckets[bucket], m.refilled[bucket] = time.Time{}, true
	m.settle()
	wake(m.kick2)
}

// counts returns how many messages there are in each bucket that is not due, as far as
// they can be counted. That may take long, and nothing waits for it.
func (m *manager) counts() map[string]uint32 {
	var names []string
	m.mu.Lock()
	for name, due := range m.buckets {
		if due.After(m.now()) {
			names = append(names, name)
		}
	}
	m.mu.Unlock()
	counts := make(map[string]uint32)
	for _, name := range names {
		if n, err := m.spool.count(name); err == nil {
			counts[name] = n
		}
	}
	return counts
}

// rush makes everything due that is deferred: by giving each bucket the name of
// a time that is past, which costs nothing for each message and is still so
// after a crash. counts has the messages of buckets, if they have been counted. It returns
// the number of all, and what was in the way of others. m.mu is held.
func (m *manager) rush(counts map[string]uint32) (count uint32, failed error) {
	for _, name := range slices.Sorted(maps.Keys(m.buckets)) {
		if !m.buckets[name].After(m.now()) {
			continue
		}
		var err error
		n, ok := counts[name]
		if !ok { // it has just been made
			n, err = m.spool.count(name)
		}
		if err == nil && m.leaveToCrowds(name) {
			count += n // it is under way
			continue
		}
		if err == nil {
			var to string
			if to, err = m.spool.makeDue(name); err == nil {
				delete(m.buckets, name)
				m.index.drop(name)
				m.due(to)
				count += n
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.log.Warn(nil, "%v", err)
			failed = cmp.Or(failed, err)
		}
	}
	return count, failed
}
