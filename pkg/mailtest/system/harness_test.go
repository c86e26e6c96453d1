//go:build system

package system

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// TestMachine: what the tests rely on works, above all what has to notice a fault.
//
// Not parallel to others: they would see the forbidden system call of this one.
func TestMachine(t *testing.T) {
	m := mailtest.Boot(t, mailtest.Options{Bare: true, Hostname: "mx.example.net"})
	if got := m.Run("hostname"); got != "mx.example.net\n" {
		t.Errorf("host name %q", got)
	}
	if r, err := m.Try("sh", "-c", "echo out; echo err >&2; exit 7"); err != nil || r != (mailtest.Result{Stdout: "out\n", Stderr: "err\n", Code: 7}) {
		t.Errorf("Try: %+v, %v", r, err)
	}
	t.Run("network", func(t *testing.T) {
		if got := m.Run("ls", "/sys/class/net"); got != "lo\n" {
			t.Errorf("interfaces: %q", got)
		}
	})
	t.Run("copy", func(t *testing.T) { testCopy(t, m) })
	t.Run("smtp", func(t *testing.T) { testTools(t, m) })
	t.Run("seccomp", func(t *testing.T) { testSeccomp(t, m) })
}

func testCopy(t *testing.T, m *mailtest.Machine) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "from/below"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "from/below/file"), []byte("a\x00b\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	m.CopyTo(filepath.Join(dir, "from"), "/srv/tree")
	m.CopyTo(filepath.Join(dir, "from/below/file"), "/srv/other/name")
	if got := m.Run("stat", "-c", "%a %U", "/srv/other/name", "/srv/tree/below/file"); got != "640 root\n640 root\n" {
		t.Errorf("modes: %q", got)
	}
	m.CopyFrom("/srv/tree", dir)
	if got, err := os.ReadFile(filepath.Join(dir, "tree/below/file")); err != nil || string(got) != "a\x00b\n" {
		t.Errorf("copied there and back: %q, %v", got, err)
	}
}

// testTools: swaks and smtp-source talk to smtp-sink.
func testTools(t *testing.T, m *mailtest.Machine) {
	m.Start("sink", "smtp-sink", "-u", "nobody", "-c", "127.0.0.1:2525", "100")
	defer m.Stop("sink")
	m.WaitFor("smtp-sink", time.Minute, func() bool { return m.Run("ss", "-Htln", "sport = 2525") != "" })
	m.Run("smtp-source", "-m", "10", "-s", "2", "-f", "from@example.org", "-t", "to@example.net", "127.0.0.1:2525")
	out := m.Run("swaks", "--server", "127.0.0.1:2525", "--from", "from@example.org", "--to", "to@example.net")
	if !strings.Contains(out, "250 2.0.0") {
		t.Errorf("swaks: %s", out)
	}
}

// testSeccomp: a forbidden system call is seen, one of another program is not.
func testSeccomp(t *testing.T, m *mailtest.Machine) {
	if kills := m.SeccompKills(); len(kills) != 0 {
		t.Errorf("before: %q", kills)
	}
	m.Script("mkdir /libexec; cp /bin/mkdir /libexec/forbidden")
	for _, program := range []string{"/bin/mkdir", "/libexec/forbidden"} {
		r, err := m.Try("systemd-run", "--quiet", "--wait", "-p", "SystemCallFilter=~mkdir", "-p", "SystemCallArchitectures=native", program, "/srv/new")
		if err != nil || r.Code == 0 {
			t.Errorf("%s: status %d, %v", program, r.Code, err)
		}
	}
	// The kernel says it by a thread of its own.
	m.WaitFor("the kernel to say it", time.Minute, func() bool { return len(m.SeccompKills()) > 0 })
	if kills := m.SeccompKills(); len(kills) != 1 || !strings.Contains(kills[0], `exe="/libexec/forbidden" sig=31`) {
		t.Errorf("after: %q", kills)
	}
	if log := m.Journal("-t", "systemd", "-g", "status=31/SYS"); strings.Count(log, "code=killed, status=31/SYS") != 2 {
		t.Errorf("journal: %s", log)
	}
}
