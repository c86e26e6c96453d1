package rewrite

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
)

// TestMemory: what was answered a moment ago is not asked again, for the same
// sender and question; an error, an answer that is not sure, and a long one are not kept.
func TestMemory(t *testing.T) {
	var asked []string
	path := ipctest.Serve(t, Protocol, func(c *ipc.Conn, b []byte, _ *os.File) error {
		r, err := DecodeRequest(b)
		if err != nil {
			return err
		}
		var answers []Answer
		for _, m := range r.Addresses {
			asked = append(asked, fmt.Sprint(r.Op, r.Sender, m))
			a := Answer{Class: ClassVirtual, Addresses: []addr.Mailbox{m}}
			switch m.Local() {
			case "nobody":
				a.Err = dsn.Errorf("5.1.1", "no such user")
			case "maybe":
				a.Unverified = true
			case "list":
				for range rememberShort {
					a.Addresses = append(a.Addresses, m)
				}
			}
			answers = append(answers, a)
		}
		m := ipc.NewMessage()
		EncodeAnswers(m, answers)
		return c.Send(m)
	})
	now := time.Unix(1790000000, 0)
	client := NewClient(path)
	client.memory.now = func() time.Time { return now }
	mailbox := func(s string) addr.Mailbox {
		m, err := addr.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, c := range []struct {
		after    time.Duration
		op       Op
		from, to string
		want     int // questions that reach the server
	}{
		{0, Verify, "s@x.example", "a@y.example", 1},
		{rememberTime / 2, Verify, "s@x.example", "a@y.example", 0},
		{0, Verify, "s@x.example", "a@y.example b@y.example", 1},
		{0, Verify, "s@x.example", "b@y.example c@y.example a@y.example", 1},
		{0, Verify, "other@x.example", "a@y.example", 1},
		{0, Resolve, "s@x.example", "a@y.example", 1},
		{0, Verify, "s@x.example", "A@y.example", 1},
		{rememberTime / 2, Verify, "s@x.example", "a@y.example", 1},
		{0, Verify, "s@x.example", "nobody@y.example maybe@y.example list@y.example", 3},
		{0, Verify, "s@x.example", "nobody@y.example maybe@y.example list@y.example", 3},
	} {
		now = now.Add(c.after)
		asked = nil
		r := Request{Op: c.op, Sender: mailbox(c.from)}
		for to := range strings.FieldsSeq(c.to) {
			r.Addresses = append(r.Addresses, mailbox(to))
		}
		got, err := client.Ask(t.Context(), r)
		if err != nil || len(got) != len(r.Addresses) {
			t.Fatalf("%+v: %+v, %v", c, got, err)
		}
		for i := range got {
			if got[i].Addresses[0] != r.Addresses[i] {
				t.Errorf("%+v: answer %d is for %s", c, i, got[i].Addresses[0])
			}
			got[i].Addresses[0] = mailbox("changed@by.example") // by who asked
		}
		if len(asked) != c.want {
			t.Errorf("%+v: asked %q", c, asked)
		}
	}
	for i := range rememberMost + 10 {
		client.memory.remember(question{address: mailbox(fmt.Sprintf("u%d@y.example", i))}, Answer{})
	}
	if n := len(client.memory.answers); n > rememberMost {
		t.Errorf("%d answers are kept", n)
	}
}
