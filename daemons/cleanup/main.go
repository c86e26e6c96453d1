// Command cleanup takes messages into the queue. Its answer to the end of a
// message is the promise of the mail system that the message will not be lost.
//
// # Interface
//
// Protocol posthouse/pkg/protocol/cleanup on private/cleanup; the clients are
// smtpd, pickup, bounce and local. cleanup asks rewrite what the recipients stand for,
// and tells qmgr the queue IDs of new messages, on private/qmgr or else with a
// byte on its FIFO.
//
// # Security
//
// Runs as _ph-cleanup. Of the queue it sees incoming/ only; it has no network
// and starts no program but its own successor. Of the content it parses the names of header fields, in
// local submissions also their addresses, and no MIME. File names are queue IDs that it makes itself.
//
// # Reliability
//
// The commit point. Before it anything may fail, and then the file is removed
// and the client told no; after it nothing is done that could fail the message. A file
// whose flush failed is given up, never flushed again. A crash leaves at most a
// file without a header, which qmgr clears away. A lost notice to qmgr delays a
// message until qmgr scans.
//
// # Standards
//
// RFC 5321, sections 4.4 (Received), 6.1 (responsibility) and 6.3 (loops); RFC
// 5322, sections 2.2 and 3.6 (fields added to local submissions); RFC 3461,
// section 4.2 (ORCPT).
//
// # Files
//
// /var/spool/posthouse/incoming/; /etc/posthouse/posthouse.yaml: hostname,
// origin, limits, queue.sync, session_timeout of smtpd and submission.
package main

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"posthouse/pkg/daemon"
	"posthouse/pkg/durable"
	"posthouse/pkg/protocol/arrival"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/queue"
)

func main() { daemon.Main("cleanup", setup) }

func setup(d *daemon.Daemon) error {
	incoming, err := queue.OpenDirectory(queue.Dir + "/" + queue.Incoming)
	if err != nil {
		return err
	}
	spares, err := queue.OpenSpares(queue.Dir + "/" + queue.Spare)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	asker := rewrite.NewClient(rewrite.Path)
	notices := newNotifier(arrival.Path, arrival.FIFOPath, d.Log)
	notices.hold = d.Hold
	// What the first message will need starts beside it.
	go asker.Wake(context.WithoutCancel(d.Context()))
	notices.wake()
	d.OnEnd(notices.close)
	s := &service{
		config: d.Config, rewrite: asker, log: d.Log, now: time.Now, arrived: notices.add,
		spool: &diskSpool{dir: incoming, spares: spares, committer: durable.NewCommitter(d.Config().Queue.Sync)},
	}
	d.Flushes()
	d.HandOff() // a message takes as long as its client does
	return d.IPC("ipc", cleanup.Protocol, s.handle)
}
