package user

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"posthouse/pkg/command"
	"posthouse/pkg/dsn"
)

func TestCommand(t *testing.T) {
	if err := os.Setenv("PATH", command.SearchPath); err != nil {
		t.Fatal(err)
	}
	for fd := 3; fd < 1024; fd++ { // of whoever runs the test
		syscall.CloseOnExec(fd)
	}
	u := self(t)
	d := serve(t, u, nil)
	for _, tt := range []struct{ command, status, text string }{
		{"cat", "2.0.0", "delivered to command: cat"},
		{"exit 0", "2.0.0", "delivered to command: exit 0"},
		{"true --with=options /and/files", "2.0.0", ""},
		{"cat >message; pwd >dir; env >env; ls -l /proc/self/fd/ >fds", "2.0.0", ""},
		{"exit 75", "4.3.0", "temporary failure"},
		{"exit 71", "4.3.0", ""},
		{"exit 67", "5.1.1", "user unknown"}, {"exit 68", "5.1.2", ""}, {"exit 73", "5.2.0", ""}, {"exit 78", "5.3.5", ""},
		{"exit 76", "5.5.0", ""}, {"exit 65", "5.6.0", ""}, {"exit 77", "5.7.0", ""}, {"exit 64", "5.3.0", ""},
		{"exit 1", "5.3.0", `command died with status 1: "exit 1"`}, {"exit 255", "5.3.0", ""},
		{"false", "5.3.0", ""},
		{"echo 5.1.6 has moved; exit 75", "5.1.6", "temporary failure. Command output: has moved"},
		{"echo 4.7.1 wait >&2; exit 1", "4.7.1", ""},
		{"echo 2.0.0 fine; exit 1", "5.3.0", ""},
		{"echo 5.1.6 no; exit 0", "2.0.0", ""},
		{"echo 'two\nlines'; exit 1", "5.3.0", ""},
		{"kill -TERM $$", "4.3.0", ""}, {"kill -KILL $$", "4.3.0", ""},
		{"no-such-command", "5.3.0", ""},
		{"/no/such/command", "5.3.0", ""},
		{" ", "2.0.0", ""}, // as the shell has it
		{"yes 2>/dev/null | head -c 1000000; exit 1", "5.3.0", ""},
		{"sleep 1000 & exit 0", "2.0.0", ""}, // holds the output open
	} {
		r := request()
		r.Command = tt.command
		r.Env = []string{"SENDER=s@example.org", "HOME=/tmp", "EMPTY="}
		got := d.ask(r)
		if got.Status.String() != tt.status || tt.text != "" && got.Text != tt.text || got.Found {
			t.Errorf("%s: %+v", tt.command, got)
		}
	}
	first, rest, _ := strings.Cut(read(t, u.Home, "message"), "\n")
	if want := prefix + "Subject: x\n\nFrom here\n"; rest != want || !strings.HasPrefix(first, "From s@example.org  ") {
		t.Errorf("message %q and %q, want %q", first, rest, want)
	}
	if got := read(t, u.Home, "dir"); got != u.Home+"\n" {
		t.Errorf("directory %q", got)
	}
	env := strings.Split(strings.TrimSpace(read(t, u.Home, "env")), "\n")
	for _, v := range []string{"SENDER=s@example.org", "EMPTY=", "HOME=" + u.Home, "USER=alice", "LOGNAME=alice", "SHELL=/bin/sh", "PATH=" + command.SearchPath} {
		if !strings.Contains("\n"+strings.Join(env, "\n")+"\n", "\n"+v+"\n") {
			t.Errorf("environment %q lacks %s", env, v)
		}
	}
	if len(env) > 10 { // and PWD, and SHLVL and _ of some shells
		t.Errorf("environment %q", env)
	}
	// 0, 1, 2, and that of ls itself.
	if got := read(t, u.Home, "fds"); strings.Count(got, "->") != 4 {
		t.Errorf("descriptors:\n%s", got)
	}
}

func TestEnvironment(t *testing.T) {
	d := serve(t, self(t), nil)
	for _, v := range []string{"", "X", "=x", "1X=x", "A B=x", "X=a\nb", "X=\x1b[0m", "BASH_FUNC_x%%=() { :; }"} {
		r := request()
		r.Command, r.Env = "cat >ran", []string{v}
		if got := d.ask(r); got.Status.Class() != dsn.Transient {
			t.Errorf("%q: %+v", v, got)
		}
	}
	u := self(t)
	u.Home = filepath.Join(t.TempDir(), "none")
	r := request()
	r.Command = "test `pwd` = /"
	if got := serve(t, u, nil).ask(r); got.Status.Class() != dsn.Success {
		t.Errorf("no home: %+v", got)
	}
	// Whether there is one cannot be known here: so it may be with a file server that is away.
	u.Home = filepath.Join(t.TempDir(), "home")
	if err := os.Symlink("home", u.Home); err != nil {
		t.Fatal(err)
	}
	if got := serve(t, u, nil).ask(r); got.Status.Class() != dsn.Transient {
		t.Errorf("home that cannot be looked at: %+v", got)
	}
}

// A command that takes too long ends, with all that it has started in its group.
func TestCommandTimeLimit(t *testing.T) {
	u := self(t)
	d := serve(t, u, nil)
	// The FIFO of who holds it open ends with the last of them.
	r := request()
	r.Command, r.Timeout = "mkfifo fifo; (sleep 1000; true) 3<>fifo & echo begun >begun; sleep 1000; true", 100*time.Millisecond
	for {
		got := d.ask(r)
		if got.Status.String() != "5.3.0" || !strings.Contains(got.Text, "time limit") {
			t.Fatalf("%+v", got)
		}
		if _, err := os.Stat(u.Home + "/begun"); err == nil {
			break
		}
		r.Timeout *= 2
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		f, err := os.OpenFile(u.Home+"/fifo", os.O_WRONLY|syscall.O_NONBLOCK, 0) // ENXIO where nobody has it open
		if err != nil {
			break
		}
		f.Close()
		if time.Now().After(end) {
			t.Fatal("something that the command has started still runs")
		}
	}
}

// A command does not get half a message for a whole one.
func TestMessageCannotBeRead(t *testing.T) {
	u := self(t)
	r := request()
	r.Command = "cat >message && echo whole >whole"
	content := io.MultiReader(strings.NewReader(strings.Repeat("x", 100_000)), iotest.ErrReader(errors.New("EIO")))
	_, err := u.command(t.Context(), r, content)
	if dsn.Of(err).Status.Class() != dsn.Transient || err == nil {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(u.Home + "/whole"); err == nil {
		t.Error("the command has seen an end")
	}
}

func TestEnvironmentIsVariables(t *testing.T) {
	for s, want := range map[string]bool{
		"A=": true, "_a9=x y=z\u00fc": true, "A": false, "=x": false, "9A=x": false, "A B=x": false, "A-B=x": false, "\u00c4=x": false,
		"A=x\ny": false, "A=\x7f": false, "A=\x00": false, "": false,
	} {
		if isVariable(s) != want {
			t.Errorf("%q: %t", s, !want)
		}
	}
}

func TestShellOnlyWhereItIsNeeded(t *testing.T) {
	t.Setenv("PATH", command.SearchPath)
	for line, want := range map[string]string{
		"cat -u /a_b=1,2:3 x@y%z!\t+": "cat", "/bin/cat .x": "/bin/cat",
		"cat $HOME": "/bin/sh", "cat 'x'": "/bin/sh", "cat x;id": "/bin/sh", "cat *": "/bin/sh", "cat \u00fc": "/bin/sh", "cat x\nid": "/bin/sh",
		"exit 75": "/bin/sh", "": "/bin/sh",
	} {
		if got := words(line); got[0] != want {
			t.Errorf("%q: %q", line, got)
		}
	}
}
