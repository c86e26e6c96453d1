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
// /etc/posthouse/posthouse.yaml, conf.d/*.yaml, tables/*.
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
		Description: "Checks the configuration, shows the state of the mail system, steers the queue, and keeps virtual users.",
		Subs: []*cli.Command{
			checkCommand(&dir), configCommand(&dir), statusCommand(), queueCommand(), userCommand(&dir), generateCommand(),
		},
	}
}
