package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/bounce"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queueid"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var testTime = time.Date(2026, 11, 23, 20, 0, 0, 0, time.UTC)

func mailbox(t testing.TB, s string) addr.Mailbox {
	t.Helper()
	m, err := addr.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const message = "Received: from a\r\n\tby b\r\nSubject: hello\r\n\r\nbody\r\n"

// request makes a request about message, with one recipient.
func request(t testing.TB, kind bounce.Kind, content string) (*bounce.Request, *os.File) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "q"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString("envelope" + content); err != nil {
		t.Fatal(err)
	}
	return &bounce.Request{
		Kind: kind, QueueID: queueid.New(testTime, 1), Offset: 8, Length: int64(len(content)), Expires: testTime.Add(5 * 24 * time.Hour),
		Envelope: envelope.Envelope{Arrival: testTime.Add(-time.Hour), Sender: mailbox(t, "alice@example.org"), EnvID: "id  7"},
		Recipients: []bounce.Recipient{{
			Recipient: envelope.Recipient{Address: mailbox(t, "nobody@example.net"), Original: mailbox(t, "alias@example.org"),
				ORCPT: dsn.OriginalRecipient{Type: "rfc822", Address: "alias@example.org"}},
			Result: delivery.Result{Status: dsn.MustParse("5.1.1"), RemoteMTA: "mx.example.net",
				Text:       "host mx.example.net[192.0.2.1] said: 550 5.1.1 no such user (in reply to RCPT TO command)",
				Diagnostic: "550 5.1.1 no such user"},
		}},
	}, f
}

type fakeQueue struct {
	err      error
	refuse   func(to addr.Mailbox, content []byte) error // nil: nothing
	envelope *envelope.Envelope
	content  []byte
}

func (q *fakeQueue) submit(_ context.Context, e *envelope.Envelope, content []byte) (queueid.ID, error) {
	if q.err != nil {
		return queueid.ID{}, q.err
	}
	if q.refuse != nil {
		if err := q.refuse(e.Recipients[0].Address, content); err != nil {
			return queueid.ID{}, err
		}
	}
	q.envelope, q.content = e, content
	return queueid.New(testTime, 2), nil
}

func newService(q queue, double string) *service {
	cfg := &config.Config{Hostname: "mail.example.org", Origin: "example.org"}
	cfg.Bounce.SizeLimit = 50000
	cfg.Bounce.DoubleBounceRecipient = double
	return &service{config: func() *config.Config { return cfg }, queue: q, log: maillog.New("bounce"), now: func() time.Time { return testTime }}
}

func TestGolden(t *testing.T) {
	for name, change := range map[string]func(*bounce.Request){
		"failure": func(*bounce.Request) {},
		"delay": func(r *bounce.Request) {
			r.Kind = bounce.Delay
			r.Recipients[0].Status = dsn.MustParse("4.4.1")
		},
		"success": func(r *bounce.Request) {
			r.Kind = bounce.Success
			r.Recipients[0].Notify = dsn.NotifySuccess
			r.Recipients[0].Status = dsn.MustParse("2.1.5")
			r.Recipients[0].Relayed = true
		},
		"utf8": func(r *bounce.Request) { r.Recipients[0].Address = mailbox(t, "dörte@müller.example") },
	} {
		r, f := request(t, bounce.Failure, message)
		change(r)
		q := &fakeQueue{}
		if _, err := newService(q, "").notify(t.Context(), r, f); err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", name+".eml")
		if *update {
			if err := os.WriteFile(golden, q.content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(q.content, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, q.content, want)
		}
		if !q.envelope.Sender.IsNull() || q.envelope.Recipients[0].Address != r.Envelope.Sender {
			t.Errorf("%s: envelope %+v", name, q.envelope)
		}
	}
}

func TestWhoIsTold(t *testing.T) {
	tests := []struct {
		name   string
		change func(*bounce.Request)
		double string
		to     string // "": nobody
		from   string
	}{
		{name: "sender", to: "alice@example.org"},
		{name: "never", change: func(r *bounce.Request) { r.Recipients[0].Notify = dsn.NotifyNever }},
		{name: "other event", change: func(r *bounce.Request) { r.Recipients[0].Notify = dsn.NotifySuccess }},
		{name: "success not asked for", change: func(r *bounce.Request) { r.Kind = bounce.Success }},
		{name: "null sender", change: func(r *bounce.Request) { r.Envelope.Sender = addr.Mailbox{} }},
		{name: "null sender, postmaster", change: func(r *bounce.Request) { r.Envelope.Sender = addr.Mailbox{} },
			double: "postmaster", to: "postmaster@example.org", from: "double-bounce@example.org"},
		{name: "null sender, delay", change: func(r *bounce.Request) { r.Envelope.Sender = addr.Mailbox{}; r.Kind = bounce.Delay }, double: "postmaster"},
		{name: "double bounce", change: func(r *bounce.Request) { r.Envelope.Sender = mailbox(t, "double-bounce@example.org") }, double: "postmaster"},
		{name: "another system's double bounce", change: func(r *bounce.Request) { r.Envelope.Sender = mailbox(t, "double-bounce@example.net") }, to: "double-bounce@example.net"},
	}
	for _, tt := range tests {
		r, f := request(t, bounce.Failure, message)
		if tt.change != nil {
			tt.change(r)
		}
		q := &fakeQueue{}
		id, err := newService(q, tt.double).notify(t.Context(), r, f)
		if err != nil {
			t.Fatal(err)
		}
		to, from := "", ""
		if q.envelope != nil {
			to, from = q.envelope.Recipients[0].Address.String(), q.envelope.Sender.String()
		}
		if to != tt.to || from != tt.from || (id != queueid.ID{}) != (tt.to != "") {
			t.Errorf("%s: to %q from %q with ID %s", tt.name, to, from, id)
		}
	}
}

// TestSubmitFails: trouble with cleanup puts a notification off; a sender to whom
// nothing can be sent keeps no message in the queue for ever.
func TestSubmitFails(t *testing.T) {
	r, f := request(t, bounce.Failure, message)
	for _, err := range []error{errors.New("gone"), dsn.Errorf("4.3.1", "no room")} {
		if id, got := newService(&fakeQueue{err: err}, "").notify(t.Context(), r, f); got == nil || id != (queueid.ID{}) {
			t.Errorf("%v: %v, %v", err, id, got)
		}
	}
	noReturn := func(to addr.Mailbox, _ []byte) error {
		if to == r.Envelope.Sender {
			return dsn.Errorf("5.1.3", "bad address")
		}
		return nil
	}
	for double, want := range map[string]string{"": "", "postmaster": "postmaster@example.org"} {
		q := &fakeQueue{refuse: noReturn}
		id, err := newService(q, double).notify(t.Context(), r, f)
		if err != nil || (id != queueid.ID{}) != (want != "") || want != "" && q.envelope.Recipients[0].Address.String() != want {
			t.Errorf("refused, postmaster %q: %v, %v", double, id, err)
		}
	}
	q := &fakeQueue{refuse: func(_ addr.Mailbox, content []byte) error {
		if bytes.Contains(content, []byte("body\r\n")) {
			return dsn.Errorf("5.3.4", "too large")
		}
		return nil
	}}
	if _, err := newService(q, "").notify(t.Context(), r, f); err != nil || q.envelope == nil || q.envelope.Recipients[0].Address != r.Envelope.Sender {
		t.Errorf("with the header alone: %v", err)
	}
	r.Recipients[0].Text, r.Recipients[0].Diagnostic = "host said: "+strings.Repeat("no ", 300), "550 "+strings.Repeat("no ", 300)
	q.refuse = func(_ addr.Mailbox, content []byte) error {
		if bytes.Count(content, []byte("no ")) > 200 {
			return dsn.Errorf("5.3.4", "too large")
		}
		return nil
	}
	if _, err := newService(q, "").notify(t.Context(), r, f); err != nil || !bytes.Contains(q.content, []byte("no ...")) {
		t.Errorf("with less of what was said: %v", err)
	}
	for name, spoil := range map[string]func(*bounce.Request){
		"null sender":    func(r *bounce.Request) { r.Envelope.Sender = addr.Mailbox{} },
		"another sender": func(r *bounce.Request) { r.Envelope.Sender = mailbox(t, "noreturn@example.org") },
	} {
		r, f := request(t, bounce.Failure, message)
		spoil(r)
		r.Recipients[0].Text = "host said: " + strings.Repeat("no ", 300)
		q := &fakeQueue{refuse: func(to addr.Mailbox, content []byte) error {
			if to.Local() == "noreturn" {
				return dsn.Errorf("5.1.3", "bad address")
			}
			if bytes.Contains(content, []byte("body\r\n")) || bytes.Count(content, []byte("no ")) > 200 {
				return dsn.Errorf("5.3.4", "too large")
			}
			return nil
		}}
		if _, err := newService(q, "postmaster").notify(t.Context(), r, f); err != nil || q.envelope == nil || q.envelope.Recipients[0].Address.String() != "postmaster@example.org" {
			t.Errorf("%s, what is too large for the postmaster: %v", name, err)
		}
	}
}

// TestMessageID: reports about one message, which there are where very many recipients
// fail, are made in no time, and nobody is to take them for copies of each other.
func TestMessageID(t *testing.T) {
	seen := make(map[string]bool)
	for i := range 3 {
		r, f := request(t, bounce.Failure, message)
		q := &fakeQueue{}
		s := newService(q, "")
		s.now = func() time.Time { return testTime.Add(time.Duration(i) * time.Millisecond) }
		if _, err := s.notify(t.Context(), r, f); err != nil {
			t.Fatal(err)
		}
		_, id, _ := strings.Cut(string(q.content), "\r\nMessage-Id: ")
		id, _, _ = strings.Cut(id, "\r\n")
		if seen[id] || !strings.HasPrefix(id, "<") || !strings.HasSuffix(id, "@mail.example.org>") {
			t.Errorf("%s, after %v", id, seen)
		}
		seen[id] = true
	}
}

// TestLanguage: what a host says in another language makes no 8-bit text where
// 7 bits are promised.
func TestLanguage(t *testing.T) {
	r, f := request(t, bounce.Failure, message)
	r.Recipients[0].Text, r.Recipients[0].Diagnostic = "host said: 550 неизвестен", "550 неизвестен"
	q := &fakeQueue{}
	if _, err := newService(q, "").notify(t.Context(), r, f); err != nil {
		t.Fatal(err)
	}
	if got := bytes.Count(q.content, []byte("Content-Transfer-Encoding: 8bit")); got != 2 { // of the whole and of the text
		t.Errorf("%d parts are declared to have 8 bits", got)
	}
	if !bytes.Contains(q.content, []byte("неизвестен")) || !bytes.Contains(q.content, []byte("Diagnostic-Code: smtp; 550 ??????????\r\n")) {
		t.Errorf("%s", q.content)
	}
}

// TestReturned: what is given back is whole, or the header only, and what it
// says ends no part of the report.
func TestReturned(t *testing.T) {
	big := message + strings.Repeat("x\r\n", 20000)
	for _, tt := range []struct {
		name, content string
		ret           dsn.Return
		want, not     string
	}{
		{name: "small", content: message, want: "body\r\n"},
		{name: "asked for the header", content: message, ret: dsn.ReturnHeaders, want: "Subject: hello\r\n", not: "body\r\n"},
		{name: "big", content: big, want: "Subject: hello\r\n", not: "body\r\n"},
		{name: "no header", content: "\r\n" + big, want: "text/rfc822-headers", not: "body\r\n"},
		{name: "no line end", content: "Subject: x", want: "Subject: x\r\n"},
		{name: "endless header", content: strings.Repeat("X-Y: z\r\n", 20000), want: "X-Y: z\r\n\r\n--"},
		{name: "empty", content: "", want: "message/rfc822"},
	} {
		r, f := request(t, bounce.Failure, tt.content)
		r.Envelope.Return = tt.ret
		q := &fakeQueue{}
		if _, err := newService(q, "").notify(t.Context(), r, f); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if !bytes.Contains(q.content, []byte(tt.want)) || tt.not != "" && bytes.Contains(q.content, []byte(tt.not)) {
			t.Errorf("%s:\n%.3000s", tt.name, q.content)
		}
	}
}

// TestFields: the fields that programs read are exact.
func TestFields(t *testing.T) {
	spaces := `"` + strings.Repeat("a  b ", 12) + `"@example.net` // a line that is folded elsewhere
	r, f := request(t, bounce.Failure, message)
	r.Recipients[0].Address = mailbox(t, spaces)
	r.Recipients[0].ORCPT = dsn.OriginalRecipient{Type: "rfc822", Address: spaces}
	for host, want := range map[string]string{"mx.example": "mx.example", "192.0.2.1": "[192.0.2.1]", "2001:db8::1": "[IPv6:2001:db8::1]"} {
		r.Recipients[0].RemoteMTA = host
		q := &fakeQueue{}
		if _, err := newService(q, "").notify(t.Context(), r, f); err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"Final-Recipient: rfc822; " + spaces, "Original-Recipient: rfc822;" + spaces, "Remote-MTA: dns; " + want} {
			if !bytes.Contains(q.content, []byte("\r\n"+line+"\r\n")) {
				t.Errorf("%q is not in\n%s", line, q.content)
			}
		}
	}
}

func TestBoundary(t *testing.T) {
	r, f := request(t, bounce.Failure, message)
	rep := &report{Request: r, hostname: "h", now: testTime, content: f}
	first := rep.boundary(nil)
	if second := rep.boundary([]byte("x\r\n--" + first + "\r\n")); second == first {
		t.Errorf("%q is in the message", first)
	}
}

func TestFold(t *testing.T) {
	for _, in := range []string{"", "a", strings.Repeat("word ", 100), strings.Repeat("x", 5000), "a: " + strings.Repeat("y", 2000) + " z"} {
		out := fold(in, "    ")
		for i, line := range strings.Split(out, "\r\n") {
			if len(line) > 998 || i > 0 && !strings.HasPrefix(line, "    ") {
				t.Errorf("%.20q: line %d has %d octets", in, i, len(line))
			}
		}
		if strings.Join(strings.Fields(out), "") != strings.Join(strings.Fields(in), "") {
			t.Errorf("%.20q: text is lost", in)
		}
	}
}
