package main

import (
	"slices"
	"sync"
	"time"

	"posthouse/pkg/smtpclient"
)

// session is one connection that is ready for a message.
type session struct {
	client *smtpclient.Client
	target target
	hop    string // key of the next hop that it was made for
	lmtp   bool
	born   time.Time
	uses   int // messages that it was used for
	timer  *time.Timer
}

// cache keeps idle connections for the next message: to the same next hop, or
// to the same address. What is in it is used by nobody.
type cache struct {
	mu     sync.Mutex
	idle   []*session
	closed bool
}

// maxIdle bounds the connections that are kept.
const maxIdle = 500

// put keeps s for some time; it takes s over.
func (c *cache) put(s *session, keep time.Duration) {
	c.mu.Lock()
	full := c.closed || keep <= 0 || len(c.idle) >= maxIdle
	if !full {
		s.timer = time.AfterFunc(keep, func() { c.expire(s) })
		c.idle = append(c.idle, s)
	}
	c.mu.Unlock()
	if full {
		s.client.Quit()
	}
}

func (c *cache) expire(s *session) {
	if c.take(func(other *session) bool { return other == s }) {
		s.client.Quit()
	}
}

// take removes the first session that fits and reports whether there was one;
// fits may keep it.
func (c *cache) take(fits func(*session) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.idle, fits)
	if i < 0 {
		return false
	}
	c.idle[i].timer.Stop()
	c.idle = slices.Delete(c.idle, i, i+1)
	return true
}

// get takes a session that fits and on which the server has been quiet, or
// returns nil.
func (c *cache) get(fits func(*session) bool) *session {
	for {
		var s *session
		if !c.take(func(other *session) bool { s = other; return fits(other) }) {
			return nil
		}
		if s.client.Quiet() {
			return s
		}
		s.client.Quit()
	}
}

func (c *cache) forHop(h *nexthop) *session {
	return c.get(func(s *session) bool { return s.hop == h.key })
}

func (c *cache) forTarget(t target, lmtp bool) *session {
	return c.get(func(s *session) bool { return s.target == t && s.lmtp == lmtp })
}

// close ends all connections, those that come later too.
func (c *cache) close() {
	c.mu.Lock()
	idle := c.idle
	c.idle, c.closed = nil, true
	c.mu.Unlock()
	for _, s := range idle {
		s.timer.Stop()
		s.client.Quit()
	}
}
