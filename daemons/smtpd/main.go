// Command smtpd is the SMTP server.
//
// # Interface
//
// SMTP on the sockets that systemd passes: "smtp" is port 25, "submission" is
// port 587, where only known clients may send and missing header fields are
// added. Recipients are checked with rewrite while the client waits; the message
// is streamed to cleanup, and the reply to it is cleanup's verdict. The names of
// clients come from dns.
//
// # Security
//
// Runs as _ph-smtpd, or as _ph-submission. It faces the network, and has none:
// it serves the sockets that it inherits and cannot open one. It sees no file
// but the configuration, and starts no program but its own successor. Commands,
// addresses and text come from anywhere, and pass one strict parser. A client has
// so many connections and no more, and where places run out silent ones have to go.
//
// # Reliability
//
// 250 is said after cleanup's commit, and never otherwise. Whatever goes wrong
// before is a 4xx reply, and the client tries again. A process that has served
// enough hands the sockets to its successor and ends with its last session.
//
// # Standards
//
// RFC 5321, 1870 (SIZE), 2034 (ENHANCEDSTATUSCODES), 2920 (PIPELINING), 3030
// (CHUNKING), 3461 (DSN), 3848 (protocol words), 6152 (8BITMIME), 6531
// (SMTPUTF8).
//
// # Files
//
// /etc/posthouse/posthouse.yaml: hostname, trusted, limits; smtpd and
// daemons.smtpd, or submission and daemons.submission.
package main

import (
	"context"
	"net"

	"posthouse/pkg/daemon"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/protocol/resolve"
	"posthouse/pkg/protocol/rewrite"
)

func main() { daemon.Main("smtpd", setup) }

func setup(d *daemon.Daemon) error {
	clean, rewriter := cleanup.NewClient(cleanup.Path), rewrite.NewClient(rewrite.Path)
	// A client is waiting by now: what its message will need starts side by side.
	go clean.Wake(d.Context())
	go rewriter.Wake(d.Context())
	s := &service{
		config: d.Config, stopping: d.Stopping(), log: d.Log,
		resolver: resolve.NewClient(resolve.Path), rewriter: rewriter, queue: cleanupQueue{clean},
	}
	d.HandOff()
	d.LimitsBySocket("submission")
	for _, name := range []string{"smtp", "submission"} {
		if err := d.Stream(name, func(ctx context.Context, c net.Conn) { s.session(ctx, c, name == "submission") }); err != nil {
			return err
		}
	}
	return nil
}
