// Package files is what deliver does with files as the user whom a message is for:
// it reads .forward, and writes to mailboxes. It is called on a thread that has the
// rights of that user (package become), and starts nothing, hands nothing on and
// changes nothing that other threads have, too.
//
// Of what it reads nothing is parsed: a .forward file is passed on as it is, and of a
// message only the lines are looked at.
package files

import (
	"fmt"
	"os"

	"posthouse/daemons/deliver/internal/answer"
	"posthouse/pkg/ipc"
	"posthouse/pkg/mailbox"
	"posthouse/pkg/protocol/deliver"
)

// User is whom the thread is.
type User struct {
	Name string
	Home string // absolute and clean
	UID  uint32
	Sync mailbox.Syncer
	// Where a file system that goes away with the service may be mounted.
	Private []string

	home *os.File // once it has been opened
}

// Close closes what is open. It is called on the thread, too.
func (u *User) Close() {
	if u.home != nil {
		_ = u.home.Close() // read-only
	}
}

// inHome opens the home directory, once.
func (u *User) inHome() (*os.File, error) {
	if u.home != nil {
		return u.home, nil
	}
	home, err := mailbox.OpenDir(u.Home, false) // never made: it may be one that is not mounted now
	if err == nil {
		u.home = home
	}
	return home, err
}

// Do does what r asks for, which is anything but a command; file is the queue file,
// where one is needed. Of Forward it leaves Else to the caller. An error is one of the
// request, for which nothing has been done.
func (u *User) Do(r *deliver.Request, file *os.File) (*deliver.Reply, error) {
	if r.User != u.Name {
		return nil, fmt.Errorf("a request for %s", r.User)
	}
	switch r.Kind {
	case deliver.Forward:
		return u.forward(r.Files), nil
	case deliver.Make:
		return answer.Done("the mailbox is there", u.makeSpool(r)), nil
	case deliver.Spool, deliver.Mailbox:
	default:
		return nil, fmt.Errorf("kind %d is not done with files", r.Kind)
	}
	content, err := ipc.Part(file, r.Offset, r.Length)
	if err != nil {
		return nil, err
	}
	if r.Kind == deliver.Spool {
		return answer.Done(u.spool(r, content)), nil
	}
	return answer.Done(u.mailbox(r, content)), nil
}
