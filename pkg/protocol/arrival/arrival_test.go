package arrival

import (
	"testing"

	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire/wiretest"
)

var notices = wiretest.Codec[[]queueid.ID]{
	Encode: func(ids []queueid.ID) []byte { return ipctest.Encode(func(m *ipc.Message) { Encode(m, ids) }) },
	Decode: Decode,
	Max:    Protocol.MaxRequest,
}

func TestNotice(t *testing.T) {
	notices.Golden(t, "notice", Protocol.Version, wiretest.IDs(2))
	notices.Whole(t, "notice", wiretest.IDs(2))
	notices.Limit(t, "IDs", MaxIDs, wiretest.IDs)
	notices.Refuses(t, "no ID", []queueid.ID{{}})
	notices.RefusesOctets(t, "path", []byte("\x00\x00\x00\x01\x00\x00\x00\x0d../../etc/pas"))
	notices.RefusesOctets(t, "a long list without its end", []byte("\x00\x00\x03\xe8\x00"))
}

func FuzzDecode(f *testing.F) { notices.Fuzz(f, nil, wiretest.IDs(2)) }
