package user

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
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
func self(t *testing.T) *User {
	t.Helper()
	return &User{Name: "alice", Home: t.TempDir()}
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

func request() *deliver.Request {
	return &deliver.Request{
		Head: deliver.Head{Kind: deliver.Command, User: "alice"}, From: "s@example.org", Arrival: time.Now(), Prefix: prefix,
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

func TestTrouble(t *testing.T) {
	u := self(t)
	d := serve(t, u, errors.New("it is root"))
	r := request()
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
		"another kind":    func(_ *dialogue, r *deliver.Request) { r.Kind = deliver.Spool },
		"no descriptor":   func(d *dialogue, _ *deliver.Request) { d.file = nil },
		"past the end":    func(_ *dialogue, r *deliver.Request) { r.Length += 10 },
		"offset past it":  func(_ *dialogue, r *deliver.Request) { r.Offset = 1 << 40 },
		"not a plain one": func(d *dialogue, _ *deliver.Request) { d.file, _ = os.Open(os.TempDir()) },
		"garbage":         func(_ *dialogue, r *deliver.Request) { r.Limit = -1 },
	} {
		u := self(t)
		d := serve(t, u, nil)
		r := request()
		r.Command = "echo >ran"
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
		if _, err := os.Stat(u.Home + "/ran"); err == nil {
			t.Errorf("%s: delivered", what)
		}
	}
	d := serve(t, self(t), nil)
	d.conn.Close()
	if err := <-d.end; err != nil {
		t.Errorf("end: %v", err)
	}
}

// While the package is replaced, deliver and its processes may be of two versions.
func TestOtherVersionIsRefused(t *testing.T) {
	other := (&User{Name: "alice", Home: "/home/alice", Shell: "/bin/sh"}).Args()
	other[0] += "0"
	for _, args := range [][]string{other, other[1:], nil} {
		if err := Main(args); err == nil || !strings.Contains(err.Error(), "of the same version") {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// Nothing is started as root, with its group, or with an ID that means no change.
func TestIdentity(t *testing.T) {
	u := &User{Name: "alice", Home: "/home/alice", Shell: "/bin/sh"}
	for _, id := range []Identity{
		{1000, 1001, nil}, {1000, 1001, []uint32{4}}, {1000, 1001, []uint32{4, 27}},
		{0, 1001, nil}, {1000, 0, nil}, {1000, 1001, []uint32{4, 0}}, {1<<32 - 1, 1001, nil}, {1000, 1<<32 - 1, nil},
	} {
		args := u.Start("/program", id)
		got, err := parseIdentity(args[2:5])
		bad := id.UID-1 >= 1<<32-2 || id.GID-1 >= 1<<32-2 || slices.Contains(id.Groups, 0)
		if bad != (err != nil) || !bad && (got.UID != id.UID || got.GID != id.GID || !slices.Equal(got.Groups, id.Groups)) {
			t.Errorf("%v: %v, %v", id, got, err)
		}
	}
	for _, args := range [][]string{{as}, {as, "/program", "1000", "1001"}, {as, "/program", "", "1000", "1001"}, {as, "/program", "1000", "1001", ","}} {
		if err := Main(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}
