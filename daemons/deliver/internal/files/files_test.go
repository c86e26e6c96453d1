package files

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/durable"
	"posthouse/pkg/protocol/deliver"
)

const (
	message = "Subject: x\r\n\r\nFrom here\r\n"
	prefix  = "Return-Path: <s@example.org>\n"
	before  = 7 // octets of a queue file before the message
)

// self is the user of the test, with a home directory of its own.
func self(t *testing.T) *User {
	t.Helper()
	u := &User{Name: "alice", Home: t.TempDir(), UID: uint32(os.Getuid()), Sync: durable.NewCommitter("fsync")}
	t.Cleanup(u.Close)
	return u
}

func queueFile(t *testing.T) *os.File {
	t.Helper()
	file := filepath.Join(t.TempDir(), "message")
	if err := os.WriteFile(file, []byte(strings.Repeat("-", before)+message+"---"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// dialogue is a User that is asked.
type dialogue struct {
	t    *testing.T
	user *User
	file *os.File
}

func (d *dialogue) ask(r *deliver.Request) *deliver.Reply {
	d.t.Helper()
	reply, err := d.user.Do(r, d.file)
	if err != nil {
		d.t.Fatal(err)
	}
	return reply
}

func request(kind deliver.Kind) *deliver.Request {
	return &deliver.Request{
		Head: deliver.Head{Kind: kind, User: "alice"}, From: "s@example.org", Arrival: time.Now(), Prefix: prefix,
		Offset: before, Length: int64(len(message)),
	}
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, mode os.FileMode, content string, elem ...string) {
	t.Helper()
	file := filepath.Join(elem...)
	if err := errors.Join(os.WriteFile(file, []byte(content), mode), os.Chmod(file, mode)); err != nil {
		t.Fatal(err)
	}
}

func TestForward(t *testing.T) {
	u := self(t)
	d := &dialogue{t, u, queueFile(t)}
	r := request(deliver.Forward)
	r.Files = []string{".forward+x", ".forward"}
	if got := d.ask(r); got.Found || got.Status.String() != "2.0.0" {
		t.Errorf("no file: %+v", got)
	}
	write(t, 0o600, "bob\n", u.Home, ".forward")
	if got := d.ask(r); got.Name != ".forward" || got.Forward != "bob\n" || !got.Found || got.Status.String() != "2.0.0" {
		t.Errorf("%+v", got)
	}
	write(t, 0o664, "", u.Home, ".forward+x")
	if got := d.ask(r); got.Name != ".forward+x" || got.Forward != "" || !got.Found {
		t.Errorf("an empty one counts: %+v", got)
	}
	r.Files[0] = ".forward+" + strings.Repeat("x", 1000)
	if got := d.ask(r); got.Name != ".forward" {
		t.Errorf("behind a name that cannot be: %+v", got)
	}
	for _, name := range []string{"../.forward", "a/b", "..", "."} {
		r.Files[0] = name
		if got := d.ask(r); got.Found || got.Status.String() != "4.2.0" {
			t.Errorf("%s: %+v", name, got)
		}
	}
	r.Files = []string{".forward"}
	below := &User{Name: "alice", Home: filepath.Join(u.Home, ".forward", "x"), UID: u.UID, Sync: u.Sync} // beneath a file
	if got := (&dialogue{t, below, queueFile(t)}).ask(r); got.Found || got.Status.String() != "2.0.0" {
		t.Errorf("no home: %+v", got)
	}
}

// What others may have written makes mail wait.
func TestForwardOfOthers(t *testing.T) {
	for what, plant := range map[string]func(home, file string) error{
		"everybody": func(_, f string) error { return os.Chmod(f, 0o602) },
		"home":      func(home, _ string) error { return os.Chmod(home, 0o703) },
		"symlink":   func(_, f string) error { return errors.Join(os.Rename(f, f+"2"), os.Symlink(f+"2", f)) },
		"dangling":  func(_, f string) error { return errors.Join(os.Remove(f), os.Symlink(f+"2", f)) },
		"FIFO":      func(_, f string) error { return errors.Join(os.Remove(f), syscall.Mkfifo(f, 0o600)) },
		"directory": func(_, f string) error { return errors.Join(os.Remove(f), os.Mkdir(f, 0o700)) },
		"too large": func(_, f string) error { return os.Truncate(f, deliver.MaxForward+1) },
	} {
		u := self(t)
		file := filepath.Join(u.Home, ".forward")
		write(t, 0o600, "bob\n", file)
		if err := plant(u.Home, file); err != nil {
			t.Fatal(err)
		}
		r := request(deliver.Forward)
		r.Files = []string{".forward"}
		if got := (&dialogue{t, u, queueFile(t)}).ask(r); got.Found || got.Status.String() != "4.3.5" {
			t.Errorf("%s: %+v", what, got)
		}
	}
	u := self(t)
	write(t, 0o600, "bob\n", u.Home, ".forward")
	if os.Getuid() == 0 {
		u.UID = 1
		if err := os.Chown(filepath.Join(u.Home, ".forward"), 2, -1); err != nil {
			t.Fatal(err)
		}
		r := request(deliver.Forward)
		r.Files = []string{".forward"}
		if got := (&dialogue{t, u, queueFile(t)}).ask(r); got.Found || got.Status.String() != "4.3.5" {
			t.Errorf("another user's: %+v", got)
		}
	}
}

func TestSpool(t *testing.T) {
	u := self(t)
	d := &dialogue{t, u, queueFile(t)}
	r := request(deliver.Spool)
	r.Path = t.TempDir()
	for range 2 {
		if got := d.ask(r); got.Status.String() != "2.0.0" || got.Text != "delivered to mailbox" {
			t.Fatalf("%+v", got)
		}
	}
	one := "From s@example.org  " + r.Arrival.Local().Format(time.ANSIC) + "\n" + prefix + "Subject: x\n\n>From here\n\n"
	if got := read(t, r.Path, "alice"); got != one+one {
		t.Errorf("got %q", got)
	}
	r.Limit = int64(2*len(one) + 1)
	if got := d.ask(r); got.Status.String() != "5.2.2" {
		t.Errorf("full: %+v", got)
	}
	for _, path := range []string{"spool", "", filepath.Join(r.Path, "none")} {
		r.Path = path
		if got := d.ask(r); got.Status.Class() != 0 {
			t.Errorf("%s: %+v", path, got)
		}
	}
}

// A mailbox is made where it is missing, and nothing else is done.
func TestMakeSpool(t *testing.T) {
	d := &dialogue{t, self(t), queueFile(t)}
	d.file = nil
	r := request(deliver.Make)
	r.Path = t.TempDir()
	for _, want := range []string{"", "old"} {
		if got := d.ask(r); got.Status.String() != "2.0.0" {
			t.Errorf("%+v", got)
		}
		info, err := os.Stat(r.Path + "/alice")
		if err != nil || info.Mode() != 0o600 || read(t, r.Path, "alice") != want {
			t.Errorf("not %q: %v, %v", want, info, err)
		}
		write(t, 0o600, "old", r.Path, "alice")
	}
	if err := errors.Join(os.Remove(r.Path+"/alice"), os.Symlink("/dev/null", r.Path+"/alice")); err != nil {
		t.Fatal(err)
	}
	if got := d.ask(r); got.Status.String() != "4.2.0" {
		t.Errorf("a link: %+v", got)
	}
}

func TestMailbox(t *testing.T) {
	u := self(t)
	d := &dialogue{t, u, queueFile(t)}
	r := request(deliver.Mailbox)
	outside := t.TempDir()
	for _, path := range []string{"mbox", outside + "/mbox"} {
		r.Path = path
		if got := d.ask(r); got.Status.String() != "2.0.0" || !strings.HasPrefix(got.Text, "delivered to file: ") {
			t.Errorf("%s: %+v", path, got)
		}
	}
	for _, file := range []string{u.Home + "/mbox", outside + "/mbox"} {
		if got := read(t, file); !strings.HasSuffix(got, "\n"+prefix+"Subject: x\n\n>From here\n\n") {
			t.Errorf("%s: %q", file, got)
		}
	}
	for _, path := range []string{"Maildir/", "mail/.Lists/", outside + "/a/b/"} {
		r.Path = path
		if got := d.ask(r); got.Status.String() != "2.0.0" || got.Text != "delivered to maildir" {
			t.Errorf("%s: %+v", path, got)
		}
	}
	for _, dir := range []string{u.Home + "/Maildir", u.Home + "/mail/.Lists", outside + "/a/b"} {
		list, err := filepath.Glob(dir + "/new/*")
		if err != nil || len(list) != 1 || read(t, list[0]) != prefix+"Subject: x\n\nFrom here\n" {
			t.Errorf("%s: %q, %v", dir, list, err)
		}
	}
	r.Path = "/dev/null"
	if got := d.ask(r); got.Status.String() != "2.0.0" {
		t.Errorf("%+v", got)
	}
	for _, path := range []string{"", "none/mbox", "mbox/", "mbox/x/"} {
		r.Path = path
		if got := d.ask(r); got.Status.Class() != 0 {
			t.Errorf("%q: %+v", path, got)
		}
	}
	// A home that is not there may be one that is not mounted.
	away := &User{Name: "alice", Home: u.Home + "/none", UID: u.UID, Sync: u.Sync}
	r.Path = "Maildir/"
	if got := (&dialogue{t, away, queueFile(t)}).ask(r); got.Status.String() != "4.2.0" {
		t.Errorf("no home: %+v", got)
	}
	if _, err := os.Stat(away.Home); err == nil {
		t.Error("the home directory is made")
	}
}

// Requests for another user or of another kind are not answered, nor those that do not
// fit the file.
func TestStrangeRequests(t *testing.T) {
	for what, change := range map[string]func(d *dialogue, r *deliver.Request){
		"another user":    func(_ *dialogue, r *deliver.Request) { r.User = "bob" },
		"a command":       func(_ *dialogue, r *deliver.Request) { r.Kind = deliver.Command },
		"no kind":         func(_ *dialogue, r *deliver.Request) { r.Kind = 0 },
		"no descriptor":   func(d *dialogue, _ *deliver.Request) { d.file = nil },
		"past the end":    func(_ *dialogue, r *deliver.Request) { r.Length += 10 },
		"not a plain one": func(d *dialogue, _ *deliver.Request) { d.file, _ = os.Open(os.TempDir()) },
	} {
		d := &dialogue{t, self(t), queueFile(t)}
		r := request(deliver.Mailbox)
		r.Path = "mbox"
		change(d, r)
		if reply, err := d.user.Do(r, d.file); err == nil || reply != nil {
			t.Errorf("%s: %+v, %v", what, reply, err)
		}
		if _, err := os.Stat(d.user.Home + "/mbox"); err == nil {
			t.Errorf("%s: delivered", what)
		}
	}
}

// A message that is taken away while it is written leaves nothing.
func TestMessageIsTakenAway(t *testing.T) {
	for _, path := range []string{"mbox", "Maildir/"} {
		d := &dialogue{t, self(t), queueFile(t)}
		r := request(deliver.Mailbox)
		r.Path = path
		content := &taken{d.file}
		if text, err := d.user.mailbox(r, content); err == nil {
			t.Errorf("%s: %s", path, text)
		}
		if path == "mbox" && read(t, d.user.Home, path) != "" {
			t.Errorf("left: %q", read(t, d.user.Home, path))
		}
		if list, err := filepath.Glob(d.user.Home + "/Maildir/*/*"); err != nil || len(list) > 0 {
			t.Errorf("left: %q, %v", list, err)
		}
	}
}

// taken is a file that is closed after the first octets that are read.
type taken struct{ *os.File }

func (f *taken) Read(p []byte) (int, error) {
	n, err := f.File.Read(p[:10])
	f.Close()
	return n, err
}

// TestPrivate: mail is not put where it goes away with the service, nor by a link.
func TestPrivate(t *testing.T) {
	d := &dialogue{t, self(t), queueFile(t)}
	d.user.Private = []string{"/none", "/proc"} // a mount of its own
	if err := os.Symlink("/proc/self", filepath.Join(d.user.Home, "link")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/proc/self/mbox", "/proc/self/", "link/mbox"} {
		r := request(deliver.Mailbox)
		r.Path = path
		if reply := d.ask(r); reply.Status.String() != "4.2.0" || !strings.Contains(reply.Text, "/proc is one of the mail system's own") {
			t.Errorf("%s: %+v", path, reply)
		}
	}
	r := request(deliver.Mailbox)
	r.Path = "mbox"
	if reply := d.ask(r); reply.Status.Class() != dsn.Success {
		t.Errorf("%+v", reply)
	}
}
