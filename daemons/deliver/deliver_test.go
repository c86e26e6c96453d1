package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"posthouse/daemons/deliver/internal/become"
	"posthouse/daemons/deliver/internal/user"
	"posthouse/pkg/account"
	"posthouse/pkg/dsn"
	"posthouse/pkg/durable"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/deliver"
)

// strict is the user whose child checks how it is confined, as all do that are
// not for a test.
const strict = "strict"

// TestMain lets this program be a child, too. What the sandbox gives is not there
// in a test.
func TestMain(m *testing.M) {
	if os.Args[0] == stopper {
		stopAll()
		return
	}
	if os.Args[0] != user.Program {
		os.Exit(m.Run())
	}
	if os.Args[2] == strict || len(os.Args) > 5 { // or one that has to become the user
		if err := user.Main(os.Args[1:]); err != nil {
			os.Exit(1)
		}
		return
	}
	syscall.CloseOnExec(user.Socket)
	c, err := ipc.FromFile(os.NewFile(user.Socket, "deliver"))
	if err == nil {
		err = (&user.User{Name: os.Args[2], Home: os.Args[3], Shell: os.Args[4]}).Serve(c, nil)
	}
	if err != nil {
		os.Exit(1)
	}
}

// account of a test: another user where the test may become one.
func someone(t *testing.T, name string) *account.Account {
	t.Helper()
	dir := t.TempDir()
	a := &account.Account{Name: name, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Home: dir + "/home"}
	err := errors.Join(os.Mkdir(a.Home, 0o700), os.Mkdir(dir+"/mail", 0o700))
	if os.Getuid() == 0 {
		a.UID, a.GID, a.Groups = 54321, 54322, []uint32{54323}
		err = errors.Join(err, os.Chmod(filepath.Dir(dir), 0o711), os.Chmod(dir, 0o711), os.Chown(a.Home, 54321, 54322),
			os.Chown(dir+"/mail", 0, 54324), os.Chmod(dir+"/mail", 0o770|os.ModeSetgid))
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// serve returns a client of a deliver that knows one account.
func serve(t *testing.T, a *account.Account) *deliver.Client {
	t.Helper()
	return serveBy(t, a, func(*service) {})
}

// serveBy is serve with something changed.
func serveBy(t *testing.T, a *account.Account, change func(*service)) *deliver.Client {
	t.Helper()
	starter := newStarter("/proc/self/exe")
	if os.Getuid() != 0 {
		starter = func(id *childID) (process, error) { return start("/proc/self/exe", id.user.Args()) }
	}
	s := newService(maillog.New("deliver"), newPool(starter), durable.NewCommitter("fsync"))
	if os.Getuid() != 0 {
		s.become = func(_ become.Identity, f func(*become.Thread) error, done func(error)) { go func() { done(f(nil)) }() }
		s.regroup = func(*become.Thread, []uint32) error { return nil }
	}
	s.lookup = func(_ context.Context, name string) (*account.Account, error) {
		if name != a.Name {
			return nil, account.ErrNone
		}
		return a, nil
	}
	s.self, s.group, s.spool = 54320, 54325, filepath.Dir(a.Home)+"/mail"
	change(s)
	t.Cleanup(s.pool.close)
	return deliver.NewClient(ipctest.Serve(t, deliver.Protocol, func(c *ipc.Conn, msg []byte, file *os.File) error {
		return s.handle(t.Context(), c, msg, file)
	}))
}

func ask(t *testing.T, c *deliver.Client, r *deliver.Request) deliver.Reply {
	t.Helper()
	file := filepath.Join(t.TempDir(), "message")
	if err := os.WriteFile(file, []byte("Subject: x\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.Length = 12
	reply, err := c.Do(t.Context(), r, f)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func about(kind deliver.Kind, name string) *deliver.Request {
	return &deliver.Request{Head: deliver.Head{Kind: kind, User: name}, Arrival: time.Now()}
}

func command(text string) *deliver.Request {
	r := about(deliver.Command, "alice")
	r.Command = text
	return r
}

// A child is the user, with its groups, and none of our rights.
func TestChildIsTheUser(t *testing.T) {
	a := someone(t, "alice")
	c := serve(t, a)
	if got := ask(t, c, command("cat /proc/self/status >status; echo $PPID >parent")); got.Status.Class() != dsn.Success {
		t.Fatalf("%+v", got)
	}
	b, err := os.ReadFile(a.Home + "/status")
	if err != nil {
		t.Fatal(err)
	}
	has := func(key, want string) {
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); f[0] == key+":" {
				if got := strings.Join(f[1:], " "); got != want {
					t.Errorf("%s %s, not %s", key, got, want)
				}
				return
			}
		}
		t.Errorf("no %s", key)
	}
	has("Uid", strings.TrimSpace(strings.Repeat(fmt.Sprint(a.UID, " "), 4)))
	has("Gid", strings.TrimSpace(strings.Repeat(fmt.Sprint(a.GID, " "), 4)))
	if os.Getuid() == 0 {
		has("Groups", "54323")
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			has(set, "0000000000000000")
		}
	}
	// The next one finds it still there.
	parent := func() string {
		p, err := os.ReadFile(a.Home + "/parent")
		if err != nil {
			t.Fatal(err)
		}
		return string(p)
	}
	first := parent()
	if got := ask(t, c, command("echo $PPID >again; cmp again parent")); got.Status.Class() != dsn.Success {
		// It is right for a machine on which this takes two seconds.
		t.Logf("not the same child: %+v, %s", got, first)
	}
}

// stopper is a program of a user's that stops, for a while, all that it may, and kills it
// at SIGTERM.
const stopper = "stopper"

func stopAll() {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		_ = syscall.Kill(-1, syscall.SIGSTOP)
	}
	<-told
	_ = syscall.Kill(-1, syscall.SIGKILL)
}

// A user who stops processes of his own when they are started does not stop deliver.
func TestStoppedAtStart(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	const uid = 54331 // of no other test
	bad, err := os.StartProcess("/proc/self/exe", []string{stopper}, &os.ProcAttr{
		Sys: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = bad.Signal(syscall.SIGTERM)
		_, _ = bad.Wait()
	}()
	start := newStarter("/proc/self/exe")
	started := make(chan error, 1000)
	go func() {
		for end := time.Now().Add(time.Second); time.Now().Before(end); {
			p, err := start(&childID{user.User{Name: "alice", Home: "/", Shell: "/bin/sh"}, uid, uid, nil})
			if err == nil {
				go func() { _ = p.wait() }()
				err = p.conn.Close()
			}
			started <- err
		}
		close(started)
	}()
	for {
		select {
		case err, more := <-started:
			if err != nil {
				t.Error(err)
			}
			if !more {
				return
			}
		case <-time.After(time.Minute):
			t.Error("no child is started any more")
			return
		}
	}
}

func TestSpoolHasItsGroupOnly(t *testing.T) {
	a := someone(t, "alice")
	r := about(deliver.Spool, "alice")
	r.Path = filepath.Dir(a.Home) + "/mail"
	if got := ask(t, serve(t, a), r); got.Status.Class() != dsn.Success {
		t.Fatalf("%+v", got)
	}
	info, err := os.Stat(r.Path + "/alice")
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != a.UID || os.Getuid() == 0 && st.Gid != 54324 || info.Mode() != 0o600 {
		t.Errorf("%v of %d:%d", info.Mode(), st.Uid, st.Gid)
	}
}

// What is not confined does nothing.
func TestUnconfinedChild(t *testing.T) {
	a := someone(t, strict)
	r := about(deliver.Command, strict)
	r.Command = "echo >ran"
	if got := ask(t, serve(t, a), r); got.Status.String() != "4.3.5" || !strings.Contains(got.Text, strict) {
		t.Errorf("%+v", got)
	}
	if _, err := os.Stat(a.Home + "/ran"); err == nil {
		t.Error("it has run")
	}
}

// A child that dies has deferred, and the next request has another one.
func TestChildDies(t *testing.T) {
	c := serve(t, someone(t, "alice"))
	for range 2 * maxOfUser {
		if got := ask(t, c, command("kill -KILL $PPID; sleep 1000")); got.Status.String() != "4.3.0" {
			t.Errorf("%+v", got)
		}
	}
	if got := ask(t, c, command("true")); got.Status.Class() != dsn.Success {
		t.Errorf("%+v", got)
	}
}

func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	group, err := groupOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	var spoolGroups []uint32
	if group != 0 {
		spoolGroups = []uint32{group}
	}
	s := &service{self: 900, group: 901, spool: dir}
	for _, tt := range []struct {
		account  account.Account
		kind     deliver.Kind
		uid, gid uint32
		groups   []uint32 // nil where it is refused, or none
		refused  string
	}{
		{account.Account{Name: "alice", UID: 1000, GID: 1001, Groups: []uint32{0, 4, 27}}, deliver.Command, 1000, 1001, []uint32{4, 27}, ""},
		{account.Account{Name: "alice", UID: 1000, GID: 1001, Groups: []uint32{0, 4, 27}}, deliver.Forward, 1000, 1001, []uint32{4, 27}, ""},
		{account.Account{Name: "alice", UID: 1000, GID: 1001, Groups: []uint32{4, 27}}, deliver.Spool, 1000, 1001, spoolGroups, ""},
		{account.Account{Name: "alice", UID: 1000, GID: 1001, Groups: []uint32{4, 27}}, deliver.Make, 1000, 1001, spoolGroups, ""},
		{account.Account{Name: "nobody", UID: 65534, GID: 65534}, deliver.Command, 65534, 65534, nil, ""},
		{account.Account{Name: "www-data", UID: 33, GID: 33}, deliver.Spool, 33, 33, spoolGroups, ""},
		{account.Account{Name: "root"}, deliver.Spool, 900, 901, spoolGroups, ""},
		{account.Account{Name: "root"}, deliver.Forward, 0, 0, nil, "as root"},
		{account.Account{Name: "root"}, deliver.Mailbox, 0, 0, nil, "as root"},
		{account.Account{Name: "toor", GID: 5}, deliver.Command, 0, 0, nil, "as root"},
		{account.Account{Name: "sync", UID: 4}, deliver.Command, 0, 0, nil, "group of root"},
		{account.Account{Name: "sync", UID: 4}, deliver.Spool, 0, 0, nil, "group of root"},
		{account.Account{Name: "_ph-qmgr", UID: 901, GID: 901}, deliver.Command, 0, 0, nil, "mail system"},
		{account.Account{Name: "_ph-qmgr", UID: 901, GID: 901}, deliver.Spool, 0, 0, nil, "mail system"},
		{account.Account{Name: "other", UID: 900, GID: 901}, deliver.Forward, 0, 0, nil, "mail system"},
	} {
		s.lookup = func(context.Context, string) (*account.Account, error) { return &tt.account, nil }
		id, err := s.identify(t.Context(), tt.account.Name, tt.kind)
		if tt.refused != "" {
			if id != nil || err == nil || !strings.Contains(err.Error(), tt.refused) || dsn.Of(err).Status.Class() != dsn.Transient {
				t.Errorf("%+v, kind %d: %+v, %v", tt.account, tt.kind, id, err)
			}
			continue
		}
		if err != nil || id.UID != tt.uid || id.GID != tt.gid || !slices.Equal(id.Groups, tt.groups) {
			t.Errorf("%+v, kind %d: %+v, %v", tt.account, tt.kind, id, err)
		}
	}
	for _, trouble := range []error{account.ErrNone, errors.New("a time-out")} {
		s.lookup = func(context.Context, string) (*account.Account, error) { return nil, trouble }
		if id, err := s.identify(t.Context(), "x", deliver.Spool); id != nil || dsn.Of(err).Status.Class() != dsn.Transient {
			t.Errorf("%v: %+v, %v", trouble, id, err)
		}
	}
}

// fakeChildren counts children that end when they are told to.
type fakeChildren struct {
	t       *testing.T
	mu      sync.Mutex
	running int
	most    int
}

func (f *fakeChildren) start(*childID) (process, error) {
	ours, theirs := ipctest.Pair(f.t)
	f.mu.Lock()
	f.running++
	f.most = max(f.most, f.running)
	f.mu.Unlock()
	return process{ours, func() error {
		_, err := theirs.Receive(1)
		f.mu.Lock()
		f.running--
		f.mu.Unlock()
		return errors.Join(err, theirs.Close())
	}}, nil
}

func alice(uid uint32) *childID {
	return &childID{user: user.User{Name: "alice", Home: "/"}, uid: uid}
}

func TestPoolBounds(t *testing.T) {
	f := &fakeChildren{t: t}
	p := newPool(f.start)
	var got []*kid
	for range maxOfUser {
		k, err := p.get(t.Context(), alice(1))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, k)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if k, err := p.get(ctx, alice(1)); err == nil || dsn.Of(err).Status.Class() != dsn.Transient {
		t.Errorf("one more: %v, %v", k, err)
	}
	// One that has ended, or is given back, makes room for who waits.
	for _, free := range []func(*kid){p.drop, p.put} {
		done := make(chan *kid)
		go func() {
			k, err := p.get(t.Context(), alice(1))
			if err != nil {
				t.Error(err)
			}
			done <- k
		}()
		free(got[0])
		got[0] = <-done
	}
	for _, k := range got {
		p.put(k)
	}
	p.close()
}

// Idle children of others make room.
func TestPoolIsFull(t *testing.T) {
	f := &fakeChildren{t: t}
	p := newPool(f.start)
	for uid := range uint32(3 * maxChildren) {
		k, err := p.get(t.Context(), alice(uid))
		if err != nil {
			t.Fatal(err)
		}
		p.put(k)
	}
	p.close()
	if f.most > maxChildren {
		t.Errorf("%d children", f.most)
	}
}

// A child is kept for who waits for it, and from those who would gain nothing by its
// end; but not for ever.
func TestPoolKeepsForWaiting(t *testing.T) {
	f := &fakeChildren{t: t}
	p := newPool(f.start)
	p.keep = time.Hour // or one could end while this machine stands still
	get := func(uid uint32) *kid {
		k, err := p.get(t.Context(), alice(uid))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	idle, busy := get(1), get(2)
	for range maxOfUser - 1 {
		get(2)
	}
	p.put(idle)
	key := alice(2).key()
	if k, room, _ := p.take(2, key); k != nil || room || len(p.idle) != 1 {
		t.Errorf("one more of 2: %v, %v, and %d are idle", k, room, len(p.idle))
	}
	for uid := range uint32(maxChildren - 1 - maxOfUser) {
		get(uid + 3)
	}
	p.wait(idle.key, 1)
	if k, room, _ := p.take(1000, "late"); k != nil || room || len(p.idle) != 1 {
		t.Errorf("while somebody waits for it: %v, %v, and %d are idle", k, room, len(p.idle))
	}
	p.wait(idle.key, -1)
	if k, room, _ := p.take(1000, "late"); k != nil || room || len(p.idle) != 0 {
		t.Errorf("the pool is full: %v, %v, and %d are idle", k, room, len(p.idle))
	}
	for n := 1; ; n++ {
		p.put(busy)
		if len(p.idle) == 0 {
			if n != maxUse {
				t.Errorf("ends after %d requests", n)
			}
			break
		}
		if k, _, _ := p.take(2, key); k != busy {
			t.Fatalf("after %d requests: %v", n, k)
		}
	}
}

// A child is for one identity: a change of the account has another one.
func TestPoolKeepsApart(t *testing.T) {
	f := &fakeChildren{t: t}
	p := newPool(f.start)
	p.keep = time.Hour
	first := alice(1)
	k, err := p.get(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	p.put(k)
	for what, id := range map[string]*childID{
		"uid":    alice(2),
		"groups": {user: first.user, uid: 1, groups: []uint32{5}},
		"gid":    {user: first.user, uid: 1, gid: 5},
		"home":   {user: user.User{Name: "alice", Home: "/home"}, uid: 1},
		"shell":  {user: user.User{Name: "alice", Home: "/", Shell: "/"}, uid: 1},
	} {
		other, err := p.get(t.Context(), id)
		if err != nil || other == k {
			t.Errorf("another %s has the same child; %v", what, err)
		}
		p.drop(other)
	}
	if again, _, _ := p.take(1, first.key()); again != k {
		t.Error("not the child that was given back")
	}
	p.close()
}

// One that has been told to end is not used again.
func TestLeave(t *testing.T) {
	f := &fakeChildren{t: t}
	p := newPool(f.start)
	k, err := p.get(t.Context(), alice(1))
	if err != nil {
		t.Fatal(err)
	}
	k.leave()
	p.put(k)
	if len(p.idle) != 0 {
		t.Error("it is kept")
	}
}
