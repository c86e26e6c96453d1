package user

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Identity is whom a process becomes.
type Identity struct {
	UID, GID uint32
	Groups   []uint32 // all others
}

// as is the first argument of a process that is not the user yet.
const as = "as"

// Start are the arguments of a process that becomes id, and starts program again as u.
func (u *User) Start(program string, id Identity) []string {
	groups := make([]string, len(id.Groups))
	for i, g := range id.Groups {
		groups[i] = strconv.FormatUint(uint64(g), 10)
	}
	return append([]string{as, program, fmt.Sprint(id.UID), fmt.Sprint(id.GID), strings.Join(groups, ",")}, u.Args()...)
}

// become makes this process the user that args, which are those of Start, name, and has
// it run the program from the beginning. It returns an error only.
//
// deliver cannot start the process as the user: until the program runs, the process
// has deliver's memory, and a thread of deliver waits for it, which holds up the others.
// A user who stops the process then would have stopped deliver.
func become(args []string) error {
	if len(args) < 5 {
		return errors.New("it is deliver that starts this")
	}
	id, err := parseIdentity(args[2:5])
	if err != nil {
		return err
	}
	runtime.LockOSThread() // capabilities are those of a thread; the others end with the program
	if err := id.assume(); err != nil {
		return err
	}
	return unix.Exec(args[1], append([]string{Program}, args[5:]...), []string{})
}

func parseIdentity(args []string) (Identity, error) {
	list := args[:2:2]
	if args[2] != "" {
		list = append(list, strings.Split(args[2], ",")...)
	}
	ids := make([]uint32, len(list))
	for i, s := range list {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil || n == 0 || n == 1<<32-1 { // the last one changes nothing
			return Identity{}, fmt.Errorf("nothing is done as user, group or groups %q", args)
		}
		ids[i] = uint32(n)
	}
	return Identity{ids[0], ids[1], ids[2:]}, nil
}

// assume takes the capabilities from this thread, too. What the program finds then is
// seen by confined.
func (id Identity) assume() error {
	groups := make([]int, len(id.Groups))
	for i, g := range id.Groups {
		groups[i] = int(g)
	}
	uid, gid := int(id.UID), int(id.GID)
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("setresgid: %w", err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("setresuid: %w", err)
	}
	// A program has those that are ambient.
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient capabilities: %w", err)
	}
	var none [2]unix.CapUserData
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}
