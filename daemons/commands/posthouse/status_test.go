package main

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/cli"
	"posthouse/pkg/protocol/showq"
	"posthouse/pkg/queueid"
)

// TestSockets: what is installed is listed, whether systemd has it in memory or not, once;
// of a template, its instances.
func TestSockets(t *testing.T) {
	old := systemctl
	t.Cleanup(func() { systemctl = old })
	systemctl = func(_ context.Context, args ...string) (string, error) {
		if args[0] == "list-unit-files" {
			return "posthouse-pipe@.socket disabled disabled\nposthouse-qmgr.socket enabled enabled\nposthouse-smtpd.socket disabled disabled\n", nil
		}
		if got := args[slices.Index(args, "--")+1:]; !slices.Equal(got, []string{"posthouse*.socket", "posthouse-qmgr.socket", "posthouse-smtpd.socket"}) {
			t.Errorf("asked for %q", got)
		}
		var out []string
		for _, name := range []string{"qmgr", "pipe@lda", "qmgr", "smtpd"} {
			out = append(out, "Id=posthouse-"+name+".socket\nUnitFileState=enabled\nActiveState=active\n")
		}
		return strings.Join(out, "\n"), nil
	}
	units, err := sockets(t.Context())
	var got []string
	for _, u := range units {
		got = append(got, u.Name)
	}
	if want := []string{"posthouse-pipe@lda.socket", "posthouse-qmgr.socket", "posthouse-smtpd.socket"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestStatusQueue: an empty queue has no messages, and one that nobody could look at is not empty.
func TestStatusQueue(t *testing.T) {
	old := systemctl
	t.Cleanup(func() { systemctl = old })
	systemctl = func(context.Context, ...string) (string, error) { return "", nil }
	run := func() string {
		var out bytes.Buffer
		if status := statusCommand().Main(t.Context(), cli.Streams{Out: &out, Err: &out}, []string{"--json"}); status != cli.OK {
			t.Errorf("status %d", status)
		}
		return out.String()
	}
	s := &servers{entries: []showq.Entry{{Queue: showq.Hold, ID: queueid.New(time.Unix(1700000000, 0), 1)}}}
	s.start(t)
	if got := run(); !strings.Contains(got, `"queue":{"active":0,"corrupt":0,"deferred":0,"hold":1,"incoming":0}`) {
		t.Errorf("with a queue: %s", got)
	}
	showqPath = "/nonexistent/socket"
	if got := run(); strings.Contains(got, `"queue"`) || !strings.Contains(got, `"note":"not known`) {
		t.Errorf("without showq: %s", got)
	}
}
