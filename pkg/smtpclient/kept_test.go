package smtpclient

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestNobodyThenAgain: a server that asked for data without having accepted a
// recipient, and refuses that there is none, may keep the envelope all the same: the
// next message does not meet it.
func TestNobodyThenAgain(t *testing.T) {
	client, wait := dial(t, Options{}, script(pipelined,
		"C: MAIL FROM:<s@a.example> SIZE=3", "C: RCPT TO:<u@b.example>", "C: DATA", "S: 250 ok", "S: 550 no", "S: 354 go", "C: .", "S: 554 no recipients",
		"C: RSET", "C: MAIL FROM:<s@a.example> SIZE=3", "C: RCPT TO:<v@b.example>", "C: DATA", "S: 250 ok", "S: 250 ok", "S: 250 ok", "S: 354 go", "D", "S: 250 two")...)
	hello(t, client)
	if got := show(client.Send(t.Context(), message(t, "x\r\n", "u@b.example"))); got != "5.0.0 host mx[192.0.2.1] said: 550 no (in reply to RCPT TO command)\n" {
		t.Error(got)
	}
	if got := show(client.Send(t.Context(), message(t, "x\r\n", "v@b.example"))); got != "2.0.0 250 two\n" {
		t.Error(got)
	}
	wait()
}

// ending is a connection on which a context ends while the reply to DATA is being read;
// what that does to the deadline takes its time.
type ending struct {
	net.Conn
	cancel func()
	late   bool // the next deadline that has passed is set late
}

func (e *ending) Read(p []byte) (int, error) {
	n, err := e.Conn.Read(p)
	if strings.HasPrefix(string(p[:n]), "354") {
		e.late = true
		e.cancel()
		synctest.Wait()
	}
	return n, err
}

func (e *ending) SetDeadline(t time.Time) error {
	if e.late && !t.After(time.Now()) {
		e.late = false
		time.Sleep(time.Second)
	}
	return e.Conn.SetDeadline(t)
}

// TestGraceIsWhole: the end of a context does not cut short the wait for the reply to a
// message that is sent all the same.
func TestGraceIsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		gone := playThen(there, script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: DATA", "S: 354 go", "D", "X"), func() {
			time.Sleep(10 * time.Second)
			_, _ = there.Write([]byte("250 saved\r\n"))
		})
		c := New(&ending{Conn: here, cancel: cancel}, Options{Peer: "mx", Helo: "us.example"})
		hello(t, c)
		if got := show(c.Send(ctx, message(t, "x\r\n", "u@b.example"))); got != "2.0.0 250 saved\n" {
			t.Error(got)
		}
		c.Quit()
		<-gone
	})
}
