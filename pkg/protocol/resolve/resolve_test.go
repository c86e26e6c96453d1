package resolve

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"posthouse/pkg/addr"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/wire/wiretest"
)

var (
	requests = wiretest.Codec[netip.Addr]{
		Encode: func(ip netip.Addr) []byte { return ipctest.Encode(func(m *ipc.Message) { EncodeRequest(m, ip) }) },
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
	for name, ip := range map[string]string{"ipv4": "192.0.2.1", "ipv6": "2001:db8::1", "mapped": "::ffff:192.0.2.1"} {
		requests.Golden(t, name, Protocol.Version, netip.MustParseAddr(ip))
		requests.Whole(t, name, netip.MustParseAddr(ip))
	}
	requests.Refuses(t, "no address", netip.Addr{})
	requests.Refuses(t, "a zone", netip.MustParseAddr("fe80::1%eth0"))
	requests.RefusesOctets(t, "another spelling", []byte("\x00\x00\x00\x0d2001:DB8::0:1"))
	requests.RefusesOctets(t, "a name", []byte("\x00\x00\x00\x09localhost"))
}

func TestReply(t *testing.T) {
	verified := Reply{Verified, "host.example"}
	replies.Golden(t, "verified", Protocol.Version, verified)
	replies.Whole(t, "verified", verified)
	wiretest.Complete(t, verified)
	replies.Enum(t, ".", "Outcome", func(v uint8) Reply {
		if Outcome(v) == Verified {
			return verified
		}
		return Reply{Outcome: Outcome(v)}
	})
	replies.Limit(t, "octets of name", addr.MaxDomain, func(n int) Reply {
		return Reply{Verified, strings.Repeat("d.", n/2-1) + wiretest.Text(n-2*(n/2-1))}
	})
	replies.Refuses(t, "verified without a name", Reply{Outcome: Verified})
	replies.Refuses(t, "a name that is not verified", Reply{Unknown, "host.example"})
	for _, name := range []string{"a b", "a..b", "-a", "a\nb", "a/../b", "a."} {
		replies.Refuses(t, name, Reply{Verified, name})
	}
}

func TestZeroReplyIsUnknown(t *testing.T) {
	if (Reply{}).Outcome != Unknown {
		t.Error("nothing is said, and something is known")
	}
}

func TestClient(t *testing.T) {
	ipctest.TestClient(t, ipctest.Dialogue{
		Protocol: Protocol,
		Turns:    [][]byte{nil, replies.Encode(Reply{Verified, "host.example"})},
		Call: func(ctx context.Context, path string) (any, error) {
			return NewClient(path).Name(ctx, netip.MustParseAddr("192.0.2.1"))
		},
	})
}

func FuzzDecodeRequest(f *testing.F) {
	requests.Fuzz(f, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("::ffff:192.0.2.1"))
}

func FuzzDecodeReply(f *testing.F) {
	replies.Fuzz(f, Reply{}, Reply{Verified, "host.example"}, Reply{Outcome: None})
}
