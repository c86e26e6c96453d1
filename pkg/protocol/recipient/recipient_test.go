package recipient

import (
	"context"
	"testing"

	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/wire/wiretest"
)

var (
	requests = wiretest.Codec[[]string]{
		Encode: func(l []string) []byte { return ipctest.Encode(func(m *ipc.Message) { EncodeRequest(m, l) }) },
		Decode: DecodeRequest,
		Max:    Protocol.MaxRequest,
	}
	replies = wiretest.Codec[[]Outcome]{
		Encode: func(l []Outcome) []byte { return ipctest.Encode(func(m *ipc.Message) { EncodeReply(m, l) }) },
		Decode: DecodeReply,
		Max:    Protocol.MaxReply,
	}
)

func TestRequest(t *testing.T) {
	list := []string{"alice", "bob+list", ""}
	requests.Golden(t, "request", Protocol.Version, list)
	requests.Whole(t, "request", list)
	requests.Limit(t, "local-parts", MaxLocalParts, func(n int) []string { return make([]string, n) })
	requests.Limit(t, "octets of a local-part", maxLocalPart, func(n int) []string { return []string{wiretest.Text(n)} })
	requests.Refuses(t, "a control character", []string{"a\nb"})
}

func TestReply(t *testing.T) {
	list := []Outcome{Alias, Account, None, Unknown}
	replies.Golden(t, "reply", Protocol.Version, list)
	replies.Whole(t, "reply", list)
	replies.Enum(t, ".", "Outcome", func(v uint8) []Outcome { return []Outcome{Outcome(v)} })
	replies.Limit(t, "outcomes", MaxLocalParts, func(n int) []Outcome { return make([]Outcome, n) })
}

func TestClient(t *testing.T) {
	ipctest.TestClient(t, ipctest.Dialogue{
		Protocol: Protocol,
		Turns:    [][]byte{nil, replies.Encode([]Outcome{Account})},
		Call: func(ctx context.Context, path string) (any, error) {
			return NewClient(path).Ask(ctx, []string{"alice"})
		},
	})
}

func FuzzDecodeRequest(f *testing.F) { requests.Fuzz(f, nil, []string{"alice"}) }

func FuzzDecodeReply(f *testing.F) { replies.Fuzz(f, nil, []Outcome{Alias, None}) }
