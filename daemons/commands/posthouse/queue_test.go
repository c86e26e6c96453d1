package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/cli"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/protocol/showq"
	"posthouse/pkg/queueid"
)

func mailbox(t testing.TB, s string) addr.Mailbox {
	t.Helper()
	m, err := addr.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// servers are showq and qmgr, as the commands see them.
type servers struct {
	entries []showq.Entry

	mu       sync.Mutex
	requests []queuectl.Request
	reply    func(queuectl.Request) queuectl.Reply
}

// asked returns the requests to qmgr since it was last called.
func (s *servers) asked() []queuectl.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.requests
	s.requests = nil
	return r
}

func listen(t *testing.T, p ipc.Protocol, serve func(c *ipc.Conn, msg []byte)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), p.Name)
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			nc, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			c, err := ipc.NewConn(nc)
			nc.Close()
			if err != nil {
				t.Error(err)
				return
			}
			ipc.Greet(c, p)
			if msg, err := c.Receive(p.MaxRequest); err == nil {
				serve(c, msg)
			}
			c.Close()
		}
	}()
	return path
}

func (s *servers) start(t *testing.T) {
	t.Helper()
	oldShowq, oldQueue := showqPath, queuePath
	t.Cleanup(func() { showqPath, queuePath = oldShowq, oldQueue })
	showqPath = listen(t, showq.Protocol, func(c *ipc.Conn, _ []byte) {
		m := ipc.NewMessage()
		for i := range s.entries {
			p := showq.Page{Entries: s.entries[i : i+1], Last: i+1 == len(s.entries)}
			m.Reset()
			p.Encode(m)
			c.Send(m)
		}
	})
	queuePath = listen(t, queuectl.Protocol, func(c *ipc.Conn, msg []byte) {
		r, err := queuectl.DecodeRequest(msg)
		if err != nil {
			t.Error(err)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.requests = append(s.requests, r)
		reply := queuectl.Reply{Done: uint32(len(r.IDs))}
		if s.reply != nil {
			reply = s.reply(r)
		}
		m := ipc.NewMessage()
		reply.Encode(m)
		c.Send(m)
	})
}

// run runs "posthouse queue ...".
func run(t *testing.T, args ...string) (status int, out, err string) {
	t.Helper()
	var o, e bytes.Buffer
	status = queueCommand().Main(t.Context(), cli.Streams{In: strings.NewReader(""), Out: &o, Err: &e}, args)
	return status, o.String(), e.String()
}

func entry(t *testing.T, n uint32, q showq.Queue, sender, to, reason string) showq.Entry {
	t.Helper()
	e := showq.Entry{Queue: q, ID: queueid.New(time.Unix(1790000000, 0), n), Size: 10, Arrival: time.Unix(1790000000, 0)}
	if sender != "" {
		e.Sender = mailbox(t, sender)
	}
	for a := range strings.FieldsSeq(to) {
		e.Recipients = append(e.Recipients, showq.Recipient{Address: mailbox(t, a), Status: dsn.MustParse("4.4.1"), Reason: reason})
	}
	return e
}

// TestFilters: what selects for a listing selects for a deed.
func TestFilters(t *testing.T) {
	s := &servers{entries: []showq.Entry{
		entry(t, 0, showq.Active, "alice@example.org", "x@a.example", ""),
		entry(t, 1, showq.Deferred, "", "x@b.example y@a.example", "Connection refused"),
		entry(t, 2, showq.Deferred, "bob@example.org", "x@B.example", "mailbox full"),
		entry(t, 3, showq.Hold, "bob@example.org", "z@sub.b.example", ""),
		entry(t, 4, showq.Corrupt, "", "", ""),
	}}
	s.start(t)
	for args, want := range map[string]string{
		"--sender bob":                     "23",
		"--sender <>":                      "14",
		"--recipient X@":                   "012",
		"--destination b.example":          "12",
		"--reason REFUSED":                 "1",
		"--queue hold":                     "3",
		"--queue corrupt":                  "4",
		"--sender bob --queue deferred":    "2",
		"--recipient y@ --reason refused":  "1",
		"--recipient y@ --destination b.e": "",
	} {
		status, out, errs := run(t, append([]string{"list", "--json"}, strings.Fields(args)...)...)
		got := ""
		for i, e := range s.entries {
			if strings.Contains(out, e.ID.String()) {
				got += string(rune('0' + i))
			}
		}
		if status != cli.OK || got != want {
			t.Errorf("list %s: status %d, %q, want %q %s", args, status, got, want, errs)
		}
		status, _, errs = run(t, append([]string{"hold"}, strings.Fields(args)...)...)
		got = ""
		asked := s.asked()
		for _, r := range asked {
			for i, e := range s.entries {
				for _, id := range r.IDs {
					if id == e.ID {
						got += string(rune('0' + i))
					}
				}
				if i == 0 && len(r.Buckets) != len(r.IDs) {
					t.Errorf("buckets %v of %v", r.Buckets, r.IDs)
				}
			}
		}
		if status != cli.OK || got != want || len(asked) > 0 && asked[0].Op != queuectl.Hold {
			t.Errorf("hold %s: status %d, %q, want %q %s", args, status, got, want, errs)
		}
	}
}

// TestNone: a queue in which nothing fits is not said to be empty.
func TestNone(t *testing.T) {
	s := &servers{entries: []showq.Entry{entry(t, 0, showq.Deferred, "alice@example.org", "x@a.example", "")}}
	s.start(t)
	if status, out, errs := run(t, "list", "--sender", "bob"); status != cli.OK || out != "" || errs != "no such message is in the queue\n" {
		t.Errorf("status %d, %q, %q", status, out, errs)
	}
	if status, out, errs := run(t, "list", "--sender", "bob", "--json"); status != cli.OK || out != "" || errs != "" {
		t.Errorf("status %d, %q, %q", status, out, errs)
	}
	s.entries = []showq.Entry{{Queue: showq.Incoming, ID: queueid.New(time.Unix(1790000000, 0), 1), Arrival: time.Unix(1790000000, 0)}}
	if status, out, _ := run(t, "list", "--queue", "incoming"); status != cli.OK || !strings.Contains(out, " in 1 Request.") {
		t.Errorf("status %d, %q", status, out)
	}
}

// TestShow: what strangers have said does not turn the text around on the screen.
func TestShow(t *testing.T) {
	e := entry(t, 0, showq.Deferred, "a\u202eb@example.org", "x\u202ey@a.example", "go \u2066away")
	e.Recipients[0].Original = mailbox(t, "z\u202ey@a.example")
	(&servers{entries: []showq.Entry{e}}).start(t)
	status, out, _ := run(t, "show", e.ID.String())
	for _, want := range []string{"<a?b@example.org>", "<x?y@a.example>", "<z?y@a.example>", "go ?away"} {
		if status != cli.OK || !strings.Contains(out, want) {
			t.Errorf("status %d, no %q in %q", status, want, out)
		}
	}
}

// TestReport: who has read enough is no error; a server that is gone is one.
func TestReport(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, cli.OK},
		{output(nil), cli.OK},
		{output(&os.PathError{Op: "write", Err: syscall.EPIPE}), cli.OK},
		{output(&os.PathError{Op: "write", Err: syscall.ENOSPC}), cli.IOErr},
		{fmt.Errorf("showq: %w", &net.OpError{Op: "write", Err: syscall.EPIPE}), cli.TempFail},
	} {
		if got := report(cli.Streams{Err: io.Discard}, "x.socket", tt.err); got != tt.want {
			t.Errorf("%v: status %d, want %d", tt.err, got, tt.want)
		}
	}
}

func TestSteer(t *testing.T) {
	s := &servers{entries: []showq.Entry{entry(t, 0, showq.Deferred, "a@x.example", "b@y.example", "")}}
	s.start(t)
	id := s.entries[0].ID.String()
	gone := func(r queuectl.Request) queuectl.Reply { return queuectl.Reply{Missing: r.IDs} }
	for _, tt := range []struct {
		args   string
		reply  func(queuectl.Request) queuectl.Reply
		status int
		out    string
	}{
		{"retry " + id, nil, cli.OK, "1 messages\n"},
		{"retry --all", func(r queuectl.Request) queuectl.Reply { return queuectl.Reply{Done: 7} }, cli.OK, "7 messages\n"},
		{"requeue --all --json", func(r queuectl.Request) queuectl.Reply { return queuectl.Reply{Done: 7} }, cli.OK, `{"done":7,"missing":[]}` + "\n"},
		{"hold --all", func(queuectl.Request) queuectl.Reply {
			return queuectl.Reply{Err: dsn.Errorf("4.3.0", "no space"), Done: 7}
		}, cli.TempFail, "7 messages\n4.3.0 no space\n"},
		{"delete " + id, gone, cli.DataErr, id + ": not in the queue, or nothing to do\n0 messages\n"},
		{"delete --json " + id, gone, cli.DataErr, `{"done":0,"missing":["` + id + `"]}` + "\n"},
		{"delete --sender a@x.example", gone, cli.OK, "0 messages\n"}, // gone meanwhile
		{"delete --sender nobody", gone, cli.OK, "0 messages\n"},
		{"release --queue held " + id, nil, cli.Usage, "no such queue"},
		{"release", nil, cli.Usage, "give queue IDs"},
		{"release --all " + id, nil, cli.Usage, "give queue IDs"},
		{"release ../x", nil, cli.Usage, "malformed"},
		{"show --json " + id, nil, cli.OK, `"queue_id":"` + id + `"`},
		{"show " + id, nil, cli.OK, "Recipient: <b@y.example>"},
		{"show " + queueid.New(time.Unix(1, 0), 1).String(), nil, cli.DataErr, "not in the queue"},
	} {
		s.mu.Lock()
		s.reply = tt.reply
		s.mu.Unlock()
		status, out, errs := run(t, strings.Fields(tt.args)...)
		if status != tt.status || !strings.Contains(out+errs, tt.out) {
			t.Errorf("%s: status %d\n%s%s", tt.args, status, out, errs)
		}
	}
	if err := os.Remove(queuePath); err != nil {
		t.Fatal(err)
	}
	if status, out, errs := run(t, "retry", "--all"); status != cli.Unavailable || out != "" || !strings.Contains(errs, "posthouse-qmgr.socket") || strings.Contains(errs, "messages") {
		t.Errorf("qmgr is off: status %d\n%s%s", status, out, errs)
	}
}

// TestDestination: to try what waits for a domain takes no look at the queue, unless
// something else selects, too.
func TestDestination(t *testing.T) {
	s := &servers{entries: []showq.Entry{entry(t, 0, showq.Deferred, "a@x.example", "b@y.example", "")}}
	s.start(t)
	s.entries[0].Bucket = 1790000040
	showqUp := showqPath
	for _, tt := range []struct {
		args string
		list bool
		want []queuectl.Request
	}{
		{"retry --destination y.example", false, []queuectl.Request{{Op: queuectl.Retry, Destination: "y.example"}}},
		{"retry --destination ../y", false, nil},
		{"retry --destination y.example --sender a", true, []queuectl.Request{{Op: queuectl.Retry, IDs: []queueid.ID{s.entries[0].ID}, Buckets: []int64{1790000040}}}},
		{"delete --destination y.example", true, []queuectl.Request{{Op: queuectl.Delete, IDs: []queueid.ID{s.entries[0].ID}, Buckets: []int64{1790000040}}}},
		{"delete " + s.entries[0].ID.String(), false, []queuectl.Request{{Op: queuectl.Delete, IDs: []queueid.ID{s.entries[0].ID}}}},
	} {
		if showqPath = "/nonexistent/socket"; tt.list {
			showqPath = showqUp
		}
		if status, _, errs := run(t, strings.Fields(tt.args)...); status != cli.OK {
			t.Errorf("%s: status %d, %s", tt.args, status, errs)
		}
		if got := s.asked(); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v", tt.args, got)
		}
	}
}

// TestMany: more messages than one request takes are all dealt with.
func TestMany(t *testing.T) {
	s := &servers{}
	s.start(t)
	var ids []queueid.ID
	for n := range uint32(queuectl.MaxIDs + 10) {
		ids = append(ids, queueid.New(time.Unix(1790000000, 0), n))
	}
	sum, err := steer(t.Context(), pieces(queuectl.Delete, ids, make([]int64, len(ids))))
	if requests := s.asked(); err != nil || sum.Done != len(ids) || len(requests) != 2 {
		t.Errorf("%d of %d in %d requests: %v", sum.Done, len(ids), len(requests), err)
	}
}

// TestExtension: nobody is added whose mail would go to somebody else.
func TestExtension(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "tables"), 0o755); err != nil {
		t.Fatal(err)
	}
	users := "bob+list@example.net:{CRYPT}!:1000:1000::/var/vmail/example.net/bob+list::\n"
	if err := os.WriteFile(filepath.Join(dir, "tables", "users"), []byte(users), 0o644); err != nil {
		t.Fatal(err)
	}
	for settings, refused := range map[string]bool{"": true, "routes: {virtual: \"lmtp:unix:/run/lmtp\"}\n": false} {
		conf := "hostname: mx.example\nlocal: {aliases: [" + dir + "/aliases]}\nvirtual: {base: " + dir + "}\ndomains: {virtual: {example.net: {}}}\n" + settings
		if err := os.WriteFile(filepath.Join(dir, "posthouse.yaml"), []byte(conf), 0o644); err != nil {
			t.Fatal(err)
		}
		errs := check(dir)
		if (len(errs) > 0) != refused || refused && !strings.Contains(errs[0].Error(), "mail to bob+list@example.net goes to bob@example.net") {
			t.Errorf("check %q: %v", settings, errs)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "aliases"), []byte("a: b\nb\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if errs := check(dir); len(errs) == 0 || !strings.HasPrefix(errs[len(errs)-1].Error(), filepath.Join(dir, "aliases")+":2: ") {
		t.Errorf("broken aliases: %v", errs)
	}
	if err := os.WriteFile(filepath.Join(dir, "posthouse.yaml"), []byte("hostname: mx.example\ndomains: {virtual: {example.net: {}}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	status := userCommand(&dir).Main(t.Context(), cli.Streams{In: strings.NewReader("x\n"), Out: &out, Err: &out}, []string{"add", "alice+x@example.net"})
	if status != cli.DataErr || !strings.Contains(out.String(), "recipient_delimiter") {
		t.Errorf("status %d, %s", status, &out)
	}
}
