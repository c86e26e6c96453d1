package queue

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
)

// rewritten counts what is written to a file again.
type rewritten struct {
	*os.File
	octets int64
}

func (r *rewritten) WriteAt(p []byte, off int64) (int, error) {
	r.octets += int64(len(p))
	return r.File.WriteAt(p, off)
}

// TestFlushMany: outcomes that are many are flushed, and written again, in little
// memory. What the kernel has forgotten by then is not said to be on disk.
func TestFlushMany(t *testing.T) {
	f := &rewritten{File: write(t, testEnvelope(t, 1), []byte("x\r\n"))}
	m, err := Read(f.File)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; m.tail < 20*flushPiece; n++ {
		if err := m.Append(f, Outcome{Results: []IndexedResult{{0, result("4.4.1", strings.Repeat("x", 2000))}}}); err != nil {
			t.Fatal(err)
		}
	}
	f.octets = 0
	broken := errors.New("EIO")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err = m.Flush(f, func() error { return broken })
	runtime.ReadMemStats(&after)
	if !errors.Is(err, broken) || f.octets != m.tail-m.Offset-m.Length {
		t.Errorf("a flush that fails: %v, %d octets of %d are written again", err, f.octets, m.tail-m.Offset-m.Length)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 2*flushPiece {
		t.Errorf("took %d octets of memory", took)
	}
	if err := m.Flush(f, func() error { return nil }); err != nil {
		t.Error(err)
	}
	if err := m.Flush(f, func() error { return errors.Join(broken, f.Truncate(m.tail-flushPiece)) }); !errors.Is(err, broken) {
		t.Errorf("a flush that fails: %v", err)
	}
	if err := m.Flush(f, func() error { return nil }); err == nil {
		t.Error("what is lost is flushed")
	}
	if m, err = Read(f.File); err == nil {
		err = m.Flush(f, func() error { return nil })
	}
	if err != nil {
		t.Error(err)
	}
}
