//go:build system

package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
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
}

var daemons = []string{"cleanup", "rewrite", "qmgr", "virtual", "smtp", "bounce"}

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
		var l listening
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch key {
			case "ListenSequentialPacket", "ListenFIFO":
				l.path, l.fifo = value, key == "ListenFIFO"
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
	return list, nil
}

func (l listening) open() (int, error) {
	if l.fifo {
		if err := unix.Mkfifo(l.path, 0o600); err != nil {
			return -1, err
		}
		return unix.Open(l.path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: l.path})
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

// wanted waits until somebody connects, and reports false at the end.
func (u *unit) wanted() bool {
	poll := []unix.PollFd{{Fd: int32(u.wake[0]), Events: unix.POLLIN}}
	for _, f := range u.files {
		poll = append(poll, unix.PollFd{Fd: int32(f.Fd()), Events: unix.POLLIN})
	}
	for {
		n, err := unix.Poll(poll, -1)
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
	started := make(chan error)
	go func() {
		// Never unlocked: the thread ends with this function, and with it what it has
		// had done to itself.
		runtime.LockOSThread()
		started <- u.start(w, &os.ProcAttr{Env: env, Files: files})
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
	return state, err
}

// start starts the daemon. What this thread itself does after the call of watch has to
// be answered by another one, for which the runtime must not wait for this one: so
// there is nothing here that package net or os tells its poller.
func (u *unit) start(w *world, attr *os.ProcAttr) error {
	listener, err := watch(numbers())
	if err != nil {
		return err
	}
	var ours atomic.Bool
	self := uint32(unix.Gettid())
	go func() {
		defer unix.Close(listener)
		err := announced(listener, func(n *notification) unix.Errno {
			if n.thread == self || !ours.Load() && !u.isIn(n.thread, &ours) {
				return 0
			}
			return w.answer(u, n)
		})
		if err != nil {
			w.fail("%s: %v", u.name, err)
		}
	}()
	// Only the process itself knows its number.
	p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", `LISTEN_PID=$$ exec "$0"`, u.bin}, attr)
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

// isIn reports whether a thread is in the daemon, and not in the shell before it.
func (u *unit) isIn(thread uint32, ours *atomic.Bool) bool {
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", thread))
	if path == u.bin {
		ours.Store(true)
	}
	return path == u.bin
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
	_, _ = unix.Write(u.wake[1], []byte{0}) // there is room
}

// patience is how long a daemon may take to end.
const patience = 10 * time.Second

func (u *unit) wait(w *world) {
	for _, sig := range []unix.Signal{unix.SIGQUIT, unix.SIGKILL} { // SIGQUIT: with its stacks in the log
		select {
		case <-u.ended:
			return
		case <-time.After(patience):
			w.fail("%s does not end", u.name)
			u.kill(sig)
		}
	}
	<-u.ended
}
