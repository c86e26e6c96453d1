package deliver

import (
	"context"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc/ipctest"
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

func request() *Request {
	return &Request{
		Head: Head{Forward, "alice"}, Files: []string{".forward+x", ".forward"}, Else: Mailbox, Path: "Maildir/", Limit: 1 << 20,
		Command: "exec procmail", Env: []string{"SENDER=a@b"}, Timeout: time.Minute,
		From: "s@example.org", Arrival: time.UnixMicro(1_700_000_000_123_456), Prefix: "Delivered-To: alice@example.org\n",
		Offset: 100, Length: 2000,
	}
}

func TestRequest(t *testing.T) {
	requests.Golden(t, "request", Protocol.Version, request())
	requests.Whole(t, "request", request())
	wiretest.Complete(t, request())
	with := func(change func(r *Request)) *Request {
		r := request()
		change(r)
		return r
	}
	requests.Limit(t, "octets of a name", MaxUser, func(n int) *Request {
		// One that is longer is cut off by the form.
		if n > MaxUser {
			return with(func(r *Request) { r.User = "" })
		}
		return with(func(r *Request) { r.User = strings.Repeat("u", n) })
	})
	requests.Limit(t, "files", MaxFiles, func(n int) *Request {
		return with(func(r *Request) { r.Files = make([]string, n) })
	})
	requests.Limit(t, "variables", MaxEnv, func(n int) *Request {
		return with(func(r *Request) { r.Env = make([]string, n) })
	})
	requests.Limit(t, "octets of a command", MaxCommand, func(n int) *Request {
		return with(func(r *Request) { r.Command = wiretest.Text(n) })
	})
	requests.Limit(t, "octets of a path", MaxPath, func(n int) *Request {
		return with(func(r *Request) { r.Path = wiretest.Text(n) })
	})
	requests.Limit(t, "octets before the message", MaxPrefix, func(n int) *Request {
		return with(func(r *Request) { r.Prefix = wiretest.Text(n) })
	})
	requests.Accepts(t, "nothing else", with(func(r *Request) { r.Else = 0 }))
	requests.Accepts(t, "the spool else", with(func(r *Request) { r.Else = Spool }))
	for what, change := range map[string]func(r *Request){
		"a command else":   func(r *Request) { r.Else = Command },
		"another else":     func(r *Request) { r.Else = Forward },
		"an else of Spool": func(r *Request) { r.Kind = Spool },
		"kind 0":           func(r *Request) { r.Kind = 0 },
		"kind 5":           func(r *Request) { r.Kind = Make + 1 },
		"a path for name":  func(r *Request) { r.User = "../root" },
		"an option":        func(r *Request) { r.User = "-u" },
		"a NUL in a name":  func(r *Request) { r.User = "a\x00b" },
		"a NUL in a path":  func(r *Request) { r.Path = "a\x00b" },
		"a NUL in command": func(r *Request) { r.Command = "a\x00b" },
		"a NUL in a file":  func(r *Request) { r.Files[1] = "\x00" },
		"a NUL in env":     func(r *Request) { r.Env[0] = "A=\x00" },
		"negative limit":   func(r *Request) { r.Limit = -1 },
		"negative timeout": func(r *Request) { r.Timeout = -1 },
		"negative offset":  func(r *Request) { r.Offset = -1 },
		"negative length":  func(r *Request) { r.Length = -1 },
		"lines for From":   func(r *Request) { r.From = "a\nb" },
	} {
		requests.Refuses(t, what, with(change))
	}
	for n := range HeadLen {
		requests.RefusesOctets(t, "a cut head", requests.Encode(request())[:n])
	}
}

func TestReply(t *testing.T) {
	read := Reply{dsn.MustParse("2.0.0"), "read", false, true, ".forward", "\\alice, \"|procmail\"\n"}
	replies.Golden(t, "reply", Protocol.Version, read)
	replies.Whole(t, "reply", read)
	read.Else = true
	wiretest.Complete(t, read)
	replies.Refuses(t, "a file that is there and is not", read)
	replies.Golden(t, "reply-else", Protocol.Version, Reply{Status: dsn.MustParse("2.0.0"), Text: "delivered to mailbox", Else: true})
	replies.Accepts(t, "the zero value", Reply{})
	replies.Limit(t, "octets of text", wire.MaxText, func(n int) Reply { return Reply{Text: wiretest.Text(n)} })
	replies.Limit(t, "octets of a file", MaxForward, func(n int) Reply { return Reply{Found: true, Forward: wiretest.Text(n)} })
	replies.Refuses(t, "what is not there has a name", Reply{Name: ".forward"})
	replies.Refuses(t, "what is not there has content", Reply{Forward: "bob"})
}

func TestClient(t *testing.T) {
	defer func(d time.Duration) { Protocol.Grace = d }(Protocol.Grace)
	Protocol.Grace = time.Millisecond // a silent server shall not take long
	ipctest.TestClient(t, ipctest.Dialogue{
		Protocol: Protocol,
		Turns:    [][]byte{nil, replies.Encode(Reply{Status: dsn.MustParse("2.0.0")})},
		Call: func(ctx context.Context, path string) (any, error) {
			return NewClient(path).Do(ctx, request(), nil)
		},
	})
}

func FuzzDecodeRequest(f *testing.F) { requests.Fuzz(f, request()) }

func FuzzDecodeReply(f *testing.F) {
	replies.Fuzz(f, Reply{}, Reply{Status: dsn.MustParse("2.0.0"), Found: true, Name: ".forward", Forward: "bob\n"}, Reply{Else: true})
}

// FuzzDecodeHead: what is accepted has one spelling, and is a name that means
// nothing to a path.
func FuzzDecodeHead(f *testing.F) {
	f.Add(requests.Encode(request()))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, rest, err := DecodeHead(b)
		if err != nil {
			if h != (Head{}) || rest != nil {
				t.Errorf("%v, and still %+v", err, h)
			}
			return
		}
		again := append([]byte{byte(h.Kind)}, h.User...)
		again = append(again, make([]byte, HeadLen-len(again))...)
		if string(append(again, rest...)) != string(b) || strings.ContainsAny(h.User, "/\x00\n ") {
			t.Errorf("%q of %q", h.User, b)
		}
	})
}
