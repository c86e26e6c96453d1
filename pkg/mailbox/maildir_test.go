package mailbox

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"posthouse/pkg/dsn"
)

// syncer counts, and fails at the call of the given number.
type syncer struct {
	calls, failAt int
	err           error
	onCall        func(call int, f, dir *os.File)
}

func (s *syncer) Write(f, dir *os.File) error { return s.Commit(f, dir) }

func (s *syncer) Commit(f, dir *os.File) error {
	s.calls++
	if s.onCall != nil {
		s.onCall(s.calls, f, dir)
	}
	if s.calls == s.failAt {
		return s.err
	}
	return nil
}

func files(t testing.TB, base string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func open(t testing.TB, base string, s Syncer) *Maildir {
	t.Helper()
	m, err := Open(base, "mail/1:2", s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

var path = []string{"example.org", "user", "Maildir"}

func TestDeliver(t *testing.T) {
	base := t.TempDir()
	s := &syncer{onCall: func(call int, f, dir *os.File) {
		// What is synced is whole, and where it should be.
		list := files(t, base)
		want := map[int]string{1: "/tmp/", 2: "/new/"}[call]
		if len(list) != 1 || !strings.Contains(list[0], want) {
			t.Errorf("sync %d with files %q", call, list)
		}
	}}
	m := open(t, base, s)
	if err := m.Deliver(path, "Return-Path: <>\n", strings.NewReader("a\r\nb\r\n")); err != nil {
		t.Fatal(err)
	}
	list := files(t, base)
	if len(list) != 1 || s.calls != 2 {
		t.Fatalf("files %q after %d syncs", list, s.calls)
	}
	got, err := os.ReadFile(list[0])
	if err != nil || string(got) != "Return-Path: <>\na\nb\n" {
		t.Errorf("%q, %v", got, err)
	}
	info, err := os.Stat(list[0])
	if err != nil || info.Mode() != 0o600 || !strings.HasSuffix(list[0], `.mail\0571\0722`) {
		t.Errorf("%s: %v, %v", list[0], info.Mode(), err)
	}
	for _, sub := range []string{"cur", "tmp", "new"} {
		if _, err := os.Stat(filepath.Join(base, "example.org/user/Maildir", sub)); err != nil {
			t.Error(err)
		}
	}
}

// TestPlainRename: not each file system can be told not to replace a file.
func TestPlainRename(t *testing.T) {
	defer func(f func(int, string, int, string, uint) error) { renameNew = f }(renameNew)
	renameNew = func(int, string, int, string, uint) error { return syscall.EINVAL }
	base := t.TempDir()
	if err := open(t, base, &syncer{}).Deliver(path, "", strings.NewReader("a\r\n")); err != nil {
		t.Fatal(err)
	}
	if list := files(t, base); len(list) != 1 || !strings.Contains(list[0], "/new/") {
		t.Errorf("files %q", list)
	}
}

func TestFailure(t *testing.T) {
	for _, tt := range []struct {
		at     int
		err    error
		status string
	}{
		{1, syscall.EIO, "4.2.0"}, {2, syscall.EIO, "4.2.0"}, {1, syscall.ENOSPC, "4.3.1"}, {1, syscall.EDQUOT, "5.2.2"}, {2, syscall.EDQUOT, "5.2.2"},
	} {
		base := t.TempDir()
		err := open(t, base, &syncer{failAt: tt.at, err: tt.err}).Deliver(path, "", strings.NewReader("x\r\n"))
		var e *dsn.Error
		if !errors.As(err, &e) || e.Status.String() != tt.status {
			t.Errorf("%v at sync %d: %v", tt.err, tt.at, err)
		}
		if list := files(t, base); len(list) != 0 {
			t.Errorf("%v at sync %d leaves %q", tt.err, tt.at, list)
		}
	}
	base := t.TempDir()
	err := open(t, base, &syncer{}).Deliver(path, "", iotest.ErrReader(errors.New("broken")))
	if err == nil || len(files(t, base)) != 0 {
		t.Errorf("%v leaves %q", err, files(t, base))
	}
}

func TestHostilePath(t *testing.T) {
	for _, bad := range []string{"..", ".", "", ".hidden", "a/b", "a\x00b", strings.Repeat("x", 256)} {
		base := t.TempDir()
		err := open(t, base, &syncer{}).Deliver([]string{"d", bad}, "", strings.NewReader("x"))
		var e *dsn.Error
		if !errors.As(err, &e) || e.Status.Class() != dsn.Permanent || len(files(t, base)) != 0 {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	// A link in the place of any directory is not followed.
	for _, at := range []string{"example.org", "example.org/user", "example.org/user/Maildir", "example.org/user/Maildir/new", "example.org/user/Maildir/tmp"} {
		base, outside := t.TempDir(), t.TempDir()
		if err := os.MkdirAll(filepath.Join(base, filepath.Dir(at)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, filepath.Join(base, at)); err != nil {
			t.Fatal(err)
		}
		if err := open(t, base, &syncer{}).Deliver(path, "", strings.NewReader("x")); err == nil {
			t.Errorf("link at %s is followed", at)
		}
		if list := files(t, outside); len(list) != 0 {
			t.Errorf("link at %s: %q", at, list)
		}
	}
}

// FuzzFill: the result does not depend on how the content is cut up, and turns
// CRLF into LF and nothing else.
func FuzzFill(f *testing.F) {
	f.Add([]byte("a\r\n\rb\r\r\n\n\r"))
	f.Fuzz(func(t *testing.T, content []byte) {
		want := "h" + strings.ReplaceAll(string(content), "\r\n", "\n")
		for _, r := range []io.Reader{bytes.NewReader(content), iotest.OneByteReader(bytes.NewReader(content)), iotest.DataErrReader(bytes.NewReader(content))} {
			var out bytes.Buffer
			if err := WriteLF(&out, "h", r); err != nil || out.String() != want {
				t.Fatalf("%q: %q, %v", content, out.String(), err)
			}
		}
	})
}
