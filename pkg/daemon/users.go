package daemon

import (
	"time"

	"posthouse/pkg/ipc"
)

// PerUser bounds the connections of IPC that one user may have at once: whoever can
// have as many as there is room for keeps others out, and may have a long request half
// sent on each. For one more another of his has to go that waits for a request too
// long; where there is none it is closed before it is greeted.
func (d *Daemon) PerUser(most int) { d.perUser = most }

// enterUser notes a connection, and reports false where it is one too many.
func (d *Daemon) enterUser(c *ipc.Conn) (leave func(), ok bool) {
	if d.perUser == 0 {
		return func() {}, true
	}
	uid, err := c.PeerUID()
	d.mu.Lock()
	defer d.mu.Unlock()
	has := d.users[uid]
	if err != nil || len(has) >= d.perUser && !d.evictOf(has) {
		return nil, false
	}
	if has == nil {
		if d.users == nil {
			d.users = make(map[uint32]map[caller]struct{})
		}
		has = make(map[caller]struct{})
		d.users[uid] = has
	}
	has[c] = struct{}{}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if delete(has, c); len(has) == 0 {
			delete(d.users, uid)
		}
	}, true
}

// evictOf closes the connection among some that has waited for longest, if any has
// waited for as long as it may. d.mu is held.
func (d *Daemon) evictOf(some map[caller]struct{}) bool {
	var oldest caller
	for c := range some {
		if p, ok := d.idle[c]; ok && (oldest == nil || p.end().Before(d.idle[oldest].end())) {
			oldest = c
		}
	}
	if oldest == nil || time.Now().Before(d.idle[oldest].end()) {
		return false
	}
	d.dismiss(oldest)
	return true
}

// dismiss has the handler of a connection that waits end. d.mu is held.
func (d *Daemon) dismiss(c caller) {
	delete(d.idle, c)
	d.evicted[c] = struct{}{}
	_ = c.SetReadDeadline(time.Unix(1, 0))
}
