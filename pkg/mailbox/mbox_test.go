package mailbox

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/dsn"
)

var date = time.Date(2026, 11, 4, 9, 8, 7, 0, time.UTC)

func mbox(t testing.TB, dir string, s Syncer) *Mbox {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &Mbox{Dir: f, Name: "alice", Owner: uint32(os.Getuid()), Sync: s}
}

// hurry makes tests not wait for locks.
func hurry(t *testing.T, tries int) {
	t.Helper()
	oldTries, oldPause := lockTries, lockPause
	lockTries, lockPause = tries, time.Millisecond
	t.Cleanup(func() { lockTries, lockPause = oldTries, oldPause })
}

func content(t testing.TB, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// seeking is a content that is read in some other way.
type seeking struct {
	io.Reader
	io.Seeker
}

func status(err error) string {
	var e *dsn.Error
	if !errors.As(err, &e) {
		return "none"
	}
	return e.Status.String()
}

func TestAppend(t *testing.T) {
	dir, s := t.TempDir(), &syncer{}
	b := mbox(t, dir, s)
	for _, m := range []struct{ from, head, body string }{
		{"s@example.org", "Return-Path: <s@example.org>\n", "Subject: x\r\n\r\nFrom here\r\n>From\r\nFro\r\nFFrom \r\nFrom \r\n"},
		{"", "", "no line end"},
		{"", "", "From"},
	} {
		body := strings.NewReader(m.body)
		if err := b.Append(m.from, date, m.head, seeking{iotest.OneByteReader(body), body}); err != nil {
			t.Fatal(err)
		}
	}
	line := "MAILER-DAEMON  Wed Nov  4 09:08:07 2026\n"
	want := "From s@example.org  Wed Nov  4 09:08:07 2026\nReturn-Path: <s@example.org>\nSubject: x\n\n>From here\n>From\nFro\nFFrom \n>From \n\n" +
		"From " + line + "no line end\n\nFrom " + line + "From\n\n"
	if got := content(t, dir); got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
	info, err := os.Stat(filepath.Join(dir, "alice"))
	if err != nil || info.Mode() != 0o600 || s.calls != 3 || len(files(t, dir)) != 1 {
		t.Errorf("%v, %v, %d syncs, %q", info.Mode(), err, s.calls, files(t, dir))
	}
}

// What another program, or a crash, has left does not run into the message.
func TestAppendBehindHalfAMessage(t *testing.T) {
	for before, gap := range map[string]string{"": "", "\n": "", "x": "\n\n", "x\n": "\n", "x\n\n": "", "\n\n": ""} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "alice"), []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := mbox(t, dir, &syncer{}).Append("", date, "", strings.NewReader("x\r\n")); err != nil {
			t.Fatal(err)
		}
		if got := content(t, dir); !strings.HasPrefix(got, before+gap+"From ") {
			t.Errorf("behind %q: %q", before, got)
		}
	}
}

// A delivery that fails leaves the mailbox as it was.
func TestAppendFails(t *testing.T) {
	const old = "From a\nold\n\n"
	long := strings.Repeat("0123456789abcdef", 8<<10)
	for what, tt := range map[string]struct {
		content io.ReadSeeker
		sync    error
		limit   int64
		status  string
	}{
		"sync":         {strings.NewReader("x\r\n"), syscall.EIO, 0, "4.2.0"},
		"stale":        {strings.NewReader("x\r\n"), syscall.ESTALE, 0, "4.2.0"},
		"full disk":    {strings.NewReader(long), syscall.ENOSPC, 0, "4.3.1"},
		"quota":        {strings.NewReader(long), syscall.EDQUOT, 0, "5.2.2"},
		"no message":   {seeking{io.MultiReader(strings.NewReader(long), iotest.ErrReader(errors.New("broken"))), strings.NewReader("")}, nil, 0, "4.2.0"},
		"limit":        {strings.NewReader(long), nil, 100_000, "5.2.2"},
		"over already": {strings.NewReader("x\r\n"), nil, 3, "5.2.2"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "alice"), []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		s := &syncer{err: tt.sync}
		if tt.sync != nil {
			s.failAt = 1
		}
		b := mbox(t, dir, s)
		b.Limit = tt.limit
		err := b.Append("", date, "", tt.content)
		if got := content(t, dir); got != old || status(err) != tt.status || len(files(t, dir)) != 1 {
			t.Errorf("%s: %v; left %.200q, %q", what, err, got, files(t, dir))
		}
	}
	// The limit is for the whole file, to the octet.
	const message = "From MAILER-DAEMON  Wed Nov  4 09:08:07 2026\nx\n\n"
	for limit, want := range map[int64]string{int64(len(message)): "none", int64(len(message)) - 1: "5.2.2"} {
		b := mbox(t, t.TempDir(), &syncer{})
		b.Limit = limit
		if err := b.Append("", date, "", strings.NewReader("x")); status(err) != want {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

// Only a plain file of the owner is written to.
func TestHostileMbox(t *testing.T) {
	hurry(t, 3)
	for what, plant := range map[string]func(dir, outside string) error{
		"symlink":        func(dir, outside string) error { return os.Symlink(outside, filepath.Join(dir, "alice")) },
		"dangling":       func(dir, outside string) error { return os.Symlink(outside+".new", filepath.Join(dir, "alice")) },
		"hard link":      func(dir, outside string) error { return os.Link(outside, filepath.Join(dir, "alice")) },
		"FIFO":           func(dir, _ string) error { return unix.Mkfifo(filepath.Join(dir, "alice"), 0o600) },
		"directory":      func(dir, _ string) error { return os.Mkdir(filepath.Join(dir, "alice"), 0o700) },
		"lock directory": func(dir, _ string) error { return os.Mkdir(filepath.Join(dir, "alice.lock"), 0o700) },
		"lock symlink":   func(dir, outside string) error { return os.Symlink(outside+".lock", filepath.Join(dir, "alice.lock")) },
	} {
		dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
		if err := os.WriteFile(outside, []byte("secret\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := plant(dir, outside); err != nil {
			t.Fatal(err)
		}
		err := mbox(t, dir, &syncer{}).Append("", date, "", strings.NewReader("x\r\n"))
		if status(err) != "4.2.0" {
			t.Errorf("%s: %v", what, err)
		}
		if list := files(t, filepath.Dir(outside)); len(list) != 1 {
			t.Errorf("%s: outside are %q", what, list)
		}
		if b, err := os.ReadFile(outside); err != nil || string(b) != "secret\n" {
			t.Errorf("%s: outside is %q, %v", what, b, err)
		}
	}
	// Where no file can be made it is not waited for that somebody makes it.
	hurry(t, 1<<30)
	gone := t.TempDir()
	m := mbox(t, gone, &syncer{})
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	if err := m.Append("", date, "", strings.NewReader("x")); status(err) != "4.2.0" {
		t.Errorf("in a directory that is gone: %v", err)
	}
	dir := t.TempDir()
	b := mbox(t, dir, &syncer{})
	b.Owner++
	if err := os.WriteFile(filepath.Join(dir, "alice"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := b.Append("", date, "", strings.NewReader("x")); status(err) != "4.2.0" || content(t, dir) != "" {
		t.Errorf("somebody else's: %v, %q", err, content(t, dir))
	}
}

// A lock of another program is waited for; one that is left over is not.
func TestLockFile(t *testing.T) {
	hurry(t, 3)
	dir := t.TempDir()
	lock := filepath.Join(dir, "alice.lock")
	if err := os.WriteFile(lock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := mbox(t, dir, &syncer{})
	if err := b.Append("", date, "", strings.NewReader("x")); status(err) != "4.2.0" || !strings.Contains(err.Error(), "locked") {
		t.Errorf("locked: %v", err)
	}
	old := time.Now().Add(-2 * staleAfter)
	if err := os.Chtimes(lock, old, old); err != nil {
		t.Fatal(err)
	}
	if err := b.Append("", date, "", strings.NewReader("x")); err != nil {
		t.Errorf("stale: %v", err)
	}
	if list := files(t, dir); len(list) != 1 {
		t.Errorf("left: %q", list)
	}
}

// The lock of the kernel is one against other programs, and one against other
// threads of this one, which do not have to see each other's lock file.
func TestKernelLock(t *testing.T) {
	hurry(t, 1) // after that the end of what was opened for it has ended the lock of "another program", which is this one
	dir := t.TempDir()
	b := mbox(t, dir, &syncer{})
	busy := func(what string) {
		t.Helper()
		if err := b.Append("", date, "", strings.NewReader("x")); status(err) != "4.2.0" || !strings.Contains(err.Error(), "locked") {
			t.Errorf("%s: %v", what, err)
		}
		if got := content(t, dir); got != "" {
			t.Errorf("%s: %q", what, got)
		}
	}
	f, unlock, err := b.tryLock()
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	busy("another thread")
	f.Close()
	if f, err = os.OpenFile(filepath.Join(dir, "alice"), os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lk); err != nil {
		t.Fatal(err)
	}
	busy("another program")
	f.Close()
	if f, err = os.Open(filepath.Join(dir, "alice")); err != nil {
		t.Fatal(err)
	}
	defer signal.Reset(unix.SIGIO)
	signal.Ignore(unix.SIGIO) // what the owner of a lease is told by
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		t.Fatal(err)
	}
	busy("a lease")
	f.Close()
	if err := b.Append("", date, "", strings.NewReader("x")); err != nil {
		t.Errorf("in the end: %v", err)
	}
}

// The lock is for the file that has the name now: what is written to one that a
// mail reader has replaced meanwhile would be lost.
func TestReplacedWhileLocked(t *testing.T) {
	hurry(t, 1<<20)
	dir := t.TempDir()
	file, lock := filepath.Join(dir, "alice"), filepath.Join(dir, "alice.lock")
	for _, f := range []string{file, file + ".new", lock} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := mbox(t, dir, &syncer{})
	f, err := b.open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	if err := b.same(f); !errors.Is(err, errBusy) {
		t.Errorf("replaced: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := b.same(f); !errors.Is(err, errBusy) {
		t.Errorf("removed: %v", err)
	}
	done := make(chan error)
	go func() { done <- b.Append("", date, "", strings.NewReader("x")) }()
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || !strings.HasPrefix(content(t, dir), "From ") {
		t.Errorf("%v, %q", err, content(t, dir))
	}
}

func TestManyAtOnce(t *testing.T) {
	hurry(t, 1<<20)
	dir := t.TempDir()
	const writers, messages = 8, 10
	body := strings.Repeat("0123456789", 10_000) + "\n"
	var wg sync.WaitGroup
	for range writers {
		b := mbox(t, dir, &syncer{})
		wg.Go(func() {
			for range messages {
				if err := b.Append("", date, "", strings.NewReader(body)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	first := "From MAILER-DAEMON  Wed Nov  4 09:08:07 2026\n"
	if want := strings.Repeat(first+body+"\n", writers*messages); content(t, dir) != want {
		t.Error("the messages are mixed, or not all there")
	}
}

// FuzzQuoter: no line of a message begins another one, nothing is lost, and it
// does not matter how the message is cut up.
func FuzzQuoter(f *testing.F) {
	f.Add([]byte("From \nFrom\n\nFrom x\nFFrom y"))
	f.Fuzz(func(t *testing.T, message []byte) {
		dir, r := t.TempDir(), bytes.NewReader(message)
		if err := mbox(t, dir, &syncer{}).Append("", date, "", seeking{iotest.HalfReader(r), r}); err != nil {
			t.Fatal(err)
		}
		_, got, _ := strings.Cut(content(t, dir), "\n")
		want := strings.ReplaceAll("\n"+strings.ReplaceAll(string(message), "\r\n", "\n"), "\nFrom ", "\n>From ")[1:]
		if !strings.HasSuffix(want, "\n") {
			want += "\n"
		}
		if got != want+"\n" {
			t.Errorf("%q: %q, want %q", message, got, want+"\n")
		}
	})
}
