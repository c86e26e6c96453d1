package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/addr"
	"posthouse/pkg/cli"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/maildrop"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queueid"
)

var testID = queueid.New(time.Unix(1700000000, 0), 1)

func TestOptions(t *testing.T) {
	tests := []struct {
		args string
		want func(*options) bool
	}{
		{"-t -i", func(o *options) bool { return o.extract && o.ignoreDots }},
		{"-ti", func(o *options) bool { return o.extract && o.ignoreDots }},
		{"-oi -f a@b c@d", func(o *options) bool {
			return o.ignoreDots && *o.sender == "a@b" && reflect.DeepEqual(o.recipients, []string{"c@d"})
		}},
		{"-fa@b -oem -odb -om x", func(o *options) bool { return *o.sender == "a@b" && reflect.DeepEqual(o.recipients, []string{"x"}) }},
		{"-i -- -t", func(o *options) bool { return !o.extract && reflect.DeepEqual(o.recipients, []string{"-t"}) }},
		{"x -i y", func(o *options) bool { return o.ignoreDots && reflect.DeepEqual(o.recipients, []string{"x", "y"}) }},
		{"-bp", func(o *options) bool { return o.mode == queueMode }},
		{"-q", func(o *options) bool { return o.mode == flushMode }},
		{"-q15m", func(o *options) bool { return o.mode == nothingMode }},
		{"-qI" + testID.String(), func(o *options) bool { return o.mode == flushMode && len(o.flush) == 1 && o.flush[0] == testID }},
		{"-bs", func(o *options) bool { return o.mode == sessionMode }},
		{"-bv x y", func(o *options) bool { return o.mode == verifyMode && len(o.recipients) == 2 }},
		{"-qRexample.org", func(o *options) bool { return o.mode == siteMode && o.site == "example.org" }},
		{"-qR@example.org", func(o *options) bool { return o.mode == siteMode && o.site == "example.org" }},
		{"-bi", func(o *options) bool { return o.mode == nothingMode }},
		{"-I", func(o *options) bool { return o.mode == nothingMode }},
		{"-bh", func(o *options) bool { return o.mode == nothingMode }},
		{"-bH", func(o *options) bool { return o.mode == nothingMode }},
		{"-o i x", func(o *options) bool { return o.ignoreDots && reflect.DeepEqual(o.recipients, []string{"x"}) }},
		{"-o m -o7 -oi x", func(o *options) bool { return o.ignoreDots && reflect.DeepEqual(o.recipients, []string{"x"}) }},
		{"-mti x", func(o *options) bool {
			return o.ignoreDots && o.extract && reflect.DeepEqual(o.recipients, []string{"x"})
		}},
		{"-Fname -N failure,delay -R hdrs -V id -B 8bitmime x", func(o *options) bool {
			return o.name == "name" && o.notify.String() == "FAILURE,DELAY" && o.ret.String() == "HDRS" && o.envID == "id"
		}},
		{"-em -eq -e p x", func(o *options) bool { return o.mode == submitMode && reflect.DeepEqual(o.recipients, []string{"x"}) }},
		{"-h 3 -L tag -O opt -A c -n -U -v x", func(o *options) bool { return !o.gateway && reflect.DeepEqual(o.recipients, []string{"x"}) }},
		{"-Gi x", func(o *options) bool { return o.gateway && o.ignoreDots }},
	}
	for _, tt := range tests {
		o, err := parseOptions("sendmail", strings.Fields(tt.args))
		if err != nil || !tt.want(o) {
			t.Errorf("%s: %+v, %v", tt.args, o, err)
		}
	}
	for _, args := range []string{"-bt", "-bd", "-Z", "-C /etc/x", "-X /tmp/log", "-Dx", "-d9", "-f", "-qS", "-qI", "-qIno/id", "-qR", "-o", "-B 9bit", "-N sometimes", "-be"} {
		if o, err := parseOptions("sendmail", strings.Fields(args)); err == nil {
			t.Errorf("%s: %+v", args, o)
		}
	}
	if o, err := parseOptions("mailq", nil); err != nil || o.mode != queueMode {
		t.Errorf("%+v, %v", o, err)
	}
}

// text reads all lines of a message.
func text(in *input) (string, error) {
	var b strings.Builder
	for {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			return b.String(), nil
		}
		if err != nil {
			return "", err
		}
		b.Write(line)
	}
}

func TestInput(t *testing.T) {
	long := strings.Repeat("x", 100000)
	for _, tt := range []struct {
		in, want   string
		ignoreDots bool
	}{
		{in: "a\nb\n", want: "a\r\nb\r\n"},
		{in: "a\r\nb", want: "a\r\nb\r\n"},
		{in: "a\n.\nb\n", want: "a\r\n"},
		{in: "a\n.\nb\n", want: "a\r\n.\r\nb\r\n", ignoreDots: true},
		{in: "a\n.", want: "a\r\n"},
		{in: "..\n", want: "..\r\n"},
		{in: "From x\n>From y\nSubject: z\n\nFrom me\n", want: "Subject: z\r\n\r\nFrom me\r\n"},
		{in: ">>From x\nSubject: z\n", want: "Subject: z\r\n"},
		{in: "From " + long + "\nSubject: z\n", want: "Subject: z\r\n"},
		{in: "a\rb\n", want: "a b\r\n"},
		{in: long + "\n.\n", want: long + "\r\n"},
		{in: long[:32<<10-1] + "\r\nb\rc\n", want: long[:32<<10-1] + "\r\nb c\r\n"}, // the CR is the last one that is read
		{in: "", want: ""},
	} {
		for _, r := range []io.Reader{strings.NewReader(tt.in), iotest.OneByteReader(strings.NewReader(tt.in))} {
			if got, err := text(newInput(r, tt.ignoreDots)); err != nil || got != tt.want {
				t.Errorf("%.40q: %.60q, %v", tt.in, got, err)
			}
		}
	}
	defer func(n int64) { maxMessage = n }(maxMessage)
	maxMessage = 1 << 20
	if _, err := text(newInput(&endless{}, true)); statusOf(err) != cli.Unavailable {
		t.Errorf("what has no end: %v", err)
	}
	if _, err := text(newInput(iotest.ErrReader(errors.New("broken")), false)); err == nil {
		t.Error("a broken input is a whole message")
	}
}

// endless is a program that writes without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return copy(p, "y\n"), nil }

func TestReadHead(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		from     bool
	}{
		{in: "From: me@x\nTo: a@b, C <c@d>\nBcc: e@f\nSubject: x\n\nTo: no@no\n", want: "a@b c@d e@f", from: true},
		{in: "To: a@b\nResent-To: r@s\nResent-Bcc: t@u\n\n", want: "r@s t@u"},
		{in: "To: a@b,\n c@d\n", want: "a@b c@d"},
		{in: "To: friends: a@b, c@d;\n\n", want: "a@b c@d"},
		{in: "no header\n", want: ""},
		{in: "Bcc: a@b,\n\tc@d\nTo : e@f\nto\t: g@h\nTO: i@j\n\n", want: "a@b c@d e@f g@h i@j"},
		{in: "To: \"Bcc: no@no\" <a@b>, =?utf-8?q?no=40no=2C?= <c@d>\n\n", want: "a@b c@d"},
		{in: "To: (no@no, ((x) no@no)) a@b (c),,, <@relay:c@d>,\n\n", want: "a@b c@d"},
		{in: "To: undisclosed-recipients:;\nBcc: g: a@b; , h: c@d (x;y), e@f;\n\n", want: "a@b c@d e@f"},
		{in: " To: no@no\n\n", want: ""},
		{in: "To\n: no@no\n\n", want: ""},
		{in: "To:" + strings.Repeat(" a@b,\n", 10_000) + "\n", want: strings.TrimSuffix(strings.Repeat("a@b ", 10_000), " ")},
	} {
		in := newInput(strings.NewReader(tt.in), false)
		h, err := readHead(in, true)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		var list []string
		for _, m := range h.recipients {
			list = append(list, m.String())
		}
		rest, err := text(in)
		if err != nil || strings.Join(list, " ") != tt.want || h.hasFrom != tt.from {
			t.Errorf("%q: %q, %v", tt.in, list, h.hasFrom)
		}
		if got := string(h.raw) + rest; got != strings.ReplaceAll(tt.in, "\n", "\r\n") {
			t.Errorf("%q became %q", tt.in, got)
		}
	}
	for _, in := range []string{
		"To: <a@b\n\n", "To: a@b\rBcc: c@d\n\n", "To: a@b c@d\n\n", "To: \"a <a@b>\n\n", "To: a@b\x00,c@d\n\n", "To: a\\@x@b\n\n",
		"To: " + strings.Repeat("(", 1000) + strings.Repeat(")", 1000) + " a@b\n\n", "To: " + strings.Repeat("(", 100_000) + "\n\n",
	} {
		if h, err := readHead(newInput(strings.NewReader(in), false), true); err == nil {
			t.Errorf("%.60q is taken: %v", in, h.recipients)
		}
	}
	if _, err := readHead(newInput(bytes.NewReader(bytes.Repeat([]byte("X-Y: z\n"), 1<<20)), false), true); err == nil {
		t.Error("an endless header is taken")
	}
}

func TestFromField(t *testing.T) {
	for _, tt := range []struct{ name, sender, want string }{
		{"", "me@example.org", ""},
		{"A B", "me@example.org", "From: A B <me@example.org>\r\n"},
		{"A B", "root", "From: A B <root>\r\n"},
		{"A B", "", ""},
		{"J\u00fcrgen", "me@example.org", "From: =?utf-8?Q?J=C3=BCrgen?= <me@example.org>\r\n"},
		{"bad \xff", "root", "From: =?utf-8?Q?bad_=EF=BF=BD?= <root>\r\n"},
		{"=?utf-8?Q?x?=", "root", "From: =?utf-8?Q?x?= <root>\r\n"},
		{"A. B", "root", "From: \"A. B\" <root>\r\n"},
		{" A", "root", "From: \" A\" <root>\r\n"},
		{"x\r\nBcc: evil@x", "me@example.org", "From: \"xBcc: evil@x\" <me@example.org>\r\n"},
		{`quote " and \ esc`, "me@example.org", "From: \"quote \\\" and \\\\ esc\" <me@example.org>\r\n"},
	} {
		var m addr.Mailbox
		if tt.sender != "" {
			var err error
			if m, err = addr.Parse(tt.sender); err != nil {
				t.Fatal(err)
			}
		}
		if got := fromField("From", tt.name, m); got != tt.want {
			t.Errorf("%q %q: %q", tt.name, tt.sender, got)
		}
	}
}

// taken is what a submission service got.
type taken struct {
	e       *envelope.Envelope
	content string
}

// pickup is a submission service in its place, with one verdict on every message.
func pickup(t *testing.T, verdict *dsn.Error) (path string, took <-chan taken) {
	t.Helper()
	return busyPickup(t, func() (*dsn.Error, error) { return nil, nil }, verdict)
}

// busyPickup is a submission service that begins a message when busy says so, or ends
// the connection.
func busyPickup(t *testing.T, busy func() (*dsn.Error, error), verdict *dsn.Error) (path string, took <-chan taken) {
	t.Helper()
	all := make(chan taken, 10)
	path = ipctest.Serve(t, cleanup.Protocol, func(c *ipc.Conn, b []byte, _ *os.File) error {
		r, err := cleanup.DecodeRequest(b)
		if err != nil {
			return err
		}
		answer := func(r cleanup.Reply) error {
			m := ipc.NewMessage()
			r.Encode(m)
			return c.Send(m)
		}
		refusal, err := busy()
		switch {
		case err != nil:
			return err
		case refusal != nil:
			return answer(cleanup.Reply{Err: refusal})
		}
		got := taken{e: r.Envelope}
		if err := answer(cleanup.Reply{ID: testID}); err != nil {
			return err
		}
		for r.Kind != cleanup.KindEnd {
			b, err := c.Receive(ipc.MaxChunk)
			if err != nil {
				return err
			}
			if r, err = cleanup.DecodeRequest(b); err != nil {
				return err
			}
			got.content += string(r.Data)
		}
		all <- got
		return answer(cleanup.Reply{ID: testID, Err: verdict})
	})
	return path, all
}

func submit(t *testing.T, path, in string, args ...string) int {
	t.Helper()
	o, err := parseOptions("sendmail", args)
	if err != nil {
		return cli.Usage
	}
	s := submission{options: o, client: cleanup.NewClient(path)}
	if err := s.run(strings.NewReader(in)); err != nil {
		t.Log(err)
		return statusOf(err)
	}
	return cli.OK
}

// TestSubmit: what reaches pickup.
func TestSubmit(t *testing.T) {
	t.Setenv("NAME", "")
	for _, tt := range []struct {
		args               []string
		in, envelope, want string
		utf8               bool
	}{
		{args: []string{"-f", "a@b", "-F", "N", "x, Y <y@z>", "w@v"}, in: "S: t\n\nbody\n", envelope: "<a@b> x y@z w@v", want: "From: N <a@b>\r\nS: t\r\n\r\nbody\r\n"},
		{args: []string{"-f", "", "x"}, in: "S: t\n", envelope: "<> x", want: "S: t\r\n"},
		{args: []string{"-f<>", "x"}, in: "S: t\n", envelope: "<> x", want: "S: t\r\n"},
		{args: []string{"-fa@b", "-FN", "x"}, in: " indented\n", envelope: "<a@b> x", want: "From: N <a@b>\r\n\r\n indented\r\n"},
		{args: []string{"-fa@b", "-FN", "-t", "x"}, in: "From: me@x\nTo: \u00fc@y\n\n.\nno\n", envelope: "<a@b> x \u00fc@y", want: "From: me@x\r\nTo: \u00fc@y\r\n\r\n", utf8: true},
		{args: []string{"-fa@b", "-FN", "x"}, in: "Resent-To: x@y\nTo: z\n", envelope: "<a@b> x", want: "Resent-From: N <a@b>\r\nResent-To: x@y\r\nTo: z\r\n"},
		{args: []string{"-fa@b", "-FN", "x"}, in: "Resent-From: r@y\n", envelope: "<a@b> x", want: "Resent-From: r@y\r\n"},
		{args: []string{"-f\u00e9@b", "-FN", "x"}, in: "", envelope: "<\u00e9@b> x", want: "From: N <\u00e9@b>\r\n", utf8: true},
	} {
		path, took := pickup(t, nil)
		if status := submit(t, path, tt.in, tt.args...); status != cli.OK {
			t.Errorf("%q: status %d", tt.args, status)
			continue
		}
		m := <-took
		got := m.e.Sender.Path()
		for _, r := range m.e.Recipients {
			got += " " + r.Address.String()
		}
		if got != tt.envelope || m.content != tt.want || m.e.SMTPUTF8 != tt.utf8 {
			t.Errorf("%q: %s, %q, UTF-8 %v", tt.args, got, m.content, m.e.SMTPUTF8)
		}
	}
}

// TestStatus: the exit statuses, which callers act upon.
func TestStatus(t *testing.T) {
	ok, _ := pickup(t, nil)
	no, _ := pickup(t, dsn.Errorf("5.3.4", "message size exceeds the limit"))
	never, _ := pickup(t, dsn.Errorf("5.7.1", "Sender address rejected"))
	later, _ := pickup(t, dsn.Errorf("4.3.0", "queue file write error"))
	for _, tt := range []struct {
		path, in string
		args     []string
		want     int
	}{
		{ok, "", []string{"x"}, cli.OK},
		{ok, "", []string{"-Z"}, cli.Usage},
		{ok, "", nil, cli.Usage},
		{ok, "Subject: x\n", []string{"-t"}, cli.Usage},
		{ok, "", []string{"-f", "a@b -X/some/file", "x"}, cli.Usage},
		{ok, "", []string{"-f", "a\nRCPT", "x"}, cli.Usage},
		{ok, "", []string{"<x"}, cli.Usage},
		{ok, "To: <x\n", []string{"-t"}, cli.DataErr},
		{no, "", []string{"x"}, cli.Unavailable},
		{never, "", []string{"x"}, cli.NoPerm},
		{later, "", []string{"x"}, cli.TempFail},
		{filepath.Join(t.TempDir(), "off"), "", []string{"x"}, cli.TempFail},
	} {
		if got := submit(t, tt.path, tt.in, tt.args...); got != tt.want {
			t.Errorf("%q, %q, %s: status %d, want %d", tt.args, tt.in, filepath.Base(tt.path), got, tt.want)
		}
	}
	if got := statusOf(fmt.Errorf("connect: %w", fs.ErrPermission)); got != cli.NoPerm {
		t.Errorf("no permission: status %d", got)
	}
}

// TestBusy: a pickup that is busy is asked again, but not for ever, and nothing
// else is.
func TestBusy(t *testing.T) {
	for _, tt := range []struct {
		name     string
		refusals int
		err      *dsn.Error
		patience time.Duration
		status   int
		asked    int32
	}{
		{"for a while", 4, dsn.Errorf("4.3.2", "busy"), time.Hour, cli.OK, 5},
		{"for too long", 1000, dsn.Errorf("4.3.2", "busy"), 2 * firstPause, cli.TempFail, 2},
		{"not busy", 1, dsn.Errorf("4.3.1", "no space"), time.Hour, cli.TempFail, 1},
		{"never", 1, dsn.Errorf("5.3.2", "no"), time.Hour, cli.Unavailable, 1},
		{"gone before it has answered", 2, nil, time.Hour, cli.OK, 3},
	} {
		var asked atomic.Int32
		path, took := busyPickup(t, func() (*dsn.Error, error) {
			switch {
			case asked.Add(1) > int32(tt.refusals):
				return nil, nil
			case tt.err == nil:
				return nil, io.ErrUnexpectedEOF
			}
			return tt.err, nil
		}, nil)
		s := submission{options: &options{sender: new(string), recipients: []string{"x"}}, client: cleanup.NewClient(path), patience: tt.patience}
		status := cli.OK
		if err := s.run(strings.NewReader("From: x\n\nbody\n")); err != nil {
			status = statusOf(err)
		}
		// How often there was time to ask within a short patience is not for a test.
		if status != tt.status || asked.Load() > tt.asked || tt.patience == time.Hour && asked.Load() != tt.asked {
			t.Errorf("%s: status %d, asked %d times", tt.name, status, asked.Load())
		}
		if status == cli.OK && (<-took).content != "From: x\r\n\r\nbody\r\n" {
			t.Errorf("%s: the message has changed", tt.name)
		}
	}
}

// TestDrop: where the mail system is off, and only there, the message goes into
// the maildrop, if that is open: whole, and with the time.
func TestDrop(t *testing.T) {
	t.Setenv("NAME", "")
	off := filepath.Join(t.TempDir(), "off")
	later, _ := pickup(t, dsn.Errorf("4.3.0", "queue file write error"))
	open := t.TempDir()
	if err := unix.Chmod(open, 0o3733); err != nil {
		t.Fatal(err)
	}
	run := func(path, dir, in string, args ...string) (*submission, error) {
		o, err := parseOptions("sendmail", args)
		if err != nil {
			t.Fatal(err)
		}
		s := &submission{options: o, client: cleanup.NewClient(path), maildrop: dir}
		return s, s.run(strings.NewReader(in))
	}
	for name, dir := range map[string]string{"none": filepath.Join(open, "none"), "wrong": t.TempDir()} {
		if s, err := run(off, dir, "Subject: x\n\nx\n", "x"); err == nil || statusOf(err) != cli.TempFail || s.dropped != "" || !strings.Contains(err.Error(), "the mail system is off") {
			t.Errorf("%s: %v, %q", name, err, s.dropped)
		}
	}
	if s, err := run(later, open, "x\n", "x"); err == nil || s.dropped != "" {
		t.Errorf("a refusal: %v, %q", err, s.dropped)
	}
	long := strings.Repeat("0123456789\n", maxMemory/10)
	for _, tt := range []struct{ in, want string }{
		{"Date: then\nSubject: x\n\nx\n", "From: N <a@b>\r\nDate: then\r\nSubject: x\r\n\r\nx\r\n"},
		{"Subject: x\n\n" + long, "Date: now\r\nFrom: N <a@b>\r\nSubject: x\r\n\r\n" + strings.ReplaceAll(long, "\n", "\r\n")},
		{" indented\n", "Date: now\r\nFrom: N <a@b>\r\n\r\n indented\r\n"},
	} {
		s, err := run(off, open, tt.in, "-fa@b", "-FN", "x", "y@z")
		if err != nil {
			t.Fatal(err)
		}
		d, err := maildrop.OpenDirectory(open)
		if err != nil {
			t.Fatal(err)
		}
		f, err := d.Open(filepath.Base(s.dropped))
		if err != nil {
			t.Fatal(err)
		}
		var content strings.Builder
		if err := f.CopyTo(&content); err != nil {
			t.Error(err)
		}
		got := regexp.MustCompile(`^Date: \w\w\w, \d+ \w\w\w \d{4} \d\d:\d\d:\d\d [-+]\d{4}\r\n`).ReplaceAllString(content.String(), "Date: now\r\n")
		if got != tt.want || f.Envelope.Sender.String() != "a@b" || len(f.Envelope.Recipients) != 2 {
			t.Errorf("%.40q: %+v %.200q", tt.in, f.Envelope, got)
		}
		f.Close()
		_ = d.Remove(filepath.Base(s.dropped))
		_ = d.Close()
	}
	if left, err := os.ReadDir(open); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestFlush: all messages are made due, or one; and whether that could be done.
func TestFlush(t *testing.T) {
	other := queueid.New(time.Unix(1700000000, 0), 2)
	requests := make(chan queuectl.Request, 10)
	path := ipctest.Serve(t, queuectl.Protocol, func(c *ipc.Conn, b []byte, _ *os.File) error {
		asked, err := queuectl.DecodeRequest(b)
		if err != nil {
			return err
		}
		requests <- asked
		reply := queuectl.Reply{Done: 1}
		if slices.Contains(asked.IDs, other) {
			reply = queuectl.Reply{Missing: []queueid.ID{other}}
		}
		m := ipc.NewMessage()
		reply.Encode(m)
		return c.Send(m)
	})
	for _, tt := range []struct {
		path   string
		ids    []queueid.ID
		status int
	}{
		{path, nil, cli.OK},
		{path, []queueid.ID{testID}, cli.OK},
		{path, []queueid.ID{other}, cli.Unavailable},
		{"/nonexistent/socket", nil, cli.Unavailable},
	} {
		c := call{Streams: cli.Streams{Err: io.Discard}, program: "sendmail", log: func(string) {}}
		if got := c.flush(tt.path, tt.ids); got != tt.status {
			t.Errorf("%v: status %d, want %d", tt.ids, got, tt.status)
		}
		if tt.path != path {
			continue
		}
		if asked := <-requests; asked.Op != queuectl.Retry || asked.All != (tt.ids == nil) || !slices.Equal(asked.IDs, tt.ids) {
			t.Errorf("%v: asked for %+v", tt.ids, asked)
		}
	}
}

// TestFail: what goes wrong the caller hears, and the log.
func TestFail(t *testing.T) {
	for _, tt := range []struct {
		program, args, stdin, err string
		status                    int
	}{
		{"sendmail", "-Z", "", "unknown option -Z", cli.Usage},
		{"sendmail", "-t", "Subject: x\n", "no recipient addresses found", cli.Usage},
		{"sendmail", "-t", "To: <x\n", "", cli.DataErr},
		{"sendmail", "-bh", "To: x\n", "", cli.OK},
	} {
		var err strings.Builder
		var logged []string
		c := call{
			Streams: cli.Streams{In: strings.NewReader(tt.stdin), Out: io.Discard, Err: &err},
			program: tt.program, log: func(text string) { logged = append(logged, text) },
		}
		if got := c.run(strings.Fields(tt.args)); got != tt.status {
			t.Errorf("%s %s: status %d, want %d", tt.program, tt.args, got, tt.status)
		}
		want := ""
		if tt.status != cli.OK {
			if len(logged) != 1 {
				t.Errorf("%s %s: logged %q", tt.program, tt.args, logged)
				continue
			}
			want = tt.program + ": " + logged[0] + "\n"
		}
		if err.String() != want || !strings.Contains(want, tt.err) {
			t.Errorf("%s %s: %q, logged %q", tt.program, tt.args, err.String(), logged)
		}
	}
	var out strings.Builder
	c := call{Streams: cli.Streams{Out: &out}, program: "newaliases"}
	if got := c.run(nil); got != cli.OK || !strings.Contains(out.String(), "nothing to do") {
		t.Errorf("newaliases: status %d, %q", got, &out)
	}
	c = call{Streams: cli.Streams{Err: io.Discard, Out: io.Discard}, program: "mailq", log: func(string) {}}
	if got := c.list("/nonexistent/socket"); got != cli.Unavailable {
		t.Errorf("mailq without a mail system: status %d", got)
	}
}

// TestLoginName: an account has its name. Who has none is who the environment
// says, if that is nobody else.
func TestLoginName(t *testing.T) {
	const nobody = "4294967000"
	for _, tt := range []struct{ uid, logname, user, want string }{
		{"0", "liar", "liar", "root"},
		{nobody, "", "", nobody},
		{nobody, "alice-of-ldap", "other", "alice-of-ldap"},
		{nobody, "", "other", "other"},
		{nobody, "root", "other", "other"},
		{nobody, "root", "", nobody},
		{nobody, "a@example.org", "b\nc", nobody},
	} {
		t.Setenv("LOGNAME", tt.logname)
		t.Setenv("USER", tt.user)
		if got := nameOf(tt.uid); got != tt.want {
			t.Errorf("%+v: %q", tt, got)
		}
	}
	for _, tt := range [][3]string{{"Alice & Co", "bob", "Alice Bob Co"}, {"&", "", ""}, {"Alice", "a", "Alice"}} {
		if got := accountName(tt[0], tt[1]); got != tt[2] {
			t.Errorf("%q: %q", tt, got)
		}
	}
}

func TestIsPhrase(t *testing.T) {
	for name, want := range map[string]bool{
		"root": true, "Cron Daemon": true, "it's {a|b}": true, "": false, "A. B": false, "two  spaces": false, " x": false, "x ": false,
		"a@b": false, "a,b": false, `say "x"`: false, "tab\there": false, "Jürgen": false,
	} {
		if got := isPhrase(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}
