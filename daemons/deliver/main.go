// Command deliver has things done by the user whom a message is for: it reads
// their .forward, writes to their mailbox, runs their commands.
//
// # Interface
//
// Protocol posthouse/pkg/protocol/deliver on private/deliver; the client is local.
// What is done with files a thread does that has the file-system user, group and
// groups of the account, and none of our capabilities, and is never used again.
// Of a request for a command no more is read here than who is to act. The rest, and the
// descriptor of the message, goes to a process that is that user and nobody else,
// as does its answer to the client.
//
// # Security
//
// Runs as _ph-deliver with CAP_SETUID and CAP_SETGID, the only program of
// Posthouse that has capabilities. It looks accounts up, passes a .forward file on as
// it is, and of a message looks at the lines only. A user may do nothing to it:
// it keeps its own uid, by which the kernel judges signals and tracing. No path leads to
// its descriptors: links are followed by what is written in them. internal/become
// is how a thread becomes a user, internal/files what it does then.
//
// Its children, of the program deliver-as, have the user's uid, gid and groups, no
// capability and no way back, three descriptors of /dev/null and a socket, and no
// environment. They become the user when they are programs of their own: while a
// process is started it shares this one's memory, and whoever stops it stops both.
//
// Who writes to the spool of mailboxes has its group, and with it could get at
// the mailboxes of others: such a thread has no other group, and does nothing else.
//
// Nobody acts as root, or as a user of the mail system. The mailbox of root
// belongs to _ph-deliver.
//
// # Reliability
//
// What has been answered for is on disk. A thread that hangs has deferred, as one that
// panics has, and a child that dies, hangs or says nothing: they take places of
// their user, and keep nobody else. Commands are bounded by a time limit that the
// child keeps: this process has no right to signal it. What a command leaves behind
// ends with this process.
//
// # Standards
//
// The mbox format (RFC 4155, appendix A, with > before From), Maildir (as qmail
// defined it), RFC 3463 (status codes).
//
// # Files
//
// Home directories; /var/mail; /etc/passwd and /etc/group, or systemd-userdbd;
// /etc/posthouse/posthouse.yaml: queue.sync.
package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"posthouse/pkg/daemon"
	"posthouse/pkg/durable"
	"posthouse/pkg/protocol/deliver"
)

func main() { daemon.Main("deliver", setup) }

func setup(d *daemon.Daemon) error {
	program, err := childPath()
	if err != nil {
		return err
	}
	// A limit on the size of files is an error of who writes. Not ignored: programs that
	// are started would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGXFSZ)
	// The time zone is read once, and not with the rights of whoever needs it first.
	_, _ = time.Now().Zone()
	s := newService(d.Log, newPool(newStarter(program)), durable.NewCommitter(d.Config().Queue.Sync))
	d.OnEnd(s.pool.close)
	d.Flushes()
	d.HandOff() // users' commands are slow
	return d.IPC("ipc", deliver.Protocol, s.handle)
}
