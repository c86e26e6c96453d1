package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"

	"posthouse/pkg/activation"
)

// bound is the upper bound of any wait: nothing depends on how fast it is.
const bound = 60 * time.Second

// unit plays systemd for one service: it keeps the sockets, starts the daemon,
// hears what it notifies, and sees it end.
type unit struct {
	t    *testing.T
	mode string
	dir  string   // of the configuration
	env  []string // besides what every unit has

	names   []string
	files   []*os.File
	notify  *net.UnixConn
	reading sync.Mutex // held while nothing is read there

	mu      sync.Mutex
	changed *sync.Cond
	states  []string // what was notified
	text    strings.Builder
	groups  []int // of all processes that were started
	ends    []int // their exit status, or minus the signal that has killed them
}

func newUnit(t *testing.T, mode, limits string) *unit {
	t.Helper()
	u := &unit{t: t, mode: mode, dir: t.TempDir()}
	u.changed = sync.NewCond(&u.mu)
	if err := os.Mkdir(filepath.Join(u.dir, "conf.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	u.configure("limits", "daemons: {showq: {"+limits+"}}")
	var err error
	u.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(u.dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = u.notify.Close()
		<-done
	})
	go func() {
		defer close(done)
		b := make([]byte, 1000)
		for {
			n, err := u.notify.Read(b) // a descriptor that comes along is closed
			if err != nil {
				return
			}
			u.reading.Lock()
			u.change(func() { u.states = append(u.states, strings.Split(string(b[:n]), "\n")...) })
			u.reading.Unlock()
		}
	}()
	t.Cleanup(u.killAll)
	return u
}

// configure writes a drop-in.
func (u *unit) configure(name, text string) {
	u.t.Helper()
	path := filepath.Join(u.dir, "conf.d", name+".yaml")
	if err := os.WriteFile(path+".new", []byte(text+"\n"), 0o600); err != nil {
		u.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		u.t.Fatal(err)
	}
}

func (u *unit) change(f func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f()
	u.changed.Broadcast()
}

// wait waits until ok, which is called with u.mu held.
func (u *unit) wait(what string, ok func() bool) {
	u.t.Helper()
	late := time.Now().Add(bound)
	defer time.AfterFunc(bound, func() { u.change(func() {}) }).Stop()
	u.mu.Lock()
	defer u.mu.Unlock()
	for !ok() {
		if !time.Now().Before(late) {
			u.t.Fatalf("no %s: states %q, ends %v, output:\n%s", what, u.states, u.ends, u.text.String())
		}
		u.changed.Wait()
	}
}

// waitState waits until state has been notified n times.
func (u *unit) waitState(state string, n int) {
	u.t.Helper()
	u.wait(state, func() bool { return count(u.states, state) >= n })
}

// waitOutput waits until text has been printed n times.
func (u *unit) waitOutput(text string, n int) {
	u.t.Helper()
	u.wait("output "+text, func() bool { return strings.Count(u.text.String(), text) >= n })
}

// waitLog is waitOutput for the log, which is seen only where there is no
// journal that takes it.
func (u *unit) waitLog(text string) {
	u.t.Helper()
	if !journal.Enabled() {
		u.waitOutput(text, 1)
	}
}

func count(list []string, s string) (n int) {
	for _, x := range list {
		if x == s {
			n++
		}
	}
	return n
}

// checkStates tests what was notified, in this order, but for signs of life. What was sent
// may not have been read yet.
func (u *unit) checkStates(want ...string) {
	u.t.Helper()
	var got []string
	u.wait("states", func() bool {
		got = slices.DeleteFunc(slices.Clone(u.states), func(s string) bool { return s == activation.Alive })
		return len(got) >= len(want)
	})
	if !slices.Equal(got, want) {
		u.t.Errorf("notified %q, want %q", got, want)
	}
}

func (u *unit) pass(name string, f *os.File, err error) {
	u.t.Helper()
	if err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(func() { _ = f.Close() })
	u.names = append(u.names, name)
	u.files = append(u.files, f)
}

// stream passes a listening TCP socket.
func (u *unit) stream(name string) net.Addr {
	u.t.Helper()
	return u.listen(name, "tcp", "127.0.0.1:0")
}

// packets passes a listening SOCK_SEQPACKET socket and returns its path.
func (u *unit) packets(name string) string {
	u.t.Helper()
	return u.listen(name, "unixpacket", filepath.Join(u.dir, name)).String()
}

func (u *unit) listen(name, network, address string) net.Addr {
	u.t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		u.t.Fatal(err)
	}
	f, err := ln.(interface{ File() (*os.File, error) }).File()
	u.pass(name, f, err)
	if l, ok := ln.(*net.UnixListener); ok {
		l.SetUnlinkOnClose(false)
	}
	if err := ln.Close(); err != nil { // f is another descriptor of it
		u.t.Fatal(err)
	}
	return ln.Addr()
}

// fifo passes a FIFO, opened as systemd does, and returns it for writing.
func (u *unit) fifo(name string) *os.File {
	u.t.Helper()
	path := filepath.Join(u.dir, name)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		u.t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	u.pass(name, f, err)
	w, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(func() { _ = w.Close() })
	return w
}

// start starts the daemon. Its end, and that of all its successors, is noted in
// u.ends; the result is closed then.
func (u *unit) start() <-chan struct{} {
	u.t.Helper()
	ended := make(chan struct{})
	if err := u.launch(ended); err != nil {
		u.t.Fatal(err)
	}
	return ended
}

func (u *unit) launch(ended chan<- struct{}) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	// The shell knows the number of the process that it becomes.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$0"`, exe)
	cmd.Env = append(os.Environ(), envMode+"="+u.mode, envConfig+"="+u.dir, "NOTIFY_SOCKET="+filepath.Join(u.dir, "notify"),
		fmt.Sprint("LISTEN_FDS=", len(u.files)), "LISTEN_FDNAMES="+strings.Join(u.names, ":"), "WATCHDOG_USEC=",
		"GORACE=atexit_sleep_ms=0") // the race detector would have every process take a second to end
	cmd.Env = append(cmd.Env, u.env...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = w, w, u.files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	_ = w.Close() // the daemon has it
	if err != nil {
		return errors.Join(err, r.Close())
	}
	u.mu.Lock()
	u.groups = append(u.groups, cmd.Process.Pid)
	first := len(u.states)
	u.mu.Unlock()
	go func() {
		defer close(ended)
		lines := bufio.NewScanner(r)
		for lines.Scan() { // until nobody has w any more
			u.change(func() { u.text.WriteString(lines.Text() + "\n") })
		}
		_ = r.Close()
		_ = cmd.Wait()
		u.collect(cmd.ProcessState.Sys().(syscall.WaitStatus), first)
	}()
	return nil
}

// collect notes how a process and its successors, which it has notified since
// the state first, have ended.
func (u *unit) collect(status syscall.WaitStatus, first int) {
	all := []syscall.WaitStatus{status}
	u.mu.Lock()
	states := slices.Clone(u.states[first:])
	u.mu.Unlock()
	for _, s := range states {
		if pid, err := strconv.Atoi(strings.TrimPrefix(s, "MAINPID=")); err == nil {
			if _, err := syscall.Wait4(pid, &status, 0, nil); err == nil {
				all = append(all, status)
			}
		}
	}
	u.change(func() {
		for _, s := range all {
			if s.Signaled() {
				u.ends = append(u.ends, -int(s.Signal()))
			} else {
				u.ends = append(u.ends, s.ExitStatus())
			}
		}
	})
}

// activate starts the daemon whenever there is something to do and no process,
// as a socket unit does, until stop is called.
func (u *unit) activate() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if !u.poll() {
				continue
			}
			ended := make(chan struct{})
			if err := u.launch(ended); err != nil {
				u.t.Error(err)
				return
			}
			<-ended
		}
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		u.signal(syscall.SIGTERM)
		<-done
	})
	u.t.Cleanup(stop)
	return stop
}

// poll waits a moment for something to do at any of the sockets.
func (u *unit) poll() bool {
	var fds []unix.PollFd
	for _, f := range u.files {
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}) })
		}
		if err != nil {
			u.t.Error(err)
		}
	}
	n, err := unix.Poll(fds, 20)
	return err == nil && n > 0
}

// signal sends s to all processes of the unit, as KillMode=control-group does.
func (u *unit) signal(s syscall.Signal) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n := len(u.groups); n > 0 {
		_ = syscall.Kill(-u.groups[n-1], s) // it may have gone
	}
}

// killAll ends what a test has left.
func (u *unit) killAll() {
	u.mu.Lock()
	groups := slices.Clone(u.groups)
	u.mu.Unlock()
	for _, g := range groups {
		_ = syscall.Kill(-g, syscall.SIGKILL)
	}
}

// checkEnds waits for the n-th end and tests that all had this status.
func (u *unit) checkEnds(n, status int) {
	u.t.Helper()
	u.wait("end", func() bool { return len(u.ends) >= n })
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range u.ends {
		if s != status {
			u.t.Fatalf("ended with status %v, want %d each; output:\n%s", u.ends, status, u.text.String())
		}
	}
}
