package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// try does what a daemon that was taken over would do, and prints for each what
// came of it: "try WHAT ERROR", or "try WHAT ok". Where that is missing, the
// process has not outlived it. Arguments are
//
//	read:PATH  list:PATH   a file, a directory
//	write:PATH             makes or empties a file
//	append:PATH            opens a file to write, and leaves it as it is
//	packet:PATH  fifo:PATH connects to a SEQPACKET socket, opens a FIFO to write
//	family:NAME            makes a socket of an address family
//	exec:PATH              starts a program
//	become:PATH            becomes another program
//	drop:PATH              makes a program (ENOEXEC: it is none) and becomes it
//	setuid:PATH            makes a file with that bit
//	wx                     maps memory to write to and to execute
//	userns                 a child in a user namespace of its own
//	call:NAME              a system call, see calls
//	filecap:PATH           reads the capabilities of a file (ENODATA: none)
func try(what []string) error {
	for _, w := range what {
		kind, path, _ := strings.Cut(w, ":")
		fmt.Printf("try %s ", w)
		fmt.Println(word(attempt(kind, path)))
	}
	return nil
}

func attempt(kind, path string) error {
	switch kind {
	case "read":
		_, err := os.ReadFile(path)
		return err
	case "list":
		_, err := os.ReadDir(path)
		return err
	case "write":
		return os.WriteFile(path, nil, 0o600)
	case "append":
		return opened(unix.Open(path, unix.O_WRONLY|unix.O_APPEND, 0))
	case "packet":
		c, err := net.Dial("unixpacket", path)
		if err == nil {
			err = c.Close()
		}
		return err
	case "fifo":
		return opened(unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK, 0))
	case "family":
		return family(path)
	case "exec":
		return exec.Command(path).Run()
	case "become":
		return unix.Exec(path, []string{path}, nil)
	case "drop":
		if err := os.WriteFile(path, []byte("no program\n"), 0o700); err != nil {
			return fmt.Errorf("not written: %s", word(err))
		}
		return unix.Exec(path, []string{path}, nil)
	case "setuid":
		return opened(unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, unix.S_ISUID|0o755))
	case "wx":
		b, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err == nil {
			err = unix.Munmap(b)
		}
		return err
	case "userns":
		return userns()
	case "call":
		return call(path)
	case "filecap":
		_, err := unix.Lgetxattr(path, "security.capability", nil)
		return err
	}
	return fmt.Errorf("unknown")
}

// opened closes a descriptor, if there is one.
func opened(fd int, err error) error {
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

func family(name string) error {
	families := map[string]int{"inet": unix.AF_INET, "inet6": unix.AF_INET6, "netlink": unix.AF_NETLINK, "packet": unix.AF_PACKET, "vsock": unix.AF_VSOCK}
	f, ok := families[name]
	if !ok {
		return fmt.Errorf("unknown family")
	}
	kind := unix.SOCK_STREAM
	if f == unix.AF_NETLINK || f == unix.AF_PACKET {
		kind = unix.SOCK_RAW
	}
	return opened(unix.Socket(f, kind, 0))
}

// userns starts a child with clone, which daemons may call (RestrictNamespaces=
// looks at its flags); unshare they may not call at all.
func userns() error {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 { // the child: a copy of one thread of a Go program, which cannot go on
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	_, err := unix.Wait4(int(pid), nil, 0, nil)
	return err
}

// call makes a system call with arguments that do no harm where it is allowed.
func call(name string) error {
	calls := map[string][4]uintptr{
		"ptrace":         {unix.SYS_PTRACE, unix.PTRACE_TRACEME},
		"mount":          {unix.SYS_MOUNT},
		"add_key":        {unix.SYS_ADD_KEY},
		"unshare":        {unix.SYS_UNSHARE, unix.CLONE_NEWUSER},
		"setuid":         {unix.SYS_SETUID, 0},
		"chroot":         {unix.SYS_CHROOT},
		"bpf":            {unix.SYS_BPF},
		"memfd_create":   {unix.SYS_MEMFD_CREATE},
		"listen":         {unix.SYS_LISTEN, ^uintptr(0)},
		"io_uring":       {unix.SYS_IO_URING_SETUP},
		"kill":           {unix.SYS_KILL, 1, 0}, // may it signal systemd?
		"personality":    {unix.SYS_PERSONALITY, 0xffffffff},
		"process_vm":     {unix.SYS_PROCESS_VM_READV},
		"sched":          {unix.SYS_SCHED_SETSCHEDULER},
		"open_by_handle": {unix.SYS_OPEN_BY_HANDLE_AT},
	}
	c, ok := calls[name]
	if !ok {
		return fmt.Errorf("unknown call")
	}
	if _, _, errno := unix.RawSyscall(c[0], c[1], c[2], c[3]); errno != 0 {
		return errno
	}
	return nil
}

// word is the name of the system's error.
func word(err error) string {
	if err == nil {
		return "ok"
	}
	for e := err; e != nil; {
		if errno, ok := e.(syscall.Errno); ok {
			return unix.ErrnoName(errno)
		}
		u, ok := e.(interface{ Unwrap() error })
		if !ok {
			break
		}
		e = u.Unwrap()
	}
	return err.Error()
}
