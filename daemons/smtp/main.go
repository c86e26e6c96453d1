// Command smtp is the delivery agent for other hosts: the SMTP and the LMTP
// client.
//
// # Interface
//
// Protocol posthouse/pkg/protocol/delivery on private/smtp; the client is qmgr.
// The transport of a request says smtp or lmtp, its next hop a mail domain, a
// host, or a UNIX socket. Mail servers are found in DNS. A connection that is
// idle is kept for the next message to the same place.
//
// # Security
//
// Runs as _ph-smtp, one of the two daemons that can open a network socket. It
// sees no queue and no mailbox: the message comes as a read-only descriptor.
// What a server says is bounded, made printable, and decides about the recipients
// of this request only. No octet of a message can become a command.
//
// # Reliability
//
// A recipient is delivered when the server has said so after the end of the
// message. A connection that is lost before defers; one that is lost between the
// last octet and the reply defers too, and the message may arrive twice. Only a
// server, or DNS for certain, makes a failure permanent.
//
// # Standards
//
// RFC 5321, sections 4.5.3.2 (time-outs) and 5.1 (mail servers); RFC 2033
// (LMTP); RFC 7505 (null MX); RFC 1870, 2920, 3461, 6152, 6531.
//
// # Files
//
// /etc/resolv.conf; /run/dovecot; /etc/posthouse/posthouse.yaml: smtp, hostname.
package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"posthouse/pkg/agent"
	"posthouse/pkg/daemon"
	"posthouse/pkg/dns"
	"posthouse/pkg/maillog"
)

func main() { daemon.Main("smtp", setup) }

func setup(d *daemon.Daemon) error {
	s := &service{
		config: d.Config, resolver: dns.System("/etc/resolv.conf"), own: ownAddress, dial: dial,
		note: func(id, text string) { d.Log.Info(maillog.Fields{"QUEUE_ID": id}, "%s: %s", id, text) },
	}
	d.HandOff() // servers are slow
	d.OnEnd(s.cache.close)
	return agent.Serve(d, s.deliver)
}

// dial connects. It waits where the backlog of a UNIX socket is full: Go's connect does
// not block, and gives EAGAIN where that of C would wait.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if network != "unix" || !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// ownAddress reports whether a belongs to this machine: what is sent there would
// come from there. Nothing is sent.
func ownAddress(a netip.Addr) bool {
	if a.IsLoopback() || a.IsUnspecified() { // to connect to either leads here
		return true
	}
	const discard = 9
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, discard)))
	if err != nil {
		return false
	}
	defer c.Close()
	local, ok := c.LocalAddr().(*net.UDPAddr)
	return ok && local.AddrPort().Addr().Unmap() == a
}
