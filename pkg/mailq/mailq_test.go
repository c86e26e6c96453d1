package mailq

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/protocol/showq"
	"posthouse/pkg/queueid"
)

func entries(t *testing.T) []showq.Entry {
	t.Helper()
	m := func(s string) addr.Mailbox {
		a, err := addr.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	at := time.Date(2026, 11, 3, 20, 0, 0, 0, time.Local)
	return []showq.Entry{
		{Queue: showq.Active, ID: queueid.New(at, 1), Size: 1000, Arrival: at, Sender: m("alice@example.org"),
			Recipients: []showq.Recipient{{Address: m("bob@example.net")}}},
		{Queue: showq.Deferred, ID: queueid.New(at, 2), Size: 1500, Arrival: at, Next: at.Add(time.Hour), Recipients: []showq.Recipient{
			{Address: m("c@example.net"), Original: m("alias@example.org"), Status: dsn.MustParse("4.4.1"), Reason: "connect to mx.example.net: \x1b[31mrefused"},
			{Address: m("d@example.net"), Status: dsn.MustParse("4.4.1"), Reason: "connect to mx.example.net: \x1b[31mrefused"},
			{Address: m("e@example.net"), Status: dsn.MustParse("5.1.1"), Reason: "busy"},
		}},
	}
}

func TestText(t *testing.T) {
	var out bytes.Buffer
	p := &Text{W: &out}
	list := entries(t)
	for i := range list {
		if err := p.Page(list[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.End(); err != nil {
		t.Fatal(err)
	}
	want := heading +
		list[0].ID.String() + "*       1000  Tue Nov  3 20:00:00 alice@example.org\n" +
		"                                          bob@example.net\n\n" +
		list[1].ID.String() + "        1500  Tue Nov  3 20:00:00 MAILER-DAEMON\n" +
		"                                   (connect to mx.example.net: ?[31mrefused)\n" +
		"                                          c@example.net\n" +
		"                                          d@example.net\n" +
		"                                                                      (busy)\n" +
		"                                          e@example.net\n\n" +
		"-- 2 Kbytes in 2 Requests.\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	if err := (&Text{W: &out}).End(); err != nil || out.String() != "Mail queue is empty\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	if err := (JSON{&out}).Page(entries(t)); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(&out)
	var first, second jsonEntry
	if err := dec.Decode(&first); err != nil {
		t.Fatal(err)
	}
	if err := dec.Decode(&second); err != nil {
		t.Fatal(err)
	}
	if first.QueueName != "active" || first.Sender != "alice@example.org" || len(second.Recipients) != 3 || second.Recipients[2].BounceReason != "busy" || second.Recipients[2].DelayReason != "" || second.Recipients[1].DelayReason == "" || second.Recipients[0].OrigAddress != "alias@example.org" ||
		second.NextAttempt-second.ArrivalTime != 3600 {
		t.Errorf("%+v\n%+v", first, second)
	}
}
