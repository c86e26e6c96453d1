package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queueid"
)

var testLog = maillog.New("agent")

// serve answers requests with deliver.
func serve(t *testing.T, deliver func(context.Context, *Job) Verdict) *delivery.Client {
	t.Helper()
	return delivery.NewClient(ipctest.Serve(t, delivery.Protocol, func(c *ipc.Conn, msg []byte, file *os.File) error {
		return handle(t.Context(), request{c, msg, file}, testLog, deliver)
	}))
}

func ask(t *testing.T) (*delivery.Request, *os.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "q")
	if err := os.WriteFile(path, []byte("xxxxcontent"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	r := &delivery.Request{QueueID: queueid.New(time.Now(), 1), Transport: "smtp", Nexthop: "x", Offset: 4, Length: 7}
	for _, s := range []string{"a@example.org", "b@example.org"} {
		m, err := addr.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		r.Recipients = append(r.Recipients, envelope.Recipient{Address: m})
	}
	return r, f
}

func TestHandle(t *testing.T) {
	client := serve(t, func(ctx context.Context, j *Job) Verdict {
		b, _ := io.ReadAll(j.Content)
		return Verdict{Outcomes: []Outcome{{Result: delivery.Result{Status: dsn.MustParse("2.0.0"), Text: string(b) + "\n"}}}}
	})
	for range 3 {
		r, f := ask(t)
		report, err := client.Deliver(t.Context(), r, f)
		if err != nil {
			t.Fatal(err)
		}
		if got := report.Results[0]; got.Text != "content?" || got.Status.Class() != dsn.Success {
			t.Errorf("%+v", got)
		}
		if got := report.Results[1].Status.Class(); got != dsn.Transient {
			t.Errorf("a recipient of whom nothing is said: %v", got)
		}
	}
}

// TestClientGoes: a delivery ends when qmgr has to go, and what it has achieved is
// reported all the same.
func TestClientGoes(t *testing.T) {
	begun := make(chan bool)
	client := serve(t, func(ctx context.Context, j *Job) Verdict {
		close(begun)
		<-ctx.Done()
		sent := Outcome{Result: delivery.Result{Status: dsn.MustParse("2.0.0")}}
		return Verdict{Outcomes: []Outcome{sent, Failed("none", ctx.Err())}}
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	r, f := ask(t)
	report, err := client.Deliver(ctx, r, f)
	if err != nil {
		t.Fatal(err)
	}
	if report.Results[0].Status.Class() != dsn.Success || report.Results[1].Status.Class() != dsn.Transient {
		t.Errorf("%+v", report.Results)
	}
}

// FuzzReport: whatever an agent says, qmgr understands the report, and what was
// delivered counts as that: otherwise it would be delivered again.
func FuzzReport(f *testing.F) {
	for _, s := range []string{"ok", "\xff\n\x1b", strings.Repeat("é", 3000), "\u2028\u202e"} {
		f.Add(s, "mx.example", "250 ok", uint8(dsn.Success), true)
		f.Add("ok", s, s, uint8(5), false)
	}
	f.Fuzz(func(t *testing.T, text, host, diagnostic string, class uint8, hop bool) {
		status := dsn.Status{}.With(dsn.Class(class % 3))
		v := Verdict{Outcomes: []Outcome{{Result: delivery.Result{Status: status, Text: text, RemoteMTA: host, Diagnostic: diagnostic}}}}
		if hop {
			v.Hop = &dsn.Error{Status: status, Text: text}
		}
		r := v.report(2)
		again, err := delivery.DecodeReport(ipctest.Encode(r.Encode), 2)
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%+v reads as %+v, %v", r, again, err)
		}
		if r.Results[0].Status != status || r.Results[1].Status.Class() != dsn.Transient || hop != (r.Hop != nil) {
			t.Fatalf("%+v for %+v", r, v)
		}
	})
}

// TestShorter: of a queue file that has become shorter nobody takes the part for the
// whole.
func TestShorter(t *testing.T) {
	r, f := ask(t)
	client := serve(t, func(_ context.Context, j *Job) Verdict {
		if err := os.Truncate(f.Name(), 8); err != nil {
			t.Error(err)
		}
		b, err := io.ReadAll(j.Content)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q, %v", b, err)
		}
		return Verdict{}
	})
	if _, err := client.Deliver(t.Context(), r, f); err != nil {
		t.Error(err)
	}
}

func TestSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                        "0",
		-time.Second:             "0",
		4 * time.Millisecond:     "0",
		6 * time.Millisecond:     "0.01",
		123 * time.Millisecond:   "0.12",
		100 * time.Millisecond:   "0.1",
		1234 * time.Millisecond:  "1.2",
		2 * time.Second:          "2",
		12345 * time.Millisecond: "12",
		100 * time.Second:        "100",
	} {
		if got := Seconds(d); got != want {
			t.Errorf("Seconds(%v) = %s, want %s", d, got, want)
		}
	}
}
