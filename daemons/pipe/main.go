// Command pipe is the delivery agent for commands of the administrator: mailing
// list managers, maildrop, gateways. Each command is an instance of its own,
// posthouse-pipe@NAME, with the user and the sandbox that its unit gives it.
//
// # Interface
//
// Protocol posthouse/pkg/protocol/delivery on private/pipe-NAME; the client is
// qmgr, and NAME is the argument of the program. The command is that of the entry
// NAME in pipes of the configuration, with the message as its standard input.
// Arguments, macros, flags and exit statuses are those of Postfix's pipe(8).
//
// # Security
//
// Runs as the user of its unit, _ph-pipe if nothing else is said, and the command
// as the same: there is no capability, and nobody to become. Nothing is run as
// root. What an instance, or a command, that was taken over can do is to lie
// about mail for this command; each has a user of its own, so that no command can
// do that to another one.
//
// The command is executed directly, without a shell, with arguments that are
// expanded once. No argument that begins with a macro comes to begin with a
// hyphen. The environment is HOME, USER, LOGNAME, SHELL, LANG and TZ of the unit,
// and PATH.
//
// # Reliability
//
// Success is reported when the command has ended with status 0. The message is a
// file when the command starts, so that whatever happens to this process, the
// command never takes a part of a message for the whole. A crash may make it get
// the message again. What cannot be run, takes too long, or is killed, defers.
//
// # Standards
//
// sysexits.h; RFC 3463 (status codes); RFC 5321, section 4.4 (Return-Path).
//
// # Files
//
// /etc/posthouse/posthouse.yaml: pipes, recipient_delimiter; /tmp and /var/tmp of its own.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"posthouse/pkg/agent"
	"posthouse/pkg/daemon"
)

func main() { daemon.Main("pipe", setup) }

func setup(d *daemon.Daemon) error {
	if len(os.Args) != 2 {
		return fmt.Errorf("%d arguments instead of the name of an entry in pipes", len(os.Args)-1)
	}
	// A message over LimitFSIZE= is an error when it is written, and no end.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGXFSZ)
	s := &service{config: d.Config, name: os.Args[1], uid: os.Getuid(), gid: os.Getgid()}
	d.HandOff() // commands are slow
	return agent.Serve(d, s.deliver)
}
