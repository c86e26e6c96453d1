package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/queueid"
)

// testLog is a mail log that remembers.
type testLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *testLog) Info(_ maillog.Fields, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *testLog) Warn(f maillog.Fields, format string, args ...any) {
	l.Info(f, "warning: "+format, args...)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// testCleanup is the cleanup behind pickup. Where there is a gate it reads no
// further than the opening of a message before the gate opens.
type testCleanup struct {
	begin, end *dsn.Error // refusals
	busyFor    string     // a sender, without his domain, whose mail is refused for now
	opened     chan *envelope.Envelope
	gate       chan struct{}
	content    chan string // of messages that came to their end
	canceled   chan string // of others
}

var testID = queueid.New(time.Unix(1700000000, 0), 1)

func (q *testCleanup) handle(c *ipc.Conn, msg []byte, _ *os.File) error {
	r, err := cleanup.DecodeRequest(msg)
	if err != nil {
		return err
	}
	q.opened <- r.Envelope
	if q.gate != nil {
		<-q.gate
	}
	if r.Envelope.Sender.Local() == q.busyFor && q.busyFor != "" {
		return reply(c, cleanup.Reply{Err: dsn.Errorf("4.3.0", "busy")})
	}
	if q.begin != nil {
		return reply(c, cleanup.Reply{Err: q.begin})
	}
	if err := reply(c, cleanup.Reply{ID: testID}); err != nil {
		return err
	}
	var content strings.Builder
	for r.Kind != cleanup.KindEnd {
		b, err := c.Receive(ipc.MaxChunk)
		if err == nil {
			r, err = cleanup.DecodeRequest(b)
		}
		if err != nil {
			q.canceled <- content.String()
			return err
		}
		content.Write(r.Data)
	}
	q.content <- content.String()
	if q.end != nil {
		return reply(c, cleanup.Reply{Err: q.end})
	}
	return reply(c, cleanup.Reply{ID: testID})
}

// system is a pickup with cleanup behind it, both at real sockets.
type system struct {
	*service
	cleanup *testCleanup
	behind  cleanupQueue
	log     *testLog
	path    string
	served  chan error  // what handle has returned
	away    atomic.Bool // cleanup is
	stop    context.CancelFunc
}

// begin is a queue that is away at times.
func (s *system) begin(ctx context.Context, e *envelope.Envelope) (queueid.ID, transaction, error) {
	if s.away.Load() {
		return cleanupQueue{cleanup.NewClient("/nonexistent/socket")}.begin(ctx, e)
	}
	return s.behind.begin(ctx, e)
}

// notMine is whom nobody may send as.
const notMine = "boss"

// perUser is how many messages a user may have under way in tests.
const perUser = 2

func newSystem(t *testing.T, q *testCleanup) *system {
	t.Helper()
	q.opened, q.content, q.canceled = make(chan *envelope.Envelope, 10), make(chan string, 10), make(chan string, 10)
	s := &system{cleanup: q, log: &testLog{}, served: make(chan error, 100)}
	s.behind = cleanupQueue{cleanup.NewClient(ipctest.Serve(t, cleanup.Protocol, q.handle))}
	s.service = &service{queue: s, log: s.log, perUser: perUser, maySend: func(uid uint32, sender addr.Mailbox) bool {
		return uid != uint32(os.Getuid()) || sender.Local() != notMine
	}}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	t.Cleanup(stop)
	s.path = ipctest.Serve(t, cleanup.Protocol, func(c *ipc.Conn, msg []byte, file *os.File) error {
		err := s.handle(ctx, c, msg, file)
		s.served <- err
		return err
	})
	return s
}

func mbox(t testing.TB, s string) addr.Mailbox {
	t.Helper()
	m, err := addr.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// submission is an envelope as sendmail makes it.
func submission(t testing.TB) *envelope.Envelope {
	to := mbox(t, "r@example.net")
	return &envelope.Envelope{Sender: mbox(t, "s@example.org"), Recipients: []envelope.Recipient{{Address: to, Original: to}}}
}

// submit sends a whole message, by a client of its own.
func (s *system) submit(t testing.TB, content string) error {
	t.Helper()
	tx, err := cleanup.NewClient(s.path).Begin(t.Context(), submission(t))
	if err != nil {
		return err
	}
	defer tx.Abort()
	if _, err := tx.Write([]byte(content)); err != nil {
		return err
	}
	return tx.Commit()
}

// wantStatus checks a verdict; "" stands for none.
func wantStatus(t testing.TB, what string, err error, status string) {
	t.Helper()
	var e *dsn.Error
	got := ""
	if errors.As(err, &e) {
		got = e.Status.String()
	}
	if got != status || err != nil && e == nil {
		t.Errorf("%s: %v, want %q", what, err, status)
	}
}

// TestSubmission: the message arrives as it is; who submits it and when is what
// the kernel and the clock say, and nothing that only others may say is passed on.
func TestSubmission(t *testing.T) {
	s := newSystem(t, &testCleanup{})
	e := submission(t)
	e.Arrival = time.Unix(1, 0)
	e.Trace = envelope.Trace{
		Origin: envelope.FromSystem, Protocol: "ESMTP", Helo: "forged.example", ClientName: "forged.example",
		ClientAddr: netip.MustParseAddr("192.0.2.1"), UID: uint32(os.Getuid()) + 1,
	}
	e.Return, e.EnvID, e.Body, e.SMTPUTF8 = dsn.ReturnHeaders, "id", envelope.Body8BitMIME, true
	orcpt := dsn.OriginalRecipient{Type: "rfc822", Address: "o@example.com"}
	e.Recipients = []envelope.Recipient{
		{Address: mbox(t, "a@example.net"), Original: mbox(t, "forged@example.com"), Notify: dsn.NotifyDelay, ORCPT: orcpt},
		{Address: mbox(t, "root")},
	}
	start := time.Now()
	client := cleanup.NewClient(s.path)
	content := strings.Repeat("0123456789abcdef\r\n", 3*ipc.MaxChunk/18) // in several packets
	origins := map[envelope.Origin]envelope.Origin{envelope.FromSystem: envelope.FromLocal, envelope.FromNetwork: envelope.FromLocal, envelope.FromGateway: envelope.FromGateway}
	for said, origin := range origins { // on one connection
		e.Trace.Origin = said
		tx, err := client.Begin(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil || tx.ID != testID {
			t.Fatalf("%s, %v", tx.ID, err)
		}
		if got := <-s.cleanup.content; got != content {
			t.Errorf("%d octets became %d", len(content), len(got))
		}
		got := <-s.cleanup.opened
		if got.Arrival.Before(start.Add(-time.Second)) || got.Arrival.After(time.Now().Add(time.Second)) {
			t.Errorf("arrived %v", got.Arrival)
		}
		want := *e
		want.Arrival = got.Arrival
		want.Trace = envelope.Trace{Origin: origin, UID: uint32(os.Getuid())}
		want.Recipients = []envelope.Recipient{
			{Address: mbox(t, "a@example.net"), Original: mbox(t, "a@example.net"), Notify: dsn.NotifyDelay, ORCPT: orcpt},
			{Address: mbox(t, "root"), Original: mbox(t, "root")},
		}
		if fmt.Sprintf("%+v", *got) != fmt.Sprintf("%+v", want) {
			t.Errorf("envelope\n%+v, want\n%+v", *got, want)
		}
	}
	line := fmt.Sprintf("%s: uid=%d from=<s@example.org>", testID, os.Getuid())
	if want := line + "\n" + line + "\n" + line; s.log.String() != want {
		t.Errorf("log\n%s\nwant\n%s", s.log, want)
	}
}

// TestRefusals: verdicts reach the client as they are, trouble of ours as "try
// again", and the log has each.
func TestRefusals(t *testing.T) {
	me := fmt.Sprintf("uid=%d", os.Getuid())
	for _, tt := range []struct {
		name       string
		begin, end *dsn.Error
		status     string
		log        string
	}{
		{"at once", dsn.Errorf("4.3.1", "Insufficient system storage"), nil, "4.3.1",
			"NOQUEUE: reject: MAIL from " + me + ": 4.3.1 Insufficient system storage; from=<s@example.org> to=<r@example.net>"},
		{"at the end", nil, dsn.Errorf("5.3.4", "too big"), "5.3.4",
			testID.String() + ": " + me + " from=<s@example.org>\n" +
				testID.String() + ": reject: END-OF-MESSAGE from " + me + ": 5.3.4 too big; from=<s@example.org> to=<r@example.net>"},
	} {
		s := newSystem(t, &testCleanup{begin: tt.begin, end: tt.end})
		wantStatus(t, tt.name, s.submit(t, "x\r\n"), tt.status)
		if s.log.String() != tt.log {
			t.Errorf("%s: log\n%s\nwant\n%s", tt.name, s.log, tt.log)
		}
	}
}

// TestSender: as whom one may not send cleanup does not hear of.
func TestSender(t *testing.T) {
	s := newSystem(t, &testCleanup{})
	e := submission(t)
	e.Sender = mbox(t, notMine+"@example.org")
	_, err := cleanup.NewClient(s.path).Begin(t.Context(), e)
	wantStatus(t, "another's name", err, "5.7.1")
	reject := fmt.Sprintf("NOQUEUE: reject: MAIL from uid=%d: 5.7.1 Sender address rejected: not for this user; from=<boss@example.org> to=<r@example.net>", os.Getuid())
	if s.log.String() != reject || len(s.cleanup.opened) > 0 {
		t.Errorf("log\n%s\nwant\n%s", s.log, reject)
	}
}

// TestCleanupAway: without cleanup mail is refused for now, and taken as soon as
// cleanup is back.
func TestCleanupAway(t *testing.T) {
	s := newSystem(t, &testCleanup{})
	s.away.Store(true)
	wantStatus(t, "away", s.submit(t, "x\r\n"), "4.3.0")
	lines := strings.Split(s.log.String(), "\n")
	reject := fmt.Sprintf("NOQUEUE: reject: MAIL from uid=%d: 4.3.0 the mail system cannot take the message now; from=<s@example.org> to=<r@example.net>", os.Getuid())
	if len(lines) != 2 || !strings.HasPrefix(lines[0], fmt.Sprintf("warning: uid=%d: ", os.Getuid())) || !strings.Contains(lines[0], "nobody listens") || lines[1] != reject {
		t.Errorf("log\n%s", s.log)
	}
	s.away.Store(false)
	wantStatus(t, "back", s.submit(t, "x\r\n"), "")
}

// TestLimit: a user has so many places and no more, whatever cleanup does; a
// place is free again when the message has come to its end, and another user's
// places are its own.
func TestLimit(t *testing.T) {
	s := newSystem(t, &testCleanup{gate: make(chan struct{})})
	verdicts := make(chan error, 2)
	for range 2 {
		go func() { verdicts <- s.submit(t, "x\r\n") }()
		<-s.cleanup.opened // and there it stays
	}
	wantStatus(t, "a third message", s.submit(t, "x\r\n"), "4.3.2")
	reject := fmt.Sprintf("NOQUEUE: reject: MAIL from uid=%d: 4.3.2 more than 2 messages, or 4194304 octets of envelopes, at once; from=<s@example.org> to=<r@example.net>", os.Getuid())
	if s.log.String() != reject {
		t.Errorf("log\n%s\nwant\n%s", s.log, reject)
	}
	other := uint32(os.Getuid()) + 1
	for i := range perUser + 1 {
		if s.enter(other, 0) != (i < perUser) {
			t.Errorf("another user's place %d of %d", i+1, perUser)
		}
	}
	for range perUser {
		s.leave(other, 0)
	}
	for i, want := range []bool{true, false} { // one may be as large as it likes
		if s.enter(other, maxEnvelopes+1) != want {
			t.Errorf("large envelope %d", i+1)
		}
	}
	s.leave(other, maxEnvelopes+1)
	<-s.served // the third
	close(s.cleanup.gate)
	for range 2 {
		wantStatus(t, "a slow cleanup", <-verdicts, "")
		<-s.served
	}
	wantStatus(t, "a place that is free again", s.submit(t, "x\r\n"), "")
	<-s.served
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.users) > 0 {
		t.Errorf("users that are gone are remembered: %v", s.users)
	}
}

// TestUsers: who is limited is who the kernel says. It takes root to be somebody
// else; what the others see of it TestSubmission holds.
func TestUsers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("takes root")
	}
	s := newSystem(t, &testCleanup{})
	for _, path := range []string{s.path, filepath.Dir(s.path)} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	const nobody = 65534
	// This goroutine's thread becomes another user, and is itself again before
	// anything else runs on it.
	runtime.LockOSThread()
	_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), nobody, ^uintptr(0))
	err := s.submit(t, "x\r\n")
	_, _, back := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0))
	if errno != 0 || back != 0 {
		t.Fatal(errno, back) // with the thread, which nobody gets any more
	}
	runtime.UnlockOSThread()
	wantStatus(t, "another user", err, "")
	if e := <-s.cleanup.opened; e.Trace.UID != nobody {
		t.Errorf("uid %d", e.Trace.UID)
	}
}

// TestClientDies: a message whose client goes away in the middle of it is
// cancelled, and its place is free.
func TestClientDies(t *testing.T) {
	s := newSystem(t, &testCleanup{})
	for range perUser - 1 {
		s.enter(uint32(os.Getuid()), 0)
	}
	tx, err := cleanup.NewClient(s.path).Begin(t.Context(), submission(t))
	if err != nil {
		t.Fatal(err)
	}
	half := strings.Repeat("x", 2*ipc.MaxChunk)
	if _, err := tx.Write([]byte(half)); err != nil {
		t.Fatal(err)
	}
	tx.Abort()
	if got := <-s.cleanup.canceled; len(got) > len(half) {
		t.Errorf("%d octets of a message of %d", len(got), len(half))
	}
	<-s.served
	wantStatus(t, "the next message", s.submit(t, "x\r\n"), "")
	if got := <-s.cleanup.content; got != "x\r\n" || len(s.cleanup.content) > 0 {
		t.Errorf("took %q", got)
	}
}

// TestStop: a daemon that is told to stop waits neither for a client nor for
// cleanup.
func TestStop(t *testing.T) {
	s := newSystem(t, &testCleanup{})
	if _, err := cleanup.NewClient(s.path).Begin(t.Context(), submission(t)); err != nil { // and now it says nothing
		t.Fatal(err)
	}
	s.stop()
	if err := <-s.served; err == nil {
		t.Error("half a message was served")
	}
	<-s.cleanup.canceled

	s = newSystem(t, &testCleanup{gate: make(chan struct{})})
	verdict := make(chan error, 1)
	go func() { verdict <- s.submit(t, "x\r\n") }()
	<-s.cleanup.opened
	s.stop()
	wantStatus(t, "a stop while cleanup is slow", <-verdict, "4.3.0")
	close(s.cleanup.gate)
}

// request is a message of a client.
func request(encode func(m *ipc.Message)) *ipc.Message {
	m := ipc.NewMessage()
	encode(m)
	return m
}

// TestGarbled: what is no message ends the connection. None of it gets to
// cleanup as a message, and the daemon goes on.
func TestGarbled(t *testing.T) {
	s := newSystem(t, &testCleanup{})
	for range perUser - 1 { // or what is left would not show
		s.enter(uint32(os.Getuid()), 0)
	}
	begin := request(func(m *ipc.Message) { cleanup.EncodeBegin(m, submission(t)) })
	raw := func(b ...byte) *ipc.Message { return request(func(m *ipc.Message) { m.Raw(b) }) }
	whole := begin.Data()[1:]
	for name, script := range map[string][]*ipc.Message{
		"empty":                      {raw()},
		"no kind":                    {raw(0)},
		"unknown kind":               {raw(99, 1, 2, 3)},
		"content first":              {raw(byte(cleanup.KindData), 'x')},
		"an end first":               {raw(byte(cleanup.KindEnd))},
		"half an envelope":           {raw(whole[:len(whole)/2]...)},
		"more than an envelope":      {raw(append(append([]byte{}, whole...), 0)...)},
		"a message within a message": {begin, raw(byte(cleanup.KindData), 'x'), begin},
		"garbage within a message":   {begin, raw(99)},
		"nothing within a message":   {begin, raw()},
	} {
		conn, _, err := ipc.NewClient(s.path, cleanup.Protocol).Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range script {
			_ = conn.Send(m) // that the connection has ended shows below
		}
		want := 0
		if script[0] == begin {
			want = 1 // the ID
		}
		answers := 0
		for {
			if _, err := conn.Receive(cleanup.Protocol.MaxReply); err != nil {
				break
			}
			answers++
		}
		_ = conn.Close()
		if err := <-s.served; err == nil || answers != want {
			t.Errorf("%s: served, with %d answers: %v", name, answers, err)
		}
		if want > 0 {
			<-s.cleanup.canceled
		}
	}
	wantStatus(t, "a message after all that", s.submit(t, "x\r\n"), "")
	if len(s.cleanup.content) != 1 {
		t.Errorf("%d messages got to cleanup", len(s.cleanup.content))
	}
}

// TestDescriptor: a descriptor that comes with a message is closed, and the
// message refused.
func TestDescriptor(t *testing.T) {
	s := newSystem(t, &testCleanup{})
	conn, _, err := ipc.NewClient(s.path, cleanup.Protocol).Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := conn.SendFile(request(func(m *ipc.Message) { cleanup.EncodeBegin(m, submission(t)) }), w); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if _, err := r.Read(make([]byte, 1)); err == nil { // the end: nobody has it any more
		t.Error("somebody has written into it")
	}
	if err := <-s.served; err == nil {
		t.Error("served")
	}
}
