package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// TestSubmit puts messages into the queue over real sockets and compares the
// files octet for octet.
func TestSubmit(t *testing.T) {
	s := newSystem(t)
	s.rewrite.set(func(r *testRewrite) {
		r.aliases = map[string][]string{"all@example.org": {"a@example.org", "B@Example.net"}}
	})
	const content = "Message-ID: <1@x>\r\nBcc: secret\r\n\r\nbody\r\n"

	id, err := s.submit(t, fromNetwork(t, "all@example.org"), content)
	if err != nil {
		t.Fatal(err)
	}
	m, got := s.read(t, id)
	want := fmt.Sprintf("Received: from client.example (host.example [192.0.2.1])\r\n\tby mx.example.org (Posthouse) with ESMTP id %s\r\n"+
		"\tfor <all@example.org>; %s\r\nMessage-ID: <1@x>\r\n\r\nbody\r\n", id, mailDate(arrivalTime))
	if got != want {
		t.Errorf("content\n%q, want\n%q", got, want)
	}
	original := mbox(t, "all@example.org")
	orcpt := dsn.OriginalRecipient{Type: "rfc822", Address: "all@example.org"}
	e := fromNetwork(t)
	e.Recipients = []envelope.Recipient{
		{Address: mbox(t, "a@example.org"), Original: original, ORCPT: orcpt},
		{Address: mbox(t, "B@Example.net"), Original: original, ORCPT: orcpt},
	}
	m.Envelope.Arrival = m.Envelope.Arrival.UTC()
	if fmt.Sprintf("%+v", m.Envelope) != fmt.Sprintf("%+v", e) {
		t.Errorf("envelope\n%+v, want\n%+v", m.Envelope, e)
	}
	info, err := os.Stat(filepath.Join(s.incoming, id.String()))
	if err != nil || info.Mode().Perm() != queue.FileMode {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if want := id.String() + ": message-id=<1@x>"; s.log.String() != want {
		t.Errorf("log %q, want %q", s.log, want)
	}

	// A second message on the same connection, from a local user.
	id2, err := s.submit(t, fromLocal(t, "root", "postmaster"), "Subject: x\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	if id2.String() <= id.String() {
		t.Errorf("ID %s after %s", id2, id)
	}
	m, got = s.read(t, id2)
	want = fmt.Sprintf("Received: by mx.example.org (Posthouse, from userid 1000)\r\n\tid %s; %s\r\nSubject: x\r\nMessage-Id: <%s@mx.example.org>\r\n"+
		"Date: %s\r\nFrom: s@example.com\r\n\r\n", id2, mailDate(arrivalTime), id2, mailDate(arrivalTime))
	if got != want {
		t.Errorf("content\n%q, want\n%q", got, want)
	}
	if r := m.Envelope.Recipients[0]; r.Address.String() != "root@example.org" || r.Original.String() != "root" || r.ORCPT.String() != "rfc822;root@example.org" {
		t.Errorf("recipient %+v", r)
	}
	passedOn := fromLocal(t, "root")
	passedOn.Trace.Origin = envelope.FromGateway
	id3, err := s.submit(t, passedOn, "Subject: x\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	m, got = s.read(t, id3)
	if !strings.HasSuffix(got, "\r\nSubject: x\r\n\r\n") || m.Envelope.Trace.Origin != envelope.FromLocal {
		t.Errorf("passed on: %+v, %q", m.Envelope.Trace, got)
	}
	if r := m.Envelope.Recipients[0]; r.Original.String() != "root" || r.ORCPT.String() != "rfc822;root@example.org" {
		t.Errorf("the only recipient: %+v", r)
	}
	s.waitForNotices(t, id, id2, id3)
}

func (s *system) waitForNotices(t testing.TB, want ...queueid.ID) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		s.mu.Lock()
		got := fmt.Sprint(s.notices)
		s.mu.Unlock()
		if got == fmt.Sprint(want) {
			return
		}
	}
	t.Errorf("qmgr heard of %v, want %v", s.notices, want)
}

// TestLarge: a large message in many pieces, and the size limit.
func TestLarge(t *testing.T) {
	s := newSystem(t)
	limit := int(s.current().Limits.MessageSize)
	for d := -1; d <= 1; d++ {
		body := "\r\n" + strings.Repeat("0123456789abcdef\r\n", limit/18-1)
		body += strings.Repeat("x", limit+d-len(body)-2) + "\r\n"
		id, err := s.submit(t, fromNetwork(t, "a@example.org"), body)
		if d > 0 {
			wantStatus(t, "size", err, "5.3.4")
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, got := s.read(t, id); !strings.HasSuffix(got, body) {
			t.Errorf("limit%+d: the content has changed", d)
		}
		if err := os.Remove(filepath.Join(s.incoming, id.String())); err != nil {
			t.Fatal(err)
		}
	}
	s.empty(t)
}

// TestRefusals: what is refused says why, leaves no file, and the connection
// serves on.
func TestRefusals(t *testing.T) {
	s := newSystem(t)
	s.configure(func(c *config.Config) { c.Limits.Recipients, c.Limits.Hops, c.Limits.HeaderSize = 3, 1, 1000 })
	s.rewrite.set(func(r *testRewrite) {
		r.refuse = map[string]*dsn.Error{
			"gone@example.org": dsn.Errorf("5.1.1", "no such user"), "later@example.org": dsn.Errorf("4.3.0", "%s", strings.Repeat("\x1b", 1900)),
			"-x@example.org": dsn.Errorf("5.1.3", "bad recipient address syntax"),
		}
	})
	null := fromNetwork(t, "a@example.org")
	null.Recipients = nil
	for _, tt := range []struct {
		name, status string
		e            *envelope.Envelope
		content      string
	}{
		{"no recipient", "5.5.1", null, ""},
		{"four recipients", "4.5.3", fromNetwork(t, "a@x", "b@x", "c@x", "d@x"), ""},
		{"unknown recipient", "5.1.1", fromNetwork(t, "a@example.org", "gone@example.org"), ""},
		{"doubtful recipient", "4.3.0", fromNetwork(t, "later@example.org"), ""},
		{"hops", "5.4.0", fromNetwork(t, "a@example.org"), "Received: x\r\nReceived: y\r\n\r\n"},
		{"header", "5.3.4", fromNetwork(t, "a@example.org"), strings.Repeat("X: y\r\n", 200)},
		{"size", "5.3.4", fromLocal(t, "a@example.org"), strings.Repeat("X: y\r\n", 200000)},
	} {
		_, err := s.submit(t, tt.e, tt.content)
		wantStatus(t, tt.name, err, tt.status)
		s.empty(t)
	}
	id, err := s.submit(t, fromLocal(t, "a@example.org", "-x@example.org"), "\r\n")
	if err != nil {
		t.Fatal(err)
	}
	if e, _ := s.read(t, id); len(e.Recipients) != 2 || e.Envelope.Recipients[1].Address != mbox(t, "-x@example.org") {
		t.Errorf("what is no address, among others: %+v", e.Recipients)
	}
	if _, err := s.submit(t, fromNetwork(t, "a@x", "b@x", "c@x"), "\r\n"); err != nil {
		t.Errorf("three recipients: %v", err)
	}
	if _, err := s.submit(t, fromLocal(t, "a@x", "b@x", "c@x", "d@x"), "\r\n"); err != nil { // as with Postfix
		t.Errorf("four recipients of a local user: %v", err)
	}
	many := fromNetwork(t, "a@x", "b@x", "c@x", "d@x")
	many.Trace = envelope.Trace{Origin: envelope.FromSystem}
	if _, err := s.submit(t, many, "\r\n"); err != nil {
		t.Errorf("our own message: %v", err)
	}
	// What local sends on was taken before its trace made it longer than the limits.
	long := strings.Repeat("X: y\r\n", 200) + "\r\n" + strings.Repeat("0123456789abcd\r\n", 1<<16)
	if _, err := s.submit(t, many, long); err != nil {
		t.Errorf("a message that is sent on: %v", err)
	}
	_, err = s.submit(t, many, long+strings.Repeat("0123456789abcd\r\n", traceSize/16))
	wantStatus(t, "a message of any size", err, "5.3.4")
}

// TestSameRecipient: what a recipient stands for, which may be many, is asked once.
func TestSameRecipient(t *testing.T) {
	s := newSystem(t)
	id, err := s.submit(t, fromNetwork(t, "all@example.org", "b@example.org", "all@Example.Org", "all@example.org"), "\r\n")
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	s.rewrite.set(func(r *testRewrite) {
		for _, q := range r.asked {
			if q.Op == rewrite.Expand {
				asked += len(q.Addresses)
			}
		}
	})
	// Spelt in two ways it was given as two, which notifications keep apart.
	if m, _ := s.read(t, id); asked != 3 || len(m.Envelope.Recipients) != 3 {
		t.Errorf("asked about %d, %d recipients", asked, len(m.Envelope.Recipients))
	}
}

// TestRewriteTrouble: without sure answers nothing is accepted, or refused for good.
func TestRewriteTrouble(t *testing.T) {
	s := newSystem(t)
	for name, garble := range map[string]func([]rewrite.Answer) []rewrite.Answer{
		"too few":    func(a []rewrite.Answer) []rewrite.Answer { return a[1:] },
		"no address": func(a []rewrite.Answer) []rewrite.Answer { a[0].Addresses = nil; return a },
		"no domain":  func(a []rewrite.Answer) []rewrite.Answer { a[0].Addresses = []addr.Mailbox{mbox(t, "x")}; return a },
		"null":       func(a []rewrite.Answer) []rewrite.Answer { a[0].Addresses = []addr.Mailbox{{}}; return a },
		"two of them": func(a []rewrite.Answer) []rewrite.Answer {
			a[0].Addresses = append(a[0].Addresses, a[0].Addresses...)
			return a
		},
	} {
		s.rewrite.set(func(r *testRewrite) { r.garble = garble })
		_, err := s.submit(t, fromNetwork(t, "a"), "\r\n")
		wantStatus(t, name, err, "4.3.0")
	}
	s.rewrite.set(func(r *testRewrite) { r.garble, r.fail = nil, errors.New("down") })
	_, err := s.submit(t, fromNetwork(t, "a@example.org"), "\r\n")
	wantStatus(t, "no answer", err, "4.3.0")
	s.empty(t)
}

// TestCancelled: a client that goes away, or talks nonsense, leaves no file.
func TestCancelled(t *testing.T) {
	s := newSystem(t)
	begin := func(t *testing.T) *ipc.Conn {
		conn, _, err := ipc.NewClient(s.path, cleanup.Protocol).Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m := ipc.NewMessage()
		cleanup.EncodeBegin(m, fromNetwork(t, "a@example.org"))
		if err := conn.Send(m); err != nil {
			t.Fatal(err)
		}
		b, err := conn.Receive(cleanup.Protocol.MaxReply)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := cleanup.DecodeReply(b); err != nil || r.Err != nil {
			t.Fatal(r, err)
		}
		return conn
	}
	send := func(t *testing.T, conn *ipc.Conn, kind cleanup.Kind, data string) {
		m := ipc.NewMessage()
		m.Uint8(uint8(kind))
		m.Raw([]byte(data))
		if err := conn.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	for name, act := range map[string]func(*testing.T, *ipc.Conn){
		"at once": func(*testing.T, *ipc.Conn) {},
		"in the middle": func(t *testing.T, c *ipc.Conn) {
			send(t, c, cleanup.KindData, strings.Repeat("A: b\r\n", 1000))
		},
		"unknown kind": func(t *testing.T, c *ipc.Conn) { send(t, c, 9, "") },
		"second message": func(t *testing.T, c *ipc.Conn) {
			m := ipc.NewMessage()
			cleanup.EncodeBegin(m, fromNetwork(t, "x@y"))
			c.Send(m)
		},
		"too much": func(t *testing.T, c *ipc.Conn) {
			m := ipc.NewMessage()
			m.Uint8(uint8(cleanup.KindData))
			m.Raw(make([]byte, ipc.MaxChunk))
			c.Send(m)
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn := begin(t)
			act(t, conn)
			if name != "at once" && name != "in the middle" {
				if _, err := conn.Receive(cleanup.Protocol.MaxReply); err == nil {
					t.Error("an answer to nonsense")
				}
			}
			conn.Close()
			for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				if list, _ := os.ReadDir(s.incoming); len(list) == 0 {
					break
				}
			}
			s.empty(t)
		})
	}
	if !strings.Contains(s.log.String(), ": removed (canceled)") {
		t.Errorf("log %q", s.log)
	}
}

// TestStop: a daemon that is told to go at once gives up what is not complete.
func TestStop(t *testing.T) {
	s := newSystem(t)
	ctx, cancel := context.WithCancel(t.Context())
	path := ipctest.Serve(t, cleanup.Protocol, func(c *ipc.Conn, msg []byte, file *os.File) error { return s.handle(ctx, c, msg, file) })
	tx, err := cleanup.NewClient(path).Begin(t.Context(), fromNetwork(t, "a@example.org"))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if list, _ := os.ReadDir(s.incoming); len(list) == 0 {
			break
		}
	}
	s.empty(t)
	if err := tx.Commit(); err == nil {
		t.Error("the message went through")
	}
	s.empty(t)
}

// TestDescriptor: one that was passed is closed and ends the connection.
func TestDescriptor(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := newSystem(t).handle(t.Context(), nil, nil, w); err == nil {
		t.Error("accepted")
	}
	if _, err := r.Read(make([]byte, 1)); err == nil {
		t.Error("still open")
	}
}

// TestSpace tries the free space at the limit, one below and one above.
func TestSpace(t *testing.T) {
	disk := &spaceSpool{}
	s := newSystem(t, func(s spool) spool { disk.spool = s; return disk })
	for _, tt := range []struct {
		size, least config.Size
		need        uint64
	}{{1000, 0, 1500}, {1000, 1600, 1600}} {
		s.configure(func(c *config.Config) { c.Limits.MessageSize, c.Limits.FreeSpace = tt.size, tt.least })
		for d := -1; d <= 1; d++ {
			disk.set(tt.need+uint64(d), nil)
			_, err := s.submit(t, fromNetwork(t, "a@example.org"), "\r\n")
			if d < 0 {
				wantStatus(t, "space", err, "4.3.1")
			} else if err != nil {
				t.Errorf("%d octets free, %d needed: %v", tt.need+uint64(d), tt.need, err)
			}
		}
	}
	disk.set(0, errors.New("no answer"))
	_, err := s.submit(t, fromNetwork(t, "a@example.org"), "\r\n")
	wantStatus(t, "space unknown", err, "4.3.0")
}

type spaceSpool struct {
	spool
	mu   sync.Mutex
	left uint64
	kept uint64 // what reclaim makes free
	err  error
}

func (s *spaceSpool) set(left uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left, s.err = left, err
}

func (s *spaceSpool) free() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left, s.err
}

// reclaim of a disk that is full of what is kept of old messages.
func (s *spaceSpool) reclaim() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left += s.kept
}

// TestReclaim: no message is refused for the room that old ones take.
func TestReclaim(t *testing.T) {
	disk := &spaceSpool{left: 1499, kept: 1}
	s := newSystem(t, func(s spool) spool { disk.spool = s; return disk })
	s.configure(func(c *config.Config) { c.Limits.MessageSize, c.Limits.FreeSpace = 1000, 0 })
	if _, err := s.submit(t, fromNetwork(t, "a@example.org"), "\r\n"); err != nil {
		t.Error(err)
	}
}

// TestSpareFile: a message in the file of an old one is as any other, also where it
// is shorter.
func TestSpareFile(t *testing.T) {
	s := newSystem(t)
	old := filepath.Join(s.spare, queueid.New(time.Now(), 1).String())
	if err := errors.Join(os.WriteFile(old, bytes.Repeat([]byte("old"), 5000), queue.FileMode), os.Chmod(old, queue.FileMode)); err != nil {
		t.Fatal(err)
	}
	id, err := s.submit(t, fromNetwork(t, "a@example.org"), "Subject: new\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of the old message: %v", err)
	}
	f, err := os.Open(filepath.Join(s.incoming, id.String()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := queue.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != m.Offset+m.Length {
		t.Errorf("%v, %v; the message ends at %d", info, err, m.Offset+m.Length)
	}
}

func TestDiskError(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status string
	}{{unix.ENOSPC, "4.3.1"}, {unix.EDQUOT, "4.3.1"}, {unix.EMFILE, "4.3.2"}, {unix.EIO, "4.3.0"}, {errors.New("x"), "4.3.0"}} {
		if got := diskError(fmt.Errorf("wrapped: %w", tt.err)); got.Status.String() != tt.status {
			t.Errorf("%v: %v", tt.err, got)
		}
	}
}

// TestIDs: IDs grow, whatever the clock does.
func TestIDs(t *testing.T) {
	var s idSource
	last := ""
	for i, offset := range []time.Duration{0, 0, time.Second, -time.Hour, 0, time.Minute, -time.Second} {
		id := s.next(arrivalTime.Add(offset)).String()
		if id[:9] <= last {
			t.Errorf("%d: %s after %s", i, id, last)
		}
		last = id[:9]
	}
}

// TestTakenID: a name that is there is left alone.
func TestTakenID(t *testing.T) {
	taken := &takenSpool{}
	taken.left.Store(maxTries - 1)
	s := newSystem(t, func(s spool) spool { taken.spool = s; return taken })
	if _, err := s.submit(t, fromNetwork(t, "a@example.org"), "\r\n"); err != nil {
		t.Error(err)
	}
	taken.left.Store(maxTries)
	_, err := s.submit(t, fromNetwork(t, "a@example.org"), "\r\n")
	wantStatus(t, "no free ID", err, "4.3.0")
}

type takenSpool struct {
	spool
	left atomic.Int32
}

func (s *takenSpool) create(id queueid.ID) (spoolFile, error) {
	if s.left.Add(-1) >= 0 {
		return nil, &os.PathError{Op: "open", Path: id.String(), Err: unix.EEXIST}
	}
	return s.spool.create(id)
}

// TestUmask: the mode of queue files does not depend on it.
func TestUmask(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	s := newSystem(t)
	for range 2 {
		id, err := s.submit(t, fromNetwork(t, "a@example.org"), "\r\n")
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(s.incoming, id.String())); err != nil || info.Mode().Perm() != queue.FileMode {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
}

// TestMany: many clients at once, all messages are there, all notices come.
func TestMany(t *testing.T) {
	const clients, each = 20, 20
	s := newSystem(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	want := make(map[string]string)
	for i := range clients {
		wg.Go(func() {
			for j := range each {
				body := fmt.Sprintf("\r\n%d %d %s\r\n", i, j, bytes.Repeat([]byte("x"), i*500))
				id, err := s.submit(t, fromNetwork(t, "a@example.org"), body)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				want[id.String()] = body
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(want) != clients*each {
		t.Errorf("%d different IDs", len(want))
	}
	for text, body := range want {
		if _, got, err := readMessage(filepath.Join(s.incoming, text)); err != nil || !strings.HasSuffix(got, body) {
			t.Errorf("%s: %.100q, %v", text, got, err)
		}
	}
	s.notifierIdle(t, len(want))
}

func (s *system) notifierIdle(t testing.TB, n int) {
	t.Helper()
	got := 0
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline) && got < n; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		got = len(s.notices)
		s.mu.Unlock()
	}
	if got != n {
		t.Errorf("qmgr heard of %d messages of %d", got, n)
	}
}

// TestTrust: what an envelope claims goes into fields as text only.
func TestTrust(t *testing.T) {
	e := fromNetwork(t, "\"x>; \\\"y\"@example.org")
	e.Trace.ClientAddr = netip.MustParseAddr("fe80::1")
	s := newSystem(t)
	id, err := s.submit(t, e, "\r\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, got := s.read(t, id); !strings.Contains(got, "\r\n\tfor <\"x>; \\\"y\"@example.org>; ") || strings.Count(got, "\r\n") != 4 {
		t.Errorf("%q", got)
	}
}

// TestCommitLetsGo: what is committed is qmgr's to take, though a process that is being
// started has it open: qmgr would leave it until it looks by itself.
func TestCommitLetsGo(t *testing.T) {
	s := newSystem(t)
	id := queueid.New(time.Now(), 1)
	w, err := s.spool.create(id)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	copied, err := unix.Dup(int(w.(*os.File).Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(copied)
	reader, err := os.Open(filepath.Join(s.incoming, id.String()))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if err := queue.NewWriter(w, fromNetwork(t, "a@example.org")).Finish(); err != nil {
		t.Fatal(err)
	}
	if _, err := queue.ReadNew(reader); !errors.Is(err, queue.ErrLocked) {
		t.Errorf("before it is committed: %v", err)
	}
	err = errors.Join(s.spool.commit(w), w.Close())
	if _, notThere := queue.ReadNew(reader); err != nil || notThere != nil {
		t.Errorf("after it is committed: %v, %v", err, notThere)
	}
}
