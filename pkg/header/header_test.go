package header

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// split feeds in in pieces of step octets.
func split(in string, limit, step int) (fields []string, body string, s *Splitter, err error) {
	s = NewSplitter(limit)
	each := func(f Field) error {
		fields = append(fields, string(f.Raw))
		return nil
	}
	for len(in) > 0 && !s.Done() {
		n := min(step, len(in))
		var b []byte
		if b, err = s.Feed([]byte(in[:n]), each); err != nil {
			return fields, "", s, err
		}
		body += string(b)
		in = in[n:]
	}
	b, err := s.Close(each)
	return fields, body + string(b) + in, s, err
}

func TestSplitter(t *testing.T) {
	tests := []struct {
		name, in string
		fields   []string
		body     string
		blank    bool
	}{
		{name: "empty"},
		{name: "usual", in: "A: 1\r\nB: 2\r\n\r\nbody\r\n", fields: []string{"A: 1\r\n", "B: 2\r\n"}, body: "body\r\n", blank: true},
		{name: "folded", in: "A: 1\r\n 2\r\n\t3\r\nB:\r\n\r\nx", fields: []string{"A: 1\r\n 2\r\n\t3\r\n", "B:\r\n"}, body: "x", blank: true},
		{name: "LF", in: "A: 1\n 2\nB: 3\n\nx\n", fields: []string{"A: 1\n 2\n", "B: 3\n"}, body: "x\n", blank: true},
		{name: "no body", in: "A: 1\r\n", fields: []string{"A: 1\r\n"}},
		{name: "no line end", in: "A: 1\r\nB: 2", fields: []string{"A: 1\r\n", "B: 2"}},
		{name: "no line end, folded", in: "A: 1\r\n 2", fields: []string{"A: 1\r\n 2"}},
		{name: "cut in the name", in: "A: 1\r\nSub", fields: []string{"A: 1\r\n"}, body: "Sub"},
		{name: "no header", in: "\r\nbody: x\r\n", body: "body: x\r\n", blank: true},
		{name: "text", in: "Hello world\r\nA: 1\r\n", body: "Hello world\r\nA: 1\r\n"},
		{name: "text behind fields", in: "A: 1\r\nHello world\r\nB: 1\r\n", fields: []string{"A: 1\r\n"}, body: "Hello world\r\nB: 1\r\n"},
		{name: "white space first", in: " x: y\r\nA: 1\r\n", body: " x: y\r\nA: 1\r\n"},
		{name: "space before the colon", in: "A \t: 1\r\n\r\n", fields: []string{"A \t: 1\r\n"}, blank: true},
		{name: "empty name", in: ": 1\r\n", body: ": 1\r\n"},
		{name: "8 bits in a name", in: "\xc3\xa9: 1\r\n", body: "\xc3\xa9: 1\r\n"},
		{name: "line of white space continues", in: "A: 1\r\n \r\nB: 2\r\n\r\n", fields: []string{"A: 1\r\n \r\n", "B: 2\r\n"}, blank: true},
		{name: "CR within a field", in: "A: 1\rB: 2\r\n\r\n", fields: []string{"A: 1\rB: 2\r\n"}, blank: true},
		{name: "CR CR LF", in: "A: 1\r\n\r\r\n\r\nx", fields: []string{"A: 1\r\n"}, body: "\r\r\n\r\nx"},
		{name: "mbox", in: "From a@b Mon Jan  1\r\nA: 1\r\n", body: "From a@b Mon Jan  1\r\nA: 1\r\n"},
	}
	for _, tt := range tests {
		for step := 1; step <= len(tt.in)+1; step++ {
			fields, body, s, err := split(tt.in, 1000, step)
			if err != nil || fmt.Sprintf("%q", fields) != fmt.Sprintf("%q", tt.fields) || body != tt.body || s.Blank() != tt.blank {
				t.Errorf("%s, %d at a time: %q, body %q, blank %v, %v", tt.name, step, fields, body, s.Blank(), err)
			}
		}
	}
}

func TestLimit(t *testing.T) {
	const in = "A: 1\r\nB: 2\r\n 3\r\n\r\n" // 18 octets
	for step := 1; step <= len(in); step++ {
		for limit := 1; limit < len(in)+3; limit++ {
			_, body, _, err := split(in+"body that is longer", limit, step)
			if (limit < len(in)) != errors.Is(err, ErrTooLarge) {
				t.Errorf("limit %d, %d at a time: %v", limit, step, err)
			}
			if err == nil && body != "body that is longer" {
				t.Errorf("limit %d, %d at a time: body %q", limit, step, body)
			}
		}
	}
	// A long line that is no field is a body of whatever length.
	long := strings.Repeat("word ", 100)
	for step := 1; step <= 50; step++ {
		fields, body, _, err := split("A: 1\r\n"+long, 50, step)
		if err != nil || len(fields) != 1 || body != long {
			t.Errorf("%d at a time: %q, body %.20q, %v", step, fields, body, err)
		}
	}
	word := strings.Repeat("x", maxName+1)
	for _, step := range []int{1, 7, maxName, 2 * maxName} {
		if fields, body, _, err := split("A: 1\r\n"+word+":", maxName+20, step); err != nil || len(fields) != 1 || body != word+":" {
			t.Errorf("%d at a time: %q, body %.20q, %v", step, fields, body, err)
		}
		if fields, body, _, err := split("A: 1\r\n"+word[1:]+":\r\n", maxName+20, step); err != nil || len(fields) != 2 || body != "" {
			t.Errorf("%d at a time: %.50q, body %.20q, %v", step, fields, body, err)
		}
	}
	if _, _, _, err := split(strings.Repeat("x", 51), 50, 7); !errors.Is(err, ErrTooLarge) {
		t.Errorf("long name: %v", err)
	}
}

func TestField(t *testing.T) {
	f := Field{Raw: []byte("SubJect \t:\r\n  a \r\n\tb: c \r\n"), nameLen: 7}
	if f.Name() != "SubJect" || !f.Is("subject") || f.Is("subjec") || f.Is("subjects") {
		t.Errorf("name %q", f.Name())
	}
	if v := f.Value(); v != "a \tb: c" {
		t.Errorf("value %q", v)
	}
}

func TestScan(t *testing.T) {
	in := "A: 1\r\nB: 2\r\nC: 3\r\n\r\nD: 4\r\n"
	for _, stop := range []string{"", "B"} {
		var names string
		err := Scan(iotest.OneByteReader(strings.NewReader(in)), 100, func(f Field) bool {
			names += f.Name()
			return f.Name() != stop
		})
		if want := map[string]string{"": "ABC", "B": "AB"}[stop]; err != nil || names != want {
			t.Errorf("stop at %q: %q, %v", stop, names, err)
		}
	}
	if err := Scan(strings.NewReader(in), 18, func(Field) bool { return true }); !errors.Is(err, ErrTooLarge) {
		t.Errorf("limit: %v", err)
	}
	if err := Scan(iotest.ErrReader(io.ErrClosedPipe), 18, func(Field) bool { return true }); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("read error: %v", err)
	}
}

// FuzzSplitter: nothing of a message is lost or changed, a field is a field, and
// pieces do not matter.
func FuzzSplitter(f *testing.F) {
	for _, s := range []string{"A: 1\r\n 2\r\n\r\nbody", "A: 1\nx", " a", "\n", "A", "a:b\rc:d\r\n", "x y\r\n"} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		const limit = 200
		fields, body, s, err := split(string(in), limit, int(step)+1)
		whole, body1, s1, err1 := split(string(in), limit, len(in)+1)
		if (err == nil) != (err1 == nil) || err == nil && (body != body1 || strings.Join(fields, "|") != strings.Join(whole, "|")) || s.Blank() != s1.Blank() {
			t.Fatalf("in pieces %q, %q, %v; whole %q, %q, %v", fields, body, err, whole, body1, err1)
		}
		if err != nil {
			return
		}
		rest, ok := bytes.CutPrefix(in, []byte(strings.Join(fields, "")))
		if ok && s.Blank() {
			rest = bytes.TrimPrefix(rest, []byte("\r"))
			rest, ok = bytes.CutPrefix(rest, []byte("\n"))
		}
		if !ok || string(rest) != body {
			t.Fatalf("%q became %q and %q", in, fields, body)
		}
		for _, raw := range fields {
			n, complete := fieldName([]byte(raw))
			if !complete || n < 1 {
				t.Fatalf("field %q", raw)
			}
		}
	})
}
