// Package arrival is the protocol by which cleanup tells qmgr of messages that
// are in incoming/. There is no answer, and a notice may get lost: qmgr scans
// too.
//
// Trust: the client is cleanup. A notice makes qmgr look at a file of that name
// in incoming/, which it checks as any other; an ID without a file means nothing.
package arrival

import (
	"fmt"

	"posthouse/pkg/ipc"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
)

// Protocol is what the socket greets with.
var Protocol = ipc.Protocol{Name: "arrival", Version: 1, MaxRequest: 32 << 10}

// Path is where the server is; FIFOPath is its wake-up, on which one byte means
// "look".
const (
	Path     = "/run/posthouse/private/qmgr"
	FIFOPath = "/run/posthouse/public/qmgr"
)

// MaxIDs bounds a notice.
const MaxIDs = 1000

// Encode appends a notice to m.
func Encode(m *ipc.Message, ids []queueid.ID) {
	m.Uint32(uint32(len(ids)))
	for _, id := range ids {
		m.QueueID(id)
	}
}

// Decode reads a notice. On an error the result is nil.
func Decode(b []byte) ([]queueid.ID, error) {
	d := wire.NewDecoder(b)
	ids := make([]queueid.ID, 0, 16)
	for range d.Count(MaxIDs) {
		ids = append(ids, d.QueueID())
	}
	if err := d.End(); err != nil {
		return nil, fmt.Errorf("arrival notice: %w", err)
	}
	return ids, nil
}
