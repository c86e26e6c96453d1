package main

import (
	"context"
	"slices"
	"strings"
	"testing"
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
