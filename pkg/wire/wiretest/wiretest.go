// Package wiretest tests encodings: each value has one, what is refused leaves
// nothing, and none changes by accident.
package wiretest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

// Codec is an encoding with both its ends. On an error the result of Decode is
// the zero value.
type Codec[T any] struct {
	Encode func(T) []byte
	Decode func([]byte) (T, error)
	Max    int // octets that a value may take; 0: any
}

var writeGolden = flag.Bool("write-golden", false, "write golden encodings that are missing")

// Golden compares the encoding of v with testdata/NAME.vVERSION.hex, octet for
// octet. A file that is there is never written again: whoever changes an
// encoding has to tell the versions apart, since daemons of both may meet, and
// files of both may exist. What is set nowhere in v may be missing in the
// encoding unnoticed: see Complete.
func (c Codec[T]) Golden(t *testing.T, name string, version uint8, v T) {
	t.Helper()
	got := hex.Dump(c.Encode(v))
	path := filepath.Join("testdata", fmt.Sprintf("%s.v%d.hex", name, version))
	want, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && *writeGolden {
		want = []byte(got)
		err = errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, want, 0o644))
	}
	if err != nil {
		t.Errorf("%s: %v; a new version takes a new golden encoding: go test -args -write-golden", name, err)
	} else if got != string(want) {
		t.Errorf("%s: the encoding has changed, which takes another version; got\n%swant\n%s", name, got, want)
	}
	c.Accepts(t, name, v)
}

// Whole checks that nothing is accepted of which v is a part, or which is a part
// of v.
func (c Codec[T]) Whole(t *testing.T, what string, v T) {
	t.Helper()
	b := c.Encode(v)
	for n := range b {
		c.RefusesOctets(t, fmt.Sprintf("%s, cut at %d,", what, n), b[:n])
	}
	c.RefusesOctets(t, what+" with an octet more", append(bytes.Clone(b), 0))
}

// Accepts checks that v fits, and is encoded and decoded to the same.
func (c Codec[T]) Accepts(t *testing.T, what string, v T) {
	t.Helper()
	b := c.Encode(v)
	if c.Max > 0 && len(b) > c.Max {
		t.Errorf("%s: %d octets, there is room for %d", what, len(b), c.Max)
	}
	got, err := c.Decode(b)
	if err != nil {
		t.Errorf("%s is refused: %v", what, err)
	} else if !reflect.DeepEqual(got, v) {
		t.Errorf("%s: got %s, want %s", what, clip(got), clip(v))
	}
}

// Refuses checks that the encoding of v is not taken for anything.
func (c Codec[T]) Refuses(t *testing.T, what string, v T) {
	t.Helper()
	c.RefusesOctets(t, what, c.Encode(v))
}

// RefusesOctets checks that b is not taken for anything.
func (c Codec[T]) RefusesOctets(t *testing.T, what string, b []byte) {
	t.Helper()
	if v, err := c.Decode(b); err == nil {
		t.Errorf("%s is accepted as %s", what, clip(v))
	} else if !isZero(v) {
		t.Errorf("%s: %v, and yet %s", what, err, clip(v))
	}
}

// clip is enough of v to know it again.
func clip(v any) string { return fmt.Sprintf("%.1000s", fmt.Sprintf("%+v", v)) }

func isZero(v any) bool { return v == nil || reflect.ValueOf(v).IsZero() }

// Limit checks that a value with n of something is accepted up to the limit.
func (c Codec[T]) Limit(t *testing.T, what string, limit int, with func(n int) T) {
	t.Helper()
	c.Accepts(t, fmt.Sprintf("%d %s", limit, what), with(limit))
	c.Refuses(t, fmt.Sprintf("%d %s", limit+1, what), with(limit+1))
}

// Enum checks that exactly the values are accepted that are declared as
// constants of the type typ in the package in dir: a decoder's idea of the last
// one must not stay behind.
func (c Codec[T]) Enum(t *testing.T, dir, typ string, with func(v uint8) T) {
	t.Helper()
	declared := Constants(t, dir, typ)
	for v := range 256 {
		if what := fmt.Sprintf("%s %d", typ, v); slices.Contains(declared, uint8(v)) {
			c.Accepts(t, what, with(uint8(v)))
		} else {
			c.Refuses(t, what, with(uint8(v)))
		}
	}
}

// Fuzz checks that whatever is accepted encodes to the same octets, and that
// nothing is left of what is refused.
func (c Codec[T]) Fuzz(f *testing.F, seeds ...T) {
	f.Add([]byte{})
	for _, v := range seeds {
		f.Add(c.Encode(v))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		v, err := c.Decode(bytes.Clone(in))
		switch {
		case err != nil && !isZero(v):
			t.Fatalf("%v, and yet %+v", err, v)
		case err == nil && !bytes.Equal(c.Encode(v), in):
			t.Fatalf("%x is accepted as %+v, which is %x", in, v, c.Encode(v))
		}
	})
}
