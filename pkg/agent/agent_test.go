package agent

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queueid"
)

// serve answers the requests of one connection with deliver.
func serve(t *testing.T, deliver func(context.Context, *Job) Verdict) *delivery.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		nc, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		defer nc.Close()
		c := ipc.NewConn(nc)
		ipc.Greet(c, delivery.Protocol)
		for {
			msg, file, err := c.ReceiveFile(delivery.Protocol.MaxRequest)
			if err != nil || handle(context.Background(), request{c, msg, file}, maillog.New("agent"), deliver) != nil {
				return
			}
		}
	}()
	return delivery.NewClient(path)
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
