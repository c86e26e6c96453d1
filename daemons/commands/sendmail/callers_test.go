package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"posthouse/pkg/cli"
	"posthouse/pkg/protocol/cleanup"
)

// socketEnv makes this program sendmail, with a submission service at that path.
const socketEnv = "POSTHOUSE_SENDMAIL_SOCKET"

func TestMain(m *testing.M) {
	path := os.Getenv(socketEnv)
	if path == "" {
		os.Exit(m.Run())
	}
	o, err := parseOptions("sendmail", os.Args[1:])
	if err != nil {
		os.Exit(cli.Usage)
	}
	s := submission{options: o, client: cleanup.NewClient(path), maildrop: os.Getenv("DROP")}
	if err := s.run(os.Stdin); err != nil {
		os.Exit(statusOf(err))
	}
	os.Exit(cli.OK)
}

// TestCallers: the message arrives whole whatever a caller has left of what processes
// have, and nobody has to have anything.
func TestCallers(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := func(path, script, in string) (status int) {
		t.Helper()
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = t.TempDir()
		cmd.Stdin = strings.NewReader(in)
		// -f, for who has no name.
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "SENDMAIL=env -i TMPDIR=" + cmd.Dir + " DROP=" + cmd.Dir + " " + socketEnv + "=" + path + " " + self + " -i -f a@b"}
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatalf("%s: %v", script, err)
		}
		t.Logf("%s: %v, %s", script, cmd.ProcessState, out)
		return cmd.ProcessState.ExitCode()
	}
	large := "From: a@b\nSubject: x\n\n" + strings.Repeat("0123456789\n", 3*maxMemory/11)
	for script, in := range map[string]string{
		"$SENDMAIL x":                                     large,
		"ulimit -f 0; $SENDMAIL x":                        large,
		"ulimit -f 10; $SENDMAIL x":                       large,
		"ulimit -n 16; $SENDMAIL x":                       large,
		"ulimit -s 64; $SENDMAIL x":                       large,
		"umask 777; $SENDMAIL x":                          large,
		"$SENDMAIL x <&-":                                 "",
		"exec $SENDMAIL x <&- >&- 2>&-":                   "",
		"$SENDMAIL x >&- 2>&-":                            large,
		"$SENDMAIL x >/dev/full 2>&1":                     large,
		"mkdir gone; cd gone; rmdir ../gone; $SENDMAIL x": large,
		"trap '' PIPE HUP TERM XFSZ; $SENDMAIL x":         large,
	} {
		path, took := pickup(t, nil)
		if status := run(path, script, in); status != cli.OK {
			t.Errorf("%s: status %d", script, status)
			continue
		}
		want := strings.ReplaceAll(in, "\n", "\r\n")
		if got := <-took; !strings.HasSuffix(got.content, want) || in != "" && got.content != want {
			t.Errorf("%s: %d octets, not %d", script, len(got.content), len(want))
		}
	}
	// Where there is nobody to take it nothing is said to be done.
	if status := run(filepath.Join(t.TempDir(), "off"), `chmod 3733 .; ulimit -f 10; $SENDMAIL x; s=$?; ls -A | grep . && exit 1; exit $s`, large); status != cli.TempFail {
		t.Errorf("a maildrop that cannot be written: status %d", status)
	}
}
