package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/showq"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

type spool struct {
	t    testing.TB
	base string
	n    uint32
}

// put writes a message whose recipients are "address", "address=status",
// "address=status!" once that has been reported, "-address=..." with NOTIFY=NEVER.
func (s *spool) put(dir string, to ...string) string {
	s.t.Helper()
	path := filepath.Join(s.base, dir)
	if err := os.MkdirAll(path, 0o700); err != nil {
		s.t.Fatal(err)
	}
	s.n++
	id := queueid.New(time.Unix(1790000000, 0), s.n)
	e := &envelope.Envelope{Arrival: time.Unix(1790000000, 0)}
	var outcomes []queue.Outcome
	var err error
	if e.Sender, err = addr.Parse("sender@example.org"); err != nil {
		s.t.Fatal(err)
	}
	for i, text := range to {
		address, status, tried := strings.Cut(text, "=")
		m, err := addr.Parse(strings.TrimPrefix(address, "-"))
		if err != nil {
			s.t.Fatal(err)
		}
		r := envelope.Recipient{Address: m}
		if address[0] == '-' {
			r.Notify = dsn.NotifyNever
		}
		e.Recipients = append(e.Recipients, r)
		if tried {
			status, reported := strings.CutSuffix(status, "!")
			outcomes = append(outcomes, queue.Outcome{Results: []queue.IndexedResult{
				{Index: uint32(i), Result: delivery.Result{Status: dsn.MustParse(status), Text: "because"}}}})
			if reported {
				outcomes = append(outcomes, queue.Outcome{Reported: []uint32{uint32(i)}})
			}
		}
	}
	f, err := os.Create(filepath.Join(path, id.String()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	w := queue.NewWriter(f, e)
	w.Write([]byte("Subject: x\r\n\r\n"))
	if err := w.Finish(); err != nil {
		s.t.Fatal(err)
	}
	m, err := queue.Read(f)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, o := range outcomes {
		if err := m.Append(f, o); err != nil {
			s.t.Fatal(err)
		}
	}
	return f.Name()
}

// queues makes the directories.
func (s *spool) queues() {
	for _, dir := range []string{queue.Active, queue.Incoming, queue.Deferred, queue.Hold, queue.Corrupt} {
		if err := os.Mkdir(filepath.Join(s.base, dir), 0o700); err != nil {
			s.t.Fatal(err)
		}
	}
}

// serve answers one request, and returns where.
func (s *spool) serve() (path string) {
	s.t.Helper()
	path = filepath.Join(s.t.TempDir(), "s")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { ln.Close() })
	go func() {
		nc, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		defer nc.Close()
		c, err := ipc.NewConn(nc)
		if err != nil {
			s.t.Error(err)
			return
		}
		defer c.Close()
		ipc.Greet(c, showq.Protocol)
		if b, err := c.Receive(showq.Protocol.MaxRequest); err == nil && showq.DecodeRequest(b) == nil {
			(&lister{base: s.base, log: maillog.New("showq")}).list(c)
		}
	}()
	return path
}

// list returns a line for each message.
func (s *spool) list() (lines []string) {
	s.t.Helper()
	err := showq.List(s.t.Context(), s.serve(), func(page []showq.Entry) error {
		for _, e := range page {
			line := fmt.Sprintf("%s %s", e.Queue, e.Sender)
			for _, r := range e.Recipients {
				line += fmt.Sprintf(" %s=%s(%s)", r.Address, r.Status, r.Reason)
			}
			lines = append(lines, line)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return lines
}

// TestList: every queue in its order, with those recipients for whom a message
// is still here; what is not finished, or not ours, is left out.
func TestList(t *testing.T) {
	s := &spool{t: t, base: t.TempDir()}
	s.queues()
	if got := s.list(); len(got) != 0 {
		t.Errorf("an empty queue: %q", got)
	}
	s.put(queue.Hold, "h@x.example")
	s.put("deferred/1790000060", "late@x.example=4.4.1")
	s.put("deferred/0000000000", "gone@x.example=2.0.0", "b@x.example=4.2.2", "no@x.example=5.1.1", "told@x.example=5.1.1!", "-never@x.example=5.1.1")
	s.put("deferred/strange", "a@x.example")
	s.put(queue.Active, "a@x.example")
	s.put(queue.Incoming, "i@x.example")
	for file, content := range map[string][]byte{s.put(queue.Incoming, "j@x.example"): make([]byte, 100), s.put(queue.Corrupt, "c@x.example"): []byte("x"), s.put(queue.Hold, "k@x.example"): []byte(strings.Repeat("x", 100))} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"active/README", "deferred/0000000060"} {
		if err := os.WriteFile(filepath.Join(s.base, file), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", filepath.Join(s.base, "deferred/0000000120")); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"active sender@example.org a@x.example=4.0.0()",
		"incoming sender@example.org i@x.example=4.0.0()",
		"deferred sender@example.org b@x.example=4.2.2(because) no@x.example=5.1.1(because)",
		"deferred sender@example.org late@x.example=4.4.1(because)",
		"hold sender@example.org h@x.example=4.0.0()",
		"corrupt ",
	}
	if got := s.list(); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestFirst: somebody who asks has the first message before many have been read, and
// later ones by the packet, each of them once, bucket by bucket.
func TestFirst(t *testing.T) {
	s := &spool{t: t, base: t.TempDir()}
	s.queues()
	const each = 1500 // more than are shared out at once
	for i := range 2 * each {
		s.put(fmt.Sprintf("deferred/%010d", 60*(1+i/each)), fmt.Sprintf("user%d@x.example=4.4.1", i))
	}
	var pages []int
	seen := make(map[queueid.ID]bool)
	last := int64(60)
	begun := time.Now()
	err := showq.List(t.Context(), s.serve(), func(list []showq.Entry) error {
		pages = append(pages, len(list))
		for _, e := range list {
			if e.Bucket < last || e.Bucket > 120 || (e.Bucket == 120) != (len(seen) >= each) {
				t.Fatalf("%s of bucket %d at place %d", e.ID, e.Bucket, len(seen))
			}
			last, seen[e.ID] = e.Bucket, true
			if len(e.Recipients) != 1 || e.Recipients[0].Reason != "because" {
				t.Errorf("%s: %+v", e.ID, e.Recipients)
			}
		}
		return nil
	})
	sum := 0
	for _, n := range pages {
		sum += n
	}
	if err != nil || sum != 2*each || len(seen) != sum || pages[0] != 1 || len(pages) > 100+int(time.Since(begun)/longest) {
		t.Errorf("%d messages, %d of them different, pages %v, %v", sum, len(seen), pages, err)
	}
}
