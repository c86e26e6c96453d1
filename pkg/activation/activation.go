// Package activation takes over what systemd has opened for a daemon, by name,
// and speaks to systemd: ready, stopping, watchdog, and who the main process is.
package activation

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	sdactivation "github.com/coreos/go-systemd/v22/activation"
	sddaemon "github.com/coreos/go-systemd/v22/daemon"
)

// Sockets are the descriptors that were passed, by FileDescriptorName=.
type Sockets struct {
	files map[string][]*os.File
	asked map[string]bool // names that somebody serves
	// The ends of pipes by which this process sees the end of its predecessor and of its
	// successor, and they its end. Nothing is ever written. They stay open until this
	// process ends, and nothing else that it starts has them.
	older, younger link

	predecessor *os.Process // nil if there is none, or one that did not say who it is
}

// link is the one end of one pipe, and the other end of another.
type link struct{ r, w *os.File }

// wait returns when the other process has ended.
func (l link) wait() { _, _ = l.r.Read(make([]byte, 1)) }

// Environment variables for a successor; see Successor.
const (
	envNames = "POSTHOUSE_FDNAMES"
	envPID   = "POSTHOUSE_PREDECESSOR"
	envOlder = 3 // descriptors of the link to the predecessor
)

// Take takes the descriptors, from systemd or from a predecessor. It is called
// once, first thing.
func Take() (*Sockets, error) {
	s := &Sockets{files: make(map[string][]*os.File), asked: make(map[string]bool)}
	if names := os.Getenv(envNames); names != "" {
		pid := os.Getenv(envPID)
		if err := errors.Join(os.Unsetenv(envNames), os.Unsetenv(envPID)); err != nil {
			return nil, fmt.Errorf("activation: %w", err)
		}
		if err := s.inherit(names); err != nil {
			return nil, err
		}
		s.predecessor = predecessor(pid)
		// The watchdog's variables name the first process of the unit.
		if os.Getenv("WATCHDOG_PID") != "" {
			if err := os.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid())); err != nil {
				return nil, fmt.Errorf("activation: %w", err)
			}
		}
		return s, nil
	}
	for _, f := range sdactivation.Files(true) {
		s.files[f.Name()] = append(s.files[f.Name()], f)
	}
	return s, nil
}

// predecessor returns the process with this number if that is there. Its pipe is
// looked at afterwards: then the handle is that of the predecessor, and of no other
// process that has got its number.
func predecessor(pid string) *os.Process {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return nil
	}
	p, err := os.FindProcess(n)
	if err != nil {
		return nil
	}
	if _, err := syscall.Read(envOlder, make([]byte, 1)); !errors.Is(err, syscall.EAGAIN) {
		return nil
	}
	return p
}

// Passed reports whether there is anything called name.
func (s *Sockets) Passed(name string) bool { return len(s.files[name]) > 0 }

// Streams returns the listening stream sockets called name, UNIX or TCP; none
// where the socket unit is off. The descriptors stay open for a successor.
func (s *Sockets) Streams(name string) ([]Listener, error) {
	return s.listeners(name, syscall.SOCK_STREAM)
}

// Packets returns the listening SOCK_SEQPACKET sockets called name; none where
// the socket unit is off.
func (s *Sockets) Packets(name string) ([]Listener, error) {
	return s.listeners(name, syscall.SOCK_SEQPACKET)
}

func (s *Sockets) listeners(name string, kind int) ([]Listener, error) {
	s.asked[name] = true
	var all []Listener
	for _, f := range s.files[name] {
		if err := checkListening(f, kind); err != nil {
			return nil, fmt.Errorf("activation: socket %q: %w", name, err)
		}
		ln, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("activation: socket %q: %w", name, err)
		}
		l, ok := ln.(Listener)
		if !ok {
			return nil, fmt.Errorf("activation: socket %q is a %T", name, ln)
		}
		if u, ok := ln.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false) // its path is systemd's
		}
		all = append(all, l)
	}
	return all, nil
}

// checkListening reports where f is not a listening socket of the kind: a stream
// that is served as packets, or the other way round, would be misread.
func checkListening(f *os.File, kind int) error {
	names := map[int]string{syscall.SOCK_STREAM: "stream", syscall.SOCK_SEQPACKET: "packet"}
	fd := int(f.Fd())
	got, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	if err != nil {
		return fmt.Errorf("no %s socket: %w", names[kind], err)
	}
	if got != kind {
		return fmt.Errorf("no %s socket but one of type %d", names[kind], got)
	}
	listens, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	if err != nil {
		return fmt.Errorf("no listening socket: %w", err)
	}
	if listens == 0 {
		return errors.New("no listening socket")
	}
	return nil
}

// Listener is a listener whose Accept can be ended by a deadline.
type Listener interface {
	net.Listener
	SetDeadline(time.Time) error
}

// FIFOs returns the FIFOs called name, ready for reads with a deadline; none
// where the socket unit is off.
func (s *Sockets) FIFOs(name string) ([]*os.File, error) {
	s.asked[name] = true
	var all []*os.File
	for _, f := range s.files[name] {
		if info, err := f.Stat(); err != nil {
			return nil, fmt.Errorf("activation: FIFO %q: %w", name, err)
		} else if info.Mode().Type() != fs.ModeNamedPipe {
			return nil, fmt.Errorf("activation: %q is no FIFO but %v", name, info.Mode())
		}
		fd, err := syscall.Dup(int(f.Fd()))
		if err == nil {
			syscall.CloseOnExec(fd)
			err = syscall.SetNonblock(fd, true)
		}
		if err != nil {
			return nil, fmt.Errorf("activation: FIFO %q: %w", name, err)
		}
		all = append(all, os.NewFile(uintptr(fd), name))
	}
	return all, nil
}

// Check is called when everybody has asked for what they serve. It reports a
// socket that nobody serves, for whoever connects to it would wait for ever
// while systemd starts process after process; and that there is nothing to serve.
func (s *Sockets) Check() error {
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		if !s.asked[name] {
			return fmt.Errorf("activation: socket %q is served by nobody", name)
		}
	}
	if len(s.files) == 0 && len(s.asked) > 0 {
		return fmt.Errorf("activation: none of the sockets %q was passed", slices.Sorted(maps.Keys(s.asked)))
	}
	return nil
}

// notifier is the socket of Notify, once there is one. It is kept: a daemon that
// has run out of descriptors could not say that it is alive, and systemd would
// kill it for that. go-systemd makes a new one each time.
var notifier struct {
	sync.Mutex
	fd   int
	open bool
}

// Notify tells systemd the state of this process. Without systemd it does nothing.
func Notify(state string) error { return notify(state, nil) }

// notify sends, along with what it says, a descriptor of f if that is not nil.
func notify(state string, f *os.File) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	notifier.Lock()
	defer notifier.Unlock()
	if !notifier.open {
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("notify systemd: %w", err)
		}
		notifier.fd, notifier.open = fd, true
	}
	var rights []byte
	if f != nil {
		rights = syscall.UnixRights(int(f.Fd()))
	}
	for {
		err := syscall.Sendmsg(notifier.fd, []byte(state), rights, &syscall.SockaddrUnix{Name: path}, syscall.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("notify systemd: %w", err)
		}
		return nil
	}
}

// Barrier waits until systemd has acted on what it was told before, for at most limit
// (sd_notify_barrier(3)).
func Barrier(limit time.Duration) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	defer r.Close() // nothing is written
	// systemd closes its copy of the other end when it comes to it.
	if err := errors.Join(notify("BARRIER=1", w), w.Close(), r.SetReadDeadline(time.Now().Add(limit))); err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("barrier: %w", err)
	}
	return nil
}

// States for Notify.
const (
	Ready    = sddaemon.SdNotifyReady
	Stopping = sddaemon.SdNotifyStopping
	Alive    = sddaemon.SdNotifyWatchdog
)

// WatchdogInterval is how often to send Alive; zero: never.
func WatchdogInterval() time.Duration {
	limit, err := sddaemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0 // not for this process
	}
	return limit / 2
}

// Successor starts this program again with the same listening sockets and makes
// it the main process of the unit, so that a daemon with long sessions goes
// away without anybody waiting for it. It becomes systemd's child, as this process
// is: one that is not systemd does not wait for when it stops the unit, but kills it
// at once. The successor does not end before this
// process has: systemd would take that for the end of both. Nor may
// this process end before Barrier has returned: where systemd hears of the successor
// when that has gone, too, and left the work to one of its own, it believes that
// one nothing, takes the unit for ended, and has it stopped.
func (s *Sockets) Successor() (*os.Process, error) {
	ours, theirs, err := links()
	if err != nil {
		return nil, fmt.Errorf("successor: %w", err)
	}
	files := []*os.File{nil, os.Stdout, os.Stderr, theirs.r, theirs.w}
	names := ""
	for name, list := range s.files {
		for _, f := range list {
			files = append(files, f)
			names += name + ":"
		}
	}
	env := append(os.Environ(), envNames+"="+names, envPID+"="+strconv.Itoa(os.Getpid()))
	p, err := os.StartProcess(os.Args[0], os.Args, &os.ProcAttr{Env: env, Files: files, Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_PARENT}})
	err = errors.Join(err, theirs.r.Close(), theirs.w.Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("successor: %w", err), ours.r.Close(), ours.w.Close())
	}
	s.younger = ours
	// The new main process is as alive as can be: on a busy machine none of a
	// chain of successors may live long enough to say so before the time is up.
	if err := Notify("MAINPID=" + strconv.Itoa(p.Pid) + "\n" + Alive); err != nil {
		return nil, err
	}
	return p, nil
}

// links returns the two ends of a link.
func links() (ours, theirs link, err error) {
	if theirs.r, ours.w, err = os.Pipe(); err != nil {
		return link{}, link{}, err
	}
	if ours.r, theirs.w, err = os.Pipe(); err != nil {
		return link{}, link{}, errors.Join(err, theirs.r.Close(), ours.w.Close())
	}
	return ours, theirs, nil
}

func (s *Sockets) inherit(names string) error {
	syscall.CloseOnExec(envOlder)
	syscall.CloseOnExec(envOlder + 1)
	if err := syscall.SetNonblock(envOlder, true); err != nil {
		return fmt.Errorf("activation: %w", err)
	}
	s.older = link{os.NewFile(envOlder, "older"), os.NewFile(envOlder+1, "older")}
	fd := envOlder + 2
	for len(names) > 0 {
		name, rest, err := cutName(names)
		if err != nil {
			return err
		}
		syscall.CloseOnExec(fd)
		s.files[name] = append(s.files[name], os.NewFile(uintptr(fd), name))
		names = rest
		fd++
	}
	return nil
}

func cutName(s string) (name, rest string, err error) {
	for i := range len(s) {
		if s[i] == ':' {
			return s[:i], s[i+1:], nil
		}
	}
	return "", "", fmt.Errorf("activation: malformed list of names %.50q", s)
}

// TellPredecessor passes a signal on to the process before this one, if that is
// there and is known.
func (s *Sockets) TellPredecessor(sig os.Signal) {
	if s.predecessor != nil {
		_ = s.predecessor.Signal(sig) // it may have gone
	}
}

// WaitForPredecessor returns when the process before this one has ended.
func (s *Sockets) WaitForPredecessor() {
	if s.older.r != nil {
		s.older.wait()
	}
}

// WaitForSuccessor returns when the process that Successor has started has ended.
func (s *Sockets) WaitForSuccessor() { s.younger.wait() }
