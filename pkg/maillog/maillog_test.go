package maillog

import (
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"
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
