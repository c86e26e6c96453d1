package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"posthouse/pkg/cli"
	"posthouse/pkg/config/reference"
)

func generateCommand() *cli.Command {
	return &cli.Command{
		Name: "generate", Args: "DIRECTORY", Summary: "write the manual pages and the shell completion, for packages",
		Run: func(_ context.Context, std cli.Streams, args []string) int {
			if len(args) != 1 {
				return std.Errorf(cli.Usage, "posthouse generate: give one directory")
			}
			for name, write := range generated() {
				if err := writeFile(filepath.Join(args[0], name), write); err != nil {
					return std.Errorf(cli.IOErr, "%v", err)
				}
			}
			return cli.OK
		},
	}
}

// generated are the files, by name.
func generated() map[string]func(io.Writer) {
	c := command()
	return map[string]func(io.Writer){
		"man/posthouse.1":                 func(w io.Writer) { c.Man(w, 1) },
		"man/posthouse.yaml.5":            configManual,
		"completions/bash/posthouse":      c.Bash,
		"completions/zsh/_posthouse":      func(w io.Writer) { c.Zsh(w, "/usr/share/bash-completion/completions/posthouse") },
		"completions/fish/posthouse.fish": c.Fish,
	}
}

func configManual(w io.Writer) {
	fmt.Fprint(w, `.TH POSTHOUSE.YAML 5 "" Posthouse
.SH NAME
posthouse.yaml \- configuration of the mail system
.SH DESCRIPTION
/etc/posthouse/posthouse.yaml, and after it the files /etc/posthouse/conf.d/*.yaml in the order of their names, hold the
settings below; later files override, and those whose names begin with a dot do not count. No setting is needed. Sizes are
given as 50MiB or 10KB, time spans as 5d, 4h or 30s.
A dot stands for nesting: queue.retry.min is the key min in retry in queue.
.PP
A change needs no restart. It counts when the files have been as they are for three seconds, since editors and scripts write
in steps, and at once for daemons that start: systemctl reload 'posthouse-*.service' has those that run go. posthouse check
verifies a change; a broken one leaves the old one in force for daemons that run.
.SH SETTINGS
`)
	if err := reference.Write(w); err != nil {
		fmt.Fprintf(w, "%v\n", err)
	}
	for _, s := range tableSections {
		s.Man(w)
	}
}

// tableSections are the end of the manual of the configuration.
var tableSections = []cli.Section{
	{Title: "TABLES", Text: `Files in /etc/posthouse/tables/. They are read again when they have changed, and need no compilation. Of a table with a fault the old content stays in force. A missing table is an empty one; but where it says who is in a domain (users; virtual_aliases, for domains.alias; the recipients of relay domains) that is not known then, and mail waits.

Lines that begin with # and empty lines do not count; a line that begins with white space continues the one before. Keys are compared without regard to case.
users	Virtual users, a line each in the form of passwd(5), which Dovecot reads, too. Kept with posthouse user.
virtual_aliases	"key: address, address...": what an address stands for, of any domain. The key is looked up as user+extension@domain, user@domain, user alone for the domains in domains.local and the origin, and @domain. In the place of an address @domain stands for the same user there: @old.example: @new.example. What it stands for is looked up again; an address that stands for itself is final. An entry @domain takes the mail of virtual users, too, but for those that have an entry of their own: user@domain: user@domain. The entry postmaster also is the postmaster of every alias and virtual domain that has no entry and no user of that name.
transport	"key TRANSPORT:NEXTHOP": the route of some recipients, instead of the one that their domain has. The key is looked up as user+extension@domain, user@domain, domain, .parent of domain, and *. TRANSPORT: keeps the domain as the next hop, :NEXTHOP keeps the transport.
FILE of domains.relay.NAME.recipients	"key anything": the recipients of a domain, as user@domain, or @domain for all.`},
	{Title: "ALIASES", Text: `/etc/aliases, and other files in local.aliases, say who gets the mail of local names, in the form of Sendmail and Postfix: "name: target, target...". They are read again when they have changed and been quiet for three seconds; newaliases is not needed. Of a file with a fault the old content stays in force, and where there is none local mail waits: posthouse check shows faults.

Lines that begin with # and empty lines do not count; a line that begins with white space continues the one before. Names are compared without regard to case; user+extension is looked up first, then user. A name that is an alias of itself is the account.
user, user@domain	An address. Without a domain it has the origin; one of this machine is looked up again, up to 100 deep.
\user	The mailbox of an account, whatever it is an alias for.
|command, "|command arguments"	A program gets the message as its input, and runs as nobody; status 0 is success, those of sysexits.h say what went wrong. Its environment has LOCAL, DOMAIN, EXTENSION, RECIPIENT, ORIGINAL_RECIPIENT, SENDER and ENVID, in which characters that a shell might mind are _.
/file, /directory/	A mailbox file or, with a slash at its end, a Maildir, of the user nobody. /dev/null throws the message away.
:include:/file	The addresses in a file, which everybody may read and not everybody may write. Commands and files in it are not allowed. The daemon sees files in /etc; for others give posthouse-local.service a drop-in with BindReadOnlyPaths=.

Where there is an alias owner-NAME, mail for NAME goes out in the name of that, which gets the bounces of it. postmaster and mailer-daemon are root where no alias says otherwise.

An account says in the file .forward, or .forward+extension, in its home directory where its mail goes: targets as above, but for :include:, on one or more lines; commands and files are used with its own rights. Who names himself keeps his mailbox. A file with a fault makes mail wait.`},
	{Title: "ROUTES", Text: `A route is TRANSPORT:NEXTHOP.
smtp:domain	The mail servers of the domain, as DNS has them. smtp:[host], with or without :port, is that host itself; an address may stand for the host. relay is the same with limits of its own.
lmtp:host:port, lmtp:unix:/path	An LMTP server.
local:	UNIX accounts and aliases.
virtual:	The mailboxes of virtual users on this machine.
pipe-NAME:	The command NAME in pipes.
error:text, retry:text	Mail is refused, or returned where it is here already; or it waits. The text may begin with a status code: error:5.1.6 has moved.
discard:	Mail is thrown away.`},
	{Title: "EXAMPLE", Text: `A mail host for example.org with a smarthost:

  hostname: mail.example.org
  origin: example.org
  domains: {virtual: {example.org: {}}}
  routes: {default: "smtp:[relay.example.net]:587"}`},
	{Title: "SEE ALSO", Text: "posthouse(1), sendmail(1)"},
}

func writeFile(path string, write func(io.Writer)) error {
	var b bytes.Buffer
	write(&b)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}
