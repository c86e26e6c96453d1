package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/cli"
	"posthouse/pkg/users"
)

// terminal returns both ends of one.
func terminal(t *testing.T) (keyboard, end *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { keyboard.Close() })
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		end, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { end.Close() })
	return keyboard, end
}

func shows(t *testing.T, f *os.File) bool {
	t.Helper()
	mode, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return mode.Lflag&unix.ECHO != 0
}

// TestPassword: a password is not seen on the screen, and ^C is an answer.
func TestPassword(t *testing.T) {
	for _, typed := range []string{"secret\n", ""} {
		keyboard, end := terminal(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var hash string
		done := make(chan error)
		go func() {
			var err error
			hash, err = readPassword(ctx, cli.Streams{In: end, Err: new(bytes.Buffer)})
			done <- err
		}()
		for shows(t, keyboard) {
			time.Sleep(time.Millisecond)
		}
		if typed == "" {
			cancel()
		} else if _, err := keyboard.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		err := <-done
		if typed == "" && !errors.Is(err, context.Canceled) || typed != "" && (err != nil || !users.Verify(hash, "secret")) {
			t.Errorf("%q: %v", typed, err)
		}
		if !shows(t, keyboard) {
			t.Errorf("%q: the terminal shows nothing any more", typed)
		}
	}
}

// TestUserErrors: what is wrong is named, and so is the status.
func TestUserErrors(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/tables", 0o755); err != nil {
		t.Fatal(err)
	}
	if got := userStatus(&os.PathError{Op: "open", Path: "x", Err: os.ErrPermission}); got != cli.NoPerm {
		t.Errorf("no permission: status %d", got)
	}
	if got := userStatus(fmt.Errorf("users: %w", &os.PathError{Op: "write", Path: "x", Err: unix.ENOSPC})); got != cli.IOErr {
		t.Errorf("a full disk: status %d", got)
	}
	if got := userStatus(fmt.Errorf("users: %w", &os.LinkError{Op: "rename", Old: "x", New: "y", Err: unix.EROFS})); got != cli.IOErr {
		t.Errorf("a disk that is read-only: status %d", got)
	}
	if err := os.WriteFile(dir+"/posthouse.yaml", []byte("orign: a.example\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := userCommand(&dir).Main(t.Context(), cli.Streams{Err: io.Discard}, []string{"add", "a@a.example"}); got != cli.Config {
		t.Errorf("a faulty configuration: status %d", got)
	}
	var out bytes.Buffer
	status := userCommand(&dir).Main(t.Context(), cli.Streams{Out: &out, Err: &out}, []string{"add", "alice"})
	if status != cli.Usage || out.String() != "alice has no domain\n" {
		t.Errorf("status %d, %s", status, &out)
	}
}
