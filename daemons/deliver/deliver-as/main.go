// Command deliver-as is a process of deliver's that is a user, and runs commands with
// that user's rights alone. A program of its own, since one of them is started for each
// user who has commands: what deliver has at its start for a daemon's life
// (configuration, activation, accounts) would be most of its cost.
//
// # Interface
//
// Started by deliver, with the uid, gid and groups of the user as arguments, and with
// deliver's capabilities: it becomes the user, and executes itself without any. Then its
// arguments are the version of what they speak, the user's name, home and shell. A socket
// that carries requests of the protocol posthouse/pkg/protocol/deliver is descriptor 3.
// It ends with that socket.
//
// # Security
//
// internal/user is all that it does; it checks how it is confined, and does
// nothing where that is not as it is to be. The program has mode 0711: its
// processes cannot be traced by the user that they are.
//
// # Reliability
//
// What ends it unanswered has deferred.
//
// # Standards
//
// sysexits.h, RFC 3463 (status codes).
package main

import (
	"fmt"
	"os"

	"posthouse/daemons/deliver/internal/user"
)

func main() {
	if err := user.Main(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "deliver-as:", err) // for who has started it by hand
		os.Exit(1)
	}
}
