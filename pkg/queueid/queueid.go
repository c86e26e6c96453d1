// Package queueid names messages.
//
// An ID has 13 characters: 9 for the time of arrival in microseconds and 4
// that are random, in base 52 with an alphabet of digits and consonants whose
// ASCII order is its numeric order. So IDs sort by time, are unique over time
// and across nodes, spell no word, and contain nothing that means something in
// a path, a shell or a log parser.
package queueid

import (
	"fmt"
	"time"
)

const alphabet = "0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz"

const (
	timeLen = 9
	randLen = 4

	// Len is the number of characters of every ID.
	Len = timeLen + randLen
)

// digit has the value of each character of the alphabet, plus one.
var digit = func() (d [256]uint8) {
	for i := range len(alphabet) {
		d[alphabet[i]] = uint8(i + 1)
	}
	return d
}()

// ID is a checked queue ID. The zero value names no message.
type ID struct{ s string }

// String returns the 13 characters; "" for the zero ID.
func (id ID) String() string { return id.s }

// New makes the ID of a message that arrived at t, to the microsecond. random
// tells apart what arrives in the same microsecond, here or on another node.
// The caller keeps t growing from one ID to the next.
func New(t time.Time, random uint32) ID {
	var b [Len]byte
	put(b[:timeLen], uint64(t.UnixMicro()))
	put(b[timeLen:], uint64(random))
	return ID{string(b[:])}
}

func put(b []byte, n uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = alphabet[n%52]
		n /= 52
	}
}

// Parse checks the text form.
func Parse(s string) (ID, error) {
	if len(s) != Len {
		return ID{}, fmt.Errorf("malformed queue ID %.20q", s)
	}
	for i := range len(s) {
		if digit[s[i]] == 0 {
			return ID{}, fmt.Errorf("malformed queue ID %.20q", s)
		}
	}
	return ID{s}, nil
}

// Time returns the time of arrival.
func (id ID) Time() time.Time {
	var n int64
	if id.s == "" {
		return time.Time{}
	}
	for i := range timeLen {
		n = n*52 + int64(digit[id.s[i]]) - 1
	}
	return time.UnixMicro(n)
}
