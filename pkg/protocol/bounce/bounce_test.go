package bounce

import (
	"context"
	"net/netip"
	"os"
	"testing"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
	"posthouse/pkg/wire/wiretest"
)

var (
	requests = wiretest.Codec[*Request]{
		Encode: func(r *Request) []byte { return ipctest.Encode(r.Encode) },
		Decode: DecodeRequest,
		Max:    Protocol.MaxRequest,
	}
	replies = wiretest.Codec[Reply]{
		Encode: func(r Reply) []byte { return ipctest.Encode(r.Encode) },
		Decode: DecodeReply,
		Max:    Protocol.MaxReply,
	}
)

// request is a request with everything.
func request(t testing.TB) *Request {
	r := &Request{
		Kind: Delay, QueueID: queueid.New(wiretest.Time, 1), Offset: 200, Length: 1000, Expires: wiretest.Time,
		Envelope: envelope.Envelope{
			Arrival: wiretest.Time, Sender: wiretest.Mailbox(t, "alice@example.org"), Return: dsn.ReturnHeaders, EnvID: "an id",
			Body: envelope.Body8BitMIME, SMTPUTF8: true, Trace: envelope.Trace{
				Origin: envelope.FromLocal, Protocol: "ESMTP", Helo: "h.example", ClientName: "c.example",
				ClientAddr: netip.MustParseAddr("192.0.2.1"), UID: 1000,
			},
		},
	}
	for _, rcpt := range wiretest.Recipients(t) {
		r.Recipients = append(r.Recipients, Recipient{rcpt, delivery.Result{
			Status: dsn.MustParse("4.4.1"), Text: "timed out", RemoteMTA: "mx.example", Diagnostic: "450 4.4.1 later", Relayed: true,
		}})
	}
	return r
}

func TestRequest(t *testing.T) {
	r := request(t)
	requests.Golden(t, "request", Protocol.Version, r)
	requests.Whole(t, "request", r)
	wiretest.Complete(t, withRecipients(t, r))
	requests.Limit(t, "recipients", MaxRecipients, func(n int) *Request {
		r := request(t)
		r.Recipients = nil
		for _, rcpt := range wiretest.LongRecipients(t, n) {
			r.Recipients = append(r.Recipients, Recipient{rcpt, delivery.Result{
				Text: wiretest.Text(wire.MaxText), RemoteMTA: wiretest.Text(512), Diagnostic: wiretest.Text(wire.MaxText),
			}})
		}
		return r
	})
	requests.Enum(t, ".", "Kind", func(v uint8) *Request {
		r := request(t)
		r.Kind = Kind(v)
		return r
	})
	for what, spoil := range map[string]func(*Request){
		"no queue ID":                func(r *Request) { r.QueueID = queueid.ID{} },
		"negative offset":            func(r *Request) { r.Offset = -1 },
		"negative length":            func(r *Request) { r.Length = -1 },
		"no recipient":               func(r *Request) { r.Recipients = nil },
		"recipients in the envelope": func(r *Request) { r.Envelope.Recipients = wiretest.Recipients(t) },
		"line break":                 func(r *Request) { r.Recipients[1].Text = "a\nStatus: 2.0.0" },
	} {
		r := request(t)
		spoil(r)
		requests.Refuses(t, what, r)
	}
}

// withRecipients is r with recipients in its envelope, which has none when it
// travels.
func withRecipients(t *testing.T, r *Request) Request {
	full := *r
	full.Envelope.Recipients = wiretest.Recipients(t)
	return full
}

func TestReply(t *testing.T) {
	queued, put := Reply{ID: "0123456789BCD"}, Reply{Err: dsn.Errorf("4.3.1", "no space")}
	for name, r := range map[string]Reply{"queued": queued, "put-off": put} {
		replies.Golden(t, name, Protocol.Version, r)
		replies.Whole(t, name, r)
	}
	wiretest.Complete(t, queued, put)
	replies.Accepts(t, "nobody is told", Reply{})
	replies.Limit(t, "octets of reason", wire.MaxText, func(n int) Reply {
		return Reply{Err: dsn.Errorf("4.3.1", "%s", wiretest.Text(n)), ID: "0123456789BCD"}
	})
	replies.Limit(t, "octets of ID", queueid.Len, func(n int) Reply { return Reply{ID: wiretest.Text(n)} })
	replies.Refuses(t, "a success as a refusal", Reply{Err: dsn.Errorf("2.0.0", "fine")})
	replies.Refuses(t, "a control character", Reply{ID: "\x1b[2J"})
}

func TestClient(t *testing.T) {
	file, err := os.Open("bounce.go")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ipctest.TestClient(t, ipctest.Dialogue{
		Protocol: Protocol,
		Turns:    [][]byte{nil, replies.Encode(Reply{ID: "0123456789BCD"})},
		Call: func(ctx context.Context, path string) (any, error) {
			return NewClient(path).Notify(ctx, request(t), file)
		},
	})
}

func FuzzDecodeRequest(f *testing.F) { requests.Fuzz(f, request(f)) }

func FuzzDecodeReply(f *testing.F) {
	replies.Fuzz(f, Reply{}, Reply{ID: "0123456789BCD"}, Reply{Err: dsn.Errorf("4.3.1", "no space")})
}
