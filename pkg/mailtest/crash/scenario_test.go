//go:build system

package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/arrival"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// message is one that the scenario sends, and what is known of it.
type message struct {
	mark    int
	rcpts   []string
	content string // lines end in LF

	id       queueid.ID
	accepted bool
	refused  bool
	deleted  bool // the administrator has been told so
	doomed   bool // the administrator wanted it
	dropped  bool // it came by the maildrop
}

// lastWords end each message.
const lastWords = "which nobody should ever see changed.\n.\n"

// newMessage makes one of a size that is written in several pieces where there are many
// lines.
func newMessage(mark, lines int, rcpts ...string) *message {
	var b strings.Builder
	fmt.Fprintf(&b, "From: sender@virtual.example\nDate: Sat, 3 Jan 2026 01:05:34 +0000\nMessage-ID: <%d@client.example>\nSubject: message\nX-Mark: %d\n\n", mark, mark)
	for i := range lines {
		fmt.Fprintf(&b, "From line %d of message %d on, "+lastWords, i, mark)
	}
	return &message{mark: mark, rcpts: rcpts, content: b.String()}
}

const sender = "sender@virtual.example"

func parse(s string) addr.Mailbox {
	m, err := addr.Parse(s)
	if err != nil {
		panic(err) // a constant
	}
	return m
}

// bounds of what the scenario waits for. They decide about nothing but its length.
const (
	stepTime = 10 * time.Second       // an answer
	longTime = time.Minute            // what is certain to come, however slow the machine is
	pastTime = 500 * time.Millisecond // what may not come, for something has gone wrong
)

// submit sends a message and notes what the answer was.
func (w *world) submit(m *message) {
	ctx, cancel := context.WithTimeout(context.Background(), longTime)
	defer cancel()
	e := &envelope.Envelope{Sender: parse(sender), Trace: envelope.Trace{Protocol: "ESMTP", Helo: "client.example", ClientName: "unknown"}}
	for _, r := range m.rcpts {
		e.Recipients = append(e.Recipients, envelope.Recipient{Address: parse(r), Original: parse(r)})
	}
	t, err := cleanup.NewClient(cleanup.Path).Begin(ctx, e)
	if err == nil {
		m.id = t.ID
		_, err = t.Write([]byte(strings.ReplaceAll(m.content, "\n", "\r\n")))
		if err == nil {
			err = t.Commit()
		}
		t.Abort()
	}
	var verdict *dsn.Error
	m.accepted, m.refused = err == nil, errors.As(err, &verdict)
}

// ask has qmgr do something, and reports whether it says that it has.
func (w *world) ask(op queuectl.Op, ids ...queueid.ID) bool {
	limit := stepTime
	if w.hasStruck() {
		limit = 2 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	reply, err := queuectl.Do(ctx, queuectl.Path, queuectl.Request{Op: op, All: len(ids) == 0, IDs: ids})
	return err == nil && reply.Err == nil && len(reply.Missing) == 0
}

// in reports whether a message is in a queue; "" is any.
func (w *world) in(q string, m *message) bool {
	for _, f := range w.files() {
		if strings.HasPrefix(f, q) && strings.HasSuffix(f, "/"+m.id.String()) {
			return true
		}
	}
	return false
}

// settled reports whether nothing is under way.
func (w *world) settled() bool {
	for _, f := range w.files() {
		if strings.HasPrefix(f, queue.Incoming) || strings.HasPrefix(f, queue.Active) {
			return false
		}
	}
	return true
}

// step waits for what a step of the scenario leads to. It reports false where
// that does not come: because of what has gone wrong, or else there is a fault
// in the test.
func (w *world) step(name string, is func() bool) bool {
	start := time.Now()
	done := until(longTime, func() bool {
		w.mu.Lock()
		off, struck := w.off, w.struck != nil
		w.mu.Unlock()
		return is() || off || struck && time.Since(start) > pastTime
	})
	switch {
	case w.hasStruck():
		return is()
	case !done:
		w.fail("%s: does not come: %s", name, strings.Join(w.files(), " "))
	}
	return done
}

// day is something that the machine does for a while, and whose calls are counted.
type day struct {
	name  string
	units []string
	live  func(*world) []*message
}

var days = []day{
	{"a day of the queue", []string{"smtpd", "cleanup", "rewrite", "qmgr", "virtual", "smtp", "bounce", remote}, (*world).queueDay},
	{"a day of accounts", []string{command, "pickup", "local", "deliver", child}, (*world).accountDay},
}

// dayOf returns the day in which the calls of a unit are counted.
func dayOf(unit string) (day, error) {
	for _, d := range days {
		if slices.Contains(d.units, unit) {
			return d, nil
		}
	}
	return day{}, fmt.Errorf("no unit %q", unit)
}

// queueDay has messages come by SMTP, stay, and leave in all ways that there are.
func (w *world) queueDay() []*message {
	big := newMessage(2, 500, "b@lmtp.example", "c@virtual.example", "d@lmtp.example")
	main := newMessage(1, 10, "a@virtual.example", "ok@smtp.example", "later@smtp.example", "no@smtp.example")
	last := newMessage(3, 1, "later@smtp.example")
	all := []*message{main, big, last}
	var both sync.WaitGroup
	for _, m := range all[:2] {
		both.Go(func() { w.send(m) })
	}
	both.Wait()
	deferred := func(m *message) func() bool {
		return func() bool { return w.settled() && (w.in(queue.Deferred, m) || !m.accepted) }
	}
	held := func() bool { return w.in(queue.Hold, main) || !main.accepted }
	steps := []step{
		{"delivery", func() {}, func() bool { return deferred(main)() && !w.in("", big) }},
		{"hold", func() { w.ask(queuectl.Hold, main.id) }, held},
		{"release", func() { w.ask(queuectl.Release, main.id) }, deferred(main)},
		{"retry", func() { w.ask(queuectl.Retry) }, deferred(main)},
		{"requeue", func() { w.ask(queuectl.Requeue, main.id) }, deferred(main)},
		{"another", func() { w.send(last) }, deferred(last)},
		{"delete", func() {
			if last.accepted {
				last.doomed = true
				w.ask(queuectl.Hold, last.id)
				last.deleted = w.ask(queuectl.Delete, last.id)
			}
		}, func() bool { return !w.in("", last) }},
		{"the end", func() { w.sink.atHome(false); w.ask(queuectl.Retry) }, w.isEmpty},
	}
	w.follow(steps)
	return all
}

// step of a day: what is done, and what has come of it when it is at its end.
type step struct {
	name string
	do   func()
	is   func() bool
}

// follow takes one step after the other, until one does not come to its end.
func (w *world) follow(steps []step) {
	for _, s := range steps {
		s.do()
		if !w.step(s.name, s.is) {
			break
		}
	}
}

// drain starts the machine again, with nothing that goes wrong any more, and waits
// until the queue is empty.
func (w *world) drain() {
	w.sink.atHome(true)
	// What its writer has left is old by now, and what has left a lock.
	ageLocks(0)
	for _, f := range w.files() {
		if strings.HasPrefix(f, queue.Incoming) {
			old := time.Now().Add(-5 * time.Hour)
			if err := os.Chtimes(spoolDir+f, old, old); err != nil {
				w.fail("%v", err)
			}
		}
	}
	if err := w.boot(); err != nil {
		w.fail("boot: %v", err)
		return
	}
	w.poke()
	next := time.Now().Add(50 * time.Millisecond)
	empty := until(longTime, func() bool {
		if w.isEmpty() {
			return true
		}
		left := w.files()
		if time.Now().After(next) {
			all := strings.Join(left, " ")
			if strings.Contains(all, queue.Hold) {
				w.ask(queuectl.Release)
			}
			if strings.Contains(all, queue.Deferred) {
				w.ask(queuectl.Retry)
			}
			next = time.Now().Add(50 * time.Millisecond)
		}
		// What is in corrupt/ stays there, for judge to say whether it may.
		return len(left) > 0 && !slices.ContainsFunc(left, func(f string) bool { return !strings.HasPrefix(f, queue.Corrupt) })
	})
	if !empty {
		w.fail("I5: stuck: %s", strings.Join(w.files(), " "))
	}
}

// poke is the timer of qmgr.
func (w *world) poke() {
	fd, err := unix.Open(arrival.FIFOPath, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte{0})
		unix.Close(fd)
	}
	if err != nil {
		w.fail("qmgr's timer: %v", err)
	}
}
