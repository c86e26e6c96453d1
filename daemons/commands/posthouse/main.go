// Command posthouse is for administrators: it checks the configuration, shows
// the state of the mail system, steers the queue, and keeps virtual users.
//
// # Interface
//
// See posthouse --help, or posthouse(1).
//
// # Security
//
// Has no privilege of its own. Listing the queue is open to every user; steering
// it takes root or the group _ph-admin; users and configuration are files that
// root may write.
//
// # Reliability
//
// The table of users is replaced whole or not at all.
//
// # Standards
//
// Exit statuses are those of sysexits(3).
//
// # Files
//
// /etc/posthouse/posthouse.yaml, conf.d/*.yaml, tables/*; aliases;
// /run/posthouse/public/showq, private/queue; the preset that profile leaves,
// /etc/systemd/system-preset/40-posthouse-profile.preset.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"posthouse/pkg/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(command().Main(ctx, cli.Std(), os.Args[1:]))
}

// command describes everything, and is where help, manual and completion come from.
func command() *cli.Command {
	dir := "/etc/posthouse"
	return &cli.Command{
		Name: "posthouse", Summary: "look after the mail system",
		Description: "Checks the configuration, shows the state of the mail system, steers the queue, and keeps virtual users. " +
			"The mail system itself is started and stopped with systemctl(1): each subsystem is a socket, and posthouse status lists them.",
		Sections: sections,
		Subs: []*cli.Command{
			checkCommand(&dir), configCommand(&dir), statusCommand(), profileCommand(&dir), queueCommand(), userCommand(&dir), generateCommand(),
		},
	}
}

// sections are the end of the manual.
var sections = []cli.Section{
	{Title: "EXIT STATUS", Text: `Those of sysexits.h:
0	all is done
64	the command line is wrong
65	a message is not in the queue, or input is malformed
67	there is no such user, or there is one already
69	the mail system, or a part of it, is switched off
74	output cannot be written
75	it may work later
77	not allowed: steering the queue takes root or the group _ph-admin
78	the configuration has faults`},
	{Title: "EXAMPLES", Text: `posthouse queue list --reason "Connection refused"	what waits for hosts that are down
posthouse queue retry --destination example.org	try all mail to example.org now
posthouse queue delete --sender spammer@example.net --queue deferred	get rid of what somebody has sent
posthouse queue requeue --all	deliver what waits by aliases that have changed
posthouse config --changed	what is not a default, and what has set it
posthouse profile relay --dry-run	what would be done to make this machine a relay
systemctl enable --now posthouse-smtpd.socket	take mail from the network`},
	{Title: "FILES", Text: `/etc/posthouse/posthouse.yaml, /etc/posthouse/conf.d/*.yaml	the configuration, see posthouse.yaml(5)
/etc/posthouse/tables/	tables of users, aliases and routes, see posthouse.yaml(5)
/var/spool/posthouse/	the queue
/var/vmail/	mailboxes of virtual users
/etc/systemd/system-preset/40-posthouse-profile.preset	the profile that is in force`},
	{Title: "SEE ALSO", Text: "posthouse.yaml(5), sendmail(1), mailq(1), systemctl(1), journalctl(1)"},
}
