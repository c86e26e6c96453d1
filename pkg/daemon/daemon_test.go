package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/activation"
	"posthouse/pkg/ipc"
	"posthouse/pkg/wire"
)

// A process of a test goes by itself for no other reason than the one under test.
const stay = "max_clients: 100, max_use: 0, max_idle: 24h"

// client is one session at the stream socket.
type client struct {
	net.Conn
	lines *bufio.Reader
}

// connect connects; a greeting may be long in coming.
func connect(a net.Addr) (*client, error) {
	c, err := net.DialTimeout(a.Network(), a.String(), bound)
	if err != nil {
		return nil, err
	}
	return &client{c, bufio.NewReader(c)}, c.SetDeadline(time.Now().Add(bound))
}

func (c *client) line() (string, error) {
	line, err := c.lines.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

func (c *client) ask(question string) (string, error) {
	if question != "" {
		if _, err := fmt.Fprintln(c, question); err != nil {
			return "", err
		}
	}
	return c.line()
}

// session is a client whose every step has to succeed.
type session struct {
	t *testing.T
	c *client
}

func open(t *testing.T, a net.Addr) *session {
	t.Helper()
	c, err := connect(a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &session{t, c}
}

// openLate opens a session that is not served, of a daemon that ends. It says so a moment
// before it accepts no more: who comes in that moment is served.
func openLate(t *testing.T, a net.Addr) *session {
	t.Helper()
	for range 1000 {
		s := open(t, a)
		if _, err := s.listen(); errors.Is(err, os.ErrDeadlineExceeded) {
			return s
		}
		_ = s.c.Close()
	}
	t.Fatal("sessions are still served")
	return nil
}

// begin opens a session and waits until it is served.
func begin(t *testing.T, a net.Addr) *session {
	t.Helper()
	s := open(t, a)
	s.hello()
	return s
}

func (s *session) hello() {
	s.t.Helper()
	if got := s.ask(""); !strings.HasPrefix(got, "hello ") {
		s.t.Fatalf("greeting %q", got)
	}
}

func (s *session) ask(question string) string {
	s.t.Helper()
	answer, err := s.c.ask(question)
	if err != nil {
		s.t.Fatalf("%q: %v", question, err)
	}
	return answer
}

// pid returns the process that serves the session.
func (s *session) pid() int {
	s.t.Helper()
	n, err := strconv.Atoi(s.ask("pid"))
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// waitForEnding waits until the daemon takes nobody any more.
func (s *session) waitForEnding() {
	s.t.Helper()
	for s.ask("ending") != "true" {
		time.Sleep(time.Millisecond)
	}
}

// waitForIdle waits until n connections wait for a request, and there is no client
// beside them and this one. Who is greeted does not wait yet, and the next one may
// come first.
func (s *session) waitForIdle(n int) {
	s.t.Helper()
	for s.ask("waiting") != fmt.Sprintf("%d of %d", n, n+1) {
		time.Sleep(time.Millisecond)
	}
}

// quit ends the session and waits until the daemon has closed the connection.
func (s *session) quit() {
	s.t.Helper()
	if _, err := s.c.ask("quit"); err != io.EOF {
		s.t.Errorf("quit: %v", err)
	}
}

// silent tests that the daemon says nothing. It can be wrong where the daemon is
// slow, but then it only misses a fault.
func (s *session) silent() {
	s.t.Helper()
	if line, err := s.listen(); !errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Fatalf("%q, %v, want nothing yet", line, err)
	}
}

// listen returns what is said within a moment.
func (s *session) listen() (string, error) {
	_ = s.c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	line, err := s.c.line()
	_ = s.c.SetReadDeadline(time.Now().Add(bound))
	return line, err
}

func pidOf(answer []byte) (int, error) {
	d := wire.NewDecoder(answer)
	pid := d.Int64()
	return int(pid), d.End()
}

// request asks over a connection of c for the process that answers, when there
// is a file of this name.
func request(c *ipc.Client, name string) (pid int, err error) {
	m := ipc.NewMessage()
	m.Raw([]byte(name))
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	err = c.Call(ctx, m, nil, func(b []byte) error {
		pid, err = pidOf(b)
		return err
	})
	return pid, err
}

// raw is a connection to the packet socket without the cleverness of a client.
type raw struct {
	t *testing.T
	c *ipc.Conn
}

// greeted connects and waits for the greeting.
func greeted(t *testing.T, path string) *raw {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	c, _, err := ipc.NewClient(path, testProtocol).Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &raw{t, c}
}

// dialled connects and does not wait for the greeting.
func dialled(t *testing.T, path string) *raw {
	t.Helper()
	nc, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := ipc.NewConn(nc)
	if err = errors.Join(err, nc.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &raw{t, c}
}

// visit makes one request and leaves; the daemon knows that when it returns.
func visit(t *testing.T, path string) {
	t.Helper()
	r := dialled(t, path)
	defer r.c.Close()
	if _, err := r.c.Receive(100); err != nil {
		t.Fatalf("greeting: %v", err)
	}
	if err := errors.Join(r.ask(), r.c.CloseWrite()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.Receive(100); !errors.Is(err, io.EOF) {
		t.Errorf("%v, want the end", err)
	}
}

func (r *raw) ask() error {
	err := r.c.Send(ipc.NewMessage())
	if err == nil {
		_, err = r.c.Receive(100)
	}
	return err
}

// TestDeaf: a client that reads no answers is sent away, and keeps the daemon from
// nothing.
func TestDeaf(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "impatient", stay)
	path := u.packets("i")
	u.start()
	r := greeted(t, path)
	var err error
	for err == nil {
		err = r.c.Send(ipc.NewMessage())
	}
	if !isEnd(err) {
		t.Errorf("%v, and not the end of the connection", err)
	}
	u.signal(syscall.SIGHUP)
	u.checkEnds(1, 0)
}

// TestMaxClients: there are never more than max_clients, and who has no room
// waits and is served when there is some.
func TestMaxClients(t *testing.T) {
	t.Parallel()
	const most = 3
	u := newUnit(t, "plain", fmt.Sprint("max_clients: ", most))
	a := u.stream("s")
	u.start()
	var first []*session
	for range most {
		first = append(first, begin(t, a))
	}
	late := open(t, a)
	late.silent()
	first[0].quit()
	if got := late.ask(""); got != fmt.Sprint("hello ", most) {
		t.Errorf("%q, want all room to be used", got)
	}
	late.quit()
	for _, s := range first[1:] {
		s.quit()
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 10 {
				if n, err := crowd(a); err != nil || n > most {
					t.Errorf("%d clients at once, %v, want at most %d", n, err, most)
				}
			}
		})
	}
	wg.Wait()
}

// crowd returns how many sessions there are, this one included.
func crowd(a net.Addr) (n int, err error) {
	c, err := connect(a)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	line, err := c.ask("")
	if err == nil {
		_, err = fmt.Sscanf(line, "hello %d", &n)
	}
	return n, err
}

// TestMaxUse: the process ends with its last use, and not before.
func TestMaxUse(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"streams", "packets"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			u := newUnit(t, "plain", "max_use: 5, max_idle: 24h")
			a, path := u.stream("s"), u.packets("i")
			ended := u.start()
			keeper := begin(t, a) // the first use
			client := ipc.NewClient(path, testProtocol)
			for range 3 {
				if kind == "streams" {
					begin(t, a).quit()
				} else if _, err := request(client, ""); err != nil {
					t.Fatal(err)
				}
			}
			if got := keeper.ask("ending"); got != "false" {
				t.Errorf("after 4 uses of 5: ending %s", got)
			}
			if kind == "streams" {
				begin(t, a).quit()
			} else if _, err := request(client, ""); err != nil {
				t.Fatal(err)
			}
			keeper.waitForEnding()
			select {
			case <-ended:
				t.Error("ended before the last session")
			default:
			}
			keeper.quit()
			u.checkEnds(1, 0)
		})
	}
}

// TestLimitsBySocket: limits are those of the socket that was passed, not of the
// program, and not of a socket that was not.
func TestLimitsBySocket(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "limits by socket", "max_use: 100, max_idle: 24h}, dns: {max_use: 100, max_idle: 24h}, smtp: {max_use: 2, max_idle: 24h")
	a := u.stream("smtp")
	u.start()
	keeper := begin(t, a)
	if got := keeper.ask("ending"); got != "false" {
		t.Errorf("after 1 use of 2: ending %s", got)
	}
	begin(t, a).quit()
	keeper.waitForEnding()
	keeper.quit()
	u.checkEnds(1, 0)
}

// TestMaxIdle: processes end again and again just when clients come, and none of
// those is refused, reset or kept waiting; nor is a byte in the FIFO lost.
func TestMaxIdle(t *testing.T) {
	t.Parallel()
	const ends = 200
	u := newUnit(t, "plain", "max_idle: 10ms")
	a, path, fifo := u.stream("s"), u.packets("i"), u.fifo("f")
	stop := u.activate()
	client := ipc.NewClient(path, testProtocol)
	ask := func(c *ipc.Client) error {
		for {
			start := time.Now()
			_, err := request(c, "")
			// Whoever takes that long for a request may have to ask again.
			if took := time.Since(start); err == nil || took < firstPatience || took >= bound {
				return err
			}
		}
	}
	kinds := map[string]func() error{
		"stream": func() error {
			_, err := crowd(a)
			return err
		},
		"packet on a kept connection": func() error { return ask(client) },
		"packet on a new connection": func() error {
			c := ipc.NewClient(path, testProtocol)
			defer c.Close()
			return ask(c)
		},
		"byte": func() error {
			_, err := fifo.Write([]byte{1})
			return err
		},
	}
	rounds := 0
	for n := 0; n < ends && !t.Failed(); rounds++ {
		var wg sync.WaitGroup
		for kind, f := range kinds {
			wg.Go(func() {
				if err := f(); err != nil {
					t.Errorf("%s, after %d ends: %v", kind, n, err)
				}
			})
		}
		wg.Wait()
		u.waitOutput("look", rounds+1) // one byte at a time
		// Just before the process ends, just then, and just after.
		time.Sleep(time.Duration(8+rounds%6) * time.Millisecond)
		u.mu.Lock()
		n = len(u.ends)
		u.mu.Unlock()
	}
	stop()
	u.checkEnds(ends, 0)
	u.mu.Lock()
	defer u.mu.Unlock()
	if got := strings.Count(u.text.String(), "look"); got != rounds {
		t.Errorf("%d looks for %d bytes", got, rounds)
	}
	if got := strings.Count(u.text.String(), "on end 0 0"); got != len(u.ends) {
		t.Errorf("%d of %d processes were still busy when they ended", len(u.ends)-got, len(u.ends))
	}
}

// TestStop: SIGTERM has sessions told and everything served that has begun.
func TestStop(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "plain", stay)
	a, path := u.stream("s"), u.packets("i")
	u.start()
	s, kept := begin(t, a), greeted(t, path)
	if err := kept.ask(); err != nil {
		t.Fatal(err)
	}
	type result struct {
		pid int
		err error
	}
	answered := make(chan result)
	go func() {
		pid, err := request(ipc.NewClient(path, testProtocol), "go on")
		answered <- result{pid, err}
	}()
	u.waitOutput("waits", 1)
	u.signal(syscall.SIGTERM)
	if got := s.ask(""); got != "stopping" {
		t.Errorf("the session hears %q", got)
	}
	s.waitForEnding()
	if err := kept.ask(); err == nil {
		t.Error("a connection without a request is still served")
	}
	late := openLate(t, a)
	u.checkStates(activation.Ready, activation.Stopping)
	u.signal(syscall.SIGTERM) // again, as people do
	pid := s.pid()
	s.quit()
	if err := os.WriteFile(filepath.Join(u.dir, "go on"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := <-answered; r.err != nil || r.pid != pid {
		t.Errorf("the request under way: process %d, %v, want %d", r.pid, r.err, pid)
	}
	u.checkEnds(1, 0)
	u.waitOutput("on end 0 0", 1)
	u.start()
	late.hello()
	if late.pid() == pid {
		t.Error("the process that has ended serves again")
	}
}

// TestPatience: a session that does not end when it is told is cancelled.
func TestPatience(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "plain", stay)
	a := u.stream("s")
	u.start()
	s := begin(t, a)
	if _, err := fmt.Fprintln(s.c, "stubborn"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	u.signal(syscall.SIGTERM)
	if got := s.ask("") + " " + s.ask(""); got != "stopping cancelled" {
		t.Errorf("the session hears %s", got)
	}
	if took := time.Since(start); took < stopPatience {
		t.Errorf("cancelled after %v", took)
	}
	u.checkEnds(1, 0)
}

// TestRenew: with SIGHUP the next client has a new process, and nobody is
// disturbed. SIGTERM is heard also while a process goes for such a reason.
func TestRenew(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "plain", stay)
	a := u.stream("s")
	u.start()
	s := begin(t, a)
	pid := s.pid()
	u.signal(syscall.SIGHUP)
	s.waitForEnding()
	u.checkStates(activation.Ready)
	if s.pid() != pid {
		t.Error("a session in two processes")
	}
	late := openLate(t, a)
	u.signal(syscall.SIGTERM)
	if got := s.ask(""); got != "stopping" {
		t.Errorf("the session hears %q", got)
	}
	s.quit()
	u.checkEnds(1, 0)
	u.start()
	late.hello()
	if late.pid() == pid {
		t.Error("no new process after SIGHUP")
	}
}

// TestEviction: where there is no room a connection that is only kept has to go,
// one and no more.
func TestEviction(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "plain", "max_clients: 3, max_use: 0, max_idle: 24h")
	path := u.packets("i")
	u.start()
	for range 100 { // what has gone takes no room
		visit(t, path)
	}
	kept := []*raw{greeted(t, path), greeted(t, path)}
	gone := make(chan int, len(kept))
	for i, r := range kept {
		if err := r.ask(); err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := r.c.Receive(100)
			if errors.Is(err, io.EOF) {
				gone <- i
			}
		}()
	}
	greeted(t, path) // takes the last room: that for the next client has to be made
	other := kept[1-<-gone]
	if err := other.c.Send(ipc.NewMessage()); err != nil { // the answer is for the goroutine
		t.Errorf("the other connection: %v", err)
	}
	greeted(t, path)
}

// TestPerUser: who has all the connections that one user may have gets no other,
// though there is room, until one of them has ended, or has waited for too long.
func TestPerUser(t *testing.T) {
	t.Parallel()
	for try := 0; ; try++ {
		u := newUnit(t, "per user", "max_clients: 9, max_use: 0, max_idle: 24h")
		a, path := u.stream("s"), u.packets("i")
		u.start()
		keeper := begin(t, a)
		start := time.Now()
		first, second := greeted(t, path), greeted(t, path)
		_, _, err := ipc.NewClient(path, testProtocol).Get(t.Context())
		if took := time.Since(start); took >= firstPatience && try < 100 {
			t.Logf("this machine takes %v", took) // they have waited for too long
			continue
		}
		if !ipc.Ended(err) {
			t.Errorf("a third connection: %v", err)
		}
		if err := errors.Join(first.ask(), second.ask(), first.c.Close()); err != nil {
			t.Fatal(err)
		}
		keeper.waitForIdle(1)
		silent := u.another(path)
		for _, older := range []*raw{second, silent} { // one after the other has to go
			keeper.waitForIdle(2)
			u.another(path)
			if _, err := older.c.Receive(100); !ipc.Ended(err) {
				t.Errorf("a connection that waits: %v", err)
			}
		}
		return
	}
}

// another connects as soon as that is possible.
func (u *unit) another(path string) *raw {
	u.t.Helper()
	for deadline := time.Now().Add(bound); ; {
		c, _, err := ipc.NewClient(path, testProtocol).Get(u.t.Context())
		if err == nil {
			u.t.Cleanup(func() { _ = c.Close() })
			return &raw{u.t, c}
		}
		if !ipc.Ended(err) || time.Now().After(deadline) {
			u.t.Fatal(err)
		}
	}
}

// TestEvict: the one without use for longest goes, one that has had no request
// yet only after a while, and no other while one is about to go.
func TestEvict(t *testing.T) {
	now := time.Now()
	older, newer, silent, fresh := &ended{}, &ended{}, &ended{}, &ended{}
	d := &Daemon{evicted: make(map[caller]struct{}), idle: map[caller]pause{
		newer: {now.Add(-time.Second), true}, older: {now.Add(-time.Minute), true},
		fresh: {now.Add(time.Hour), false}, silent: {now.Add(-firstPatience - time.Millisecond), false},
	}}
	d.room = sync.NewCond(&d.mu)
	for i, want := range []*ended{older, newer, silent, nil} {
		d.evict().Stop()
		d.evict().Stop()
		for name, c := range map[string]*ended{"older": older, "newer": newer, "silent": silent, "fresh": fresh} {
			if c.told != (c == want) {
				t.Errorf("%d: %s has to go: %v", i, name, c.told)
			}
			c.told = false
		}
		clear(d.evicted)
	}
}

// ended is a connection that is told when to end.
type ended struct{ told bool }

func (e *ended) SetReadDeadline(t time.Time) error {
	e.told = t.Before(time.Now())
	return nil
}

// TestSilence: clients that connect and say nothing keep nobody out for long.
func TestSilence(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "plain", "max_clients: 3, max_use: 0, max_idle: 24h")
	a, path := u.stream("s"), u.packets("i")
	u.start()
	keeper := begin(t, a)
	start := time.Now()
	older := greeted(t, path)
	keeper.waitForIdle(1)
	greeted(t, path)
	if err := greeted(t, path).ask(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took < firstPatience {
		t.Errorf("closed after %v", took)
	}
	if _, err := older.c.Receive(100); !errors.Is(err, io.EOF) {
		t.Errorf("the older one: %v", err)
	}
}

// TestFirstRequest: a connection that was accepted before the process began to
// end has its request served.
func TestFirstRequest(t *testing.T) {
	t.Parallel()
	for try := 0; ; try++ {
		u := newUnit(t, "plain", stay)
		a, path := u.stream("s"), u.packets("i")
		u.start()
		s := begin(t, a)
		start := time.Now()
		c := greeted(t, path)
		s.ask("hup")
		s.waitForEnding()
		err := c.ask()
		if took := time.Since(start); took >= firstPatience && try < 100 {
			t.Logf("this machine takes %v", took) // what came of it tells nothing
			continue
		}
		if err != nil {
			t.Error(err)
		}
		if err := c.ask(); err == nil {
			t.Error("a second request is served")
		}
		s.quit()
		u.checkEnds(1, 0)
		return
	}
}

// TestDescriptors: a process that has run out of descriptors goes on when there
// are some again.
func TestDescriptors(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "plain", stay)
	a := u.stream("s")
	u.start()
	s := begin(t, a)
	pid := s.pid()
	var old unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: 1000}, &old); err != nil {
		t.Fatal(err)
	}
	late := open(t, a)
	late.silent()
	u.waitLog("accept: ")
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1000, Max: 1000}, nil); err != nil {
		t.Fatal(err)
	}
	late.hello()
	if late.pid() != pid {
		t.Error("another process")
	}
}

// TestProcessors: a daemon that flushes has some, however few the machine has; the
// environment has the last word.
func TestProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	t.Setenv("GOMAXPROCS", "1")
	new(Daemon).Flushes()
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("%d processors, against the environment", n)
	}
	t.Setenv("GOMAXPROCS", "")
	for now, want := range map[int]int{1: flushers, flushers + 3: flushers + 3} {
		runtime.GOMAXPROCS(now)
		new(Daemon).Flushes()
		if n := runtime.GOMAXPROCS(0); n != want {
			t.Errorf("%d of %d processors, not %d", n, now, want)
		}
	}
}
