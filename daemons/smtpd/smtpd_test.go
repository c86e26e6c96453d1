package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/resolve"
	"posthouse/pkg/protocol/rewrite"
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

type noNames struct{}

func (noNames) Name(context.Context, netip.Addr) (resolve.Reply, error) { return resolve.Reply{}, nil }

// testRewrite knows local.example, of which nobody@ is unknown.
type testRewrite struct{ off bool }

func (t testRewrite) Ask(_ context.Context, r rewrite.Request) ([]rewrite.Answer, error) {
	if t.off {
		return nil, errors.New("rewrite is off")
	}
	m := r.Addresses[0]
	switch {
	case m.Domain() == "unix.example":
		return []rewrite.Answer{{Class: rewrite.ClassLocal, Unverified: m.Local() == "anybody"}}, nil
	case m.Local() == "unsure" && m.Domain() == "elsewhere.example":
		return []rewrite.Answer{{Class: rewrite.ClassDefault, Err: dsn.Errorf("4.3.0", "disk on fire")}}, nil
	case m.Domain() != "local.example" || strings.Contains(m.Local(), "%"):
		return []rewrite.Answer{{Class: rewrite.ClassDefault}}, nil
	case m.Local() == "nobody":
		return []rewrite.Answer{{Class: rewrite.ClassVirtual, Err: dsn.Errorf("5.1.1", "User unknown in virtual mailbox table")}}, nil
	case m.Local() == "unsure":
		return []rewrite.Answer{{Class: rewrite.ClassVirtual, Err: dsn.Errorf("4.3.0", "disk on fire")}}, nil
	}
	return []rewrite.Answer{{Class: rewrite.ClassVirtual}}, nil
}

// testQueue refuses senders full@ at the beginning and late@ at the end.
type testQueue struct {
	mu     sync.Mutex
	took   []string
	traces []envelope.Trace
}

func (q *testQueue) begin(_ context.Context, e *envelope.Envelope) (string, transaction, error) {
	if e.Sender.Local() == "full" {
		return "", nil, dsn.Errorf("4.3.1", "Insufficient system storage")
	}
	return "QID", &testTransaction{q: q, e: e}, nil
}

type testTransaction struct {
	q *testQueue
	e *envelope.Envelope
}

func (t *testTransaction) Write(p []byte) (int, error) { return len(p), nil }
func (t *testTransaction) Abort()                      {}
func (t *testTransaction) Commit() error {
	if t.e.Sender.Local() == "late" {
		return dsn.Errorf("5.4.0", "too many hops")
	}
	t.q.mu.Lock()
	defer t.q.mu.Unlock()
	s := t.e.Sender.Path()
	for _, r := range t.e.Recipients {
		s += " " + r.Address.String()
	}
	t.q.took = append(t.q.took, s)
	t.q.traces = append(t.q.traces, t.e.Trace)
	return nil
}

type server struct {
	*service
	cfg        *config.Config
	log        *testLog
	queue      *testQueue
	submission bool
}

func newServer() *server {
	s := &server{log: &testLog{}, queue: &testQueue{}, cfg: &config.Config{
		Hostname: "mx.example", Limits: config.LimitsConfig{MessageSize: 1000, Recipients: 2},
		Smtpd:      config.Smtpd{CommandTimeout: config.Duration(time.Minute), SoftErrors: 50, HardErrors: 60},
		Submission: config.Submission{CommandTimeout: config.Duration(time.Minute), SoftErrors: 50, HardErrors: 60},
	}}
	s.service = &service{
		config: func() *config.Config { return s.cfg }, stopping: context.Background(), log: s.log,
		resolver: noNames{}, rewriter: testRewrite{}, queue: s.queue,
	}
	return s
}

// talk says each line and returns the last line of each reply, that of the
// greeting first.
func (s *server) talk(t *testing.T, lines ...string) (replies []string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		s.session(t.Context(), c, s.submission)
		c.Close()
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for i := -1; i < len(lines); i++ {
		if i >= 0 {
			if _, err := io.WriteString(c, lines[i]+"\r\n"); err != nil {
				t.Fatal(err)
			}
		}
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatalf("after %q: %v", replies, err)
			}
			if line[3] == ' ' {
				replies = append(replies, strings.TrimSpace(line))
				break
			}
		}
	}
	c.Close()
	<-done
	return replies
}

// TestLog holds the lines of the log that other programs read: fail2ban,
// pflogsumm and what sites have written themselves.
func TestLog(t *testing.T) {
	const client = "localhost[127.0.0.1]"
	envelope := func(from string) []string {
		return []string{"EHLO c", "MAIL FROM:<" + from + ">", "RCPT TO:<user@local.example>"}
	}
	for _, tt := range []struct {
		name string
		say  []string
		log  []string
	}{
		{
			"a message", append(envelope("s@x.example"), "DATA", "x\r\n.", "QUIT"),
			[]string{"QID: client=" + client, "disconnect from " + client + " ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5"},
		},
		{
			"unknown user", []string{"EHLO c", "MAIL FROM:<s@x.example>", "RCPT TO:<nobody@local.example>", "QUIT"},
			[]string{
				"NOQUEUE: reject: RCPT from " + client + ": 550 5.1.1 <nobody@local.example>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@x.example> to=<nobody@local.example> proto=ESMTP helo=<c>",
				"disconnect from " + client + " ehlo=1 mail=1 rcpt=0/1 quit=1 commands=3/4",
			},
		},
		{
			"relaying, without HELO", []string{"MAIL FROM:<>", "RCPT TO:<a%b@local.example>", "QUIT"},
			[]string{
				"NOQUEUE: reject: RCPT from " + client + ": 554 5.7.1 <a%b@local.example>: Relay access denied; from=<> to=<a%b@local.example> proto=SMTP",
				"disconnect from " + client + " mail=1 rcpt=0/1 quit=1 commands=2/3",
			},
		},
		{
			"too big, announced", []string{"HELO c", "MAIL FROM:<s@x.example> SIZE=1001", "QUIT"},
			[]string{
				"NOQUEUE: reject: MAIL from " + client + ": 552 5.3.4 Message size exceeds fixed limit; from=<s@x.example> proto=SMTP helo=<c>",
				"disconnect from " + client + " helo=1 mail=0/1 quit=1 commands=2/3",
			},
		},
		{
			"too big", append(envelope("s@x.example"), "DATA", strings.Repeat("x", 1001)+"\r\n.", "QUIT"),
			[]string{
				"QID: client=" + client,
				"QID: reject: END-OF-MESSAGE from " + client + ": 552 5.3.4 Error: message file too big; from=<s@x.example> proto=ESMTP helo=<c>",
				"disconnect from " + client + " ehlo=1 mail=1 rcpt=1 data=0/1 quit=1 commands=4/5",
			},
		},
		{
			"full", append(envelope("full@x.example"), "DATA", "QUIT"),
			[]string{
				"NOQUEUE: reject: DATA from " + client + ": 452 4.3.1 Error: Insufficient system storage; from=<full@x.example> to=<user@local.example> proto=ESMTP helo=<c>",
				"disconnect from " + client + " ehlo=1 mail=1 rcpt=1 data=0/1 quit=1 commands=4/5",
			},
		},
		{
			"refused at the end", append(envelope("late@x.example"), "DATA", ".", "QUIT"),
			[]string{
				"QID: client=" + client,
				"QID: reject: END-OF-MESSAGE from " + client + ": 554 5.4.0 Error: too many hops; from=<late@x.example> to=<user@local.example> proto=ESMTP helo=<c>",
				"disconnect from " + client + " ehlo=1 mail=1 rcpt=1 data=0/1 quit=1 commands=4/5",
			},
		},
		{
			"bad addresses", []string{"EHLO c", "MAIL FROM:<a b>", "MAIL FROM:<>", "RCPT TO:<x>", "QUIT"},
			[]string{
				"NOQUEUE: reject: MAIL from " + client + ": 501 5.1.7 Bad sender address syntax: FROM:<a b>; proto=ESMTP helo=<c>",
				"NOQUEUE: reject: RCPT from " + client + ": 501 5.1.3 Bad recipient address syntax: TO:<x>; from=<> proto=ESMTP helo=<c>",
				"disconnect from " + client + " ehlo=1 mail=1/2 rcpt=0/1 quit=1 commands=3/5",
			},
		},
		{
			"too many recipients", append(envelope(""), "RCPT TO:<2@local.example>", "RCPT TO:<3@local.example>", "RCPT TO:<4@local.example>", "QUIT"),
			[]string{
				"NOQUEUE: reject: RCPT from " + client + ": 452 4.5.3 Error: too many recipients; from=<> to=<3@local.example> proto=ESMTP helo=<c>",
				"disconnect from " + client + " ehlo=1 mail=1 rcpt=2/4 quit=1 commands=5/7",
			},
		},
		{
			"another protocol", []string{"GET / HTTP/1.1"},
			[]string{"warning: non-SMTP command from " + client + ": GET / HTTP/1.1", "disconnect from " + client + " unknown=0/1 commands=0/1"},
		},
		{
			"no command", []string{"EHLO c", "XYZZY", "QUIT"},
			[]string{"disconnect from " + client + " ehlo=1 quit=1 unknown=0/1 commands=2/3"},
		},
		{
			"bare LF", append(envelope("s@x.example"), "DATA", "x\ny\r\n."),
			[]string{
				"QID: client=" + client,
				"QID: reject: END-OF-MESSAGE from " + client + ": 521 5.5.2 mx.example Error: bare <LF> received; from=<s@x.example> proto=ESMTP helo=<c>",
				"bare LF after DATA (2 bytes) from " + client,
				"disconnect from " + client + " ehlo=1 mail=1 rcpt=1 data=0/1 commands=3/4",
			},
		},
		{"gone", []string{"EHLO c"}, []string{"lost connection after EHLO from " + client, "disconnect from " + client + " ehlo=1 commands=1"}},
		{"gone at once", nil, []string{"lost connection after CONNECT from " + client, "disconnect from " + client + " commands=0/0"}},
	} {
		s := newServer()
		s.talk(t, tt.say...)
		got := strings.Join(s.log.lines, "\n")
		if want := strings.Join(append([]string{"connect from " + client}, tt.log...), "\n"); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, got, want)
		}
	}
}

// TestRecipients: who may be written to by whom.
func TestRecipients(t *testing.T) {
	for _, tt := range []struct {
		to, reply    string
		trusted, off bool
	}{
		{to: "user@local.example", reply: "250 2.1.5 Ok"},
		{to: "user@elsewhere.example", reply: "554 5.7.1 <user@elsewhere.example>: Relay access denied"},
		{to: "user@elsewhere.example", reply: "250 2.1.5 Ok", trusted: true},
		{to: "nobody@local.example", reply: "550 5.1.1 <nobody@local.example>: Recipient address rejected: User unknown in virtual mailbox table", trusted: true},
		{to: "unsure@local.example", reply: "451 4.3.0 <unsure@local.example>: Temporary lookup failure"},
		{to: "user@local.example", reply: "451 4.3.0 <user@local.example>: Temporary lookup failure", off: true},
		{to: "unsure@elsewhere.example", reply: "554 5.7.1 <unsure@elsewhere.example>: Relay access denied"},
		{to: "unsure@elsewhere.example", reply: "451 4.3.0 <unsure@elsewhere.example>: Temporary lookup failure", trusted: true},
		{to: "anybody@unix.example", reply: "450 4.1.1 <anybody@unix.example>: Recipient address rejected: unverified address"},
		{to: "somebody@unix.example", reply: "250 2.1.5 Ok"},
		{to: "anybody@unix.example", reply: "250 2.1.5 Ok", trusted: true},
		{to: "Postmaster", reply: "250 2.1.5 Ok"},
		{to: "postmaster", reply: "250 2.1.5 Ok", off: true},
	} {
		s := newServer()
		s.rewriter = testRewrite{tt.off}
		if tt.trusted {
			s.cfg.Trusted = []string{"127.0.0.0/8"}
		}
		replies := s.talk(t, "EHLO c", "MAIL FROM:<>", "RCPT TO:<"+tt.to+">")
		if got := replies[len(replies)-1]; got != tt.reply {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}

// TestSubmission: nobody who is not known sends by a submission port, and who is
// known is for that port to say.
func TestSubmission(t *testing.T) {
	here, elsewhere := []string{"127.0.0.1/32"}, []string{"192.0.2.0/24"}
	for _, tt := range []struct {
		trusted, clients []string
		submission       bool
		want             string
	}{
		{here, elsewhere, true, "530 5.7.0 Authentication required"},
		{elsewhere, here, true, "250 2.1.5 Ok"},
		{here, elsewhere, false, "250 2.1.5 Ok"},
		{elsewhere, here, false, "554 5.7.1 <x@elsewhere.example>: Relay access denied"},
	} {
		s := newServer()
		s.submission, s.cfg.Trusted, s.cfg.Submission.Clients = tt.submission, tt.trusted, tt.clients
		got := s.talk(t, "EHLO c", "MAIL FROM:<>")[2]
		if strings.HasPrefix(got, "250") {
			got = s.talk(t, "EHLO c", "MAIL FROM:<>", "RCPT TO:<x@elsewhere.example>")[3]
		}
		if got != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}

// TestSettings: each port has its own.
func TestSettings(t *testing.T) {
	for _, submission := range []bool{false, true} {
		s := newServer()
		s.submission = submission
		s.cfg.Trusted, s.cfg.Submission.Clients = []string{"127.0.0.1/32"}, []string{"127.0.0.1/32"}
		s.cfg.Submission.HeloRequired, s.cfg.Submission.HardErrors = true, 2
		say, want := []string{"MAIL FROM:<>", "MAIL FROM:<>", "NOOP"}, "250 503 250"
		if submission {
			say, want = say[:2], "503 421"
		}
		var codes []string
		for _, r := range s.talk(t, say...)[1:] {
			codes = append(codes, r[:3])
		}
		if got := strings.Join(codes, " "); got != want {
			t.Errorf("submission %v: %s, want %s", submission, got, want)
		}
		s = newServer()
		s.submission = submission
		s.cfg.Submission.Clients = []string{"127.0.0.1/32"}
		s.cfg.Submission.BareNewline = s.cfg.Submission.Clients
		code := "521"
		if submission {
			code = "250"
		}
		if got := s.talk(t, "NOOP\nNOOP")[1]; got[:3] != code {
			t.Errorf("submission %v, bare LF: %s", submission, got)
		}
	}
}

// TestOrigin: what comes by port 25 is no local submission, wherever it comes
// from, and nothing is added to it; what comes by port 587 is one.
func TestOrigin(t *testing.T) {
	for submission, want := range map[bool]envelope.Origin{false: envelope.FromNetwork, true: envelope.FromLocal} {
		s := newServer()
		s.submission = submission
		s.cfg.Trusted, s.cfg.Submission.Clients = []string{"127.0.0.1/32"}, []string{"127.0.0.1/32"}
		s.talk(t, "EHLO c", "MAIL FROM:<s@x.example>", "RCPT TO:<user@local.example>", "DATA", ".", "QUIT")
		if len(s.queue.traces) != 1 || s.queue.traces[0].Origin != want || s.queue.traces[0].ClientAddr.String() != "127.0.0.1" {
			t.Errorf("submission %v: %+v", submission, s.queue.traces)
		}
	}
}

// patientQueue notes how long a message may take.
type patientQueue struct {
	testQueue
	most time.Duration
}

func (q *patientQueue) begin(ctx context.Context, e *envelope.Envelope) (string, transaction, error) {
	end, _ := ctx.Deadline()
	q.most = time.Until(end)
	return q.testQueue.begin(ctx, e)
}

// TestSlowMessage: a message may take as long as its session.
func TestSlowMessage(t *testing.T) {
	for _, session := range []time.Duration{time.Minute, time.Hour, 24 * time.Hour} {
		s, q := newServer(), &patientQueue{}
		s.service.queue, s.cfg.Smtpd.SessionTimeout = q, config.Duration(session)
		s.talk(t, "EHLO c", "MAIL FROM:<s@x.example>", "RCPT TO:<user@local.example>", "DATA", ".", "QUIT")
		if q.most <= session || q.most > session+queueTimeout {
			t.Errorf("a session of %v: a message may take %v", session, q.most)
		}
	}
}

// TestSession: every transaction starts from nothing.
func TestSession(t *testing.T) {
	s := newServer()
	replies := s.talk(t, "EHLO c", "MAIL FROM:<late@x.example>", "RCPT TO:<user@local.example>", "DATA", ".",
		"RCPT TO:<user@local.example>", "DATA", "MAIL FROM:<s@x.example>", "DATA", "RCPT TO:<2@local.example>", "DATA", ".", "QUIT")
	want := "220 250 250 250 354 554 503 503 250 554 250 354 250 221"
	var codes []string
	for _, r := range replies {
		codes = append(codes, r[:3])
	}
	if got := strings.Join(codes, " "); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := strings.Join(s.queue.took, "|"); got != "<s@x.example> 2@local.example" {
		t.Errorf("took %s", got)
	}
}

// TestClientConnections: one client cannot take all places, but our own may.
func TestClientConnections(t *testing.T) {
	for _, tt := range []struct {
		name    string
		most    int
		trusted []string
		there   int // connections of the client before
		want    string
	}{
		{"as many as it may", 2, nil, 1, "220 mx.example ESMTP Posthouse"},
		{"more", 2, nil, 2, "421 4.7.0 mx.example Error: too many connections from 127.0.0.1"},
		{"one of our own", 2, []string{"127.0.0.0/8"}, 2, "220 mx.example ESMTP Posthouse"},
		{"no limit", 0, nil, 99, "220 mx.example ESMTP Posthouse"},
	} {
		for _, submission := range []bool{false, true} {
			s := newServer()
			s.cfg.Smtpd.ClientConnections, s.cfg.Submission.ClientConnections = tt.most, tt.most
			s.cfg.Trusted, s.cfg.Submission.Clients, s.submission = tt.trusted, tt.trusted, submission
			ip := netip.MustParseAddr("127.0.0.1")
			for range tt.there {
				s.places.enter(ip)
			}
			if got := s.talk(t); got[0] != tt.want {
				t.Errorf("%s: %s", tt.name, got)
			}
			log := strings.Join(s.log.lines, "\n")
			warning := fmt.Sprintf("warning: Connection concurrency limit exceeded: %d from unknown[127.0.0.1] for service %s\n",
				tt.there+1, map[bool]string{true: "submission", false: "smtp"}[submission])
			if refused := tt.want[0] == '4'; strings.Contains(log, warning) != refused {
				t.Errorf("%s: log\n%s", tt.name, log)
			}
			for range tt.there {
				s.places.leave(ip)
			}
			if s.places.all != 0 || len(s.places.by) != 0 {
				t.Errorf("%s: %d sessions left, %v", tt.name, s.places.all, s.places.by)
			}
		}
	}
	var p places
	for _, ip := range []string{"2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:1:ffff::", "192.0.2.1", "192.0.2.2"} {
		p.enter(netip.MustParseAddr(ip))
	}
	if got := fmt.Sprint(p.by); got != "map[192.0.2.1/32:1 192.0.2.2/32:1 2001:db8:0:1::/64:2 2001:db8:0:2::/64:1]" {
		t.Error(got)
	}
}

// TestCrowded: where nearly all places are taken clients have to hurry, but not our
// own; the log tells it, not for each.
func TestCrowded(t *testing.T) {
	s := newServer()
	s.cfg.Daemons = map[string]config.DaemonLimits{"smtpd": {MaxClients: 10}}
	p := &policy{service: s.service, rules: rulesFor(s.cfg, false)}
	own := &policy{service: s.service, rules: p.rules, known: true}
	for i := range 11 {
		if got := p.crowded(); got != (i == 10) || own.crowded() {
			t.Errorf("%d sessions: crowded %v, for our own %v", i, got, own.crowded())
		}
		s.places.enter(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	if got := strings.Join(s.log.lines, "\n"); got != "warning: service smtp: nearly all of 10 places are taken: who is silent for ten seconds has to go" {
		t.Error(got)
	}
}
