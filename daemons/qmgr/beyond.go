package main

import (
	"maps"
	"slices"
	"time"

	"posthouse/pkg/queue"
)

// What is too much even to wait outside of memory is beyond: it goes to buckets of
// deferred/ that have nothing else. They are due when those of that minute are, but
// the crowd knows them, and finds what is its own by the index as room comes. So
// nothing is read before its turn, and mail of others in the same bucket does not
// wait for it. What a crash has left there is taken up when the bucket is due.

// Buckets for what is beyond are named for a time that no other has.
const (
	beyondMark      = 1 // seconds after the bucket of that time
	beyondMarkAsked = 2 // the administrator has asked for the attempt
)

// maxTaken is how many messages a crowd takes up at once.
const maxTaken = 5000

// beyondBucket returns the name of the bucket for what is beyond and due at t.
func beyondBucket(t time.Time, asked bool) string {
	due, _ := queue.BucketDue(queue.Bucket(t)) // it is the name of one
	mark := time.Duration(beyondMark)
	if asked {
		mark = beyondMarkAsked
	}
	return queue.BucketName(due.Add(mark * time.Second))
}

// isAskedBeyond reports whether a bucket is one for what the administrator has asked
// for.
func isAskedBeyond(bucket string) bool {
	t, err := queue.BucketDue(bucket)
	return err == nil && !isAsked(bucket) && t.Unix()%int64(queue.BucketTime/time.Second) == beyondMarkAsked
}

// isBeyond reports whether a bucket is one for what is beyond.
func isBeyond(bucket string) bool {
	t, err := queue.BucketDue(bucket)
	return err == nil && !isAsked(bucket) && t.Unix()%int64(queue.BucketTime/time.Second) == beyondMark || isAskedBeyond(bucket)
}

// key stands for the mail of p in the index. No domain has a space.
func (p party) key() key { return keyOf(p.sender + " " + p.Transport + " " + p.Nexthop) }

// crowdOf returns the crowd of p, which is there from then on. m.mu is held.
func (m *manager) crowdOf(p party) *crowd {
	c := m.crowds[p]
	if c == nil {
		c = &crowd{party: p}
		m.crowds[p] = c
		m.crowdTurn = append(m.crowdTurn, c)
	}
	return c
}

// goesBeyond notes that a message of p is about to be filed in a bucket. m.mu is
// held.
func (m *manager) goesBeyond(p party, bucket string) {
	c := m.crowdOf(p)
	if c.beyond == nil {
		c.beyond = make(map[string]int64)
	}
	if _, ok := c.beyond[bucket]; !ok {
		c.beyond[bucket] = m.index.size(bucket)
	}
}

// leaveToCrowds reports whether crowds take up what is left in a bucket, and has
// them do it. It is so for the longest time between two attempts: then somebody has
// to see what has become too old. m.mu is held.
func (m *manager) leaveToCrowds(bucket string) (claimed bool) {
	due, err := queue.BucketDue(bucket)
	over := err != nil || m.now().Sub(due) > m.longestWait()
	for _, c := range m.crowdTurn {
		if _, ok := c.beyond[bucket]; ok && over {
			delete(c.beyond, bucket)
		} else if ok {
			claimed = true
			m.takeBeyond(c)
		}
	}
	return claimed
}

// takeBeyond has messages of a crowd wait outside again when less than half of those
// do that may, so that they come in few steps. m.mu is held.
func (m *manager) takeBeyond(c *crowd) {
	if len(c.beyond) == 0 || c.taking || m.stopping {
		return
	}
	most, n := m.mostOutside()-m.outside, 0
	if len(c.waiting) <= most/2 {
		n = (most - len(c.waiting)) / 2
	}
	if len(c.waiting) == 0 {
		n = max(n, min(maxComing, m.share(c.party)-m.loads[c.party]))
	}
	if n > 0 {
		c.taking = true
		name := slices.Min(slices.Collect(maps.Keys(c.beyond))) // due first
		from := c.beyond[name]
		m.wg.Go(func() { m.takeUp(c, name, from, min(n, maxTaken)) })
	}
}

// takeUp has n messages of a bucket wait outside, of those from an offset in its index
// on. They stay where they are, and are not read before they come back.
func (m *manager) takeUp(c *crowd, name string, from int64, n int) {
	ids, next := m.index.after(name, from, c.party.key(), n)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		if m.known[id] == nil {
			msg := &message{id: id, from: place{queue.Deferred, name}, outside: c.party}
			m.known[id] = msg
			c.waiting = append(c.waiting, msg)
			m.outside++
		}
	}
	if _, ok := c.beyond[name]; ok {
		c.beyond[name] = next
	}
	if len(ids) < n && next >= m.index.size(name) {
		delete(c.beyond, name)
		// What the index lacks is taken up with the bucket, when this has had its time.
		if at := m.now().Add(retryPause); m.buckets[name].After(at) {
			m.buckets[name] = at
			wake(m.kick2)
		}
	}
	c.taking = false
	m.letIn()
}
