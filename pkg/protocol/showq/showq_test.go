package showq

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"

	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
	"posthouse/pkg/wire/wiretest"
)

var (
	requests = wiretest.Codec[struct{}]{
		Encode: func(struct{}) []byte { return ipctest.Encode(func(m *ipc.Message) { m.Uint8(list) }) },
		Decode: func(b []byte) (struct{}, error) { return struct{}{}, DecodeRequest(b) },
		Max:    Protocol.MaxRequest,
	}
	entries = wiretest.Codec[*Entry]{
		Encode: func(e *Entry) []byte { return ipctest.Encode(func(m *ipc.Message) { EncodeEntry(m, e) }) },
		Decode: DecodeEntry,
		Max:    Protocol.MaxReply,
	}
)

// entry is an entry with everything.
func entry(t testing.TB) *Entry {
	return &Entry{
		Queue: Deferred, ID: queueid.New(wiretest.Time, 1), Size: 1000, Arrival: wiretest.Time, Next: wiretest.Time.Add(1e9),
		Sender: wiretest.Mailbox(t, "alice@example.org"), Recipients: []Recipient{
			{wiretest.Mailbox(t, "bob@example.net"), wiretest.Mailbox(t, "alias@example.org"), dsn.MustParse("4.4.1"), "timed out"},
			{Address: wiretest.Mailbox(t, "carol@example.net")},
		},
	}
}

func TestRequest(t *testing.T) {
	requests.Golden(t, "request", Protocol.Version, struct{}{})
	requests.Whole(t, "request", struct{}{})
	requests.RefusesOctets(t, "another question", []byte{list + 1})
}

func TestEntry(t *testing.T) {
	entries.Golden(t, "entry", Protocol.Version, entry(t))
	entries.Golden(t, "end", Protocol.Version, nil)
	entries.Whole(t, "entry", entry(t))
	entries.Whole(t, "end", nil)
	wiretest.Complete(t, entry(t))
	with := func(change func(*Entry)) *Entry {
		e := entry(t)
		change(e)
		return e
	}
	entries.Accepts(t, "an entry without recipients", with(func(e *Entry) { e.Recipients = nil }))
	entries.Limit(t, "recipients", MaxRecipients, func(n int) *Entry {
		return with(func(e *Entry) { e.Recipients = slices.Repeat(e.Recipients[:1], n) })
	})
	entries.Limit(t, "octets of reason", wire.MaxText, func(n int) *Entry {
		return with(func(e *Entry) { e.Recipients[0].Reason = wiretest.Text(n) })
	})
	entries.Enum(t, ".", "Queue", func(v uint8) *Entry { return with(func(e *Entry) { e.Queue = Queue(v) }) })
	entries.Refuses(t, "no ID", with(func(e *Entry) { e.ID = queueid.ID{} }))
	entries.Refuses(t, "a line break", with(func(e *Entry) { e.Recipients[0].Reason = "a\nb" }))
}

func TestQueue(t *testing.T) {
	for _, q := range wiretest.Constants(t, ".", "Queue") {
		if Queue(q).String() == "" {
			t.Errorf("queue %d has no name", q)
		}
	}
}

func TestClient(t *testing.T) {
	defer func(n int) { Protocol.MaxReply = n }(Protocol.MaxReply)
	Protocol.MaxReply = 1 << 20 // what is over it shall not take long
	ipctest.TestClient(t, ipctest.Dialogue{
		Protocol: Protocol,
		Turns:    [][]byte{nil, entries.Encode(entry(t)), entries.Encode(entry(t)), entries.Encode(nil)},
		Call: func(ctx context.Context, path string) (any, error) {
			return nil, List(ctx, path, func(*Entry) error { return nil })
		},
	})
}

// TestList: entries come in their order, and the listing ends where it is said
// to, or with the first error of who looks at it.
func TestList(t *testing.T) {
	path := ipctest.Serve(t, Protocol, func(c *ipc.Conn, msg []byte, _ *os.File) error {
		if err := DecodeRequest(msg); err != nil {
			return err
		}
		for i, id := range wiretest.IDs(3) {
			m := ipc.NewMessage()
			EncodeEntry(m, &Entry{ID: id, Size: int64(i)})
			if err := c.Send(m); err != nil {
				return err
			}
		}
		m := ipc.NewMessage()
		EncodeEntry(m, nil)
		return c.Send(m)
	})
	stop := errors.New("stop")
	for _, most := range []int{3, 2} {
		var got []queueid.ID
		err := List(t.Context(), path, func(e *Entry) error {
			if len(got) == most {
				return stop
			}
			got = append(got, e.ID)
			return nil
		})
		if !slices.Equal(got, wiretest.IDs(most)) || errors.Is(err, stop) != (most < 3) || most == 3 && err != nil {
			t.Errorf("%v, %v", got, err)
		}
	}
}

func FuzzDecodeRequest(f *testing.F) { requests.Fuzz(f, struct{}{}) }

func FuzzDecodeEntry(f *testing.F) { entries.Fuzz(f, nil, entry(f)) }
