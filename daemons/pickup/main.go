// Command pickup takes the mail that local users submit.
//
// # Interface
//
// Protocol posthouse/pkg/protocol/cleanup on public/submit; the client is
// sendmail, run by any local user. pickup passes each message on to cleanup as
// it comes.
//
// What sendmail has dropped into /var/spool/posthouse/maildrop/drop, while nobody
// was there to take it, is submitted too: when pickup starts, when a byte comes
// on the FIFO public/pickup, and every minute.
//
// # Security
//
// Runs as _ph-pickup; the one daemon that every local user can reach. It sees no
// file but the configuration and what was dropped, and has no network. A file is
// a submission of its owner if it is one that sendmail could have made; nothing
// in it names a file, and it can say no more than a client can. Who submits is what the kernel
// says (SO_PEERCRED), never what the client says; how the message came is not for
// the client to say either. One user can have no more than half of the connections, and
// messages under way for a quarter of them.
//
// # Reliability
//
// A message is accepted when cleanup says so, and not before. Where cleanup
// cannot be reached the client is told to try again. A client that goes away
// cancels its message. A file that was dropped is removed when its message is in
// the queue: a crash in between submits it again. What is no message, or is
// refused for good, is set aside; of the latter the sender is told.
//
// # Standards
//
// RFC 6409, section 8 (what a submission server may add; cleanup does).
//
// # Files
//
// /etc/posthouse/posthouse.yaml: pickup, daemons.pickup, limits.message_size, origin,
// recipient_delimiter;
// /var/spool/posthouse/maildrop/drop.
package main

import (
	"os"

	"posthouse/pkg/addr"
	"posthouse/pkg/daemon"
	"posthouse/pkg/maildrop"
	"posthouse/pkg/protocol/cleanup"
)

func main() { daemon.Main("pickup", setup) }

func setup(d *daemon.Daemon) error {
	client := cleanup.NewClient(cleanup.Path)
	go client.Wake(d.Context())
	s := &service{
		queue: cleanupQueue{client}, log: d.Log,
		perUser: max(1, d.Config().Daemon("pickup").MaxClients/4),
		maySend: func(uid uint32, sender addr.Mailbox) bool { return d.Config().MaySend(uid, sender) },
	}
	dropped := newDrops(s, maildrop.Dir)
	dropped.uid, dropped.hold, dropped.ending = uint32(os.Geteuid()), d.Hold, d.Ending
	dropped.size = func() int64 { return int64(d.Config().Limits.MessageSize) }
	d.Loop(dropped.loop())
	if err := d.FIFO("wake", dropped.look); err != nil {
		return err
	}
	d.HandOff() // a message takes as long as the program that writes it
	d.PerUser(max(1, d.Config().Daemon("pickup").MaxClients/2))
	return d.IPC("submit", cleanup.SubmitProtocol, s.handle)
}
