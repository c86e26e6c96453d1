package rewrite

import (
	"context"
	"os"
	"slices"
	"testing"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/wire"
	"posthouse/pkg/wire/wiretest"
)

var (
	requests = wiretest.Codec[Request]{
		Encode: func(r Request) []byte { return ipctest.Encode(r.Encode) },
		Decode: DecodeRequest,
		Max:    Protocol.MaxRequest,
	}
	lists = wiretest.Codec[[]Answer]{
		Encode: func(a []Answer) []byte { return ipctest.Encode(func(m *ipc.Message) { EncodeAnswers(m, a) }) },
		Decode: DecodeAnswers,
		Max:    Protocol.MaxReply,
	}
)

func request(t testing.TB) Request {
	return Request{Op: Resolve, Sender: wiretest.Mailbox(t, "alice@example.org"), Addresses: []addr.Mailbox{
		wiretest.Mailbox(t, "bob@example.net"), wiretest.Mailbox(t, `"a b"@[192.0.2.1]`),
	}}
}

func TestRequest(t *testing.T) {
	requests.Golden(t, "request", Protocol.Version, request(t))
	requests.Whole(t, "request", request(t))
	wiretest.Complete(t, request(t))
	requests.Accepts(t, "a question about nothing", Request{Op: Verify})
	requests.Limit(t, "addresses", MaxAddresses, func(n int) Request {
		return Request{Op: Expand, Sender: wiretest.Longest(t), Addresses: slices.Repeat([]addr.Mailbox{wiretest.Longest(t)}, n)}
	})
	requests.Enum(t, ".", "Op", func(v uint8) Request {
		r := request(t)
		r.Op = Op(v)
		return r
	})
	requests.RefusesOctets(t, "a domain without a local-part", []byte("\x01\x00\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x00\x00"))
}

// answers are answers with everything, of which the first has everything but a
// refusal.
func answers(t testing.TB) []Answer {
	return []Answer{
		{Class: ClassVirtual, Transport: "virtual", Nexthop: "example.net", Addresses: []addr.Mailbox{
			wiretest.Mailbox(t, "bob@example.net"), wiretest.Mailbox(t, "carol@example.net"),
		}, Unverified: true},
		{Err: dsn.Errorf("5.1.1", "User unknown"), Class: ClassRelay},
	}
}

func TestAnswers(t *testing.T) {
	lists.Golden(t, "answers", Protocol.Version, answers(t))
	lists.Whole(t, "answers", answers(t))
	wiretest.Complete(t, answers(t))
	with := func(change func(*Answer)) []Answer {
		list := answers(t)
		change(&list[0])
		return list
	}
	bob := wiretest.Mailbox(t, "bob@example.net")
	lists.Limit(t, "answers", MaxAddresses, func(n int) []Answer {
		return slices.Repeat([]Answer{{
			Err: dsn.Errorf("4.3.0", "%s", wiretest.Text(wire.MaxText)), Transport: wiretest.Text(MaxTransport), Nexthop: wiretest.Text(MaxNexthop),
			Addresses: []addr.Mailbox{wiretest.Longest(t)},
		}}, n)
	})
	lists.Limit(t, "addresses in an answer", MaxExpansion, func(n int) []Answer {
		return with(func(a *Answer) { a.Addresses = slices.Repeat([]addr.Mailbox{bob}, n) })
	})
	longest := with(func(a *Answer) { a.Addresses = slices.Repeat([]addr.Mailbox{wiretest.Longest(t)}, MaxExpansion) })
	if n := len(lists.Encode(longest)); n > lists.Max {
		t.Errorf("an answer of %d octets", n)
	}
	lists.Limit(t, "octets of transport", MaxTransport, func(n int) []Answer { return with(func(a *Answer) { a.Transport = wiretest.Text(n) }) })
	lists.Limit(t, "octets of next hop", MaxNexthop, func(n int) []Answer { return with(func(a *Answer) { a.Nexthop = wiretest.Text(n) }) })
	lists.Enum(t, ".", "Class", func(v uint8) []Answer { return with(func(a *Answer) { a.Class = Class(v) }) })
	lists.Refuses(t, "a success as a refusal", with(func(a *Answer) { a.Err = dsn.Errorf("2.0.0", "fine") }))
	lists.Refuses(t, "a line break", with(func(a *Answer) { a.Nexthop = "a\nb" }))
	lists.Accepts(t, "the null address", with(func(a *Answer) { a.Addresses = []addr.Mailbox{bob, {}} }))
}

func TestClass(t *testing.T) {
	for _, c := range wiretest.Constants(t, ".", "Class") {
		if Class(c).String() == "" {
			t.Errorf("class %d has no word", c)
		}
	}
	if (Answer{}).Class != ClassDefault {
		t.Error("nothing is said, and somebody is relayed for")
	}
}

func TestClient(t *testing.T) {
	defer func(n int) { Protocol.MaxReply = n }(Protocol.MaxReply)
	Protocol.MaxReply = 1 << 20 // what is over it shall not take long
	call := func(ctx context.Context, path string) (any, error) { return NewClient(path).Ask(ctx, request(t)) }
	ipctest.TestClient(t, ipctest.Dialogue{Protocol: Protocol, Turns: [][]byte{nil, lists.Encode(answers(t))}, Call: call})
	for _, n := range []int{0, 1, 3} {
		list := slices.Repeat([]Answer{{}}, n)
		path := ipctest.Serve(t, Protocol, func(c *ipc.Conn, _ []byte, _ *os.File) error {
			m := ipc.NewMessage()
			EncodeAnswers(m, list)
			return c.Send(m)
		})
		if got, err := NewClient(path).Ask(t.Context(), request(t)); err == nil || got != nil {
			t.Errorf("%d answers to two questions: %v, %v", n, got, err)
		}
	}
}

func FuzzDecodeRequest(f *testing.F) { requests.Fuzz(f, request(f)) }

func FuzzDecodeAnswers(f *testing.F) { lists.Fuzz(f, nil, answers(f)) }
