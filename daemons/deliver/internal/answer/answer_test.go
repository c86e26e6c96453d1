package answer

import (
	"errors"
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
