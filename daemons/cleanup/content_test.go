package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/queueid"
)

var testRules = rules{hostname: "mx.example.org", origin: "example.org", size: 1 << 20, header: 100 << 10, hops: 50}

var testID = queueid.New(arrivalTime, 1)

// run has a message processed in pieces of step octets.
func run(r rules, e *envelope.Envelope, in string, step int) (string, *content, error) {
	var out bytes.Buffer
	c := newContent(r, e, testID, &out)
	for len(in) > 0 {
		n := min(step, len(in))
		if err := c.write([]byte(in[:n])); err != nil {
			return "", c, err
		}
		in = in[n:]
	}
	err := c.close()
	return out.String(), c, err
}

func TestContent(t *testing.T) {
	const complete = "Message-ID: <1@x>\r\nDate: d\r\nFrom: f@x\r\n"
	added := fmt.Sprintf("Message-Id: <%s@mx.example.org>\r\nDate: %s\r\nFrom: s@example.com\r\n", testID, mailDate(arrivalTime))
	tests := []struct {
		name, in       string
		network, local string // what comes out; local is "" where it is the same
	}{
		{name: "complete", in: complete + "\r\nbody\r\n", network: complete + "\r\nbody\r\n"},
		{name: "folded and odd", in: complete + "X:\r\n\t y\r\nSubject : z\r\n\r\n\r\n x\r\n", network: complete + "X:\r\n\t y\r\nSubject : z\r\n\r\n\r\n x\r\n"},
		{name: "nothing", in: "", network: "", local: added},
		{name: "header only", in: "A: b\r\n", network: "A: b\r\n", local: "A: b\r\n" + added},
		{name: "missing fields", in: "A: b\r\n\r\nbody\r\n", network: "A: b\r\n\r\nbody\r\n", local: "A: b\r\n" + added + "\r\nbody\r\n"},
		{
			name: "sent again", in: complete + "Resent-To: a@x\r\n\r\nx\r\n", network: complete + "Resent-To: a@x\r\n\r\nx\r\n",
			local: complete + "Resent-To: a@x\r\nResent-" + strings.ReplaceAll(strings.TrimSuffix(added, "\r\n"), "\r\n", "\r\nResent-") + "\r\n\r\nx\r\n",
		},
		{
			name:    "fields that are dropped",
			in:      complete + "Bcc: a,\r\n b\r\nRESENT-bcc: c\r\ncontent-length : 5\r\nReturn-Path: <x>\r\nBcc2: d\r\nResent-From: r@x\r\nResent-Date: d\r\nResent-Message-Id: i\r\n\r\nBcc: body\r\n",
			network: complete + "Bcc2: d\r\nResent-From: r@x\r\nResent-Date: d\r\nResent-Message-Id: i\r\n\r\nBcc: body\r\n",
		},
		{name: "body begins with white space", in: " x\r\n", network: "\r\n x\r\n", local: added + "\r\n x\r\n"},
		{name: "no header", in: "\r\nx\r\n", network: "\r\nx\r\n", local: added + "\r\nx\r\n"},
		{name: "no empty line", in: complete + "Hello there\r\nA: b\r\n", network: complete + "\r\nHello there\r\nA: b\r\n"},
		{name: "mbox", in: "From a b\r\n" + complete + "\r\nFrom x\r\n", network: "X-Mailbox-Line: From a b\r\n" + complete + "\r\nFrom x\r\n", local: complete + "\r\nFrom x\r\n"},
		{name: "quoted mbox", in: ">>From a b\r\n" + complete, network: "X-Mailbox-Line: >>From a b\r\n" + complete, local: complete},
		{
			name: "two mbox lines", in: "From a\r\n>From b\r\n" + complete, local: complete,
			network: "X-Mailbox-Line: From a\r\n\r\n>From b\r\n" + complete,
		},
		{name: "only an mbox line", in: "From a", network: "X-Mailbox-Line: From a\r\n", local: added},
		{name: "nearly an mbox line", in: "Fro", network: "\r\nFro\r\n", local: added + "\r\nFro\r\n"},
		{name: "From field", in: "From: f@x\r\nDate: d\r\nMessage-Id: i\r\n", network: "From: f@x\r\nDate: d\r\nMessage-Id: i\r\n"},

		{
			name:    "addresses without a domain",
			in:      "Message-ID: <1@x>\r\nDate: d\r\nFrom: root (Cron Daemon)\r\nTo: a,\r\n B <b>, c@d\r\nSubject: to me\r\nCc: <not\r\nResent-To: x\r\nResent-From: y\r\nResent-Date: d\r\nResent-Message-Id: i\r\n\r\nFrom: me\r\n",
			network: "Message-ID: <1@x>\r\nDate: d\r\nFrom: root (Cron Daemon)\r\nTo: a,\r\n B <b>, c@d\r\nSubject: to me\r\nCc: <not\r\nResent-To: x\r\nResent-From: y\r\nResent-Date: d\r\nResent-Message-Id: i\r\n\r\nFrom: me\r\n",
			local:   "Message-ID: <1@x>\r\nDate: d\r\nFrom: root@example.org (Cron Daemon)\r\nTo: a@example.org,\r\n B <b@example.org>, c@d\r\nSubject: to me\r\nCc: <not\r\nResent-To: x@example.org\r\nResent-From: y@example.org\r\nResent-Date: d\r\nResent-Message-Id: i\r\n\r\nFrom: me\r\n",
		},
		{name: "last line without end", in: complete + "\r\nx", network: complete + "\r\nx\r\n"},
		{name: "lone LF", in: complete + "\r\na\nb\n\nc\r\n", network: complete + "\r\na\r\nb\r\n\r\nc\r\n"},
		{name: "lone LF in the header", in: strings.ReplaceAll(complete, "\r\n", "\n") + "\nx\n", network: complete + "\r\nx\r\n"},
		{name: "lone CR", in: complete + "\r\na\rb\r\rc\r\r\nd\r", network: complete + "\r\na b  c \r\nd \r\n"},
		{name: "end of data within", in: complete + "\r\na\n.\r\n.\n.\r.\r\n", network: complete + "\r\na\r\n.\r\n.\r\n. .\r\n"},
		{name: "NUL and 8 bits", in: complete + "\r\n\x00\xff\r\n", network: complete + "\r\n\x00\xff\r\n"},
	}
	for _, tt := range tests {
		for _, local := range []bool{false, true} {
			e, want := fromNetwork(t, "r@example.org"), tt.network
			if local {
				e = fromLocal(t, "r@example.org")
				if tt.local != "" {
					want = tt.local
				}
			}
			for step := 1; step <= len(tt.in)+1; step++ {
				got, _, err := run(testRules, e, tt.in, step)
				if err != nil || got != want {
					t.Fatalf("%s, local %v, %d at a time:\n got %q, %v\nwant %q", tt.name, local, step, got, err, want)
				}
			}
		}
	}
}

// TestSubmissionPort: what comes in by a submission port is completed, too, but
// came by SMTP.
func TestSubmissionPort(t *testing.T) {
	e := fromNetwork(t, "r@example.org")
	e.Trace.Origin = envelope.FromLocal
	e.Sender = addr.Mailbox{}
	got, c, err := run(testRules, e, "From x\r\nDate: d\r\n\r\n", 100)
	want := fmt.Sprintf("X-Mailbox-Line: From x\r\nDate: d\r\nMessage-Id: <%s@mx.example.org>\r\nFrom: MAILER-DAEMON\r\n\r\n", testID)
	if err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	if c.seen.id != fmt.Sprintf("<%s@mx.example.org>", testID) {
		t.Errorf("Message-Id for the log: %q", c.seen.id)
	}
}

// TestGateway: what a program of this machine passes on has the header that it came with.
func TestGateway(t *testing.T) {
	e := fromLocal(t, "r@example.org")
	e.Trace.Origin = envelope.FromGateway
	got, _, err := run(testRules, e, "From x\r\nTo: a\r\n\r\nbody\r\n", 100)
	if want := "To: a\r\n\r\nbody\r\n"; err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	if got := received("mx.example.org", e, testID, addr.Mailbox{}); !strings.Contains(got, "from userid 1000)") {
		t.Errorf("%q", got)
	}
}

// TestLimits tries each limit at the limit, one below and one above.
func TestLimits(t *testing.T) {
	const base = 1000
	for d := -1; d <= 1; d++ {
		r := testRules
		r.size, r.header, r.hops = base, base, 7
		for _, tt := range []struct{ name, status, in string }{
			{"size", "5.3.4", "A: b\r\n\r\n" + strings.Repeat("x", base-10+d) + "\r\n"},
			{"hops", "5.4.0", strings.Repeat("received: x\r\n", 7+d) + "\r\n"},
		} {
			for _, step := range []int{1, 13, 5000} {
				got, _, err := run(r, fromNetwork(t, "r@example.org"), tt.in, step)
				if d <= 0 && (err != nil || got != tt.in) {
					t.Errorf("%s, limit%+d: %v", tt.name, d, err)
				}
				if d > 0 {
					wantStatus(t, tt.name, err, tt.status)
				}
			}
		}
		r.size = 2 * base
		for name, in := range map[string]string{
			"one field":  "A: " + strings.Repeat("x", base-7+d) + "\r\n\r\nbody\r\n",
			"two fields": "A: b\r\nC: " + strings.Repeat("x", base-13+d) + "\r\n\r\nbody\r\n",
		} {
			got, _, err := run(r, fromNetwork(t, "r@example.org"), in, 100)
			if d <= 0 && (err != nil || got != in) {
				t.Errorf("header of %s, limit%+d: %v", name, d, err)
			}
			if d > 0 {
				wantStatus(t, "header of "+name, err, "5.3.4")
			}
		}
	}
	_, _, err := run(rules{size: 5000, header: 1000}, fromNetwork(t, "r@example.org"), "From "+strings.Repeat("x", 2000), 100)
	wantStatus(t, "mbox line", err, "5.3.4")
	// Hops in the body are none.
	if _, _, err := run(rules{size: 5000, header: 1000}, fromNetwork(t, "r@example.org"), "\r\nReceived: x\r\n", 100); err != nil {
		t.Error(err)
	}
}

func TestReceived(t *testing.T) {
	date := mailDate(arrivalTime)
	id := testID.String()
	only := mbox(t, "\"a b\"@example.org")
	edit := func(e *envelope.Envelope, f func(*envelope.Trace)) *envelope.Envelope {
		f(&e.Trace)
		return e
	}
	tests := []struct {
		name string
		e    *envelope.Envelope
		only addr.Mailbox
		want string
	}{
		{
			"SMTP", fromNetwork(t, "x@y"), only,
			"Received: from client.example (host.example [192.0.2.1])\r\n\tby mx.example.org (Posthouse) with ESMTP id " + id + "\r\n\tfor <\"a b\"@example.org>; " + date + "\r\n",
		},
		{
			"several recipients", fromNetwork(t, "x@y"), addr.Mailbox{},
			"Received: from client.example (host.example [192.0.2.1])\r\n\tby mx.example.org (Posthouse) with ESMTP id " + id + ";\r\n\t" + date + "\r\n",
		},
		{
			"IPv6, no HELO, no name", edit(fromNetwork(t, "x@y"), func(t *envelope.Trace) {
				*t = envelope.Trace{ClientAddr: netip.MustParseAddr("2001:db8::1")}
			}), addr.Mailbox{},
			"Received: from unknown (unknown [IPv6:2001:db8::1])\r\n\tby mx.example.org (Posthouse) with SMTP id " + id + ";\r\n\t" + date + "\r\n",
		},
		{
			"IPv4 on an IPv6 socket", edit(fromNetwork(t, "x@y"), func(t *envelope.Trace) {
				t.ClientAddr, t.Helo, t.Protocol = netip.MustParseAddr("::ffff:192.0.2.9"), "", "UTF8SMTP"
			}), addr.Mailbox{},
			"Received: from host.example (host.example [192.0.2.9])\r\n\tby mx.example.org (Posthouse) with UTF8SMTP id " + id + ";\r\n\t" + date + "\r\n",
		},
		{"local", fromLocal(t, "x@y"), only, "Received: by mx.example.org (Posthouse, from userid 1000)\r\n\tid " + id + "; " + date + "\r\n"},
		{
			"our own", edit(fromLocal(t, "x@y"), func(t *envelope.Trace) { *t = envelope.Trace{Origin: envelope.FromSystem} }), only,
			"Received: by mx.example.org (Posthouse)\r\n\tid " + id + "; " + date + "\r\n",
		},
	}
	for _, tt := range tests {
		if got := received("mx.example.org", tt.e, testID, tt.only); got != tt.want {
			t.Errorf("%s:\n got %q\nwant %q", tt.name, got, tt.want)
		}
	}
}

func TestMailDate(t *testing.T) {
	old := time.Local
	defer func() { time.Local = old }()
	time.Local = time.FixedZone("CET", 3600)
	if got := mailDate(arrivalTime); got != "Wed,  4 Mar 2026 06:06:07 +0100 (CET)" {
		t.Error(got)
	}
}

// TestWriteError: trouble with the disk is not the message's fault.
func TestWriteError(t *testing.T) {
	for room := range 60 {
		c := newContent(testRules, fromLocal(t, "r@example.org"), testID, &fullDisk{room})
		err := c.write([]byte("From x\r\nA: b\r\n\r\nbody"))
		if err == nil {
			err = c.close()
		}
		var verdict *dsn.Error
		if err == nil || errors.As(err, &verdict) {
			t.Fatalf("room for %d octets: %v", room, err)
		}
	}
}

type fullDisk struct{ room int }

func (d *fullDisk) Write(p []byte) (int, error) {
	if d.room -= len(p); d.room < 0 {
		return 0, errors.New("full")
	}
	return len(p), nil
}

// corpus returns real messages with lines that end in CRLF.
func corpus(t testing.TB) map[string]string {
	t.Helper()
	names, err := filepath.Glob("../../../shared/corpus/*.eml")
	if err != nil {
		t.Fatal(err)
	}
	if len(names) == 0 {
		t.Skip("no ../shared/corpus beside the project")
	}
	messages := make(map[string]string)
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "\r\n", "\n")
		if strings.Contains(text, "\r") {
			continue // SMTP forbids it
		}
		text = strings.ReplaceAll(strings.TrimSuffix(text, "\n")+"\n", "\n", "\r\n")
		messages[filepath.Base(name)] = text
	}
	return messages
}

// TestCorpus: real messages from the network pass unchanged. Those that have
// fields which are dropped, or a broken header, are compared without them.
func TestCorpus(t *testing.T) {
	plain := 0
	r := testRules
	r.size = 50 << 20
	for name, in := range corpus(t) {
		out, _, err := run(r, fromNetwork(t, "r@example.org"), in, 32<<10)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if out == in {
			plain++
			continue
		}
		if why := repaired(in, out); why != "" {
			t.Errorf("%s: %s", name, why)
		}
	}
	if plain < 200 {
		t.Errorf("only %d messages passed unchanged", plain)
	}
}

// repaired compares line by line and says what differs that should not.
func repaired(in, out string) string {
	have := strings.SplitAfter(in, "\r\n")
	got := strings.SplitAfter(out, "\r\n")
	blank := false
	for dropping := false; len(have) > 0; have = have[1:] {
		line := have[0]
		name, _, _ := strings.Cut(strings.ToLower(line), ":")
		dropping = !blank && (dropField(strings.TrimSpace(name)) || dropping && strings.Trim(line[:1], " \t") == "")
		switch {
		case dropping:
			continue
		case len(got) > 0 && got[0] == line:
		case len(got) > 0 && got[0] == "X-Mailbox-Line: "+line:
		case len(got) > 1 && !blank && got[0] == "\r\n" && got[1] == line:
			got = got[1:] // the empty line that was missing
		default:
			return fmt.Sprintf("line %q", line)
		}
		blank = blank || got[0] == "\r\n"
		got = got[1:]
	}
	if len(got) > 0 {
		return fmt.Sprintf("%q at the end", got)
	}
	return ""
}

// TestManyCRs: a piece of many lone CRs takes time that grows with it.
func TestManyCRs(t *testing.T) {
	const n = 2 << 20
	var out bytes.Buffer
	l := lines{out: &out}
	begin := time.Now()
	if err := errors.Join(l.write(bytes.Repeat([]byte("\r"), n)), l.close()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > time.Minute { // it took hours
		t.Errorf("%v", took)
	}
	if want := strings.Repeat(" ", n) + "\r\n"; out.String() != want {
		t.Errorf("%d octets", out.Len())
	}
}

// FuzzContent: whatever comes in, lines that end in CRLF come out, pieces do not
// matter, and what came out passes again unchanged.
func FuzzContent(f *testing.F) {
	for _, s := range []string{"From x\r\nA: b\r\n\r\nbody", "a\rb\nc\r\n", "Bcc: x\r\n y\r\nA: b\r\n c\r\n\n", " x", "Resent-To: x\n", ">From"} {
		f.Add(s, uint8(3), true)
		f.Add(s, uint8(1), false)
	}
	f.Fuzz(func(t *testing.T, in string, step uint8, local bool) {
		r := rules{hostname: "h", size: 10000, header: 300, hops: 3}
		e := fromNetwork(t, "r@example.org")
		if local {
			e = fromLocal(t, "r@example.org")
		}
		out, _, err := run(r, e, in, int(step)+1)
		whole, _, err1 := run(r, e, in, len(in)+1)
		if out != whole || (err == nil) != (err1 == nil) {
			t.Fatalf("in pieces %q, %v; whole %q, %v", out, err, whole, err1)
		}
		if err != nil {
			return
		}
		if rest := strings.ReplaceAll(out, "\r\n", ""); strings.ContainsAny(rest, "\r\n") || out != "" && !strings.HasSuffix(out, "\r\n") {
			t.Fatalf("lines: %q", out)
		}
		r.header, r.size, r.hops = 1000, 20000, 100
		if again, _, err := run(r, e, out, 100); err != nil || again != out {
			t.Fatalf("%q again: %q, %v", out, again, err)
		}
	})
}
