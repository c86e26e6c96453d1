package cleanup

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
	"posthouse/pkg/wire/wiretest"
)

var (
	requests = wiretest.Codec[Request]{Encode: encode, Decode: DecodeRequest, Max: Protocol.MaxRequest}
	replies  = wiretest.Codec[Reply]{
		Encode: func(r Reply) []byte { return ipctest.Encode(r.Encode) },
		Decode: DecodeReply,
		Max:    Protocol.MaxReply,
	}
)

func encode(r Request) []byte {
	return ipctest.Encode(func(m *ipc.Message) {
		if r.Kind == KindBegin && r.Envelope != nil {
			EncodeBegin(m, r.Envelope)
			return
		}
		m.Uint8(uint8(r.Kind))
		m.Raw(r.Data)
	})
}

// full is an envelope with everything.
func full(t testing.TB) *envelope.Envelope {
	return &envelope.Envelope{
		Arrival: wiretest.Time, Sender: wiretest.Mailbox(t, "alice@example.org"), Return: dsn.ReturnHeaders, EnvID: "an id",
		Body: envelope.Body8BitMIME, SMTPUTF8: true, Recipients: wiretest.Recipients(t), Trace: envelope.Trace{
			Origin: envelope.FromLocal, Protocol: "ESMTP", Helo: "h.example", ClientName: "c.example",
			ClientAddr: netip.MustParseAddr("192.0.2.1"), UID: 1000,
		},
	}
}

func TestRequest(t *testing.T) {
	begin, data, end := Request{Kind: KindBegin, Envelope: full(t)}, Request{Kind: KindData, Data: []byte("a\r\n")}, Request{Kind: KindEnd, Data: []byte("b\r\n")}
	for name, r := range map[string]Request{"begin": begin, "data": data, "end": end} {
		requests.Golden(t, name, Protocol.Version, r)
	}
	wiretest.Complete(t, begin, data)
	requests.Whole(t, "begin", begin)
	requests.RefusesOctets(t, "nothing", nil)
	requests.Enum(t, ".", "Kind", func(v uint8) Request {
		if Kind(v) == KindBegin {
			return begin
		}
		return Request{Kind: Kind(v), Data: []byte("a\r\n")}
	})
	requests.Limit(t, "recipients", envelope.MaxRecipients, func(n int) Request {
		r := Request{Kind: KindBegin, Envelope: full(t)}
		r.Envelope.Recipients = slices.Repeat(wiretest.Recipients(t)[:1], n)
		return r
	})
}

func TestReply(t *testing.T) {
	taken, refused := Reply{ID: wiretest.IDs(1)[0]}, Reply{Err: dsn.Errorf("5.3.4", "too big")}
	for name, r := range map[string]Reply{"taken": taken, "refused": refused} {
		replies.Golden(t, name, Protocol.Version, r)
		replies.Whole(t, name, r)
	}
	wiretest.Complete(t, taken, refused)
	replies.Limit(t, "octets of reason", wire.MaxText, func(n int) Reply { return Reply{Err: dsn.Errorf("5.3.4", "%s", wiretest.Text(n))} })
	replies.Refuses(t, "neither an ID nor a refusal", Reply{})
	replies.Refuses(t, "a success as a refusal", Reply{Err: dsn.Errorf("2.0.0", "fine")})
}

// submit sends one message.
func submit(ctx context.Context, t testing.TB, c *Client, content string) (*Transaction, error) {
	tr, err := c.Begin(ctx, full(t))
	if err != nil {
		return tr, err
	}
	defer tr.Abort()
	if _, err := tr.Write([]byte(content)); err != nil {
		return nil, err
	}
	if err := tr.Commit(); err != nil {
		return nil, err
	}
	return tr, nil
}

func TestClient(t *testing.T) {
	taken := replies.Encode(Reply{ID: wiretest.IDs(1)[0]})
	ipctest.TestClient(t, ipctest.Dialogue{
		Protocol: Protocol,
		Turns:    [][]byte{nil, taken, nil, taken},
		Call: func(ctx context.Context, path string) (any, error) {
			return submit(ctx, t, NewClient(path), "x\r\n")
		},
	})
}

// TestTooMany: what pickup would not read is not sent.
func TestTooMany(t *testing.T) {
	e := full(t)
	e.Recipients = slices.Repeat(wiretest.Recipients(t)[:1], 1+SubmitProtocol.MaxRequest/8)
	var refused *dsn.Error
	if _, err := NewSubmitClient("/nowhere").Begin(t.Context(), e); !errors.As(err, &refused) || refused.Status.String() != "5.5.3" {
		t.Errorf("%v", err)
	}
	var off *ipc.UnavailableError
	if _, err := NewSubmitClient("/nowhere").Begin(t.Context(), full(t)); !errors.As(err, &off) {
		t.Errorf("%v", err)
	}
}

// queue is a server that keeps to the protocol, with what it has been sent.
type queue struct {
	begin, end Reply
	content    chan string // of messages that were ended

	mu       sync.Mutex
	messages map[*ipc.Conn]*strings.Builder
}

func (q *queue) connections() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.messages)
}

// message is what has come of the message on c.
func (q *queue) message(c *ipc.Conn) *strings.Builder {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.messages[c] == nil {
		q.messages[c] = &strings.Builder{}
	}
	return q.messages[c]
}

func (q *queue) serve(t *testing.T) *Client {
	q.content, q.messages = make(chan string, 10), make(map[*ipc.Conn]*strings.Builder)
	return NewClient(ipctest.Serve(t, Protocol, func(c *ipc.Conn, msg []byte, _ *os.File) error {
		r, err := DecodeRequest(msg)
		if err != nil {
			return err
		}
		content, m := q.message(c), ipc.NewMessage()
		content.Write(r.Data)
		switch r.Kind {
		case KindBegin:
			content.Reset()
			q.begin.Encode(m)
		case KindEnd:
			q.content <- content.String()
			q.end.Encode(m)
		case KindData:
			return nil
		}
		return c.Send(m)
	}))
}

// TestTransaction: content of any size arrives as it is, one message after the
// other on one connection.
func TestTransaction(t *testing.T) {
	reply := Reply{ID: wiretest.IDs(1)[0]}
	q := &queue{begin: reply, end: reply}
	client := q.serve(t)
	for _, size := range []int{0, 1, ipc.MaxChunk - 2, ipc.MaxChunk - 1, ipc.MaxChunk, 3*ipc.MaxChunk + 7} {
		want := strings.Repeat("x", size)
		tr, err := submit(t.Context(), t, client, want)
		if err != nil || tr.ID != reply.ID {
			t.Fatalf("%d octets: %v, %v", size, tr, err)
		}
		if got := <-q.content; got != want {
			t.Errorf("%d octets: got %d", size, len(got))
		}
	}
	if n := q.connections(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestVerdicts: a refusal is a verdict, and the connection is good for another
// message; an answer about another message is none, and the connection is not.
func TestVerdicts(t *testing.T) {
	reply, other, refusal := Reply{ID: wiretest.IDs(1)[0]}, Reply{ID: wiretest.IDs(2)[1]}, Reply{Err: dsn.Errorf("5.3.4", "too big")}
	for _, tt := range []struct {
		name        string
		begin, end  Reply
		verdict     bool
		connections int
	}{
		{"refused at once", refusal, reply, true, 1},
		{"refused at the end", reply, refusal, true, 1},
		{"another message", reply, other, false, 2},
	} {
		q := &queue{begin: tt.begin, end: tt.end}
		client := q.serve(t)
		for range 2 {
			_, err := submit(t.Context(), t, client, "x\r\n")
			var verdict *dsn.Error
			if err == nil || errors.As(err, &verdict) != tt.verdict {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
		if n := q.connections(); n != tt.connections {
			t.Errorf("%s: %d connections", tt.name, n)
		}
	}
}

// TestAbort: a message that is given up is not ended, nor is anything sent on
// its connection any more.
func TestAbort(t *testing.T) {
	reply := Reply{ID: queueid.New(wiretest.Time, 1)}
	q := &queue{begin: reply, end: reply}
	client := q.serve(t)
	tr, err := client.Begin(t.Context(), full(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Write([]byte("x\r\n")); err != nil {
		t.Fatal(err)
	}
	tr.Abort()
	tr.Abort()
	if _, err := submit(t.Context(), t, client, "y\r\n"); err != nil {
		t.Fatal(err)
	}
	if got := <-q.content; got != "y\r\n" || q.connections() != 2 {
		t.Errorf("%q on %d connections", got, q.connections())
	}
}

func FuzzDecodeRequest(f *testing.F) {
	requests.Fuzz(f, Request{Kind: KindBegin, Envelope: full(f)}, Request{Kind: KindData, Data: []byte("a\r\n")}, Request{Kind: KindEnd})
}

func FuzzDecodeReply(f *testing.F) {
	replies.Fuzz(f, Reply{ID: wiretest.IDs(1)[0]}, Reply{Err: dsn.Errorf("5.3.4", "too big")})
}
