//go:build system

package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// class is what a call is about.
type class uint8

const (
	other  class = iota
	file         // in the queue, the mail store or a home directory, or a copy of a message
	config       // a file of the system, for reading
	socket       // to another daemon or host, or a FIFO
	log
)

// call is a system call that a daemon is about to make.
type call struct {
	name   string
	class  class
	path   string
	create bool // openat that makes a file, or opens one for writing
}

func (c *call) String() string { return strings.TrimSpace(c.name + " " + c.path) }

// row is what there is to know of a system call.
type row struct {
	name string
	path bool // the arguments are a directory and a path in it; else a descriptor
	// What it changes, that others can see: nothing; files; or what other processes know.
	changes class
	// The errors that it can end with, on files and on sockets.
	onFile, onSocket string
}

// Of a call that is interrupted here nothing has been done.
var rows = map[int32]row{
	unix.SYS_OPENAT:          {"openat", true, file, "EIO EMFILE ENFILE EINTR ENOMEM", ""}, // more where it makes a file
	unix.SYS_MKDIRAT:         {"mkdirat", true, file, "EIO ENOSPC EDQUOT ENOMEM EROFS", ""},
	unix.SYS_UNLINKAT:        {"unlinkat", true, file, "EIO ENOMEM EROFS", ""},
	unix.SYS_RENAMEAT:        {"renameat", true, file, "EIO ENOSPC EDQUOT ENOMEM EROFS", ""},
	unix.SYS_RENAMEAT2:       {"renameat2", true, file, "EIO ENOSPC EDQUOT ENOMEM EROFS", ""},
	unix.SYS_NEWFSTATAT:      {"newfstatat", true, other, "EIO ENOMEM", ""},
	unix.SYS_FTRUNCATE:       {"ftruncate", false, file, "EIO EINTR EROFS", ""},
	unix.SYS_READ:            {"read", false, socket, "EIO EINTR", "EINTR ENOMEM"},
	unix.SYS_PREAD64:         {"pread64", false, other, "EIO EINTR", ""},
	unix.SYS_GETDENTS64:      {"getdents64", false, other, "EIO ENOMEM", ""},
	unix.SYS_WRITE:           {"write", false, file, "EIO ENOSPC EDQUOT EINTR ENOMEM EROFS", "EINTR ENOMEM"},
	unix.SYS_PWRITE64:        {"pwrite64", false, file, "EIO ENOSPC EDQUOT EINTR ENOMEM EROFS", ""},
	unix.SYS_FSYNC:           {"fsync", false, file, "EIO ENOSPC EDQUOT EINTR EROFS", ""},
	unix.SYS_SYNCFS:          {"syncfs", false, file, "EIO ENOSPC EDQUOT", ""},
	unix.SYS_SYNC_FILE_RANGE: {"sync_file_range", false, file, "EIO ENOSPC ENOMEM", ""},
	unix.SYS_FSTAT:           {"fstat", false, other, "ENOMEM", ""},
	unix.SYS_FSTATFS:         {"fstatfs", false, other, "EIO EINTR ENOMEM", ""},
	unix.SYS_FCHMOD:          {"fchmod", false, file, "EIO EROFS", ""},
	unix.SYS_CLOSE:           {"close", false, other, "EIO ENOSPC EDQUOT EINTR", ""},
	unix.SYS_DUP:             {"dup", false, other, "", "EMFILE"},
	unix.SYS_ACCEPT4:         {"accept4", false, socket, "", "EMFILE ENFILE ENOMEM EINTR"},
	unix.SYS_CONNECT:         {"connect", false, socket, "", "EAGAIN ENOMEM"}, // interrupted, it goes on
	unix.SYS_SENDMSG:         {"sendmsg", false, socket, "", "EINTR ENOMEM"},
	unix.SYS_RECVMSG:         {"recvmsg", false, socket, "", "EINTR ENOMEM"},
	unix.SYS_EPOLL_CTL:       {"epoll_ctl", false, other, "", "ENOSPC ENOMEM"},
	unix.SYS_SOCKET:          {"socket", false, other, "", "EMFILE ENFILE ENOMEM"},
	unix.SYS_EPOLL_CREATE1:   {"epoll_create1", false, other, "", "EMFILE ENFILE ENOMEM"},
}

// numbers are those of the calls above. clone, dup3 and fcntl cannot be among them:
// they are made between fork and exec, when Go's runtime might let nobody answer.
func numbers() (list []uint32) {
	for nr := range rows {
		list = append(list, uint32(nr))
	}
	return list
}

// look says what call is announced.
func look(n *notification) *call {
	r := rows[n.number]
	c := &call{name: r.name}
	proc := fmt.Sprintf("/proc/%d/", n.thread)
	switch n.number {
	case unix.SYS_SOCKET, unix.SYS_EPOLL_CREATE1:
		c.class = socket
		return c
	}
	fd := n.args[0]
	if n.number == unix.SYS_EPOLL_CTL {
		fd = n.args[2]
	}
	if int32(fd) == unix.AT_FDCWD {
		c.path = "/"
	} else {
		c.path, _ = os.Readlink(fmt.Sprintf("%sfd/%d", proc, int32(fd)))
	}
	if r.path {
		name := text(int(n.thread), n.args[1])
		if !filepath.IsAbs(name) {
			name = filepath.Join(c.path, name)
		}
		c.path = name
		c.create = n.number == unix.SYS_OPENAT && n.args[2]&(unix.O_CREAT|unix.O_WRONLY|unix.O_RDWR) != 0
	}
	switch {
	case c.path == logFile:
		c.class = log
	case slices.ContainsFunc([]string{spoolDir, storeDir, homeDir, tempDir}, func(dir string) bool { return strings.HasPrefix(c.path, dir) }):
		c.class = file
	case strings.HasPrefix(c.path, "socket:") || strings.HasPrefix(c.path, "/run/"):
		c.class = socket
	case strings.HasPrefix(c.path, "/etc/"):
		c.class = config
	}
	return c
}

// text reads a string of another process.
func text(pid int, at uint64) string {
	b := make([]byte, 256)
	// Not beyond the page, after which there may be nothing.
	n := min(len(b), int(4096-at%4096))
	local := []unix.Iovec{{Base: &b[0], Len: uint64(n)}}
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: n}}, 0)
	if err != nil {
		return ""
	}
	s, _, _ := strings.Cut(string(b[:n]), "\x00")
	return s
}

// faults are what can go wrong at a call, in the order of the table.
var faults = []string{"kill", "power", "power+log", "power+queue", "EIO", "ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "EINTR", "EAGAIN", "ENOMEM", "EROFS"}

var errnos = map[string]unix.Errno{
	"EIO": unix.EIO, "ENOSPC": unix.ENOSPC, "EDQUOT": unix.EDQUOT, "EMFILE": unix.EMFILE, "ENFILE": unix.ENFILE,
	"EINTR": unix.EINTR, "EAGAIN": unix.EAGAIN, "ENOMEM": unix.ENOMEM, "EROFS": unix.EROFS,
}

// fits reports whether it makes sense to have fault strike at c. Killing before
// a call that changes nothing would be the same as killing before the next one.
func (c *call) fits(fault string) bool {
	var r row
	for _, candidate := range rows {
		if candidate.name == c.name {
			r = candidate
		}
	}
	changesFile := c.class == file && r.changes == file && (c.name != "openat" || c.create)
	speaks := c.class == socket && (c.name == "sendmsg" || c.name == "write")
	switch fault {
	case "kill":
		return changesFile || speaks || c.class == socket && r.changes == socket
	case "power", "power+log", "power+queue":
		return changesFile || speaks
	}
	errs := ""
	switch c.class {
	case file:
		if c.name == "close" && strings.HasPrefix(c.path, mboxDir) {
			// A close that fails closes, but not here; and what stays open would stay locked.
			return false
		}
	default:
	}
	switch c.class {
	case file, config:
		errs = r.onFile
		if c.create {
			errs += " ENOSPC EDQUOT EROFS"
		}
	case socket:
		errs = r.onSocket
	case log:
		if c.name == "write" {
			errs = r.onFile
		}
	case other:
	}
	return slices.Contains(strings.Fields(errs), fault)
}
