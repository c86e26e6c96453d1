//go:build system

package crash

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// unit is a daemon and its sockets, looked after as systemd does it: it is
// started when somebody connects, and again when it has failed.
type unit struct {
	name, bin string
	sockets   []listening
	path      string // a directory: the unit is started when a file is there that is not hidden, too

	files []*os.File // the sockets, in their order
	wake  [2]int     // a pipe that ends the wait for connections
	ended chan struct{}

	mu       sync.Mutex
	process  *os.Process
	stopping bool
}

// listening is a socket or FIFO, as its unit describes it.
type listening struct {
	path, name string
	fifo       bool
	port       int // of TCP
	mode       uint32
}

var daemons = []string{"smtpd", "cleanup", "rewrite", "qmgr", "virtual", "smtp", "bounce", "pickup", "local", "deliver"}

// command is a unit that nobody looks after: users run it. child is a part of deliver
// that is a process of its own.
const (
	command = "sendmail"
	child   = "deliver-as"
)

// readUnits takes the sockets of the daemons from their unit files.
func readUnits(dir, bin string) (list []*unit, err error) {
	byName := make(map[string]*unit)
	for _, name := range daemons {
		u := &unit{name: name, bin: filepath.Join(bin, name)}
		byName[name] = u
		list = append(list, u)
	}
	paths, err := filepath.Glob(dir + "/posthouse-*.socket")
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		service := strings.TrimSuffix(filepath.Base(path), ".socket")
		l := listening{mode: 0o666}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch key {
			case "ListenSequentialPacket", "ListenFIFO":
				l.path, l.fifo = value, key == "ListenFIFO"
			case "ListenStream":
				if l.port, err = strconv.Atoi(value); err != nil {
					return nil, fmt.Errorf("%s: %w", path, err)
				}
			case "SocketMode":
				mode, err := strconv.ParseUint(value, 8, 32)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", path, err)
				}
				l.mode = uint32(mode)
			case "FileDescriptorName":
				l.name = value
			case "Service":
				service = strings.TrimSuffix(value, ".service")
			}
		}
		if u := byName[strings.TrimPrefix(service, "posthouse-")]; u != nil {
			u.sockets = append(u.sockets, l)
		}
	}
	for _, u := range list {
		if len(u.sockets) == 0 {
			return nil, fmt.Errorf("no socket for %s", u.name)
		}
	}
	byName["pickup"].path = dropDir // posthouse-pickup.path
	return append(list, &unit{name: command, bin: filepath.Join(bin, command)}), nil
}

func (l listening) open() (int, error) {
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	if l.fifo {
		if err := errors.Join(unix.Mkfifo(l.path, 0o600), os.Chmod(l.path, os.FileMode(l.mode))); err != nil {
			return -1, err
		}
		return unix.Open(l.path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	var fd int
	var err error
	if l.port != 0 {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|flags, 0); err == nil {
			err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, &unix.SockaddrInet4{Port: l.port}))
		}
	} else if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|flags, 0); err == nil {
		err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: l.path}), os.Chmod(l.path, os.FileMode(l.mode)))
	}
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	return fd, err
}

// listen opens the sockets, and begins to look after the daemon.
func (u *unit) listen(w *world) error {
	u.stopping, u.files, u.ended = false, nil, make(chan struct{})
	for _, s := range u.sockets {
		fd, err := s.open()
		if err != nil {
			return fmt.Errorf("%s: %w", s.path, err)
		}
		u.files = append(u.files, os.NewFile(uintptr(fd), s.path))
	}
	if len(u.sockets) == 0 {
		close(u.ended)
		return nil
	}
	if err := unix.Pipe2(u.wake[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	go u.serve(w)
	return nil
}

// serve starts the daemon whenever it is wanted.
func (u *unit) serve(w *world) {
	defer close(u.ended)
	failed := false
	for failed || u.wanted() {
		state, err := u.run(w)
		if u.isStopping() {
			break
		}
		if err != nil {
			w.fail("start of %s: %v", u.name, err)
			break
		}
		if failed = !state.Success(); failed {
			time.Sleep(5 * time.Millisecond) // RestartSec=
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stopping = true
	for _, f := range u.files {
		_ = f.Close() // nothing was written
	}
	for _, fd := range u.wake {
		unix.Close(fd)
	}
}

func (u *unit) isStopping() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.stopping
}

// lookTime is how soon a file in a unit's path is seen, in milliseconds.
const lookTime = 5

// wanted waits until somebody connects, and reports false at the end.
func (u *unit) wanted() bool {
	poll := []unix.PollFd{{Fd: int32(u.wake[0]), Events: unix.POLLIN}}
	for _, f := range u.files {
		poll = append(poll, unix.PollFd{Fd: int32(f.Fd()), Events: unix.POLLIN})
	}
	timeout := -1
	if u.path != "" {
		timeout = lookTime
	}
	for {
		n, err := unix.Poll(poll, timeout)
		if n == 0 && err == nil && len(glob(u.path+"[^.]*")) > 0 {
			return !u.isStopping()
		}
		if n > 0 || err != nil && err != unix.EINTR {
			return poll[0].Revents == 0 && !u.isStopping()
		}
	}
}

// run runs the daemon to its end.
func (u *unit) run(w *world) (*os.ProcessState, error) {
	var names []string
	files := []*os.File{w.null, w.out, w.out}
	for i, s := range u.sockets {
		names = append(names, s.name)
		files = append(files, u.files[i])
	}
	env := []string{fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES=" + strings.Join(names, ":"), "PATH=/nowhere"}
	return u.execute(w, &os.ProcAttr{Env: env, Files: files})
}

// execute runs the program to its end.
func (u *unit) execute(w *world, attr *os.ProcAttr, args ...string) (*os.ProcessState, error) {
	started := make(chan error)
	go func() {
		// Never unlocked: the thread ends with this function, and with it what it has
		// had done to itself.
		runtime.LockOSThread()
		started <- u.start(w, attr, args)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	u.mu.Lock()
	p := u.process
	u.mu.Unlock()
	state, err := p.Wait()
	u.mu.Lock()
	u.process = nil
	u.mu.Unlock()
	if u.name == "deliver" {
		// What it leaves behind systemd ends at once.
		err = errors.Join(err, endUsers(u.bin))
	}
	return state, err
}

// start starts the daemon. What this thread itself does after the call of watch has to
// be answered by another one, for which the runtime must not wait for this one: so
// there is nothing here that package net or os tells its poller.
func (u *unit) start(w *world, attr *os.ProcAttr, args []string) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	listener, err := watch(numbers())
	if err != nil {
		return err
	}
	var ours atomic.Bool
	self := uint32(unix.Gettid())
	go func() {
		defer unix.Close(listener)
		err := announced(listener, func(n *notification) unix.Errno {
			if n.thread == self {
				return 0
			}
			name := u.part(n.thread, &ours)
			if name == "" {
				return 0
			}
			return w.answer(u, name, n)
		})
		if err != nil {
			w.fail("%s: %v", u.name, err)
		}
	}()
	// Only the process itself knows its number.
	p, err := os.StartProcess("/bin/sh", append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, u.bin}, args...), attr)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.process = p; u.stopping {
		return p.Kill()
	}
	return nil
}

// part says what a thread is in: the daemon, or the process of a user that it has
// started; "" for the shell before it, and for users' commands. ours is what is known
// of a daemon that starts nothing.
func (u *unit) part(thread uint32, ours *atomic.Bool) string {
	if ours.Load() {
		return u.name
	}
	switch path, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", thread)); path {
	case u.bin:
		ours.Store(u.name != "deliver")
		return u.name
	case filepath.Join(filepath.Dir(u.bin), child):
		return child
	}
	return ""
}

func (u *unit) kill(sig unix.Signal) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.process != nil {
		_ = u.process.Signal(sig) // it may have ended
	}
}

// stop ends the daemon for good.
func (u *unit) stop(sig unix.Signal) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stopping {
		return
	}
	u.stopping = true
	if u.process != nil {
		_ = u.process.Signal(sig) // it may have ended
	}
	if len(u.sockets) == 0 {
		return
	}
	_, _ = unix.Write(u.wake[1], []byte{0}) // there is room
}

// patience is how long a daemon may take to end: more than it gives itself (stopPatience).
const patience = 30 * time.Second

func (u *unit) wait(w *world) {
	for _, sig := range []unix.Signal{unix.SIGQUIT, unix.SIGKILL} { // SIGQUIT: with its stacks in the log
		for late := time.After(patience); ; {
			select {
			case <-u.ended:
				return
			case <-time.After(heldLonger):
				ageLocks(heldLonger) // which a daemon waits for before it ends
				continue
			case <-late:
			}
			break
		}
		w.fail("%s does not end", u.name)
		u.kill(sig)
	}
	<-u.ended
}
