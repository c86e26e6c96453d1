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
	pages = wiretest.Codec[Page]{
		Encode: func(p Page) []byte { return ipctest.Encode(p.Encode) },
		Decode: DecodePage,
		Max:    Protocol.MaxReply,
	}
)

// entry is an entry with everything.
func entry(t testing.TB) Entry {
	return Entry{
		Queue: Deferred, ID: queueid.New(wiretest.Time, 1), Bucket: 1790000040, Size: 1000, Arrival: wiretest.Time, Next: wiretest.Time.Add(1e9),
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

func TestPage(t *testing.T) {
	page := func(e ...Entry) Page { return Page{Entries: e} }
	two, end := page(entry(t), Entry{Queue: Hold, ID: queueid.New(wiretest.Time, 2)}), Page{Last: true}
	pages.Golden(t, "page", Protocol.Version, two)
	pages.Golden(t, "end", Protocol.Version, end)
	pages.Whole(t, "page", two)
	pages.Whole(t, "end", end)
	wiretest.Complete(t, two, end)
	with := func(change func(*Entry)) Page {
		e := entry(t)
		change(&e)
		return page(entry(t), e)
	}
	pages.Accepts(t, "an entry without recipients", with(func(e *Entry) { e.Recipients = nil }))
	pages.Limit(t, "entries", MaxEntries, func(n int) Page { return page(slices.Repeat([]Entry{{ID: queueid.New(wiretest.Time, 2)}}, n)...) })
	pages.Limit(t, "recipients", MaxRecipients, func(n int) Page {
		return with(func(e *Entry) { e.Recipients = slices.Repeat(e.Recipients[:1], n) })
	})
	pages.Limit(t, "octets of reason", wire.MaxText, func(n int) Page {
		return with(func(e *Entry) { e.Recipients[0].Reason = wiretest.Text(n) })
	})
	pages.Enum(t, ".", "Queue", func(v uint8) Page { return with(func(e *Entry) { e.Queue = Queue(v) }) })
	pages.Refuses(t, "no ID", with(func(e *Entry) { e.ID = queueid.ID{} }))
	pages.Refuses(t, "a bucket before all time", with(func(e *Entry) { e.Bucket = -1 }))
	pages.Refuses(t, "a line break", with(func(e *Entry) { e.Recipients[0].Reason = "a\nb" }))
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
		Turns:    [][]byte{nil, pages.Encode(Page{Entries: []Entry{entry(t)}}), pages.Encode(Page{Entries: []Entry{entry(t), entry(t)}}), pages.Encode(Page{Last: true})},
		Call: func(ctx context.Context, path string) (any, error) {
			return nil, List(ctx, path, func([]Entry) error { return nil })
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
		ids := wiretest.IDs(3)
		for _, p := range []Page{{Entries: []Entry{{ID: ids[0]}, {ID: ids[1]}}}, {Entries: []Entry{{ID: ids[2]}}, Last: true}} {
			m := ipc.NewMessage()
			p.Encode(m)
			if err := c.Send(m); err != nil {
				return err
			}
		}
		return nil
	})
	stop := errors.New("stop")
	for _, most := range []int{3, 2} {
		var got []queueid.ID
		err := List(t.Context(), path, func(list []Entry) error {
			if len(got) == most {
				return stop
			}
			for i := range list {
				got = append(got, list[i].ID)
			}
			return nil
		})
		if !slices.Equal(got, wiretest.IDs(most)) || errors.Is(err, stop) != (most < 3) || most == 3 && err != nil {
			t.Errorf("%v, %v", got, err)
		}
	}
}

func FuzzDecodeRequest(f *testing.F) { requests.Fuzz(f, struct{}{}) }

func FuzzDecodePage(f *testing.F) {
	pages.Fuzz(f, Page{Last: true}, Page{Entries: []Entry{entry(f), entry(f)}})
}
