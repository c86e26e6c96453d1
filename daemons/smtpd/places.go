package main

import (
	"net/netip"
	"sync"
	"time"
)

// tellTime is how often the log tells that there are too many clients.
const tellTime = time.Minute

// places counts the sessions of this process, and those of each client. A client is
// an IPv4 address, or a network of 64 bits, since that is what a single machine has
// of IPv6.
type places struct {
	mu   sync.Mutex
	all  int
	by   map[netip.Prefix]int
	told time.Time
}

// clientOf is what ip counts as.
func clientOf(ip netip.Addr) netip.Prefix {
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits) // the zero Addr has the zero Prefix
	return p
}

// enter counts a session, and returns how many its client has now.
func (p *places) enter(ip netip.Addr) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.by == nil {
		p.by = make(map[netip.Prefix]int)
	}
	c := clientOf(ip)
	p.all++
	p.by[c]++
	return p.by[c]
}

func (p *places) leave(ip netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := clientOf(ip)
	p.all--
	if p.by[c]--; p.by[c] == 0 {
		delete(p.by, c)
	}
}

// crowded reports whether most, which is all that may be served at once, is nearly
// reached; and whether that is worth a line in the log.
func (p *places) crowded(most int) (now, news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now = p.all > most*9/10
	if news = now && time.Since(p.told) > tellTime; news {
		p.told = time.Now()
	}
	return now, news
}
