// Package maillog writes the mail log: structured journal entries whose text is
// shaped as Postfix's log lines are, so that what reads those works.
//
// Text that came from outside is made printable here and nowhere else.
package maillog

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/coreos/go-systemd/v22/journal"
)

// Logger writes entries with the tag posthouse/NAME. An entry goes to the journal
// at once, unless that would have to wait: then a goroutine takes over, so that
// a slow journal does not slow the mail down. Where the journal is too slow for
// long, entries are dropped and counted.
type Logger struct {
	tag  string
	now  func(text string, priority journal.Priority, fields map[string]string) bool // sent without waiting
	send func(text string, priority journal.Priority, fields map[string]string) error

	mu      sync.Mutex
	queue   chan entry
	done    chan struct{}
	dropped int
	pending atomic.Int32 // entries in queue, or being sent from it
}

type entry struct {
	text     string
	priority journal.Priority
	fields   map[string]string
	flushed  chan<- struct{}
}

// backlog is how many entries may wait for the journal.
const backlog = 4096

// maxText bounds the text of an entry, in octets: a datagram must hold it.
const maxText = 8 << 10

// New returns a logger for the daemon name. Without a journal it writes to
// standard error.
func New(name string) *Logger {
	l := &Logger{tag: "posthouse/" + name, queue: make(chan entry, backlog), done: make(chan struct{})}
	l.now, l.send = openDirect().send, journal.Send
	if !journal.Enabled() {
		l.now = nil
		l.send = func(text string, priority journal.Priority, _ map[string]string) error {
			_, err := fmt.Fprintf(os.Stderr, "<%d>%s: %s\n", priority, l.tag, text)
			return err
		}
	}
	go l.run()
	return l
}

// Journal returns a logger for the command name, which has told its caller itself;
// false where there is no journal.
func Journal(name string) (*Logger, bool) {
	if !journal.Enabled() {
		return nil, false
	}
	return New(name), true
}

func (l *Logger) run() {
	defer close(l.done)
	for e := range l.queue {
		if e.flushed != nil {
			close(e.flushed)
			continue
		}
		if err := l.send(e.text, e.priority, e.fields); err != nil {
			fmt.Fprintf(os.Stderr, "<%d>%s: %s (journal: %v)\n", e.priority, l.tag, e.text, err)
		}
		l.pending.Add(-1)
	}
}

// Fields are journal fields of ours, without the prefix POSTHOUSE_: QUEUE_ID,
// RECIPIENT, STATUS...
type Fields map[string]string

// Info logs what happens to mail.
func (l *Logger) Info(fields Fields, format string, args ...any) {
	l.log(journal.PriInfo, fields, fmt.Sprintf(format, args...))
}

// Warn logs what an administrator should look at.
func (l *Logger) Warn(fields Fields, format string, args ...any) {
	l.log(journal.PriWarning, fields, "warning: "+fmt.Sprintf(format, args...))
}

// Error logs what keeps a daemon from its work.
func (l *Logger) Error(fields Fields, format string, args ...any) {
	l.log(journal.PriErr, fields, "error: "+fmt.Sprintf(format, args...))
}

func (l *Logger) log(priority journal.Priority, fields Fields, text string) {
	all := map[string]string{"SYSLOG_IDENTIFIER": l.tag, "SYSLOG_FACILITY": "2"}
	for name, value := range fields {
		all["POSTHOUSE_"+name] = Printable(value)
	}
	text = Printable(text)
	// Not past those that wait.
	if l.now != nil && l.pending.Load() == 0 && l.now(text, priority, all) {
		return
	}
	l.put(entry{text: text, priority: priority, fields: all})
}

func (l *Logger) put(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending.Add(1)
	select {
	case l.queue <- e:
	default:
		l.pending.Add(-1)
		l.dropped++
		return
	}
	if l.dropped > 0 {
		l.pending.Add(1)
		select {
		case l.queue <- entry{text: fmt.Sprintf("warning: %d log entries were dropped", l.dropped), priority: journal.PriWarning,
			fields: map[string]string{"SYSLOG_IDENTIFIER": l.tag, "SYSLOG_FACILITY": "2"}}:
			l.dropped = 0
		default:
			l.pending.Add(-1)
		}
	}
}

// flushTime is how long Flush waits for a journal that takes nothing. A variable
// for tests.
var flushTime = 5 * time.Second

// Flush waits until everything that was logged so far is with the journal, unless that
// hangs: a daemon that is about to go stands in the way of the next one.
func (l *Logger) Flush() {
	limit := time.After(flushTime)
	flushed := make(chan struct{})
	select {
	case l.queue <- entry{flushed: flushed}:
	case <-limit:
		return
	}
	select {
	case <-flushed:
	case <-limit:
	}
}

// Printable replaces control characters, line separators and what is not UTF-8
// by question marks, and bounds the length, so that no text from outside can
// end a line, colour a terminal, or pass for another entry.
func Printable(s string) string {
	if len(s) > maxText {
		cut := maxText
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "..."
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r < 0x20, 0x7f <= r && r < 0xa0, r == utf8.RuneError, r == 0x2028, r == 0x2029, 0x202a <= r && r <= 0x202e, 0x2066 <= r && r <= 0x2069:
			return '?'
		}
		return r
	}, s)
}
