package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/maildrop"
)

// testDrops is a maildrop with a pickup that takes what is in it.
type testDrops struct {
	*drops
	*system
	dir   string
	holds int
	end   bool
}

func newTestDrops(t *testing.T, q *testCleanup) *testDrops {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Chmod(dir, 0o3733); err != nil {
		t.Fatal(err)
	}
	s := newSystem(t, q)
	d := &testDrops{drops: newDrops(s.service, dir), system: s, dir: dir}
	d.drops.uid = 4711
	d.hold = func() func() { d.holds++; return func() { d.holds-- } }
	d.ending = func() bool { return d.end }
	d.size = func() int64 { return 1 << 20 }
	return d
}

// drop drops a message as sendmail does.
func (d *testDrops) drop(t testing.TB, e *envelope.Envelope, content string) string {
	t.Helper()
	w, err := maildrop.Create(d.dir, e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	path, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// left lists the directory: what is set aside has no name of its own.
func (d *testDrops) left(t testing.TB) string {
	t.Helper()
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		name := "dropped"
		if strings.HasPrefix(e.Name(), ".aside.") {
			name = "aside"
		} else if e.Name()[0] == '.' {
			name = "hidden"
		}
		all = append(all, name)
	}
	return strings.Join(all, " ")
}

// TestDropped: a message that was dropped is submitted as its owner, once, and is
// gone then; what it says of itself is not believed.
func TestDropped(t *testing.T) {
	d := newTestDrops(t, &testCleanup{})
	e := submission(t)
	e.Trace = envelope.Trace{Origin: envelope.FromSystem, UID: 1, Helo: "forged"}
	e.Arrival = time.Unix(1, 0)
	e.Recipients[0].Original = mbox(t, "forged@example.com")
	d.drop(t, e, "one\r\n")
	d.drop(t, e, "one\r\n")
	for range 2 {
		d.all(t.Context())
	}
	if d.left(t) != "" || len(d.cleanup.content) != 2 || d.holds != 0 {
		t.Fatalf("%q is left, %d submitted, %d holds", d.left(t), len(d.cleanup.content), d.holds)
	}
	if got := <-d.cleanup.content; got != "one\r\n" {
		t.Errorf("%q", got)
	}
	got := <-d.cleanup.opened
	if got.Trace != (envelope.Trace{Origin: envelope.FromLocal, UID: uint32(os.Getuid())}) || got.Recipients[0].Original != got.Recipients[0].Address || got.Arrival.Unix() == 1 {
		t.Errorf("%+v", got)
	}
	line := fmt.Sprintf("%s: uid=%d from=<s@example.org>", testID, os.Getuid())
	if want := line + "\n" + line; d.system.log.String() != want {
		t.Errorf("log\n%s\nwant\n%s", d.system.log, want)
	}
}

// TestDroppedBad: what is no message is set aside with one line, and holds up
// nothing.
func TestDroppedBad(t *testing.T) {
	d := newTestDrops(t, &testCleanup{})
	if err := os.WriteFile(filepath.Join(d.dir, "garbage"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(d.dir, "link")); err != nil {
		t.Fatal(err)
	}
	damaged := d.drop(t, submission(t), "content\r\n")
	b, err := os.ReadFile(damaged)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-3] ^= 1
	if err := os.WriteFile(damaged, b, 0o640); err != nil {
		t.Fatal(err)
	}
	d.drop(t, submission(t), "good\r\n")
	d.all(t.Context())
	d.all(t.Context())
	if got := d.left(t); got != "aside aside aside" {
		t.Errorf("left: %s", got)
	}
	if got := <-d.cleanup.content; got != "good\r\n" || len(d.cleanup.content) > 0 || d.holds != 0 {
		t.Errorf("%q, %d more, %d holds", got, len(d.cleanup.content), d.holds)
	}
	if n := strings.Count(d.system.log.String(), "set aside as"); n != 3 {
		t.Errorf("log\n%s", d.system.log)
	}
}

// TestDroppedLater: what cannot be taken now stays, and so does the daemon, until
// it can be.
func TestDroppedLater(t *testing.T) {
	d := newTestDrops(t, &testCleanup{})
	d.drop(t, submission(t), "x\r\n")
	d.away.Store(true)
	for range 2 {
		d.all(t.Context())
		if d.left(t) != "dropped" || d.holds != 1 || !strings.Contains(d.system.log.String(), "nobody listens") {
			t.Fatalf("%q, %d holds, log\n%s", d.left(t), d.holds, d.system.log)
		}
	}
	d.away.Store(false)
	d.all(t.Context())
	if d.left(t) != "" || d.holds != 0 || len(d.cleanup.content) != 1 {
		t.Errorf("%q, %d holds, %d submitted", d.left(t), d.holds, len(d.cleanup.content))
	}

	d = newTestDrops(t, &testCleanup{end: dsn.Errorf("4.3.1", "no space")})
	d.drop(t, submission(t), "x\r\n")
	d.all(t.Context())
	if d.left(t) != "dropped" || d.holds != 1 || len(d.cleanup.content) != 1 {
		t.Errorf("refused for now: %q, %d holds, tried %d times", d.left(t), d.holds, len(d.cleanup.content))
	}
}

// TestDroppedRefused: who was told that all is well hears of a refusal, and the
// message is not lost. One for which nothing can be sent is in the log.
func TestDroppedRefused(t *testing.T) {
	d := newTestDrops(t, &testCleanup{})
	d.size = func() int64 { return 100 }
	d.drop(t, submission(t), "Subject: too large\r\nX: \x1b[2J\r\n\r\n"+strings.Repeat("x\r\n", 100))
	e := submission(t)
	e.Sender = mbox(t, "s@example.org")
	d.all(t.Context())
	if d.left(t) != "aside" || len(d.cleanup.content) != 1 {
		t.Fatalf("%q is left, %d submitted, log\n%s", d.left(t), len(d.cleanup.content), d.system.log)
	}
	got := <-d.cleanup.opened
	if !got.Sender.IsNull() || len(got.Recipients) != 1 || got.Recipients[0].Address != e.Sender || got.Trace.UID != 4711 || got.Recipients[0].Notify != dsn.NotifyNever {
		t.Errorf("notice %+v", got)
	}
	text := <-d.cleanup.content
	for _, want := range []string{"To: <s@example.org>\r\n", "\r\n    5.3.4 message size exceeds the limit of 100 octets\r\n", "\r\n    r@example.net\r\n", "\r\n    Subject: too large\r\n    X: ?[2J\r\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the notice lacks %q:\n%s", want, text)
		}
	}

	d = newTestDrops(t, &testCleanup{end: dsn.Errorf("5.1.3", "no")})
	d.drop(t, submission(t), "x\r\n")
	d.drop(t, &envelope.Envelope{Recipients: submission(t).Recipients}, "x\r\n")
	d.all(t.Context())
	if d.left(t) != "aside aside" || strings.Count(d.system.log.String(), "reject: ") != 3 {
		t.Errorf("%q is left, log\n%s", d.left(t), d.system.log)
	}
}

// TestDroppedMany: of one user's thousands and another's few, the few do not come
// last; all arrive.
func TestDroppedMany(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("takes root to have files of several users")
	}
	const many = perUserLook + 20
	d := newTestDrops(t, &testCleanup{})
	var order []uint32
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range many + 2 {
			order = append(order, (<-d.cleanup.opened).Trace.UID)
			<-d.cleanup.content
		}
	}()
	for range many {
		d.drop(t, submission(t), "x\r\n")
	}
	for range 2 {
		path := d.drop(t, submission(t), "x\r\n")
		if err := os.Lchown(path, 65534, -1); err != nil {
			t.Fatal(err)
		}
	}
	d.all(t.Context())
	<-done
	last := 0
	for i, uid := range order {
		if uid == 65534 {
			last = i
		}
	}
	if last > 4 || d.left(t) != "" {
		t.Errorf("the few came at place %d of %d; left %q", last, len(order), d.left(t))
	}
}

// TestDroppedStays: what cannot be taken now keeps nothing else waiting.
func TestDroppedStays(t *testing.T) {
	const stay, many = perUserLook + 5, 2 * perUserLook
	d := newTestDrops(t, &testCleanup{busyFor: "busy"})
	go func() {
		for range stay + many {
			if e := <-d.cleanup.opened; e.Sender.Local() != "busy" {
				<-d.cleanup.content
			}
		}
	}()
	for range stay {
		e := submission(t)
		e.Sender = mbox(t, "busy@example.org")
		d.drop(t, e, "x\r\n")
	}
	for range many {
		d.drop(t, submission(t), "x\r\n")
	}
	d.all(t.Context())
	if left := strings.Fields(d.left(t)); len(left) != stay {
		t.Errorf("%d are left, not %d", len(left), stay)
	}
}

// TestDroppedTold: whose message is refused and cannot be set aside hears of it once.
func TestDroppedTold(t *testing.T) {
	d := newTestDrops(t, &testCleanup{})
	d.size = func() int64 { return 1 }
	path := d.drop(t, submission(t), "x\r\n")
	d.told[filepath.Base(path)] = true
	d.all(t.Context())
	if d.left(t) != "aside" || len(d.cleanup.content) != 0 || len(d.told) != 0 {
		t.Errorf("%q is left, %d told, %v", d.left(t), len(d.cleanup.content), d.told)
	}
}

// TestDroppedRemove: a message that is in the queue and cannot be removed is not
// submitted again.
func TestDroppedRemove(t *testing.T) {
	d := newTestDrops(t, &testCleanup{})
	d.taken["NAME"] = true
	path := d.drop(t, submission(t), "x\r\n")
	if err := os.Rename(path, filepath.Join(d.dir, "NAME")); err != nil {
		t.Fatal(err)
	}
	d.all(t.Context())
	if d.left(t) != "" || len(d.cleanup.opened) > 0 || len(d.taken) > 0 {
		t.Errorf("%q, %d submitted, %v", d.left(t), len(d.cleanup.opened), d.taken)
	}
}

// TestDroppedRemoveAtTheEnd: nor is it by the next process.
func TestDroppedRemoveAtTheEnd(t *testing.T) {
	d := newTestDrops(t, &testCleanup{})
	d.taken["NAME"] = true
	path := d.drop(t, submission(t), "x\r\n")
	if err := os.Rename(path, filepath.Join(d.dir, "NAME")); err != nil {
		t.Fatal(err)
	}
	d.end = true
	_, run := d.loop()
	run()
	if d.left(t) != "" || len(d.cleanup.opened) > 0 {
		t.Errorf("%q, %d submitted", d.left(t), len(d.cleanup.opened))
	}
}

// TestDropsLoop: it looks when it begins and when it is told, and ends when it is
// told. A message that is on its way it finishes, unless that takes long: then it stays.
func TestDropsLoop(t *testing.T) {
	d := newTestDrops(t, &testCleanup{})
	stopping := make(chan struct{})
	d.ending = func() bool {
		select {
		case <-stopping:
			return true
		default:
			return false
		}
	}
	d.hold = func() func() { return func() {} }
	end, run := d.loop()
	d.drop(t, submission(t), "first\r\n")
	ended := make(chan struct{})
	go func() { run(); close(ended) }()
	if got := <-d.cleanup.content; got != "first\r\n" {
		t.Errorf("%q", got)
	}
	d.drop(t, submission(t), "second\r\n")
	d.look()
	if got := <-d.cleanup.content; got != "second\r\n" {
		t.Errorf("%q", got)
	}
	close(stopping)
	end()
	<-ended

	for left, patience := range map[string]time.Duration{"": time.Hour, "dropped": time.Millisecond} {
		gate := make(chan struct{})
		open := sync.OnceFunc(func() { close(gate) })
		defer open()
		d = newTestDrops(t, &testCleanup{gate: gate})
		d.lastWait = patience
		d.drop(t, submission(t), "third\r\n")
		var halt atomic.Bool
		d.ending = halt.Load
		end, run = d.loop()
		ended = make(chan struct{})
		go func() { run(); close(ended) }()
		<-d.cleanup.opened
		halt.Store(true)
		end()
		if left == "" {
			open()
			if got := <-d.cleanup.content; got != "third\r\n" {
				t.Errorf("%q", got)
			}
		}
		<-ended
		if d.left(t) != left {
			t.Errorf("%q is left", d.left(t))
		}
	}
}

// TestLongLook: the daemon stays while a look takes long, and no longer.
func TestLongLook(t *testing.T) {
	defer func(d time.Duration) { longLook = d }(longLook)
	longLook = time.Millisecond
	held := make(chan bool, 2)
	d := &drops{hold: func() (release func()) {
		held <- true
		return func() { held <- false }
	}}
	d.stay(func() {
		if !<-held {
			t.Error("released before it was held")
		}
	})
	if <-held {
		t.Error("held twice")
	}
	longLook = time.Hour
	d.stay(func() {})
	if len(held) > 0 {
		t.Error("held by a short look")
	}
}

// TestDroppedSender: who has dropped a message as somebody else has it set aside, and
// nobody is told that he has sent it.
func TestDroppedSender(t *testing.T) {
	d := newTestDrops(t, &testCleanup{})
	e := submission(t)
	e.Sender = mbox(t, notMine+"@example.org")
	d.drop(t, e, "one\r\n")
	d.all(t.Context())
	if d.left(t) != "aside" || len(d.cleanup.opened) != 0 || !strings.Contains(d.system.log.String(), "5.7.1 Sender address rejected") {
		t.Errorf("%q is left, %d submitted, log\n%s", d.left(t), len(d.cleanup.opened), d.system.log)
	}
}
