// Package agent is what delivery agents have in common: the request loop, the
// check of what qmgr passes, and the log line of each recipient.
package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"posthouse/pkg/daemon"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/delivery"
)

// Job is one delivery request with the message that it is about.
type Job struct {
	*delivery.Request
	// Content is the message, lines end in CRLF. It may be read from any
	// number of times and places; the descriptor behind it is the agent's own.
	Content *io.SectionReader
	// File is that descriptor, for handing it on; it ends with the request.
	File *os.File
}

// Outcome is what became of one recipient, with what only the log wants to know.
type Outcome struct {
	delivery.Result
	Relay   string        // "none", "virtual", "host[192.0.2.1]:25"
	ConnUse int           // how many messages the connection has carried; logged from 2 on
	Setup   time.Duration // to connect, DNS and greeting included
}

// Verdict is the outcome of a whole job.
type Verdict struct {
	Hop      *dsn.Error // trouble with the destination as a whole
	Outcomes []Outcome  // one for each recipient, in their order
}

// All gives every recipient of j the same outcome.
func (j *Job) All(o Outcome) []Outcome {
	all := make([]Outcome, len(j.Recipients))
	for i := range all {
		all[i] = o
	}
	return all
}

// Failed is the outcome of an error. One that carries no status is trouble of
// our own and defers.
func Failed(relay string, err error) Outcome {
	e := dsn.Of(err)
	return Outcome{Result: delivery.Result{Status: e.Status, Text: e.Text}, Relay: relay}
}

// Serve answers the requests that come to the socket "ipc" with deliver. Its
// context ends when this process, or the client, has to go: what has been done
// by then is still to be reported.
func Serve(d *daemon.Daemon, deliver func(context.Context, *Job) Verdict) error {
	return d.IPC("ipc", delivery.Protocol, func(ctx context.Context, c *ipc.Conn, msg []byte, file *os.File) error {
		return handle(ctx, request{c, msg, file}, d.Log, deliver)
	})
}

type request struct {
	conn *ipc.Conn
	msg  []byte
	file *os.File
}

func handle(ctx context.Context, in request, log *maillog.Logger, deliver func(context.Context, *Job) Verdict) error {
	if in.file != nil {
		defer in.file.Close() // read-only
	}
	r, err := delivery.DecodeRequest(in.msg)
	if err != nil {
		return err
	}
	content, err := ipc.Part(in.file, r.Offset, r.Length)
	if err != nil {
		return fmt.Errorf("%s: %w", r.QueueID, err)
	}
	start := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := in.conn.OnEnd(cancel)
	v := deliver(ctx, &Job{r, content, in.file})
	stop()
	m := ipc.NewMessage()
	v.report(len(r.Recipients)).Encode(m)
	now := time.Now()
	for i := range v.Outcomes {
		Log(log, r, i, LogTimes{start, now}, &v.Outcomes[i])
	}
	return in.conn.Send(m)
}

// report is what qmgr is told of n recipients. It is always understood; v is
// left with what it says.
func (v *Verdict) report(n int) *delivery.Report {
	// An agent that says too little has not delivered.
	for len(v.Outcomes) < n {
		v.Outcomes = append(v.Outcomes, Outcome{Result: delivery.Result{Text: "no result"}, Relay: "none"})
	}
	v.Outcomes = v.Outcomes[:n]
	r := &delivery.Report{Hop: clip(v.Hop), Results: make([]delivery.Result, n)}
	for i := range v.Outcomes {
		o := &v.Outcomes[i]
		o.Text, o.Diagnostic, o.RemoteMTA = Line(o.Text), Line(o.Diagnostic), line(o.RemoteMTA, delivery.MaxName)
		r.Results[i] = o.Result
	}
	return r
}

// maxLine keeps what a remote host said within the limits of the protocols.
const maxLine = 1000

// Line makes text from outside fit for a report: printable, one line, bounded.
func Line(s string) string { return line(s, maxLine) }

func line(s string, most int) string {
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return maillog.Printable(s)
}

func clip(e *dsn.Error) *dsn.Error {
	if e == nil {
		return nil
	}
	e = dsn.Of(e) // trouble is no success
	return &dsn.Error{Status: e.Status, Text: Line(e.Text)}
}

// Word is the word for an outcome in the log: sent, deferred or bounced.
func Word(s dsn.Status) string {
	switch s.Class() {
	case dsn.Success:
		return "sent"
	case dsn.Permanent:
		return "bounced"
	case dsn.Transient:
	}
	return "deferred"
}

// LogTimes are when an agent took up a request and when it was done.
type LogTimes struct{ Start, End time.Time }

// Log writes the log line of the recipient i of r. qmgr does so for recipients
// that no agent has seen.
func Log(log *maillog.Logger, r *delivery.Request, i int, t LogTimes, o *Outcome) {
	rcpt := &r.Recipients[i]
	var b strings.Builder
	fmt.Fprintf(&b, "%s: to=<%s>, ", r.QueueID, rcpt.Address)
	if !rcpt.Original.IsNull() && !strings.EqualFold(rcpt.Original.String(), rcpt.Address.String()) {
		fmt.Fprintf(&b, "orig_to=<%s>, ", rcpt.Original)
	}
	fmt.Fprintf(&b, "relay=%s, ", o.Relay)
	if o.ConnUse > 1 {
		fmt.Fprintf(&b, "conn_use=%d, ", o.ConnUse)
	}
	work := t.End.Sub(t.Start)
	delay := t.End.Sub(r.Arrival)
	fmt.Fprintf(&b, "delay=%s, delays=%s/%s/%s/%s, dsn=%s, status=%s (%s)", Seconds(delay),
		Seconds(r.Active.Sub(r.Arrival)), Seconds(t.Start.Sub(r.Active)), Seconds(o.Setup), Seconds(work-o.Setup),
		o.Status, Word(o.Status), o.Text)
	log.Info(maillog.Fields{
		"QUEUE_ID": r.QueueID.String(), "SENDER": r.Sender.String(), "RECIPIENT": rcpt.Address.String(), "RELAY": o.Relay,
		"DSN": o.Status.String(), "STATUS": Word(o.Status), "DELAY": strconv.FormatFloat(delay.Seconds(), 'f', 3, 64),
	}, "%s", b.String())
}

// Seconds prints a delay as Postfix does: two significant digits, but no more
// than two decimals.
func Seconds(d time.Duration) string {
	s := max(d.Seconds(), 0)
	decimals := 2
	switch {
	case s >= 10:
		decimals = 0
	case s >= 1:
		decimals = 1
	}
	text := strconv.FormatFloat(s, 'f', decimals, 64)
	if decimals > 0 {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text
}
