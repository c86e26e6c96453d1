package main

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"posthouse/pkg/dns"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/protocol/resolve"
)

type names struct {
	name string
	err  error
}

func (n names) Name(context.Context, netip.Addr) (string, error) { return n.name, n.err }

func TestHandle(t *testing.T) {
	for _, tt := range []struct {
		dns  names
		want resolve.Reply
	}{
		{names{"a.example", nil}, resolve.Reply{Outcome: resolve.Verified, Name: "a.example"}},
		{names{"", dns.ErrNoName}, resolve.Reply{Outcome: resolve.None}},
		{names{"", errors.New("no answer")}, resolve.Reply{}},
	} {
		client, server := ipctest.Pair(t)
		m := ipc.NewMessage()
		resolve.EncodeRequest(m, netip.MustParseAddr("192.0.2.1"))
		if err := client.Send(m); err != nil {
			t.Fatal(err)
		}
		msg, err := server.Receive(resolve.Protocol.MaxRequest)
		if err != nil {
			t.Fatal(err)
		}
		if err := (&service{tt.dns}).handle(t.Context(), server, msg, nil); err != nil {
			t.Fatal(err)
		}
		b, err := client.Receive(resolve.Protocol.MaxReply)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := resolve.DecodeReply(b); err != nil || got != tt.want {
			t.Errorf("%+v, %v; want %+v", got, err, tt.want)
		}
	}
	_, server := ipctest.Pair(t)
	if err := (&service{names{}}).handle(t.Context(), server, []byte("garbled"), nil); err == nil {
		t.Error("a garbled question is taken")
	}
}
