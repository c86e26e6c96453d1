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
// came of it: "WHAT ERROR", or "WHAT ok". Arguments are read:PATH, list:PATH,
// write:PATH, packet:PATH (a SEQPACKET socket), fifo:PATH, inet, exec:PATH.
func try(what []string) error {
	for _, w := range what {
		kind, path, _ := strings.Cut(w, ":")
		fmt.Println("try", w, word(attempt(kind, path)))
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
	case "packet":
		c, err := net.Dial("unixpacket", path)
		if err == nil {
			err = c.Close()
		}
		return err
	case "fifo":
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK, 0)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	case "inet":
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	case "exec":
		return exec.Command(path).Run()
	case "ptrace":
		return unix.PtraceAttach(os.Getppid())
	}
	return fmt.Errorf("unknown")
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
