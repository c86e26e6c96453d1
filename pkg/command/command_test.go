package command

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"posthouse/pkg/dsn"
)

func sh(script string) *Command {
	return &Command{Name: "test", Args: []string{"/bin/sh", "-c", script}, Dir: "/", Limit: time.Hour, Late: dsn.MustParse("4.3.0")}
}

// message is a file with a message.
func message(t *testing.T, text string) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "message")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestVerdicts(t *testing.T) {
	for script, want := range map[string]string{
		"exit 0":                        "",
		"cat":                           "",
		"echo 5.1.6 no; exit 0":         "",
		"exit 75":                       "4.3.0 temporary failure",
		"exit 71":                       "4.3.0",
		"exit 67":                       "5.1.1",
		"exit 68":                       "5.1.2",
		"exit 69":                       "5.3.0",
		"exit 73":                       "5.2.0",
		"exit 77":                       "5.7.0",
		"exit 78":                       "5.3.5",
		"exit 1":                        "5.3.0",
		"exit 255":                      "5.3.0",
		"echo 5.1.6 has moved; exit 75": "5.1.6 temporary failure. Command output: has moved",
		"echo 4.7.1 wait >&2; exit 1":   "4.7.1",
		"echo 2.0.0 fine; exit 1":       "5.3.0",
		"kill -TERM $$":                 "4.3.0 command died: signal: terminated",
		"kill -KILL $$":                 "4.3.0",
		"yes 2>/dev/null | head -c 1000000; exit 67": "5.1.1",
	} {
		err := sh(script).Run(t.Context(), message(t, strings.Repeat("x\n", 100_000)))
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want) || len(err.Error()) > 2*maxOutput) {
			t.Errorf("%s: %v, want %q", script, err, want)
		}
	}
}

func TestWhatACommandHas(t *testing.T) {
	dir := t.TempDir()
	c := sh("cat >got; pwd >>got; echo $VAR >>got; echo $1 >>got")
	c.Dir, c.Env, c.Args = dir, []string{"VAR=value"}, append(c.Args, "sh", "two words; $(exit 1)")
	if err := c.Run(t.Context(), message(t, "text\n")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(dir + "/got")
	if want := "text\n" + dir + "\nvalue\ntwo words; $(exit 1)\n"; err != nil || string(b) != want {
		t.Errorf("%q, %v", b, err)
	}
	c.Dir = dir + "/none"
	if err := c.Run(t.Context(), message(t, "")); err == nil || dsn.Of(err).Status.Class() != dsn.Transient {
		t.Errorf("no directory: %v", err)
	}
	c = &Command{Name: "none", Args: []string{dir + "/none"}, Limit: time.Hour}
	if err := c.Run(t.Context(), message(t, "")); err == nil || dsn.Of(err).Status.Class() != dsn.Transient {
		t.Errorf("no program: %v", err)
	}
}

// released waits until nobody has the FIFO open.
func released(t *testing.T, fifo string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		f, err := os.OpenFile(fifo, os.O_WRONLY|syscall.O_NONBLOCK, 0) // ENXIO where nobody has it open
		if errors.Is(err, syscall.ENXIO) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if time.Now().After(end) {
			t.Fatal("something that the command has started still runs")
		}
	}
}

// What takes too long, or is not to go on, ends with all that it has started.
func TestEnds(t *testing.T) {
	const script = "mkfifo fifo; (trap '' TERM; sleep 1000; true) 3<>fifo & echo >begun; sleep 1000; true"
	dir := t.TempDir()
	c := sh(script)
	c.Dir, c.Limit, c.Late = dir, 100*time.Millisecond, dsn.MustParse("5.3.0")
	for {
		if err := c.Run(t.Context(), message(t, "")); err == nil || err.Error() != `5.3.0 command time limit exceeded: "test"` {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir + "/begun"); err == nil {
			break
		}
		c.Limit *= 2
	}
	released(t, dir+"/fifo")

	ctx, cancel := context.WithCancel(t.Context())
	c = sh(script)
	c.Dir = t.TempDir()
	go func() {
		for {
			if _, err := os.Stat(c.Dir + "/begun"); err == nil {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if err := c.Run(ctx, message(t, "")); err == nil || dsn.Of(err).Status.Class() != dsn.Transient || !strings.Contains(err.Error(), "going down") {
		t.Errorf("%v", err)
	}
	released(t, c.Dir+"/fifo")
}

// What cannot be read, or written, becomes no input: a command never takes half a
// message for a whole one.
func TestInput(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	text := strings.Repeat("x", 100_000)
	f, err := Input(func(w io.Writer) error { _, err := io.WriteString(w, text); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || string(b) != text {
		t.Errorf("%d octets, %v", len(b), err)
	}
	eio := errors.New("EIO")
	if _, err := Input(func(w io.Writer) error { _, _ = io.WriteString(w, text); return eio }); !errors.Is(err, eio) || dsn.Of(err).Status.Class() != dsn.Transient {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	t.Setenv("TMPDIR", dir+"/none")
	if _, err := Input(func(io.Writer) error { return nil }); err == nil || dsn.Of(err).Status.Class() != dsn.Transient {
		t.Errorf("no directory: %v", err)
	}
}
