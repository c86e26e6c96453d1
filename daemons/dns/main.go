// Command dns answers questions of DNS for daemons that have no network.
//
// # Interface
//
// Protocol posthouse/pkg/protocol/resolve on private/dns; the client is smtpd,
// which wants the names of its clients.
//
// # Security
//
// Runs as _ph-dns, one of the two daemons that can open a network socket. It
// sees resolv.conf and the configuration. What comes back from the network is
// parsed here, not in smtpd: a name is passed on only if it is well formed and
// leads back to the address.
//
// # Reliability
//
// It keeps nothing. Without an answer in time the name is not known; smtpd goes
// on without it.
//
// # Standards
//
// RFC 1035; RFC 6891 (EDNS); RFC 5321, section 4.4 (the verified name).
//
// # Files
//
// /etc/resolv.conf.
package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"posthouse/pkg/daemon"
	"posthouse/pkg/dns"
	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/resolve"
)

func main() { daemon.Main("dns", setup) }

func setup(d *daemon.Daemon) error {
	s := &service{dns.System("/etc/resolv.conf")}
	return d.IPC("ipc", resolve.Protocol, s.handle)
}

// namer finds the verified name of an address.
type namer interface {
	Name(ctx context.Context, ip netip.Addr) (string, error)
}

type service struct{ dns namer }

// timeout is shorter than the time that smtpd waits.
const timeout = 8 * time.Second

func (s *service) handle(ctx context.Context, c *ipc.Conn, msg []byte, file *os.File) error {
	if file != nil {
		_ = file.Close() // not asked for
	}
	ip, err := resolve.DecodeRequest(msg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var r resolve.Reply
	switch name, err := s.dns.Name(ctx, ip); {
	case err == nil:
		r = resolve.Reply{Outcome: resolve.Verified, Name: name}
	case errors.Is(err, dns.ErrNoName):
		r.Outcome = resolve.None
	}
	m := ipc.NewMessage()
	r.Encode(m)
	return c.Send(m)
}
