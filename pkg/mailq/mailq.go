// Package mailq prints the queue as Postfix's mailq does, which other programs
// parse, and as JSON lines in the shape of postqueue -j.
package mailq

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"

	"posthouse/pkg/dsn"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/showq"
)

// Printer prints a listing page by page, each by one write.
type Printer interface {
	Page([]showq.Entry) error
	End() error
}

// Text prints the classic listing.
type Text struct {
	W io.Writer

	buf   []byte
	count int
	bytes int64
}

const heading = "-Queue ID-  --Size-- ----Arrival Time---- -Sender/Recipient-------\n"

// The columns of the listing.
const (
	idWidth     = 17
	sizeWidth   = 7
	timeWidth   = 20
	reasonWidth = 76 // where a reason ends
	indent      = len("-Queue ID-  --Size-- ----Arrival Time---- ")
)

// keepBuffer is the largest buffer that is kept for the next page.
const keepBuffer = 1 << 20

// Page prints messages; the reasons of each stand before the recipients that
// share them.
func (t *Text) Page(list []showq.Entry) error {
	b := t.buf[:0]
	for i := range list {
		if t.count == 0 {
			b = append(b, heading...)
		} else {
			b = append(b, '\n')
		}
		t.count++
		t.bytes += list[i].Size
		b = appendEntry(b, &list[i])
	}
	if t.buf = b; cap(b) > keepBuffer {
		t.buf = nil
	}
	_, err := t.W.Write(b)
	return err
}

func appendEntry(b []byte, e *showq.Entry) []byte {
	start := len(b)
	b = append(b, e.ID.String()...)
	switch e.Queue {
	case showq.Active:
		b = append(b, '*')
	case showq.Hold:
		b = append(b, '!')
	case showq.Incoming, showq.Deferred, showq.Corrupt:
	}
	b = pad(b, start+idWidth+1-len(b))
	start = len(b)
	b = right(strconv.AppendInt(b, e.Size, 10), start, sizeWidth)
	b = append(b, ' ')
	start = len(b)
	b = right(e.Arrival.AppendFormat(b, "Mon Jan _2 15:04:05"), start, timeWidth)
	b = append(b, ' ')
	switch {
	case e.Queue == showq.Corrupt:
		b = append(b, "(damaged)"...)
	case e.Sender.IsNull():
		b = append(b, "MAILER-DAEMON"...)
	default:
		b = append(b, maillog.Printable(e.Sender.String())...)
	}
	b = append(b, '\n')
	last := ""
	for i := range e.Recipients {
		r := &e.Recipients[i]
		if r.Reason != "" && r.Reason != last {
			reason := maillog.Printable(r.Reason)
			b = pad(b, reasonWidth-len("()")-utf8.RuneCountInString(reason))
			b = append(append(append(b, '('), reason...), ")\n"...)
		}
		last = r.Reason
		b = append(append(pad(b, indent), maillog.Printable(r.Address.String())...), '\n')
	}
	return b
}

// pad appends n spaces.
func pad(b []byte, n int) []byte {
	for ; n > 0; n-- {
		b = append(b, ' ')
	}
	return b
}

// right moves what begins at start to the right end of a column of that width.
func right(b []byte, start, width int) []byte {
	n := start + width - len(b)
	if n <= 0 {
		return b
	}
	b = pad(b, n)
	copy(b[start+n:], b[start:])
	for i := range n {
		b[start+i] = ' '
	}
	return b
}

// End prints the sum.
func (t *Text) End() error {
	if t.count == 0 {
		_, err := fmt.Fprintln(t.W, "Mail queue is empty")
		return err
	}
	_, err := fmt.Fprintf(t.W, "\n-- %d Kbytes in %d Request%s.\n", t.bytes/1024, t.count, plural(t.count))
	return err
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// JSON prints one object a line.
type JSON struct{ W io.Writer }

type jsonRecipient struct {
	Address      string `json:"address"`
	OrigAddress  string `json:"orig_address,omitempty"`
	DelayReason  string `json:"delay_reason,omitempty"`
	BounceReason string `json:"bounce_reason,omitempty"`
	Status       string `json:"status,omitempty"`
}

type jsonEntry struct {
	QueueName    string          `json:"queue_name"`
	QueueID      string          `json:"queue_id"`
	ArrivalTime  int64           `json:"arrival_time"`
	MessageSize  int64           `json:"message_size"`
	ForcedExpire bool            `json:"forced_expire"`
	NextAttempt  int64           `json:"next_attempt,omitempty"`
	Sender       string          `json:"sender"`
	Recipients   []jsonRecipient `json:"recipients"`
}

// Page prints messages.
func (j JSON) Page(list []showq.Entry) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for i := range list {
		if err := enc.Encode(object(&list[i])); err != nil {
			return err
		}
	}
	_, err := j.W.Write(b.Bytes())
	return err
}

func object(e *showq.Entry) jsonEntry {
	out := jsonEntry{
		QueueName: e.Queue.String(), QueueID: e.ID.String(), ArrivalTime: e.Arrival.Unix(), MessageSize: e.Size,
		Sender: e.Sender.String(), Recipients: []jsonRecipient{},
	}
	if !e.Next.IsZero() {
		out.NextAttempt = e.Next.Unix()
	}
	for i := range e.Recipients {
		r := &e.Recipients[i]
		rcpt := jsonRecipient{Address: r.Address.String()}
		if r.Status.Class() == dsn.Permanent {
			rcpt.BounceReason = r.Reason
		} else {
			rcpt.DelayReason = r.Reason
		}
		if !r.Original.IsNull() && r.Original != r.Address {
			rcpt.OrigAddress = r.Original.String()
		}
		if r.Reason != "" {
			rcpt.Status = r.Status.String()
		}
		out.Recipients = append(out.Recipients, rcpt)
	}
	return out
}

// End prints nothing.
func (JSON) End() error { return nil }
