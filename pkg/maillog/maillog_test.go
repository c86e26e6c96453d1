package maillog

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                   "plain",
		"a\r\nQUEUED: b":          "a??QUEUED: b",
		"\x1b[31mred":             "?[31mred",
		"bad \xff utf8":           "bad ? utf8",
		"right\u202eleft":         "right?left",
		"\u0085":                  "?",
		"grüße":                   "grüße",
		strings.Repeat("ü", 9000): strings.Repeat("ü", maxText/2) + "...",
	} {
		if got := Printable(in); got != want {
			t.Errorf("Printable(%.20q) = %.40q, want %.40q", in, got, want)
		}
	}
}

func TestLogger(t *testing.T) {
	var texts []string
	l := &Logger{tag: "posthouse/test", queue: make(chan entry, 4), done: make(chan struct{})}
	block := make(chan struct{})
	l.send = func(text string, _ journal.Priority, fields map[string]string) error {
		<-block
		if fields["SYSLOG_IDENTIFIER"] != "posthouse/test" {
			t.Errorf("fields %v", fields)
		}
		texts = append(texts, text)
		return nil
	}
	go l.run()
	for range 100 { // a journal that hangs does not block its caller
		l.Info(Fields{"QUEUE_ID": "x\n"}, "to=<%s>", "a\nb")
	}
	close(block)
	l.Flush()
	l.Warn(nil, "odd")
	l.Flush()
	if n := len(texts); n < 5 || n > 8 || texts[0] != "to=<a?b>" {
		t.Errorf("%d texts: %q", n, texts)
	}
	if !strings.Contains(strings.Join(texts, "\n"), "log entries were dropped") {
		t.Errorf("loss is not told: %q", texts)
	}
}

// TestFlushTime: a daemon ends although the journal hangs.
func TestFlushTime(t *testing.T) {
	old := flushTime
	flushTime = 10 * time.Millisecond
	defer func() { flushTime = old }()
	for _, entries := range []int{1, 100} { // with room in the queue, and without
		l := &Logger{queue: make(chan entry, 4), done: make(chan struct{})}
		block := make(chan struct{})
		l.send = func(string, journal.Priority, map[string]string) error {
			<-block
			return nil
		}
		go l.run()
		for range entries {
			l.Info(nil, "x")
		}
		ended := make(chan struct{})
		go func() {
			l.Flush()
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Errorf("no end with %d entries", entries)
		}
		close(block)
	}
}

// TestDirect: what the journal takes at once goes there, octet for octet; what it
// does not take goes to the goroutine, and later entries not past it.
func TestDirect(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	server, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	d := openDirect()
	defer unix.Close(d.fd)
	d.to = &unix.SockaddrUnix{Name: path}
	if !d.send("to=<a>", journal.PriInfo, map[string]string{"SYSLOG_IDENTIFIER": "posthouse/x"}) {
		t.Fatal("not sent")
	}
	b := make([]byte, 1000)
	n, err := server.Read(b)
	if want := "PRIORITY=6\nMESSAGE=to=<a>\nSYSLOG_IDENTIFIER=posthouse/x\n"; err != nil || string(b[:n]) != want {
		t.Errorf("sent %q, %v, want %q", b[:n], err, want)
	}
	if d.send("x", journal.PriInfo, map[string]string{"A": "b\nMESSAGE=c"}) {
		t.Error("a line break within a field")
	}
	if (*direct)(nil).send("x", journal.PriInfo, nil) {
		t.Error("sent without a socket")
	}
	for i := 0; d.send("fill", journal.PriInfo, nil); i++ { // nobody reads
		if i > 100_000 {
			t.Fatal("never full")
		}
	}
	server.Close() // and there is another journal
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if d.send("lost", journal.PriInfo, nil) {
		t.Error("sent to nobody")
	}
	server, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if !d.send("again", journal.PriInfo, nil) {
		t.Error("not sent to the second journal")
	}

	var order []string
	free, block := true, make(chan struct{})
	l := &Logger{tag: "posthouse/test", queue: make(chan entry, 10), done: make(chan struct{})}
	l.now = func(text string, _ journal.Priority, _ map[string]string) bool {
		if free {
			order = append(order, text)
		}
		return free
	}
	l.send = func(text string, _ journal.Priority, _ map[string]string) error {
		<-block
		order = append(order, text)
		return nil
	}
	go l.run()
	l.Info(nil, "1")
	free = false
	l.Info(nil, "2")
	free = true
	l.Info(nil, "3")
	close(block)
	l.Flush()
	for l.pending.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
	l.Info(nil, "4")
	if got := strings.Join(order, ""); got != "1234" {
		t.Errorf("order %s", got)
	}
}
