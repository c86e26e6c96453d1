package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/activation"
	"posthouse/pkg/ipc"
)

// mainPID waits until the n-th successor is notified, and returns its number.
func (u *unit) mainPID(n int) (pid int) {
	u.t.Helper()
	u.wait(fmt.Sprint("successor ", n), func() bool {
		i := 0
		for _, s := range u.states {
			if text, ok := strings.CutPrefix(s, "MAINPID="); ok {
				if i++; i == n {
					pid, _ = strconv.Atoi(text)
				}
			}
		}
		return pid != 0
	})
	return pid
}

// TestHandOver: while a long session keeps a process, its successor serves, and
// goes when both have nothing more to do.
func TestHandOver(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "handoff", "max_use: 3, max_idle: 24h")
	a, path := u.stream("s"), u.packets("i")
	u.start()
	long := begin(t, a)
	// For its successor: the first one could go before its first client is taken.
	u.configure("limits", "daemons: {showq: {max_use: 3, max_idle: 10ms}}")
	pid := long.pid()
	begin(t, a).quit()
	begin(t, a).quit() // the last use
	next := u.mainPID(1)
	// It serves more than max_use, for there is never a third process.
	for i := range 10 {
		s := begin(t, a)
		if got := s.pid(); got != next || got == pid {
			t.Fatalf("session %d is served by %d, want %d, after %d", i, got, next, pid)
		}
		s.quit()
	}
	kept := greeted(t, path)
	if err := kept.ask(); err != nil {
		t.Fatal(err)
	}
	// Nothing is to be done, and yet it stays.
	time.Sleep(50 * time.Millisecond)
	s := begin(t, a)
	if s.pid() != next {
		t.Error("the successor has ended before its predecessor")
	}
	s.quit()
	if long.pid() != pid {
		t.Error("a session in two processes")
	}
	long.quit()
	u.checkEnds(2, 0)
	u.waitState(activation.Ready, 2) // what was sent may not have been read yet
	u.waitState("BARRIER=1", 1)
	u.mu.Lock()
	states := slices.Clone(u.states)
	u.mu.Unlock()
	slices.Sort(states)
	if want := []string{"BARRIER=1", "MAINPID=" + strconv.Itoa(next), activation.Ready, activation.Ready, activation.Alive}; !slices.Equal(states, want) {
		t.Errorf("notified %q, want %q", states, want)
	}
}

// TestBusySystemd: a process does not end before systemd knows its successor.
func TestBusySystemd(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "handoff", stay)
	a := u.stream("s")
	u.start()
	u.waitState(activation.Ready, 1)
	long := begin(t, a)
	pid := long.pid()
	u.reading.Lock()
	long.ask("hup")
	for other := pid; other == pid; { // until the successor serves
		s := begin(t, a)
		other = s.pid()
		s.quit()
	}
	long.quit()
	time.Sleep(100 * time.Millisecond)
	if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || len(args) == 0 { // of one that has ended
		t.Errorf("it has ended; %v", err)
	}
	u.reading.Unlock()
	u.waitState("BARRIER=1", 1)
	u.signal(syscall.SIGTERM)
	u.checkEnds(2, 0)
}

// TestUsedUpSuccessor: a successor that has served enough goes when it can.
func TestUsedUpSuccessor(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "handoff", "max_use: 2, max_idle: 24h")
	a := u.stream("s")
	u.start()
	long := begin(t, a)
	begin(t, a).quit()
	u.mainPID(1)
	for range 3 {
		begin(t, a).quit()
	}
	long.quit()
	u.checkEnds(2, 0)
}

// TestLoop: a loop runs in one process at a time, also where a successor starts
// while sessions are served.
func TestLoop(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "loop", stay)
	a := u.stream("s")
	u.start()
	long := begin(t, a)
	pid := long.pid()
	u.waitOutput("loop begins", 1)
	long.ask("hup")
	next := u.mainPID(1)
	u.waitOutput("loop begins", 2)
	long.quit()
	u.signal(syscall.SIGTERM)
	u.checkEnds(2, 0)
	var got []string
	for line := range strings.Lines(u.text.String()) {
		if strings.HasPrefix(line, "loop ") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	want := fmt.Sprintf("[loop begins %d loop ends %d true loop begins %d loop ends %d true]", pid, pid, next, next)
	if fmt.Sprint(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestRenewSuccessor: SIGHUP reaches a successor at any moment of its life and
// does it no harm.
func TestRenewSuccessor(t *testing.T) {
	t.Parallel()
	for i := range 10 {
		u := newUnit(t, "handoff", stay)
		a := u.stream("s")
		u.start()
		long := begin(t, a)
		long.ask("hup")
		next := u.mainPID(1)
		time.Sleep(time.Duration(i) * time.Millisecond)
		if err := syscall.Kill(next, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		begin(t, a).quit()
		long.quit()
		u.signal(syscall.SIGTERM)
		// The successor may have been renewed in its turn, by one that is still starting.
		u.wait("end", func() bool { return len(u.ends) >= 2 })
		u.mu.Lock()
		for i, s := range u.ends {
			if s != 0 && (i < 2 || s != -int(syscall.SIGTERM)) {
				t.Errorf("ended with status %v; output:\n%s", u.ends, u.text.String())
			}
		}
		u.mu.Unlock()
	}
}

// TestStopSuccessor: what a process is told while its successor starts, that one
// is told too.
func TestStopSuccessor(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "handoff", stay)
	a := u.stream("s")
	u.start()
	long := begin(t, a)
	pid := long.pid()
	long.ask("hup")
	next := u.mainPID(1)
	s := begin(t, a)
	if got := s.pid(); got != next {
		t.Fatalf("served by %d, want %d", got, next)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*session{long, s} {
		if got := s.ask(""); got != "stopping" {
			t.Errorf("a session hears %q", got)
		}
		s.quit()
	}
	u.checkEnds(2, 0)
}

// TestStopOrder: a successor that is stopped passes that on to its predecessor, and
// stays until that has gone, for systemd would take its end for that of the daemon.
func TestStopOrder(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "handoff", stay)
	a := u.stream("s")
	u.start()
	long := begin(t, a)
	long.ask("hup")
	next := u.mainPID(1)
	s := begin(t, a)
	if err := syscall.Kill(next, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*session{s, long} {
		if got := s.ask(""); got != "stopping" {
			t.Errorf("a session hears %q", got)
		}
	}
	s.quit()
	time.Sleep(50 * time.Millisecond)
	u.mu.Lock()
	if strings.Contains(u.text.String(), "on end") {
		t.Error("the successor has ended first")
	}
	u.mu.Unlock()
	long.quit()
	u.checkEnds(2, 0)
}

// TestLostSuccessor: a process whose successor has ended is in the way, and goes
// as if it had been told to.
func TestLostSuccessor(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, file, content string // that its successor meets
		end                 func(u *unit, next int) error
	}{
		{"told before it can hear", "hang", "", func(u *unit, next int) error {
			u.waitOutput("hangs", 1)
			return syscall.Kill(next, syscall.SIGTERM)
		}},
		{"killed", "none", "", func(u *unit, next int) error {
			u.waitState(activation.Ready, 2)
			return syscall.Kill(next, syscall.SIGKILL)
		}},
		{"has not started", "conf.d/more.yaml", "nonsense: 1\n", func(*unit, int) error { return nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := newUnit(t, "hang", stay)
			a := u.stream("s")
			u.start()
			long := begin(t, a)
			if err := os.WriteFile(filepath.Join(u.dir, tt.file), []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			long.ask("hup")
			if err := tt.end(u, u.mainPID(1)); err != nil {
				t.Fatal(err)
			}
			if got := long.ask(""); got != "stopping" {
				t.Errorf("the session hears %q", got)
			}
			long.quit()
			u.wait("end", func() bool { return len(u.ends) == 2 })
			u.mu.Lock()
			if u.ends[0] != 0 || u.ends[1] == 0 {
				t.Errorf("ended with status %v", u.ends)
			}
			u.mu.Unlock()
			u.waitLog("the process that was to take over has ended")
		})
	}
}

// TestNoHandOver: a process of which clients want nothing needs no successor.
func TestNoHandOver(t *testing.T) {
	t.Parallel()
	// When it ends even a connection without a request may be closed.
	u := newUnit(t, "handoff", "max_idle: "+(2*firstPatience).String())
	path := u.packets("i")
	// Both are there before the process, which could go before this one comes to it.
	r := dialled(t, path)
	dialled(t, path)
	if err := r.c.Send(ipc.NewMessage()); err != nil {
		t.Fatal(err)
	}
	u.start()
	for _, what := range []string{"greeting", "answer"} {
		if _, err := r.c.Receive(100); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	u.checkEnds(1, 0)
	u.checkStates(activation.Ready)
}

// pending reports whether there is a byte in the FIFO.
func (u *unit) pending(i int) bool {
	u.t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(u.files[i].Fd()), Events: unix.POLLIN}}, 0)
	if err != nil {
		u.t.Fatal(err)
	}
	return n > 0
}

// TestHold: a process that is on hold does not go for being idle; where it goes
// for another reason the next one is started.
func TestHold(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, mode string
		end        func(*session, *unit)
		again      bool
	}{
		{"renewed", "hold", func(s *session, _ *unit) { s.ask("hup") }, true},
		{"stopped", "hold", func(_ *session, u *unit) { u.signal(syscall.SIGTERM) }, false},
		{"released", "hold", func(s *session, _ *unit) { s.ask("release") }, false},
		{"not on hold", "plain", func(s *session, _ *unit) { s.ask("hup") }, false},
		// What a process does with its last breath is no reason to start another.
		{"idle", "hold at the end", func(s *session, _ *unit) { s.ask("release") }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			limits := "max_use: 0, max_idle: 10ms"
			if tt.mode == "plain" {
				limits = stay // or it could go before its client is taken
			}
			u := newUnit(t, tt.mode, limits)
			a := u.stream("s")
			fifo := u.fifo("f")
			u.start()
			s := begin(t, a)
			pid := s.pid()
			if tt.mode == "hold" {
				s.quit()
				time.Sleep(50 * time.Millisecond)
				if s = begin(t, a); s.pid() != pid {
					t.Fatal("ended while on hold")
				}
			}
			tt.end(s, u)
			_, _ = s.c.ask("quit")
			u.checkEnds(1, 0)
			if got := u.pending(1); got != tt.again {
				t.Errorf("the next process is asked for: %v", got)
			}
			if !tt.again {
				return
			}
			u.start()
			u.waitOutput("look", 1)
			if _, err := fifo.Write([]byte{0}); err != nil {
				t.Error(err)
			}
			u.waitOutput("look", 2)
		})
	}
}

// TestReady: systemd hears of it when set-up is complete.
func TestReady(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "slow", stay)
	u.stream("s")
	u.start()
	u.waitState(activation.Ready, 1)
	u.checkStates("STATUS=setup begins", "STATUS=setup ends", activation.Ready)
}

// TestWatchdog: a process shows that it lives as long as it lives.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "plain", stay)
	u.env = []string{"WATCHDOG_USEC=20000"}
	a := u.stream("s")
	u.start()
	s := begin(t, a)
	u.waitState(activation.Alive, 5)
	s.ask("hup")
	s.waitForEnding()
	u.mu.Lock()
	n := count(u.states, activation.Alive)
	u.mu.Unlock()
	u.waitState(activation.Alive, n+5)
	s.quit()
	u.checkEnds(1, 0)
}

// TestWrongStart: a process that cannot serve says so, and has not been ready.
func TestWrongStart(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, mode, socket, config, want string
	}{
		{"configuration", "plain", "s", "nonsense: 1", "nonsense"},
		{"set-up", "unknown", "s", "", "no mode unknown"},
		{"no sockets", "plain", "", "", "none of the sockets"},
		{"a socket that nobody serves", "plain", "x", "", `socket "x" is served by nobody`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := newUnit(t, tt.mode, stay)
			if tt.socket != "" {
				u.stream(tt.socket)
			}
			u.configure("more", tt.config)
			u.start()
			u.checkEnds(1, 1)
			u.waitLog(tt.want)
			u.checkStates()
		})
	}
}

// TestListenerFails: a process that cannot accept any more ends with status 1,
// and not before its sessions.
func TestListenerFails(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "handoff", stay)
	a := u.stream("s")
	u.start()
	s := begin(t, a)
	if err := unix.Shutdown(int(u.files[0].Fd()), unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	s.waitForEnding()
	s.quit()
	u.checkEnds(1, 1)
	u.waitLog("accept: ")
	u.checkStates(activation.Ready)
}

// TestConfiguration: a change is noticed; one that is broken changes nothing and
// is reported.
func TestConfiguration(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "plain", stay)
	a := u.stream("s")
	u.configure("origin", "origin: one.example")
	u.start()
	s := begin(t, a)
	if got := s.ask("origin"); got != "one.example" {
		t.Fatalf("origin %q", got)
	}
	wait := func(ok func() bool) {
		t.Helper()
		for late := time.Now().Add(bound); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(late) {
				t.Fatalf("not noticed; origin %s", s.ask("origin"))
			}
		}
	}
	u.configure("origin", "origin: two.example")
	wait(func() bool { return s.ask("origin") == "two.example" })
	u.configure("origin", "origin: three.example\nnonsense: 1")
	for range 50 { // longer than files have to be quiet until they count
		time.Sleep(100 * time.Millisecond)
		if got := s.ask("origin"); got != "two.example" {
			t.Fatalf("origin %q", got)
		}
	}
	u.waitLog("the old one stays in force")
	u.configure("origin", "origin: four.example")
	wait(func() bool { return s.ask("origin") == "four.example" })
	s.quit()
}

// TestPanic: a fault of the program ends the process at once.
func TestPanic(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "plain", stay)
	a := u.stream("s")
	u.start()
	other, s := begin(t, a), begin(t, a)
	if line, err := s.c.ask("panic"); err == nil {
		t.Errorf("answer %q", line)
	}
	if line, err := other.c.line(); err == nil {
		t.Errorf("the other session hears %q", line)
	}
	u.checkEnds(1, 2)
	u.mu.Lock()
	defer u.mu.Unlock()
	if text := u.text.String(); strings.Contains(text, "on end") || !strings.Contains(text, "a bug in a handler") {
		t.Errorf("output %s", text)
	}
}

// TestToldAtTheEnd: an order to stop that comes when all has been served is heard, or
// the successor would not be told.
func TestToldAtTheEnd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "") // or whoever has started this hears of it
	for range 50 {                // a select with two cases that are ready
		stopped := false
		d := &Daemon{sockets: &activation.Sockets{}, stop: func() { stopped = true }}
		d.signals.term = make(chan os.Signal, 1)
		d.signals.term <- syscall.SIGTERM
		drained := make(chan bool, 1)
		drained <- false
		if _, told := d.drain(drained, false); !told || !stopped {
			t.Fatal("the order was not heard")
		}
	}
}
