package user

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/protocol/deliver"
)

const (
	message = "Subject: x\r\n\r\nFrom here\r\n"
	prefix  = "Return-Path: <s@example.org>\n"
	before  = 7 // octets of a queue file before the message
)

// self is the user of the test, with a home directory of its own.
func self(t *testing.T, class Class) *User {
	t.Helper()
	return New(class, "alice", t.TempDir(), "")
}

// dialogue is a User that serves.
type dialogue struct {
	t    *testing.T
	conn *ipc.Conn
	end  chan error
	file *os.File
}

func serve(t *testing.T, u *User, trouble error) *dialogue {
	t.Helper()
	file := filepath.Join(t.TempDir(), "message")
	if err := os.WriteFile(file, []byte(strings.Repeat("-", before)+message+"---"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := ipctest.Pair(t)
	d := &dialogue{t, ours, make(chan error, 1), f}
	go func() {
		d.end <- u.Serve(theirs, trouble)
		theirs.Close()
	}()
	t.Cleanup(func() { ours.Close(); f.Close() })
	return d
}

func request(kind deliver.Kind) *deliver.Request {
	return &deliver.Request{
		Head: deliver.Head{Kind: kind, User: "alice"}, From: "s@example.org", Arrival: time.Now(), Prefix: prefix,
		Offset: before, Length: int64(len(message)),
	}
}

func (d *dialogue) ask(r *deliver.Request) deliver.Reply {
	d.t.Helper()
	m := ipc.NewMessage()
	r.Encode(m)
	if err := d.conn.SendFile(m, d.file); err != nil {
		d.t.Fatal(err)
	}
	b, err := d.conn.Receive(deliver.Protocol.MaxReply)
	if err != nil {
		d.t.Fatalf("%v; %v", err, <-d.end)
	}
	reply, err := deliver.DecodeReply(b)
	if err != nil {
		d.t.Fatal(err)
	}
	return reply
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
	u := self(t, ForUser)
	d := serve(t, u, nil)
	r := request(deliver.Forward)
	r.Files = []string{".forward+x", ".forward"}
	if got := d.ask(r); got.Found || got.Status.String() != "2.0.0" {
		t.Errorf("no file: %+v", got)
	}
	write(t, 0o600, "bob\n", u.Home, ".forward")
	if got := d.ask(r); got.Name != ".forward" || got.Forward != "bob\n" || !got.Found || got.Status.String() != "2.0.0" {
		t.Errorf("%+v", got)
	}
	write(t, 0o644, "", u.Home, ".forward+x")
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
	below := New(ForUser, "alice", filepath.Join(u.Home, ".forward", "x"), "") // beneath a file
	if got := serve(t, below, nil).ask(r); got.Found || got.Status.String() != "2.0.0" {
		t.Errorf("no home: %+v", got)
	}
}

// What others may have written makes mail wait.
func TestForwardOfOthers(t *testing.T) {
	for what, plant := range map[string]func(home, file string) error{
		"group":     func(_, f string) error { return os.Chmod(f, 0o620) },
		"everybody": func(_, f string) error { return os.Chmod(f, 0o602) },
		"home":      func(home, _ string) error { return os.Chmod(home, 0o703) },
		"symlink":   func(_, f string) error { return errors.Join(os.Rename(f, f+"2"), os.Symlink(f+"2", f)) },
		"dangling":  func(_, f string) error { return errors.Join(os.Remove(f), os.Symlink(f+"2", f)) },
		"FIFO":      func(_, f string) error { return errors.Join(os.Remove(f), syscall.Mkfifo(f, 0o600)) },
		"directory": func(_, f string) error { return errors.Join(os.Remove(f), os.Mkdir(f, 0o700)) },
		"too large": func(_, f string) error { return os.Truncate(f, deliver.MaxForward+1) },
	} {
		u := self(t, ForUser)
		file := filepath.Join(u.Home, ".forward")
		write(t, 0o600, "bob\n", file)
		if err := plant(u.Home, file); err != nil {
			t.Fatal(err)
		}
		r := request(deliver.Forward)
		r.Files = []string{".forward"}
		if got := serve(t, u, nil).ask(r); got.Found || got.Status.String() != "4.3.5" {
			t.Errorf("%s: %+v", what, got)
		}
	}
	u := self(t, ForUser)
	write(t, 0o600, "bob\n", u.Home, ".forward")
	if os.Getuid() == 0 {
		u.uid = 1
		if err := os.Chown(filepath.Join(u.Home, ".forward"), 2, -1); err != nil {
			t.Fatal(err)
		}
		r := request(deliver.Forward)
		r.Files = []string{".forward"}
		if got := serve(t, u, nil).ask(r); got.Found || got.Status.String() != "4.3.5" {
			t.Errorf("another user's: %+v", got)
		}
	}
}

func TestSpool(t *testing.T) {
	u := self(t, ForSpool)
	d := serve(t, u, nil)
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
	d := serve(t, self(t, ForSpool), nil)
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
	u := self(t, ForUser)
	d := serve(t, u, nil)
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
	away := New(ForUser, "alice", u.Home+"/none", "")
	r.Path = "Maildir/"
	if got := serve(t, away, nil).ask(r); got.Status.String() != "4.2.0" {
		t.Errorf("no home: %+v", got)
	}
	if _, err := os.Stat(away.Home); err == nil {
		t.Error("the home directory is made")
	}
}

func TestTrouble(t *testing.T) {
	u := self(t, ForUser)
	d := serve(t, u, errors.New("it is root"))
	r := request(deliver.Command)
	r.Command = "echo >ran"
	if got := d.ask(r); got.Status.String() != "4.3.5" || !strings.Contains(got.Text, "it is root") {
		t.Errorf("%+v", got)
	}
	if _, err := os.Stat(u.Home + "/ran"); err == nil {
		t.Error("it has run")
	}
	// The process of a test is not confined.
	if confined() == nil {
		t.Error("the process of this test is taken for a confined one")
	}
}

// Requests for another user or of another class are not answered.
func TestStrangeRequests(t *testing.T) {
	for what, change := range map[string]func(d *dialogue, r *deliver.Request){
		"another user":    func(_ *dialogue, r *deliver.Request) { r.User = "bob" },
		"another class":   func(_ *dialogue, r *deliver.Request) { r.Kind = deliver.Spool },
		"no descriptor":   func(d *dialogue, _ *deliver.Request) { d.file = nil },
		"past the end":    func(_ *dialogue, r *deliver.Request) { r.Length += 10 },
		"offset past it":  func(_ *dialogue, r *deliver.Request) { r.Offset = 1 << 40 },
		"not a plain one": func(d *dialogue, _ *deliver.Request) { d.file, _ = os.Open(os.TempDir()) },
		"garbage":         func(_ *dialogue, r *deliver.Request) { r.Limit = -1 },
	} {
		u := self(t, ForUser)
		d := serve(t, u, nil)
		r := request(deliver.Mailbox)
		r.Path = "mbox"
		change(d, r)
		m := ipc.NewMessage()
		r.Encode(m)
		if err := d.conn.SendFile(m, d.file); err != nil {
			t.Fatal(err)
		}
		if b, err := d.conn.Receive(deliver.Protocol.MaxReply); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %q, %v", what, b, err)
		}
		if err := <-d.end; err == nil {
			t.Errorf("%s: no error", what)
		}
		if _, err := os.Stat(u.Home + "/mbox"); err == nil {
			t.Errorf("%s: delivered", what)
		}
	}
	d := serve(t, self(t, ForUser), nil)
	d.conn.Close()
	if err := <-d.end; err != nil {
		t.Errorf("end: %v", err)
	}
}

func TestText(t *testing.T) {
	for _, s := range []string{"x", "a\nb", strings.Repeat("\x00", 5000), strings.Repeat("\xff", 5000), strings.Repeat("ä", 5000)} {
		m := ipc.NewMessage()
		(&deliver.Reply{Text: line(s)}).Encode(m)
		if _, err := deliver.DecodeReply(m.Data()[1:]); err != nil {
			t.Errorf("%.20q: %v", s, err)
		}
	}
	if got := fmt.Sprint(line("a\nb")); strings.Contains(got, "\n") {
		t.Errorf("%q", got)
	}
}

// While the package is replaced, deliver and its processes may be of two versions.
func TestOtherVersionIsRefused(t *testing.T) {
	other := (&User{Class: ForUser, Name: "alice", Home: "/home/alice", Shell: "/bin/sh"}).Args()
	other[0] += "0"
	for _, args := range [][]string{other, other[1:], nil} {
		if err := Main(args); err == nil || !strings.Contains(err.Error(), "of the same version") {
			t.Errorf("%q: %v", args, err)
		}
	}
}
