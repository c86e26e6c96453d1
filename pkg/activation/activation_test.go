package activation

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests run this program again, as systemd would: the sockets from
// descriptor 3 on, and LISTEN_PID naming the process itself.

// envChild holds what the child serves: KIND=NAME, separated by blanks.
const envChild = "POSTHOUSE_TEST_CHILD"

func TestMain(m *testing.M) {
	if plan, ok := os.LookupEnv(envChild); ok {
		if err := child(strings.Fields(plan)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child takes the sockets over and answers one client at each of them with the
// name and the kind under which it was asked for.
func child(plan []string) error {
	s, err := Take()
	if err != nil {
		return err
	}
	if os.Getenv("LISTEN_PID")+os.Getenv("LISTEN_FDS")+os.Getenv("LISTEN_FDNAMES") != "" {
		return errors.New("the variables are there for the next child too")
	}
	var serve []func()
	for _, item := range plan {
		kind, name, _ := strings.Cut(item, "=")
		switch kind {
		case "streams":
			all, err := s.Streams(name)
			if err != nil {
				return err
			}
			serve = append(serve, func() { answer(all, item) })
		case "packets":
			all, err := s.Packets(name)
			if err != nil {
				return err
			}
			serve = append(serve, func() { answer(all, item) })
		case "fifos":
			all, err := s.FIFOs(name)
			if err != nil {
				return err
			}
			serve = append(serve, func() { echo(all) })
		case "successor":
			return succeed(s)
		}
	}
	if err := s.Check(); err != nil {
		return err
	}
	for _, f := range serve {
		f()
	}
	return nil
}

// inherited counts the descriptors that programs get which this one starts.
func inherited() (n int) {
	for fd := range uintptr(100) {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			n++
		}
	}
	return n
}

// succeed starts a successor and ends when standard input does.
func succeed(s *Sockets) error {
	if s.older.r == nil {
		before := inherited()
		if _, err := s.Successor(); err != nil {
			return err
		}
		// What is started from now on, and may stay for longer, does not stand for this process.
		if after := inherited(); after != before {
			return fmt.Errorf("%d descriptors are for other programs, and not %d", after, before)
		}
		_, err := io.Copy(io.Discard, os.Stdin)
		fmt.Println("older ends")
		return err
	}
	all, err := s.Streams("a")
	if err != nil {
		return err
	}
	answer(all, fmt.Sprint("successor ", os.Getpid(), " ", WatchdogInterval()))
	s.WaitForPredecessor()
	fmt.Println("younger ends")
	return nil
}

func answer(listeners []Listener, text string) {
	for _, ln := range listeners {
		c, err := ln.Accept()
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Fprint(c, text)
		_ = c.Close()
	}
}

func echo(fifos []*os.File) {
	for _, f := range fifos {
		b := make([]byte, 100)
		n, err := f.Read(b)
		fmt.Printf("%s %v\n", b[:n], err)
		// Nothing is left, and nobody has to write to end the wait.
		_ = f.SetReadDeadline(time.Now().Add(time.Millisecond))
		n, err = f.Read(b)
		fmt.Println(n, errors.Is(err, os.ErrDeadlineExceeded))
	}
}

// passed is what systemd has opened, in the order of the descriptors.
type passed struct {
	names []string
	files []*os.File
}

func (p *passed) add(t *testing.T, name string, f *os.File, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	p.names = append(p.names, name)
	p.files = append(p.files, f)
}

// socket passes a new listening socket and returns its address.
func (p *passed) socket(t *testing.T, name, network, address string) net.Addr {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	f, err := ln.(interface{ File() (*os.File, error) }).File()
	p.add(t, name, f, err)
	return ln.Addr()
}

// command returns the child, which serves plan.
func (p *passed) command(t *testing.T, plan string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The shell knows the number of the process that it becomes.
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$0"`, exe)
	cmd.Env = append(os.Environ(), envChild+"="+plan, fmt.Sprint("LISTEN_FDS=", len(p.files)), "LISTEN_FDNAMES="+strings.Join(p.names, ":"))
	cmd.ExtraFiles = p.files
	return cmd
}

func dial(t *testing.T, a net.Addr) string {
	t.Helper()
	c, err := net.Dial(a.Network(), a.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := make([]byte, 100)
	n, err := c.Read(b) // one packet, or what the only Write wrote
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func fifo(t *testing.T) (*os.File, error) {
	name := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	return os.OpenFile(name, os.O_RDWR, 0) // as systemd does
}

func TestKinds(t *testing.T) {
	t.Parallel()
	var p passed
	f, err := fifo(t)
	p.add(t, "wake", f, err)
	tcp := p.socket(t, "a", "tcp", "127.0.0.1:0")
	unix := p.socket(t, "b", "unix", filepath.Join(t.TempDir(), "s"))
	path := filepath.Join(t.TempDir(), "p")
	packet := p.socket(t, "c", "unixpacket", path)
	loopback := "[::1]:0"
	if ln, err := net.Listen("tcp", loopback); err != nil { // not every machine has IPv6
		loopback = "127.0.0.1:0"
	} else if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	second := p.socket(t, "a", "tcp", loopback)
	if _, err := f.WriteString("written before"); err != nil {
		t.Fatal(err)
	}

	// "off" is a socket whose unit is off.
	cmd := p.command(t, "fifos=wake streams=off streams=a streams=b packets=c")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, w := range []struct {
		a    net.Addr
		want string
	}{{tcp, "streams=a"}, {second, "streams=a"}, {unix, "streams=b"}, {packet, "packets=c"}} {
		if got := dial(t, w.a); got != w.want {
			t.Errorf("%v: %q, want %q", w.a, got, w.want)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, &errs)
	}
	if want := "written before <nil>\n0 true\n"; out.String() != want {
		t.Errorf("%q, want %q", &out, want)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the child has removed what is systemd's: %v", err)
	}
}

func TestWrong(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ passed, plan, want string }{
		{"wake=stream", "fifos=wake", `"wake" is no FIFO`},
		{"wake=file", "fifos=wake", `"wake" is no FIFO`},
		{"smtp=fifo", "streams=smtp", `socket "smtp": no stream socket`},
		{"smtp=packet", "streams=smtp", `socket "smtp": no stream socket`},
		{"smtp=datagram", "streams=smtp", `socket "smtp": no stream socket`},
		{"smtp=connected", "streams=smtp", `socket "smtp": no listening socket`},
		{"ipc=fifo", "packets=ipc", `socket "ipc": no packet socket`},
		{"ipc=stream", "packets=ipc", `socket "ipc": no packet socket`},
		{"ipc=datagram", "packets=ipc", `socket "ipc": no packet socket`},
		{"ipc=packet other=stream", "packets=ipc", `socket "other" is served by nobody`},
		{"=packet", "packets=ipc", `socket "LISTEN_FD_3" is served by nobody`},
		{"", "packets=ipc fifos=wake", `none of the sockets ["ipc" "wake"]`},
	} {
		t.Run(tt.passed+" "+tt.plan, func(t *testing.T) {
			t.Parallel()
			var p passed
			for _, item := range strings.Fields(tt.passed) {
				name, kind, _ := strings.Cut(item, "=")
				p.open(t, name, kind)
			}
			out, err := p.command(t, tt.plan).CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v: %s, want status 1 and: %s", err, out, tt.want)
			}
		})
	}
}

// open passes what is not always a listening socket.
func (p *passed) open(t *testing.T, name, kind string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	switch kind {
	case "stream":
		p.socket(t, name, "unix", path)
	case "packet":
		p.socket(t, name, "unixpacket", path)
	case "fifo":
		f, err := fifo(t)
		p.add(t, name, f, err)
	case "file":
		f, err := os.Create(path)
		p.add(t, name, f, err)
	case "datagram":
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		f, err := c.File()
		p.add(t, name, f, err)
	case "connected":
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		p.add(t, name, os.NewFile(uintptr(pair[0]), "one"), err)
		t.Cleanup(func() { _ = syscall.Close(pair[1]) })
	}
}

// TestOther passes sockets that are another process's.
func TestOther(t *testing.T) {
	t.Parallel()
	var p passed
	p.socket(t, "a", "tcp", "127.0.0.1:0")
	cmd := p.command(t, "streams=a")
	cmd.Args[2] = `LISTEN_PID=1 exec "$0"`
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), `none of the sockets ["a"]`) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestMalformed has what a predecessor says cut off.
func TestMalformed(t *testing.T) {
	t.Parallel()
	for _, names := range []string{"a", "a:b"} {
		var p passed
		p.socket(t, "a", "tcp", "127.0.0.1:0")
		p.socket(t, "a", "tcp", "127.0.0.1:0")
		cmd := p.command(t, "streams=a")
		cmd.Env = append(cmd.Env, envNames+"="+names)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "malformed list of names") {
			t.Errorf("%q: %v: %s", names, err, out)
		}
	}
}

// TestSuccessor has the socket served by the successor while its predecessor is
// there, which ends first.
func TestSuccessor(t *testing.T) {
	t.Parallel()
	notify := filepath.Join(t.TempDir(), "notify")
	states, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer states.Close()
	var p passed
	f, err := fifo(t)
	p.add(t, "wake", f, err)
	a := p.socket(t, "a", "tcp", "127.0.0.1:0")
	cmd := p.command(t, "successor")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notify, "WATCHDOG_USEC=3000000")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	older, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := states.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	pid, rest, _ := strings.Cut(strings.TrimPrefix(string(b[:n]), "MAINPID="), "\n")
	if rest != Alive {
		t.Errorf("%q is no sign of life", rest)
	}
	// The watchdog is fed by the main process, whichever it is.
	want := "successor " + pid + " 1.5s"
	if got := dial(t, a); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if err := older.Close(); err != nil {
		t.Fatal(err)
	}
	// Wait returns when nobody has standard output and error any more.
	if err := cmd.Wait(); err != nil || out.String() != "older ends\nyounger ends\n" {
		t.Errorf("%v: %s%s", err, &out, &errs)
	}
}

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify(Ready); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	path := filepath.Join(t.TempDir(), "notify")
	t.Setenv("NOTIFY_SOCKET", path)
	if err := Notify(Ready); err == nil {
		t.Error("no error where nobody listens")
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, state := range []string{Ready, Alive, "MAINPID=1"} {
		if err := Notify(state); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		if n, err := c.Read(b); err != nil || string(b[:n]) != state {
			t.Errorf("%q %v, want %q", b[:n], err, state)
		}
	}
}

// TestNotifyWithoutDescriptors: a process that has none left is still alive.
func TestNotifyWithoutDescriptors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	t.Setenv("NOTIFY_SOCKET", path)
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := Notify(Ready); err != nil {
		t.Fatal(err)
	}
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	alive := Notify(Alive)
	if err := errors.Join(alive, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old)); err != nil {
		t.Error(err)
	}
}

func TestWatchdogInterval(t *testing.T) {
	self := fmt.Sprint(os.Getpid())
	for _, tt := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0}, {"3000000", self, 1500 * time.Millisecond}, {"3000000", "", 1500 * time.Millisecond},
		{"3000000", "1", 0}, {"x", self, 0}, {"-5", self, 0},
	} {
		t.Setenv("WATCHDOG_USEC", tt.usec)
		t.Setenv("WATCHDOG_PID", tt.pid)
		if got := WatchdogInterval(); got != tt.want {
			t.Errorf("WATCHDOG_USEC=%s WATCHDOG_PID=%s: %v, want %v", tt.usec, tt.pid, got, tt.want)
		}
	}
}
