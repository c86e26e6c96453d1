// Command deliver has things done by the user whom a message is for: it reads
// their .forward, writes to their mailbox, runs their commands.
//
// # Interface
//
// Protocol posthouse/pkg/protocol/deliver on private/deliver; the client is
// local. Of a request no more is read here than who is to act and of what kind
// it is. The rest, and the descriptor of the message, goes to a process that is
// that user and nobody else, as does its answer to the client.
//
// # Security
//
// Runs as _ph-deliver with CAP_SETUID and CAP_SETGID, the only program of
// Posthouse that has capabilities. It reads nothing that a user has written, and
// looks accounts up. Its children, of the program deliver-as, have the user's uid,
// gid and groups, no capability and no way back, three descriptors of /dev/null
// and a socket, and no environment.
//
// Who writes to the spool of mailboxes has its group, and with it could get at
// the mailboxes of others: such a child has no other group, and does nothing else.
//
// Nobody acts as root, or as a user of the mail system. The mailbox of root
// belongs to _ph-deliver.
//
// # Reliability
//
// A child that dies, hangs or says nothing has deferred. Commands are bounded by
// a time limit that the child keeps: this process has no right to signal it. What
// a command leaves behind ends with this process.
//
// # Standards
//
// RFC 3463 (status codes).
//
// # Files
//
// /etc/passwd and /etc/group, or systemd-userdbd.
package main

import (
	"posthouse/pkg/daemon"
	"posthouse/pkg/protocol/deliver"
)

func main() { daemon.Main("deliver", setup) }

func setup(d *daemon.Daemon) error {
	program, err := childPath()
	if err != nil {
		return err
	}
	start, err := newStarter(program)
	if err != nil {
		return err
	}
	s := newService(d.Log, newPool(start))
	d.OnEnd(s.pool.close)
	d.HandOff() // users' commands are slow
	return d.IPC("ipc", deliver.Protocol, s.handle)
}
