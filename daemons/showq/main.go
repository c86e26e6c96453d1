// Command showq lists the queue.
//
// # Interface
//
// Protocol posthouse/pkg/protocol/showq on public/showq; the clients are mailq
// and "posthouse queue list", run by any local user.
//
// # Security
//
// Runs as _ph-showq, in the group of the queue, which is mounted read-only. It
// has no network. It reads envelopes and outcomes, never content, and the
// request selects nothing.
//
// # Reliability
//
// It changes nothing, locks nothing, and holds two messages at a time. What moves
// while it looks may be listed twice or not at all. A file that cannot be read is
// left out and logged; a damaged one is qmgr's affair.
//
// # Files
//
// /var/spool/posthouse/.
package main

import (
	"context"
	"os"

	"posthouse/pkg/daemon"
	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/showq"
	"posthouse/pkg/queue"
)

func main() { daemon.Main("showq", setup) }

func setup(d *daemon.Daemon) error {
	d.Processors(2)
	l := &lister{base: queue.Dir, log: d.Log}
	return d.IPC("ipc", showq.Protocol, func(_ context.Context, c *ipc.Conn, msg []byte, file *os.File) error {
		if file != nil {
			_ = file.Close() // not asked for
		}
		if err := showq.DecodeRequest(msg); err != nil {
			return err
		}
		return l.list(c)
	})
}
