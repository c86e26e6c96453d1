// Command virtual is the delivery agent for virtual users: POP and IMAP users
// who have no UNIX account.
//
// # Interface
//
// Protocol posthouse/pkg/protocol/delivery on private/virtual; the client is
// qmgr. A message to user+extension@domain goes to domain/user/Maildir beneath
// the mail store, which any IMAP server can serve.
//
// # Security
//
// Runs as _ph-virtual, the one owner of all virtual mailboxes. Sees the mail
// store and the configuration and nothing else; has no network, starts no
// program, follows no link. The message comes as a descriptor. Of its content
// no more is parsed than the names of header fields, to detect loops.
//
// # Reliability
//
// Success is reported when the file in new/ and its name are on disk. A file
// whose delivery failed is removed. An error defers, but for a quota that is
// used up. A crash may leave a file in tmp/, as with every Maildir writer, and
// may make a second delivery; it loses nothing.
//
// # Standards
//
// Maildir (as qmail defined it); RFC 5321, section 4.4 (Return-Path); RFC 3463
// (status codes).
//
// # Files
//
// /var/vmail/DOMAIN/LOCALPART/Maildir/; /etc/posthouse/posthouse.yaml: virtual,
// hostname, queue.sync, recipient_delimiter.
package main

import (
	"posthouse/pkg/agent"
	"posthouse/pkg/daemon"
	"posthouse/pkg/durable"
	"posthouse/pkg/mailbox"
)

func main() { daemon.Main("virtual", setup) }

func setup(d *daemon.Daemon) error {
	d.Flushes()
	cfg := d.Config()
	store, err := mailbox.Open(cfg.Virtual.Base, cfg.Hostname, durable.NewCommitter(cfg.Queue.Sync))
	if err != nil {
		return err
	}
	s := &service{config: d.Config, store: store}
	return agent.Serve(d, s.deliver)
}
