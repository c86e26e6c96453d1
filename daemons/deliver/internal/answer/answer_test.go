package answer

import (
	"errors"
	"os"
	"strings"
	"testing"

	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/protocol/deliver"
)

func TestDone(t *testing.T) {
	for _, s := range []string{"x", "a\nb", strings.Repeat("\x00", 5000), strings.Repeat("\xff", 5000), strings.Repeat("ä", 5000)} {
		for _, r := range []*deliver.Reply{Done(s, nil), Done("", errors.New(s)), Done("", dsn.Errorf("5.2.2", "%s", s))} {
			if got, err := deliver.DecodeReply(ipctest.Encode(r.Encode)); err != nil || strings.Contains(got.Text, "\n") {
				t.Errorf("%.20q: %.20q, %v", s, got.Text, err)
			}
		}
	}
	if r := Done("x", nil); r.Status.Class() != dsn.Success {
		t.Errorf("%+v", r)
	}
	if r := Done("x", errors.New("EIO")); r.Status.Class() != dsn.Transient {
		t.Errorf("%+v", r)
	}
	if r := Done("x", dsn.Errorf("5.2.2", "full")); r.Status.String() != "5.2.2" {
		t.Errorf("%+v", r)
	}
}

func TestContent(t *testing.T) {
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
		if r, err := Content(&deliver.Request{Offset: tt.offset, Length: tt.length}, tt.file); (err == nil) != tt.fits || tt.fits && r.Size() != tt.length {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
