// Command local is the delivery agent for UNIX accounts: it knows the aliases of
// the system and what accounts there are, and says where the mail of a local
// name goes. What is to be done with the rights of an account it asks of deliver.
//
// # Interface
//
// Protocol posthouse/pkg/protocol/delivery on private/local; the client is qmgr.
// Protocol posthouse/pkg/protocol/recipient on private/recipient; the client is
// rewrite, which wants to know whether there is an alias or an account.
//
// A name is looked up with its extension, then without: in the aliases, then in
// the .forward file of the account, else it is the account's mailbox. Aliases of
// aliases are followed here; addresses that are not of this system, and all that
// are in .forward and :include: files, get a new message through cleanup, with a
// state of its own in the queue. A list with an alias owner-LIST sends in the
// name of that.
//
// # Security
//
// Runs as _ph-local. Sees /etc, with the rights of a user who has none, and no
// home directory; has no network, starts no program. What aliases have done runs
// as nobody, what a .forward file has done as its owner: never as root, and no
// :include: file names programs or files. Of the message no more is parsed than
// the names of header fields, to detect loops.
//
// # Reliability
//
// What cannot be looked up defers, and so does a file that is not understood.
// Of several targets that cannot be reached now all are tried again; new
// messages are sent last, when all else has worked, and the recipient is done
// when cleanup has committed them. A crash may deliver twice, and loses nothing.
//
// # Standards
//
// RFC 5321, section 3.9 (aliases and lists), section 4.4 (Return-Path); RFC 3461,
// section 5.2.7 (notifications); RFC 3463 (status codes). aliases(5) of Postfix.
//
// # Files
//
// /etc/aliases; /etc/passwd and /etc/group, or systemd-userdbd;
// /etc/posthouse/posthouse.yaml: local, domains.local, hostname, origin,
// recipient_delimiter, limits.expansion.
package main

import (
	"posthouse/pkg/account"
	"posthouse/pkg/agent"
	"posthouse/pkg/daemon"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/protocol/deliver"
	"posthouse/pkg/protocol/recipient"
)

func main() { daemon.Main("local", setup) }

func setup(d *daemon.Daemon) error {
	names := newDirectory(d.Config, account.NewCache().Lookup, func(err error) { d.Log.Warn(nil, "%v", err) })
	s := &service{names, deliver.NewClient(deliver.Path), cleanupQueue{cleanup.NewClient(cleanup.Path)}, d.Log}
	if err := d.IPC("recipient", recipient.Protocol, names.handle); err != nil {
		return err
	}
	d.HandOff() // users' commands are slow
	return agent.Serve(d, s.run)
}
