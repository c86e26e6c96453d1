// Command pickup takes the mail that local users submit.
//
// # Interface
//
// Protocol posthouse/pkg/protocol/cleanup on public/submit; the client is
// sendmail, run by any local user. pickup passes each message on to cleanup as
// it comes.
//
// # Security
//
// Runs as _ph-pickup; the one daemon that every local user can reach. It sees no
// file but the configuration, and has no network. Who submits is what the kernel
// says (SO_PEERCRED), never what the client says; how the message came is not for
// the client to say either. One user can have no more than a quarter of the room.
//
// # Reliability
//
// A message is accepted when cleanup says so, and not before. Where cleanup
// cannot be reached the client is told to try again. A client that goes away
// cancels its message.
//
// # Standards
//
// RFC 6409, section 8 (what a submission server may add; cleanup does).
//
// # Files
//
// /etc/posthouse/posthouse.yaml: daemons.pickup.
package main

import (
	"posthouse/pkg/daemon"
	"posthouse/pkg/protocol/cleanup"
)

func main() { daemon.Main("pickup", setup) }

func setup(d *daemon.Daemon) error {
	client := cleanup.NewClient(cleanup.Path)
	go client.Wake(d.Context())
	s := &service{
		queue: cleanupQueue{client}, log: d.Log,
		perUser: max(1, d.Config().Daemon("pickup").MaxClients/4),
	}
	d.HandOff() // a message takes as long as the program that writes it
	return d.IPC("submit", cleanup.Protocol, s.handle)
}
