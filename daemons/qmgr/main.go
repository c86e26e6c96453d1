// Command qmgr is the queue manager: it decides what is delivered next and by
// whom, records the outcome, and owns the queue.
//
// # Interface
//
// Protocol arrival on private/qmgr, where cleanup tells of new messages; one byte
// on the FIFO public/qmgr, which means "look"; protocol queuectl on
// private/queue, for the administrator. qmgr asks rewrite where mail goes, hands
// deliveries to the agents (protocol delivery) together with a read-only
// descriptor of the queue file, and has bounce make notifications.
//
// # Security
//
// Runs as _ph-qmgr, in the group of the queue. It has no network, and sees no
// file but the queue and the configuration. It reads envelopes, not content.
// What an agent reports can finish the recipients of its own request, no others.
//
// # Reliability
//
// A message is in exactly one directory, and moves by one rename; docs/queue.md
// has the states. An outcome is in the queue file before the file is filed or
// removed; a failure is on disk before its notification is asked for. Whatever
// is not known is deferred. After a crash everything in active/ is taken up
// again; at worst what was in flight is delivered twice. A damaged file goes to
// corrupt/ and stops nobody else.
//
// # Standards
//
// RFC 5321, section 4.5.4 (retries); RFC 3461, sections 5.2 and 6 (when to
// notify).
//
// # Files
//
// /var/spool/posthouse/; /etc/posthouse/posthouse.yaml: queue, transports,
// recipient_delimiter, session_timeout of smtpd and submission.
package main

import (
	"context"

	"posthouse/pkg/daemon"
	"posthouse/pkg/protocol/arrival"
	"posthouse/pkg/protocol/bounce"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/queue"
)

func main() { daemon.Main("qmgr", setup) }

func setup(d *daemon.Daemon) error {
	// While deferred mail is read, there is always something to do. On one processor Go
	// then looks every 10 ms only for what agents have to say.
	d.Processors(2)
	sp, err := openSpool(queue.Dir)
	if err != nil {
		return err
	}
	asker := rewrite.NewClient(rewrite.Path)
	m := newManager(d.Config, d.Log, sp)
	m.rewrite, m.bounce, m.hold = asker, bounce.NewClient(bounce.Path), d.Hold
	m.ending = func() bool { return d.Stopping().Err() != nil }
	m.agent = func(name string) deliverer { return delivery.NewClient(delivery.Path(name)) }
	go asker.Wake(context.WithoutCancel(d.Context()))
	m.start()
	d.OnEnd(m.stop)
	if err := d.IPC("ipc", arrival.Protocol, m.handleArrival); err != nil {
		return err
	}
	if err := d.IPC("queue", queuectl.Protocol, m.handleControl); err != nil {
		return err
	}
	return d.FIFO("wake", m.look)
}
