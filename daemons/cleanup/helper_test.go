package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/durable"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/arrival"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

func mbox(t testing.TB, s string) addr.Mailbox {
	t.Helper()
	m, err := addr.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// arrivalTime is when every test message arrives.
var arrivalTime = time.Date(2026, 3, 4, 5, 6, 7, 890000, time.UTC)

// fromNetwork is an envelope as smtpd makes it.
func fromNetwork(t testing.TB, to ...string) *envelope.Envelope {
	e := &envelope.Envelope{
		Arrival: arrivalTime, Sender: mbox(t, "s@example.com"),
		Trace: envelope.Trace{
			Protocol: "ESMTP", Helo: "client.example", ClientName: "host.example", ClientAddr: netip.MustParseAddr("192.0.2.1"),
		},
	}
	for _, r := range to {
		e.Recipients = append(e.Recipients, envelope.Recipient{Address: mbox(t, r), Original: mbox(t, r)})
	}
	return e
}

// fromLocal is an envelope as pickup makes it.
func fromLocal(t testing.TB, to ...string) *envelope.Envelope {
	e := fromNetwork(t, to...)
	e.Trace = envelope.Trace{Origin: envelope.FromLocal, UID: 1000}
	return e
}

// testLog is a mail log that remembers.
type testLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *testLog) Info(_ maillog.Fields, format string, args ...any) { l.add(format, args) }

func (l *testLog) Warn(_ maillog.Fields, format string, args ...any) {
	l.add("warning: "+format, args)
}

func (l *testLog) add(format string, args []any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// testRewrite completes with example.org and expands by a map.
type testRewrite struct {
	mu      sync.Mutex // guards what follows; see set
	aliases map[string][]string
	refuse  map[string]*dsn.Error
	fail    error
	garble  func([]rewrite.Answer) []rewrite.Answer
	asked   []rewrite.Request
}

// set changes what the answers are.
func (r *testRewrite) set(change func(*testRewrite)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

func (r *testRewrite) Ask(_ context.Context, q rewrite.Request) ([]rewrite.Answer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, q)
	if r.fail != nil {
		return nil, r.fail
	}
	answers := make([]rewrite.Answer, len(q.Addresses))
	for i, m := range q.Addresses {
		full := m
		if full.Domain() == "" {
			full, _ = m.WithDomain("example.org")
		}
		a := &answers[i]
		a.Addresses = []addr.Mailbox{full}
		if q.Op != rewrite.Expand {
			continue
		}
		if a.Err = r.refuse[full.String()]; a.Err != nil {
			a.Addresses = nil
			continue
		}
		if targets, ok := r.aliases[full.String()]; ok {
			a.Addresses = nil
			for _, text := range targets {
				to, err := addr.Parse(text)
				if err != nil {
					return nil, err
				}
				a.Addresses = append(a.Addresses, to)
			}
		}
	}
	if r.garble != nil {
		answers = r.garble(answers)
	}
	return answers, nil
}

// system is a cleanup with everything around it.
type system struct {
	*service
	client   *cleanup.Client
	path     string
	log      *testLog
	rewrite  *testRewrite
	incoming string
	spare    string

	mu      sync.Mutex // guards what follows
	cfg     config.Config
	notices []queueid.ID
}

// configure changes the configuration.
func (s *system) configure(change func(*config.Config)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.cfg)
}

// current returns the configuration as it is now.
func (s *system) current() *config.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cfg
	return &c
}

// newSystem runs cleanup on a directory, with rewrite and qmgr behind sockets.
// Each wrap puts itself before the directory.
func newSystem(t testing.TB, wrap ...func(spool) spool) *system {
	t.Helper()
	cfg, err := config.Load(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cfg.Hostname = "mx.example.org"
	cfg.Limits.MessageSize = 1 << 20
	s := &system{cfg: *cfg, log: &testLog{}, rewrite: &testRewrite{}, incoming: t.TempDir()}
	dir, err := queue.OpenDirectory(s.incoming)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	s.spare = filepath.Join(t.TempDir(), "spare")
	if err := os.Mkdir(s.spare, 0o700); err != nil {
		t.Fatal(err)
	}
	spares, err := queue.OpenSpares(s.spare)
	if err != nil {
		t.Fatal(err)
	}
	rewritePath := ipctest.Serve(t, rewrite.Protocol, func(c *ipc.Conn, msg []byte, _ *os.File) error {
		q, err := rewrite.DecodeRequest(msg)
		if err != nil {
			return err
		}
		answers, err := s.rewrite.Ask(context.Background(), q)
		if err != nil {
			return err
		}
		m := ipc.NewMessage()
		rewrite.EncodeAnswers(m, answers)
		return c.Send(m)
	})
	qmgr := ipctest.Serve(t, arrival.Protocol, func(_ *ipc.Conn, msg []byte, _ *os.File) error {
		ids, err := arrival.Decode(msg)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.notices = append(s.notices, ids...)
		return err
	})
	notices := newNotifier(qmgr, filepath.Join(t.TempDir(), "fifo"), s.log)
	t.Cleanup(notices.close)
	s.service = &service{
		config: s.current, rewrite: rewrite.NewClient(rewritePath), log: s.log, now: time.Now,
		arrived: notices.add, spool: &diskSpool{dir: dir, spares: spares, committer: durable.NewCommitter("auto")},
	}
	for _, w := range wrap {
		s.spool = w(s.spool)
	}
	s.path = ipctest.Serve(t, cleanup.Protocol, func(c *ipc.Conn, msg []byte, file *os.File) error { return s.handle(t.Context(), c, msg, file) })
	s.client = cleanup.NewClient(s.path)
	return s
}

// submit sends a whole message.
func (s *system) submit(t testing.TB, e *envelope.Envelope, content string) (queueid.ID, error) {
	t.Helper()
	tx, err := s.client.Begin(t.Context(), e)
	if err != nil {
		return queueid.ID{}, err
	}
	if _, err := tx.Write([]byte(content)); err != nil {
		return tx.ID, err
	}
	return tx.ID, tx.Commit()
}

// read returns what the queue file of id says.
func (s *system) read(t testing.TB, id queueid.ID) (*queue.Message, string) {
	t.Helper()
	m, content, err := readMessage(filepath.Join(s.incoming, id.String()))
	if err != nil {
		t.Fatal(err)
	}
	return m, content
}

// readMessage reads a queue file and checks all of it.
func readMessage(path string) (*queue.Message, string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	m, err := queue.Read(f)
	if err != nil {
		return nil, "", err
	}
	if err := m.CheckContent(f); err != nil {
		return nil, "", err
	}
	b := make([]byte, m.Length)
	if _, err := f.ReadAt(b, m.Offset); err != nil {
		return nil, "", err
	}
	return m, string(b), nil
}

// empty checks that nothing is left in incoming/.
func (s *system) empty(t testing.TB) {
	t.Helper()
	list, err := os.ReadDir(s.incoming)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		t.Errorf("%s was left in incoming", e.Name())
	}
}

// wantStatus checks a refusal.
func wantStatus(t testing.TB, what string, err error, status string) {
	t.Helper()
	e, ok := err.(*dsn.Error)
	if !ok || e.Status.String() != status {
		t.Errorf("%s: %v, want a refusal with %s", what, err, status)
	}
}
