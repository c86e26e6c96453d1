package delivery

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
	"posthouse/pkg/wire/wiretest"
)

var (
	requests = wiretest.Codec[*Request]{
		Encode: func(r *Request) []byte { return ipctest.Encode(r.Encode) },
		Decode: DecodeRequest,
		Max:    Protocol.MaxRequest,
	}
	// reports are about two recipients.
	reports = reportsOf(2)
)

func reportsOf(n int) wiretest.Codec[*Report] {
	return wiretest.Codec[*Report]{
		Encode: func(r *Report) []byte { return ipctest.Encode(r.Encode) },
		Decode: func(b []byte) (*Report, error) { return DecodeReport(b, n) },
		Max:    Protocol.MaxReply,
	}
}

// request is a request with everything.
func request(t testing.TB) *Request {
	return &Request{
		QueueID: queueid.New(wiretest.Time, 1), Transport: "smtp", Nexthop: "[mx.example.net]:25",
		Sender: wiretest.Mailbox(t, "alice@example.org"), Return: dsn.ReturnHeaders, EnvID: "an id", Body: envelope.Body8BitMIME, SMTPUTF8: true,
		Arrival: wiretest.Time, Active: wiretest.Time.Add(1e9), Offset: 200, Length: 1000, Recipients: wiretest.Recipients(t),
	}
}

func TestRequest(t *testing.T) {
	requests.Golden(t, "request", Protocol.Version, request(t))
	requests.Whole(t, "request", request(t))
	wiretest.Complete(t, request(t))
	with := func(change func(*Request)) *Request {
		r := request(t)
		change(r)
		return r
	}
	requests.Limit(t, "recipients", MaxRecipients, func(n int) *Request {
		return with(func(r *Request) {
			r.Transport, r.Nexthop, r.EnvID = wiretest.Text(MaxName), wiretest.Text(MaxName), wiretest.Text(dsn.MaxEnvID)
			r.Sender, r.Recipients = wiretest.Longest(t), wiretest.LongRecipients(t, n)
		})
	})
	for what, set := range map[string]func(*Request, string){
		"octets of transport": func(r *Request, s string) { r.Transport = s },
		"octets of next hop":  func(r *Request, s string) { r.Nexthop = s },
	} {
		requests.Limit(t, what, MaxName, func(n int) *Request { return with(func(r *Request) { set(r, wiretest.Text(n)) }) })
	}
	requests.Limit(t, "octets of envelope ID", dsn.MaxEnvID, func(n int) *Request { return with(func(r *Request) { r.EnvID = wiretest.Text(n) }) })
	requests.Enum(t, "../../dsn", "Return", func(v uint8) *Request { return with(func(r *Request) { r.Return = dsn.Return(v) }) })
	requests.Enum(t, "../../envelope", "Body", func(v uint8) *Request { return with(func(r *Request) { r.Body = envelope.Body(v) }) })
	for what, spoil := range map[string]func(*Request){
		"no queue ID":             func(r *Request) { r.QueueID = queueid.ID{} },
		"negative offset":         func(r *Request) { r.Offset = -1 },
		"negative length":         func(r *Request) { r.Length = -1 },
		"no recipient":            func(r *Request) { r.Recipients = nil },
		"line break":              func(r *Request) { r.Nexthop = "a\nb" },
		"a time nobody can print": func(r *Request) { r.Arrival = r.Arrival.AddDate(9000, 0, 0) },
	} {
		requests.Refuses(t, what, with(spoil))
	}
}

// report is a report with everything, about two recipients.
func report() *Report {
	return &Report{Hop: dsn.Errorf("4.4.1", "connection timed out"), Results: []Result{
		{Status: dsn.MustParse("2.1.5"), Text: "250 2.1.5 ok", RemoteMTA: "mx.example.net", Diagnostic: "250 2.1.5 ok", Relayed: true},
		{Status: dsn.MustParse("5.1.1"), Text: "nobody"},
	}}
}

func TestReport(t *testing.T) {
	reports.Golden(t, "report", Protocol.Version, report())
	reports.Whole(t, "report", report())
	wiretest.Complete(t, report())
	reports.Accepts(t, "a report that defers", &Report{Results: make([]Result, 2)})
	longest := Result{Text: wiretest.Text(wire.MaxText), RemoteMTA: wiretest.Text(MaxName), Diagnostic: wiretest.Text(wire.MaxText)}
	hop := dsn.Errorf("4.4.1", "%s", wiretest.Text(wire.MaxText))
	for _, n := range []int{1, 2, MaxRecipients} {
		r := &Report{Hop: hop, Results: slices.Repeat([]Result{longest}, n)}
		if length := len(ipctest.Encode(r.Encode)); length > maxReport(n) || maxReport(n) > Protocol.MaxReply {
			t.Errorf("a report of %d octets about %d recipients, limits %d and %d", length, n, maxReport(n), Protocol.MaxReply)
		}
	}
	for n, accepted := range map[int]bool{MaxRecipients: true, MaxRecipients + 1: false} {
		r := &Report{Hop: hop, Results: slices.Repeat([]Result{longest}, n)}
		if accepted {
			reportsOf(n).Accepts(t, "a report with everything", r)
		} else {
			reportsOf(n).Refuses(t, "a report of too many", r)
		}
	}
	for what, set := range map[string]func(*Result, string){
		"octets of text":       func(r *Result, s string) { r.Text = s },
		"octets of diagnostic": func(r *Result, s string) { r.Diagnostic = s },
		"octets of remote MTA": func(r *Result, s string) { r.RemoteMTA = s },
	} {
		limit := wire.MaxText
		if what == "octets of remote MTA" {
			limit = MaxName
		}
		reports.Limit(t, what, limit, func(n int) *Report {
			r := report()
			set(&r.Results[1], wiretest.Text(n))
			return r
		})
	}
	for what, spoil := range map[string]func(*Report){
		"silence":              func(r *Report) { r.Results = nil },
		"one result for two":   func(r *Report) { r.Results = r.Results[:1] },
		"three results":        func(r *Report) { r.Results = append(r.Results, Result{}) },
		"a hop that is fine":   func(r *Report) { r.Hop = dsn.Errorf("2.0.0", "fine") },
		"a control character":  func(r *Report) { r.Results[0].Diagnostic = "550 \x1b[2J" },
		"a line break":         func(r *Report) { r.Results[0].Text = "a\r\nb" },
		"what is not UTF-8":    func(r *Report) { r.Results[0].Text = "\xff" },
		"a line of more lines": func(r *Report) { r.Results[0].RemoteMTA = "a\u2028b" },
	} {
		r := report()
		spoil(r)
		reports.Refuses(t, what, r)
	}
}

func TestZeroResultDefers(t *testing.T) {
	if (Result{}).Status.Class() != dsn.Transient {
		t.Error("nothing is said, and it is not deferred")
	}
}

func TestClient(t *testing.T) {
	defer func(d time.Duration) { Protocol.Grace = d }(Protocol.Grace)
	Protocol.Grace = time.Millisecond // a silent agent shall not take long
	file, err := os.Open("delivery.go")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ipctest.TestClient(t, ipctest.Dialogue{
		Protocol: Protocol,
		Turns:    [][]byte{nil, reports.Encode(report())},
		Call: func(ctx context.Context, path string) (any, error) {
			return NewClient(path).Deliver(ctx, request(t), file)
		},
	})
}

func FuzzDecodeRequest(f *testing.F) { requests.Fuzz(f, request(f)) }

func FuzzDecodeReport(f *testing.F) { reports.Fuzz(f, report(), &Report{Results: make([]Result, 2)}) }

// TestLongReport: an agent cannot say more than there is to say of the recipients.
func TestLongReport(t *testing.T) {
	path := ipctest.Serve(t, Protocol, func(c *ipc.Conn, _ []byte, file *os.File) error {
		_ = file.Close()
		m := ipc.NewMessage()
		m.Raw(make([]byte, Protocol.MaxReply))
		return c.Send(m)
	})
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := NewClient(path).Deliver(t.Context(), request(t), f); !errors.Is(err, ipc.ErrTooBig) {
		t.Errorf("a report of %d octets: %v", Protocol.MaxReply, err)
	}
}
