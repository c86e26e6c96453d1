// Package mailq prints the queue as Postfix's mailq does, which other programs
// parse, and as JSON lines in the shape of postqueue -j.
package mailq

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"posthouse/pkg/dsn"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/showq"
)

// Printer prints entries one by one.
type Printer interface {
	Entry(*showq.Entry) error
	End() error
}

// Text prints the classic listing.
type Text struct {
	W io.Writer

	count int
	bytes int64
}

const heading = "-Queue ID-  --Size-- ----Arrival Time---- -Sender/Recipient-------\n"

// reasonWidth is the column at which a reason ends.
const reasonWidth = 76

// Entry prints one message; its reasons stand before the recipients that share
// them.
func (t *Text) Entry(e *showq.Entry) error {
	var b strings.Builder
	if t.count == 0 {
		b.WriteString(heading)
	} else {
		b.WriteByte('\n')
	}
	t.count++
	t.bytes += e.Size
	mark := " "
	switch e.Queue {
	case showq.Active:
		mark = "*"
	case showq.Hold:
		mark = "!"
	case showq.Incoming, showq.Deferred, showq.Corrupt:
	}
	sender := e.Sender.String()
	if e.Sender.IsNull() {
		sender = "MAILER-DAEMON"
	}
	if e.Queue == showq.Corrupt {
		sender = "(damaged)"
	}
	fmt.Fprintf(&b, "%-17s %7d %20.20s %s\n", e.ID.String()+mark, e.Size, e.Arrival.Format("Mon Jan _2 15:04:05"), maillog.Printable(sender))
	last := ""
	for i := range e.Recipients {
		r := &e.Recipients[i]
		if r.Reason != "" && r.Reason != last {
			fmt.Fprintf(&b, "%*s\n", reasonWidth, "("+maillog.Printable(r.Reason)+")")
		}
		last = r.Reason
		fmt.Fprintf(&b, "%*s%s\n", len("-Queue ID-  --Size-- ----Arrival Time---- "), "", maillog.Printable(r.Address.String()))
	}
	_, err := io.WriteString(t.W, b.String())
	return err
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

// Entry prints one message.
func (j JSON) Entry(e *showq.Entry) error {
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
	return json.NewEncoder(j.W).Encode(out)
}

// End prints nothing.
func (JSON) End() error { return nil }
