package queuectl

import (
	"context"
	"testing"

	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
	"posthouse/pkg/wire/wiretest"
)

var (
	requests = wiretest.Codec[Request]{
		Encode: func(r Request) []byte { return ipctest.Encode(r.Encode) },
		Decode: DecodeRequest,
		Max:    Protocol.MaxRequest,
	}
	replies = wiretest.Codec[Reply]{
		Encode: func(r Reply) []byte { return ipctest.Encode(r.Encode) },
		Decode: DecodeReply,
		Max:    Protocol.MaxReply,
	}
)

func TestRequest(t *testing.T) {
	some, all := Request{Op: Release, IDs: wiretest.IDs(2), Buckets: []int64{1790000040, 0}}, Request{Op: Retry, All: true}
	destination := Request{Op: Retry, Destination: "example.net"}
	for name, r := range map[string]Request{"some": some, "all": all, "destination": destination} {
		requests.Golden(t, name, Protocol.Version, r)
		requests.Whole(t, name, r)
	}
	wiretest.Complete(t, some, all, destination)
	requests.Accepts(t, "no bucket", Request{Op: Delete, IDs: wiretest.IDs(2)})
	requests.Limit(t, "IDs", MaxIDs, func(n int) Request { return Request{Op: Delete, IDs: wiretest.IDs(n), Buckets: make([]int64, n)} })
	requests.Enum(t, ".", "Op", func(v uint8) Request { return Request{Op: Op(v), IDs: wiretest.IDs(1)} })
	for name, r := range map[string]Request{
		"all and some":             {Op: Delete, All: true, IDs: wiretest.IDs(1)},
		"all and a destination":    {Op: Retry, All: true, Destination: "example.net"},
		"some and a destination":   {Op: Retry, IDs: wiretest.IDs(1), Destination: "example.net"},
		"delete for a destination": {Op: Delete, Destination: "example.net"},
		"a path":                   {Op: Retry, Destination: "../../etc"},
		"half the buckets":         {Op: Delete, IDs: wiretest.IDs(2), Buckets: []int64{60}},
		"a bucket before all time": {Op: Delete, IDs: wiretest.IDs(1), Buckets: []int64{-60}},
		"buckets of nothing":       {Op: Delete, All: true, Buckets: []int64{60}},
		"no way to select":         {Op: Delete},
		"no ID":                    {Op: Delete, IDs: []queueid.ID{{}}},
	} {
		requests.Refuses(t, name, r)
	}
	requests.RefusesOctets(t, "path", []byte("\x05\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x0d../../etc/pas\x00\x00\x00\x00"))
	requests.RefusesOctets(t, "not quite all", []byte("\x05\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
}

func TestReply(t *testing.T) {
	r := Reply{Err: dsn.Errorf("4.3.0", "the disk"), Done: 7, Missing: wiretest.IDs(2)}
	replies.Golden(t, "reply", Protocol.Version, r)
	replies.Whole(t, "reply", r)
	wiretest.Complete(t, r)
	replies.Accepts(t, "nothing to do", Reply{})
	replies.Limit(t, "missing", MaxIDs, func(n int) Reply { return Reply{Missing: wiretest.IDs(n)} })
	replies.Limit(t, "octets of reason", wire.MaxText, func(n int) Reply { return Reply{Err: dsn.Errorf("4.3.0", "%s", wiretest.Text(n))} })
	replies.Refuses(t, "a success as a refusal", Reply{Err: dsn.Errorf("2.0.0", "fine")})
}

func TestClient(t *testing.T) {
	ipctest.TestClient(t, ipctest.Dialogue{
		Protocol: Protocol,
		Turns:    [][]byte{nil, replies.Encode(Reply{Done: 1, Missing: wiretest.IDs(1)})},
		Call: func(ctx context.Context, path string) (any, error) {
			return Do(ctx, path, Request{Op: Retry, All: true})
		},
	})
}

func FuzzDecodeRequest(f *testing.F) {
	requests.Fuzz(f, Request{Op: Delete, IDs: wiretest.IDs(2), Buckets: []int64{60, 0}}, Request{Op: Retry, All: true}, Request{Op: Retry, Destination: "example.net"})
}

func FuzzDecodeReply(f *testing.F) {
	replies.Fuzz(f, Reply{}, Reply{Err: dsn.Errorf("4.3.0", "the disk"), Done: 7, Missing: wiretest.IDs(2)})
}
