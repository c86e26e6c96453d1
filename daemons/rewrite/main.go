// Command rewrite knows addresses: their full form, whether there is such a
// recipient, what an alias stands for, and where mail goes.
//
// # Interface
//
// Protocol posthouse/pkg/protocol/rewrite on private/rewrite. Clients: smtpd
// and submission (does this recipient exist?), cleanup (what does it stand
// for?), qmgr (where does it go?), and root's sendmail -bv. Who has an account or an
// alias on this system it asks of local (posthouse/pkg/protocol/recipient).
//
// # Security
//
// Runs as _ph-rewrite, with the group _ph-users for the table of users. Reads
// the configuration and the tables; writes nothing, has no network, starts no
// program. Addresses from anywhere select entries of tables and nothing else:
// no entry is ever a program or a file.
//
// # Reliability
//
// Where a table cannot be read the answer is "temporary lookup failure", never
// "unknown user"; where local does not answer it is not known either. A changed table that is broken leaves the old one in force.
//
// # Standards
//
// RFC 5321, section 2.3 (addresses), section 4.5.1 (postmaster).
//
// # Files
//
// /etc/posthouse/posthouse.yaml: hostname, domains, routes, local, origin,
// recipient_delimiter, limits.expansion;
// /etc/posthouse/tables/users, virtual_aliases, transport, and the recipients of
// relay domains.
package main

import (
	"posthouse/pkg/config"
	"posthouse/pkg/daemon"
	"posthouse/pkg/protocol/rewrite"
)

func main() { daemon.Main("rewrite", setup) }

func setup(d *daemon.Daemon) error {
	s := newService(d.Config, config.TablesDir(daemon.ConfigDir), func(err error) { d.Log.Warn(nil, "%v", err) })
	return d.IPC("ipc", rewrite.Protocol, s.handle)
}
