package ipc

import (
	"errors"
	"io"
	"os"
	"testing"
)

func TestPart(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString("--message"); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(os.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, tt := range []struct {
		file           *os.File
		offset, length int64
		fits           bool
	}{{file, 2, 7, true}, {file, 9, 0, true}, {file, 2, 8, false}, {file, 10, 0, false}, {file, 1 << 62, 1 << 62, false}, {dir, 0, 0, false}, {nil, 0, 0, false}} {
		if r, err := Part(tt.file, tt.offset, tt.length); (err == nil) != tt.fits || tt.fits && r.Size() != tt.length {
			t.Errorf("%+v: %v", tt, err)
		}
	}
	part, err := Part(file, 2, 7)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(part); string(b) != "message" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := part.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(4); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(part); string(b) != "me" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("of a file that has become shorter: %q, %v", b, err)
	}
}
