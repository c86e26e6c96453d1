// Command bounce composes delivery status notifications and puts them into the
// queue.
//
// # Interface
//
// Protocol posthouse/pkg/protocol/bounce on private/bounce; the client is qmgr.
// Notifications go to cleanup like any other message, with the null
// reverse-path. What can be neither delivered nor returned is reported to the
// postmaster, from double-bounce@ORIGIN, if the configuration names one.
//
// # Security
//
// Runs as _ph-bounce. Sees no file but the configuration, has no network, and
// starts no program. It reads the message from a descriptor that came with the
// request; it parses no more of it than where its header ends.
//
// # Reliability
//
// The answer comes after cleanup's commit. A notification that could not be
// queued leaves its recipients unreported in the queue file, and qmgr asks
// again. After a crash the sender may get a notification twice, never not at all.
//
// # Standards
//
// RFC 3461 (NOTIFY, RET, ENVID), RFC 3462 and 3464 (report format), RFC 3834
// (Auto-Submitted), RFC 6533 (UTF-8 addresses).
//
// # Files
//
// /etc/posthouse/posthouse.yaml: hostname, origin, bounce.
package main

import (
	"time"

	"posthouse/pkg/daemon"
	"posthouse/pkg/protocol/bounce"
	"posthouse/pkg/protocol/cleanup"
)

func main() { daemon.Main("bounce", setup) }

func setup(d *daemon.Daemon) error {
	client := cleanup.NewClient(cleanup.Path)
	go client.Wake(d.Context())
	s := &service{config: d.Config, queue: cleanupQueue{client}, log: d.Log, now: time.Now}
	return d.IPC("ipc", bounce.Protocol, s.handle)
}
