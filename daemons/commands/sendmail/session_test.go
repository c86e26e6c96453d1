package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"posthouse/pkg/addr"
	"posthouse/pkg/cli"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/maildrop"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/protocol/rewrite"
)

// talk holds a session and returns the codes of the replies, the last line of
// each, and the last reply.
func talk(t *testing.T, path, dir string, commands ...string) (codes, last string) {
	t.Helper()
	var out strings.Builder
	c := call{Streams: cli.Streams{In: strings.NewReader(strings.Join(commands, "\r\n") + "\r\n"), Out: &out}, program: "sendmail", log: func(string) {}}
	s := &submission{options: &options{}, client: cleanup.NewClient(path), maildrop: dir}
	if status := c.session(s); status != cli.OK {
		t.Errorf("status %d", status)
	}
	for line := range strings.Lines(out.String()) {
		if len(line) > 3 && line[3] == ' ' {
			codes += line[:4]
			if line[:3] != "221" {
				last = strings.TrimSpace(line)
			}
		}
	}
	return strings.TrimSpace(codes), last
}

var dialogue = []string{
	"HELO client", "MAIL FROM:<a@b>", "RCPT TO:<root>", "RCPT TO:<y@z>", "DATA", "Subject: x", "", "..", "body", ".", "QUIT",
}

// TestSession: what comes by SMTP is submitted, and has the reply that it deserves.
func TestSession(t *testing.T) {
	off := filepath.Join(t.TempDir(), "off")
	path, took := pickup(t, nil)
	codes, last := talk(t, path, off, dialogue...)
	if codes != "220 250 250 250 250 354 250 221" || last != "250 2.0.0 Ok: queued as "+testID.String() {
		t.Fatalf("%s, %s", codes, last)
	}
	m := <-took
	if m.content != "Subject: x\r\n\r\n.\r\nbody\r\n" || m.e.Sender.String() != "a@b" || len(m.e.Recipients) != 2 || m.e.Recipients[0].Address.String() != "root" {
		t.Errorf("%+v %q", m.e, m.content)
	}
	// A script's lines may end in LF, but not here and there.
	if codes, _ := talk(t, path, off, strings.Join(dialogue, "\n")+"\n"); codes != "220 250 250 250 250 354 250 221" {
		t.Errorf("lines that end in LF: %s", codes)
	}
	if m := <-took; m.content != "Subject: x\r\n\r\n.\r\nbody\r\n" {
		t.Errorf("lines that end in LF: %q", m.content)
	}
	if codes, _ := talk(t, path, off, dialogue[0], strings.Join(dialogue[1:], "\n")); codes != "220 250 521" {
		t.Errorf("some lines that end in LF: %s", codes)
	}
	for _, tt := range []struct{ status, reply string }{
		{"5.3.4", "552 5.3.4 Error: no"}, {"4.3.1", "452 4.3.1 Error: no"}, {"5.7.1", "554 5.7.1 Error: no"}, {"4.5.0", "451 4.5.0 Error: no"},
	} {
		path, _ := pickup(t, dsn.Errorf(tt.status, "no"))
		if _, last := talk(t, path, off, dialogue...); last != tt.reply {
			t.Errorf("%s: %s", tt.status, last)
		}
	}
	// A message that breaks off is none.
	path, took = pickup(t, nil)
	if codes, _ := talk(t, path, off, dialogue[:8]...); !strings.HasPrefix(codes, "220 250 250 250 250 354") || len(took) > 0 {
		t.Errorf("half a message: %s, %d submitted", codes, len(took))
	}
}

// TestSessionOff: where the mail system is off the message is dropped, or refused
// for now.
func TestSessionOff(t *testing.T) {
	off := filepath.Join(t.TempDir(), "off")
	if codes, last := talk(t, off, off, dialogue...); !strings.HasPrefix(codes, "220 250 250 250 250 451 ") || last == "" {
		t.Errorf("off: %s, %s", codes, last)
	}
	dir := t.TempDir()
	if err := unix.Chmod(dir, 0o3733); err != nil {
		t.Fatal(err)
	}
	if codes, last := talk(t, off, dir, dialogue...); codes != "220 250 250 250 250 354 250 221" || !strings.Contains(last, "left in the maildrop") {
		t.Errorf("dropped: %s, %s", codes, last)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Fatalf("%v, %v", left, err)
	}
	d, err := maildrop.OpenDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := d.Open(left[0].Name())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if len(f.Envelope.Recipients) != 2 || string(f.Beginning(100)) != "Subject: x\r\n\r\n.\r\nbody\r\n" {
		t.Errorf("%+v %q", f.Envelope, f.Beginning(100))
	}
}

// TestVerify: -bv says what an address stands for and where that goes.
func TestVerify(t *testing.T) {
	mailbox := func(s string) addr.Mailbox {
		m, err := addr.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	path := ipctest.Serve(t, rewrite.Protocol, func(c *ipc.Conn, b []byte, _ *os.File) error {
		r, err := rewrite.DecodeRequest(b)
		if err != nil {
			return err
		}
		a := rewrite.Answer{Transport: "smtp", Nexthop: "z", Addresses: r.Addresses}
		switch local := r.Addresses[0].Local(); {
		case local == "list" && r.Op == rewrite.Expand:
			a.Addresses = []addr.Mailbox{mailbox("a@z"), mailbox("nobody@z")}
		case local == "nobody" && r.Op == rewrite.Verify:
			a = rewrite.Answer{Err: dsn.Errorf("5.1.1", "User unknown")}
		case local == "later":
			a = rewrite.Answer{Err: dsn.Errorf("4.3.0", "not now")}
		}
		m := ipc.NewMessage()
		rewrite.EncodeAnswers(m, []rewrite.Answer{a})
		return c.Send(m)
	})
	for _, tt := range []struct {
		args, out string
		status    int
	}{
		{"a@z", "a@z: deliverable: transport smtp, nexthop z\n", cli.OK},
		{"list@z", "list@z -> a@z: deliverable: transport smtp, nexthop z\nlist@z -> nobody@z: 5.1.1 User unknown\n", cli.NoUser},
		{"later@z", "later@z: 4.3.0 not now\n", cli.TempFail},
		{"", "", cli.Usage},
		{"<x", "", cli.Usage},
	} {
		var out strings.Builder
		c := call{Streams: cli.Streams{Out: &out, Err: &strings.Builder{}}, program: "sendmail", log: func(string) {}}
		if status := c.verify(path, strings.Fields(tt.args)); status != tt.status || out.String() != tt.out {
			t.Errorf("%s: status %d\n%s", tt.args, status, &out)
		}
	}
	c := call{Streams: cli.Streams{Out: &strings.Builder{}, Err: &strings.Builder{}}, program: "sendmail", log: func(string) {}}
	if status := c.verify("/nonexistent/socket", []string{"a@z"}); status != cli.TempFail {
		t.Errorf("without rewrite: status %d", status)
	}
}

// TestFlushSite: what waits for a domain is made due, and nothing else.
func TestFlushSite(t *testing.T) {
	requests := make(chan queuectl.Request, 10)
	control := ipctest.Serve(t, queuectl.Protocol, func(c *ipc.Conn, b []byte, _ *os.File) error {
		r, err := queuectl.DecodeRequest(b)
		if err != nil {
			return err
		}
		requests <- r
		m := ipc.NewMessage()
		queuectl.Reply{Done: 1}.Encode(m)
		return c.Send(m)
	})
	c := call{Streams: cli.Streams{Err: &strings.Builder{}}, program: "sendmail", log: func(string) {}}
	if status := c.flushSite(control, "example.org"); status != cli.OK {
		t.Errorf("status %d", status)
	} else if asked := <-requests; asked.Op != queuectl.Retry || asked.Destination != "example.org" || asked.All || len(asked.IDs) > 0 {
		t.Errorf("asked for %+v", asked)
	}
	if status := c.flushSite("/nonexistent/socket", "no domain"); status != cli.OK {
		t.Errorf("nothing to do: status %d", status)
	}
	if status := c.flushSite("/nonexistent/socket", "example.org"); status != cli.Unavailable {
		t.Errorf("without qmgr: status %d", status)
	}
}
