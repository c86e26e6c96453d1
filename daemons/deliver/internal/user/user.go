// Package user is the part of deliver that is the user: it runs in a process of
// its own, with the rights of the one account whom the mail is for, or whose
// command is to be run, and no others. All that is parsed is parsed here.
package user

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/command"
	"posthouse/pkg/dsn"
	"posthouse/pkg/durable"
	"posthouse/pkg/ipc"
	"posthouse/pkg/mailbox"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/deliver"
	"posthouse/pkg/wire"
)

// Program is the name of the program that runs Main.
const Program = "deliver-as"

// version is that of what deliver and the process say to each other. An upgrade
// has the one replaced before the other has ended.
var version = strconv.Itoa(int(deliver.Protocol.Version))

// Socket is the descriptor that the process inherits, beside three of /dev/null.
const Socket = 3

// Class is what a process is for. One that may write to the spool of mailboxes
// has a group that other mailboxes belong to: it never does what a user says.
type Class string

// The classes.
const (
	ForSpool   Class = "spool"   // kinds Spool and Make
	ForUser    Class = "user"    // kinds Forward and Mailbox
	ForCommand Class = "command" // kind Command, which may be slow: nothing else waits for it
)

// ClassOf returns the class of processes that serve k.
func ClassOf(k deliver.Kind) Class {
	switch k {
	case deliver.Spool, deliver.Make:
		return ForSpool
	case deliver.Command:
		return ForCommand
	}
	return ForUser
}

// User is whom this process is.
type User struct {
	Class Class
	Name  string
	Home  string // absolute and clean
	Shell string

	uid  uint32
	sync mailbox.Syncer
}

// Args are the arguments of the process, for Main.
func (u *User) Args() []string {
	return []string{version, string(u.Class), u.Name, u.Home, u.Shell}
}

// Main is the whole life of the process.
func Main(args []string) error {
	if len(args) != 5 || args[0] != version {
		return errors.New("it is deliver that starts this, and of the same version")
	}
	// Before anything is started that would inherit it.
	syscall.CloseOnExec(Socket)
	// What ends deliver is not to cut off what is being written; the end of the
	// socket tells. Not ignored: commands would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGXFSZ)
	// The environment is empty. This is where commands are looked for, and where their
	// messages are: on disk, while /tmp may be memory.
	if err := errors.Join(os.Setenv("PATH", command.SearchPath), os.Setenv("TMPDIR", "/var/tmp")); err != nil {
		return err
	}
	c, err := ipc.FromFile(os.NewFile(Socket, "deliver"))
	if err != nil {
		return err
	}
	u := New(Class(args[1]), args[2], args[3], args[4])
	return u.Serve(c, confined())
}

// New returns a User that is the user of this process.
func New(class Class, name, home, shell string) *User {
	return &User{Class: class, Name: name, Home: home, Shell: shell, uid: uint32(os.Getuid()), sync: durable.NewCommitter("fsync")}
}

// confined reports what this process could do that its user cannot, or what its
// user could do with it. It trusts nothing that deliver and its unit are to have
// seen to.
func confined() error {
	var data [2]unix.CapUserData
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	if data != [2]unix.CapUserData{} {
		return fmt.Errorf("there are capabilities: %x", data)
	}
	if os.Getuid() == 0 || os.Getgid() == 0 || os.Geteuid() != os.Getuid() || os.Getegid() != os.Getgid() {
		return errors.New("this is root, or half of one and half of another user")
	}
	if syscall.Setuid(0) == nil || syscall.Setgid(0) == nil || syscall.Setgroups([]int{0}) == nil {
		return errors.New("there is a way back to root")
	}
	if n, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || n != 1 {
		return fmt.Errorf("programs may give privileges: %d, %w", n, err)
	}
	// The user could trace it, and have its groups and descriptors.
	if n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || n == 1 {
		return fmt.Errorf("the user may trace this process; is its program mode 0711? %w", err)
	}
	return nil
}

// leaveTime is how long a request may go on that deliver does not want to wait
// for any longer. deliver's own patience is longer.
const leaveTime = 30 * time.Second

// Serve answers requests until the other side ends. With trouble it answers with
// that only.
func (u *User) Serve(c *ipc.Conn, trouble error) error {
	for {
		msg, file, err := c.ReceiveFile(deliver.Protocol.MaxRequest)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(context.Background())
		stop := c.OnEnd(func() { time.AfterFunc(leaveTime, cancel) })
		reply, err := u.answer(ctx, msg, file, trouble)
		stop()
		cancel()
		if err != nil {
			return err
		}
		reply.Text = line(reply.Text)
		m := ipc.NewMessage()
		reply.Encode(m)
		if err := c.Send(m); err != nil {
			return err
		}
	}
}

// answer does what msg asks for.
func (u *User) answer(ctx context.Context, msg []byte, file *os.File, trouble error) (*deliver.Reply, error) {
	if file != nil {
		defer file.Close() // read-only
	}
	if trouble != nil {
		return failed(dsn.Errorf("4.3.5", "deliver: process of %s: %v", u.Name, trouble)), nil
	}
	r, err := deliver.DecodeRequest(msg)
	if err != nil {
		return nil, err
	}
	if r.User != u.Name || ClassOf(r.Kind) != u.Class {
		return nil, fmt.Errorf("a request for %s, kind %d", r.User, r.Kind)
	}
	switch r.Kind {
	case deliver.Forward:
		return u.forward(r.Files), nil
	case deliver.Make:
		if err := u.makeSpool(r); err != nil {
			return failed(err), nil
		}
		return &deliver.Reply{Status: dsn.MustParse("2.0.0"), Text: "the mailbox is there"}, nil
	}
	content, err := content(r, file)
	if err != nil {
		return nil, err
	}
	var text string
	switch r.Kind {
	case deliver.Spool:
		text, err = u.spool(r, content)
	case deliver.Mailbox:
		text, err = u.mailbox(r, content)
	case deliver.Command:
		text, err = u.command(ctx, r, content)
	}
	if err != nil {
		return failed(err), nil
	}
	return &deliver.Reply{Status: dsn.MustParse("2.0.0"), Text: text}, nil
}

// content is the message within the file that was passed.
func content(r *deliver.Request, file *os.File) (*io.SectionReader, error) {
	if file == nil {
		return nil, errors.New("a delivery without a descriptor")
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || r.Offset > info.Size() || r.Length > info.Size()-r.Offset {
		return nil, fmt.Errorf("passed descriptor: not a file that has %d octets at %d", r.Length, r.Offset)
	}
	return io.NewSectionReader(file, r.Offset, r.Length), nil
}

// failed is the reply for an error. One that carries no status defers.
func failed(err error) *deliver.Reply {
	e := dsn.Of(err)
	return &deliver.Reply{Status: e.Status, Text: e.Text}
}

// line makes a text fit for a reply: printable, one line, bounded.
func line(s string) string {
	if most := wire.MaxText / 2; len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	if s = maillog.Printable(s); len(s) > wire.MaxText { // an escape may be longer than what it stands for
		s = strings.ToValidUTF8(s[:wire.MaxText], "")
	}
	return s
}
