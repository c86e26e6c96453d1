package main

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/bounce"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

func mbox(t testing.TB, s string) addr.Mailbox {
	t.Helper()
	m, err := addr.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// world is everything that qmgr talks to: what it is told, and what it says.
type world struct {
	t    testing.TB
	log  *maillog.Logger // from outside of the bubble of fake time
	base string
	m    *manager

	mu        sync.Mutex
	rewriteUp bool
	slow      time.Duration                              // of rewrite
	answer    func(r envelope.Recipient) delivery.Result // of the agent
	sender    string                                     // of what is put; "": sender@example.org
	pause     func(*delivery.Request)                    // before it answers; may be nil
	hop       *dsn.Error
	hang      bool // agents deliver until they are told to end
	agentErr  error
	bounceErr error
	notify    func() // while a notification is made
	aliases   map[string][]string
	delivered map[string]int
	notified  []string // "kind recipients"
	held      int
	stayed    bool // the daemon would not have gone away by itself
}

func newWorld(t testing.TB, log *maillog.Logger, settings string) *world {
	t.Helper()
	base := t.TempDir()
	for _, d := range []string{queue.Incoming, queue.Spare, queue.Active, queue.Deferred, queue.Hold, queue.Corrupt, queue.Index} {
		if err := os.Mkdir(filepath.Join(base, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	conf := t.TempDir()
	if err := os.WriteFile(filepath.Join(conf, "posthouse.yaml"), []byte("hostname: mx.example\n"+settings), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(conf)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, log: log, base: base, rewriteUp: true, delivered: make(map[string]int)}
	w.answer = func(envelope.Recipient) delivery.Result {
		return delivery.Result{Status: dsn.MustParse("2.0.0"), Text: "ok"}
	}
	w.boot(cfg)
	return w
}

// boot makes a new process of qmgr.
func (w *world) boot(cfg *config.Config) {
	w.t.Helper()
	sp, err := openSpool(w.base)
	if err != nil {
		w.t.Fatal(err)
	}
	w.m = newManager(func() *config.Config { return cfg }, w.log, sp)
	w.m.rewrite, w.m.bounce = w, w
	w.m.random = func() float64 { return 0 }
	w.m.agent = func(name string) deliverer { return agentDouble{w, name} }
	w.m.hold = func() func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.held++
		return func() { w.mu.Lock(); w.held--; w.mu.Unlock() }
	}
}

func (w *world) Ask(_ context.Context, r rewrite.Request) ([]rewrite.Answer, error) {
	w.mu.Lock()
	slow := w.slow
	w.mu.Unlock()
	time.Sleep(slow)
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.rewriteUp {
		return nil, errors.New("no rewrite")
	}
	var out []rewrite.Answer
	for _, a := range r.Addresses {
		if r.Op == rewrite.Expand {
			answer := rewrite.Answer{Addresses: []addr.Mailbox{a}}
			if list, ok := w.aliases[a.String()]; ok {
				answer.Addresses = nil
				for _, s := range list {
					answer.Addresses = append(answer.Addresses, mbox(w.t, s))
				}
			}
			out = append(out, answer)
			continue
		}
		switch a.Domain() {
		case "error.example":
			out = append(out, rewrite.Answer{Transport: "error", Nexthop: "5.1.1 nobody here", Addresses: []addr.Mailbox{a}})
		case "discard.example":
			out = append(out, rewrite.Answer{Transport: "discard", Addresses: []addr.Mailbox{a}})
		case "evil.example":
			out = append(out, rewrite.Answer{Transport: "../x", Addresses: []addr.Mailbox{a}})
		case "accounts.example":
			out = append(out, rewrite.Answer{Transport: "local", Nexthop: "mail.example", Addresses: []addr.Mailbox{a}})
		default:
			out = append(out, rewrite.Answer{Transport: "smtp", Nexthop: a.Domain(), Addresses: []addr.Mailbox{a}})
		}
	}
	return out, nil
}

type agentDouble struct {
	*world
	name string
}

func (a agentDouble) Deliver(ctx context.Context, r *delivery.Request, _ *os.File) (*delivery.Report, error) {
	a.mu.Lock()
	hang := a.hang
	a.mu.Unlock()
	if hang {
		<-ctx.Done()
	}
	if a.pause != nil {
		a.pause(r)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.agentErr != nil {
		return nil, a.agentErr
	}
	report := &delivery.Report{Hop: a.hop}
	for _, rcpt := range r.Recipients {
		result := a.answer(rcpt)
		if result.Status.Class() == dsn.Success {
			a.delivered[rcpt.Address.String()]++
		}
		report.Results = append(report.Results, result)
	}
	return report, nil
}

func (w *world) Notify(_ context.Context, r *bounce.Request, _ *os.File) (string, error) {
	if w.notify != nil {
		w.notify()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.bounceErr != nil {
		return "", w.bounceErr
	}
	s := [...]string{"", "failure", "delay", "success"}[r.Kind]
	for i := range r.Recipients {
		s += " " + r.Recipients[i].Address.String() + "=" + r.Recipients[i].Status.String()
	}
	w.notified = append(w.notified, s)
	return "X", nil
}

// put writes a message into a queue.
func (w *world) put(dir string, n uint32, to ...string) queueid.ID {
	w.t.Helper()
	id := queueid.New(time.Now(), n)
	e := &envelope.Envelope{Arrival: w.m.now(), Sender: mbox(w.t, cmp.Or(w.sender, "sender@example.org"))}
	for _, a := range to {
		r := envelope.Recipient{Address: mbox(w.t, strings.TrimLeft(a, "!-"))}
		switch a[0] {
		case '!':
			r.Notify = dsn.NotifySuccess
		case '-': // a notification that somebody has sent
			r.Notify, e.Sender = dsn.NotifyNever, addr.Mailbox{}
		}
		e.Recipients = append(e.Recipients, r)
	}
	f, err := os.OpenFile(filepath.Join(w.base, dir, id.String()), os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	wr := queue.NewWriter(f, e)
	wr.Write([]byte("Subject: x\r\n\r\n"))
	if err := wr.Finish(); err != nil {
		w.t.Fatal(err)
	}
	return id
}

// where lists the files of the queue, buckets without their names.
func (w *world) where() string {
	var out []string
	for _, d := range []string{queue.Incoming, queue.Active, queue.Deferred + "/*", queue.Hold, queue.Corrupt} {
		list, _ := filepath.Glob(filepath.Join(w.base, d, "*"))
		for _, path := range list {
			if path != filepath.Join(w.base, queue.Spare) {
				out = append(out, strings.TrimSuffix(d, "/*"))
			}
		}
	}
	return strings.Join(out, " ")
}

// spares lists the files that are kept for new messages.
func (w *world) spares() []string {
	list, _ := filepath.Glob(filepath.Join(w.base, queue.Spare, "*"))
	return list
}

// deferred is the path of the one message that is deferred.
func (w *world) deferred() string {
	w.t.Helper()
	list, _ := filepath.Glob(filepath.Join(w.base, queue.Deferred, "*", "*"))
	if len(list) != 1 {
		w.t.Fatalf("%d messages are deferred", len(list))
	}
	return list[0]
}

// read reads it.
func (w *world) read() *queue.Message {
	w.t.Helper()
	f, err := os.Open(w.deferred())
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	q, err := queue.Read(f)
	if err != nil {
		w.t.Fatal(err)
	}
	return q
}

// run has the queue looked after for a while of the test's own time.
func (w *world) run(d time.Duration) {
	w.m.start()
	time.Sleep(d)
	synctest.Wait()
	w.mu.Lock()
	w.stayed = w.held > 0
	w.mu.Unlock()
	w.m.stop()
	// What is held at the end starts the next process, which would end in the same way.
	if !w.stayed && w.held > 0 {
		w.t.Error("with nothing left to do, the end asks for another process")
	}
}

func (w *world) expect(where string, notified ...string) {
	w.t.Helper()
	if got := w.where(); got != where {
		w.t.Errorf("files are in %q, want %q", got, where)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := strings.Join(w.notified, "; "); got != strings.Join(notified, "; ") {
		w.t.Errorf("notified %q, want %q", got, notified)
	}
}

func TestQueue(t *testing.T) {
	log := maillog.New("qmgr")
	ok := delivery.Result{Status: dsn.MustParse("2.0.0"), Text: "ok"}
	no := delivery.Result{Status: dsn.MustParse("5.1.1"), Text: "nobody"}
	later := delivery.Result{Status: dsn.MustParse("4.2.2"), Text: "full"}
	byName := func(r envelope.Recipient) delivery.Result {
		switch r.Address.Local() {
		case "no":
			return no
		case "later":
			return later
		}
		return ok
	}
	for name, f := range map[string]func(w *world){
		"delivered": func(w *world) {
			w.put(queue.Incoming, 1, "a@x.example", "b@x.example", "c@y.example")
			w.run(time.Second)
			w.expect("")
			if w.delivered["a@x.example"] != 1 || w.delivered["c@y.example"] != 1 || w.stayed {
				w.t.Errorf("%v, stayed: %v", w.delivered, w.stayed)
			}
		},
		"left in active by a crash": func(w *world) {
			w.put(queue.Active, 1, "a@x.example")
			w.run(time.Second)
			w.expect("")
		},
		"bounced": func(w *world) {
			w.answer = byName
			w.put(queue.Incoming, 1, "no@x.example", "a@x.example")
			w.run(time.Second)
			w.expect("", "failure no@x.example=5.1.1")
		},
		"deferred, then delivered": func(w *world) {
			w.answer = byName
			w.put(queue.Incoming, 1, "later@x.example", "a@x.example")
			w.run(time.Minute)
			w.expect("deferred")
			if !w.stayed {
				w.t.Error("goes away with deferred mail")
			}
			w.answer = func(envelope.Recipient) delivery.Result { return ok }
			w.boot(w.m.config())
			w.run(10 * time.Minute)
			w.expect("")
			if w.delivered["a@x.example"] != 1 || w.delivered["later@x.example"] != 1 {
				w.t.Errorf("%v", w.delivered)
			}
		},
		"retried in the same process": func(w *world) {
			n := 0
			w.answer = func(envelope.Recipient) delivery.Result {
				if n++; n < 4 {
					return later
				}
				return ok
			}
			w.put(queue.Incoming, 1, "a@x.example")
			w.run(time.Hour) // 5, 6 and 12 minutes after each other
			w.expect("")
		},
		"expired": func(w *world) {
			w.answer = byName
			w.put(queue.Incoming, 1, "later@x.example")
			w.run(6 * 24 * time.Hour)
			w.expect("", "failure later@x.example=5.4.7")
		},
		"no bounce, no removal": func(w *world) {
			w.answer, w.bounceErr = byName, errors.New("no bounce")
			w.put(queue.Incoming, 1, "no@x.example")
			w.run(time.Minute)
			w.expect("deferred")
			w.bounceErr = nil
			w.boot(w.m.config())
			w.run(time.Hour)
			w.expect("", "failure no@x.example=5.1.1")
			if len(w.delivered) != 0 {
				w.t.Error("delivered and bounced")
			}
		},
		"success notification": func(w *world) {
			w.put(queue.Incoming, 1, "!a@x.example", "b@x.example")
			w.run(time.Minute)
			w.expect("", "success a@x.example=2.0.0")
		},
		"error and discard": func(w *world) {
			w.put(queue.Incoming, 1, "a@error.example", "b@discard.example")
			w.run(time.Minute)
			w.expect("", "failure a@error.example=5.1.1")
		},
		"hostile transport": func(w *world) {
			w.put(queue.Incoming, 1, "a@evil.example")
			w.run(time.Minute)
			w.expect("deferred")
		},
		"no rewrite": func(w *world) {
			w.rewriteUp = false
			w.put(queue.Incoming, 1, "a@x.example")
			w.run(time.Minute)
			w.expect("deferred")
		},
		"agent dies": func(w *world) {
			w.agentErr = errors.New("EOF")
			w.put(queue.Incoming, 1, "a@x.example")
			w.run(time.Minute)
			w.expect("deferred")
		},
		"agent switched off": func(w *world) {
			w.agentErr = &ipc.UnavailableError{}
			id := w.put(queue.Incoming, 1, "a@x.example")
			w.run(time.Minute)
			w.expect("deferred")
			list, _ := filepath.Glob(filepath.Join(w.base, "deferred", "*", id.String()))
			f, err := os.Open(list[0])
			if err != nil {
				w.t.Fatal(err)
			}
			defer f.Close()
			q, err := queue.Read(f)
			if err != nil || q.Recipients[0].Last.Status.String() != "4.3.5" || !strings.Contains(q.Recipients[0].Last.Text, "posthouse-smtp.socket") {
				w.t.Errorf("%+v, %v", q.Recipients[0], err)
			}
		},
		"damaged": func(w *world) {
			w.put(queue.Incoming, 1, "a@x.example")
			bad := w.put(queue.Incoming, 2, "b@x.example")
			path := filepath.Join(w.base, queue.Incoming, bad.String())
			b, _ := os.ReadFile(path)
			b[len(b)-1] ^= 1 // of the content
			os.WriteFile(path, b, 0o600)
			time.Sleep(time.Second) // the process is younger than the file
			w.run(time.Minute)
			w.expect("corrupt")
			if w.delivered["a@x.example"] != 1 || w.delivered["b@x.example"] != 0 {
				w.t.Errorf("%v", w.delivered)
			}
		},
		"incomplete": func(w *world) {
			id := w.put(queue.Incoming, 1, "a@x.example")
			os.Truncate(filepath.Join(w.base, queue.Incoming, id.String()), 0)
			w.run(time.Minute)
			w.expect("incoming")
		},
		"hold, release, delete": func(w *world) {
			w.answer = byName
			id := w.put(queue.Incoming, 1, "later@x.example")
			w.m.start()
			time.Sleep(time.Second)
			for _, step := range []struct {
				op    queuectl.Op
				all   bool
				where string
			}{
				{queuectl.Hold, false, "hold"}, {queuectl.Release, false, "deferred"}, {queuectl.Retry, true, "deferred"},
				{queuectl.Hold, true, "hold"}, {queuectl.Requeue, false, "deferred"}, {queuectl.Delete, false, ""},
			} {
				r := queuectl.Request{Op: step.op, All: step.all}
				if !step.all {
					r.IDs = []queueid.ID{id}
				}
				if reply := w.m.control(r); reply.Done != 1 || len(reply.Missing) != 0 {
					w.t.Errorf("%v: %+v", step, reply)
				}
				time.Sleep(time.Second)
				if got := w.where(); got != step.where {
					w.t.Errorf("%v: in %q", step, got)
				}
			}
			if reply := w.m.control(queuectl.Request{Op: queuectl.Delete, IDs: []queueid.ID{id}}); reply.Done != 0 || len(reply.Missing) != 1 {
				w.t.Errorf("delete what is not there: %+v", reply)
			}
			w.m.stop()
		},
		"dead destination": func(w *world) {
			w.hop = dsn.Errorf("4.4.1", "connection refused")
			w.answer = func(envelope.Recipient) delivery.Result { return later }
			for n := range uint32(30) {
				w.put(queue.Incoming, n, "a@x.example")
			}
			w.run(time.Minute)
			if got := w.where(); got != strings.TrimSuffix(strings.Repeat("deferred ", 30), " ") {
				w.t.Errorf("in %q", got)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, log, "")
				f(w)
			})
		})
	}
}

// TestStop: a delivery that does not end is interrupted; what it has achieved is
// not done again, and the rest is tried at once by the next process.
func TestStop(t *testing.T) {
	in(t, "", func(w *world) {
		w.answer, w.hang = byLocal, true
		w.put(queue.Incoming, 1, "later@x.example", "a@x.example")
		begun := time.Now()
		w.m.start()
		w.wait(time.Second)
		w.m.stop()
		if took := time.Since(begun); took > time.Minute {
			t.Errorf("stops in %v", took)
		}
		w.expect("deferred")
		w.hang, w.answer = false, func(envelope.Recipient) delivery.Result { return success }
		w.boot(w.m.config())
		w.run(time.Second)
		w.expect("")
		if w.delivered["a@x.example"] != 1 || w.delivered["later@x.example"] != 1 {
			t.Errorf("delivered %v", w.delivered)
		}
	})
}

func TestDelayWarning(t *testing.T) {
	log := maillog.New("qmgr")
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, log, "queue: {delay_warning: 4h}\n")
		w.answer = func(envelope.Recipient) delivery.Result {
			return delivery.Result{Status: dsn.MustParse("4.4.1"), Text: "no"}
		}
		w.put(queue.Incoming, 1, "a@x.example")
		w.run(24 * time.Hour)
		w.expect("deferred", "delay a@x.example=4.4.1")
	})
}

// TestWindowOfMemory: a backlog larger than what may be active is delivered all
// the same, and is never in memory as a whole.
func TestWindowOfMemory(t *testing.T) {
	log := maillog.New("qmgr")
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, log, "queue: {active_messages: 5}\n")
		most := 0
		w.answer = func(envelope.Recipient) delivery.Result {
			w.m.mu.Lock()
			most = max(most, len(w.m.known)-w.m.outside)
			w.m.mu.Unlock()
			return delivery.Result{Status: dsn.MustParse("2.0.0")}
		}
		for n := range uint32(100) {
			w.put(queue.Incoming, n, "a@x.example")
		}
		w.run(time.Minute)
		w.expect("")
		if w.delivered["a@x.example"] != 100 || most > 5 {
			t.Errorf("delivered %v, at most %d in memory", w.delivered, most)
		}
	})
}
