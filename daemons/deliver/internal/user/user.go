// Package user is the part of deliver that is a user whose command is to be run: a
// process of its own, with the rights of that one account and no others.
package user

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/daemons/deliver/internal/answer"
	"posthouse/pkg/command"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/deliver"
)

// Program is the name of the program that runs Main.
const Program = "deliver-as"

// version is that of what deliver and the process say to each other. An upgrade
// has the one replaced before the other has ended.
var version = strconv.Itoa(int(deliver.Protocol.Version))

// Socket is the descriptor that the process inherits, beside three of /dev/null.
const Socket = 3

// User is whom this process is.
type User struct {
	Name  string
	Home  string // absolute and clean
	Shell string
}

// Args are the arguments of the process, for Main.
func (u *User) Args() []string {
	return []string{version, u.Name, u.Home, u.Shell}
}

// Main is the whole life of the process.
func Main(args []string) error {
	if len(args) > 0 && args[0] == as {
		return become(args)
	}
	if len(args) != 4 || args[0] != version {
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
	u := &User{Name: args[1], Home: args[2], Shell: args[3]}
	return u.Serve(c, confined())
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
		return answer.Done("", dsn.Errorf("4.3.5", "deliver: process of %s: %v", u.Name, trouble)), nil
	}
	r, err := deliver.DecodeRequest(msg)
	if err != nil {
		return nil, err
	}
	if r.User != u.Name || r.Kind != deliver.Command {
		return nil, fmt.Errorf("a request for %s, kind %d", r.User, r.Kind)
	}
	content, err := ipc.Part(file, r.Offset, r.Length)
	if err != nil {
		return nil, err
	}
	return answer.Done(u.command(ctx, r, content)), nil
}
