//go:build system

// Package system tests the packages as they are installed, in booted machines.
package system

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// suites are the Debian releases that are supported.
var suites = []string{"bookworm", "trixie"}

// TestBoot: the package installs into a running system, nothing listens to the
// network, every local socket is there, no process is; purged, all is gone.
func TestBoot(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m := mailtest.Boot(t, mailtest.Options{Suite: suite, Bare: true})
			if suite == "trixie" { // somebody else's stays, though it is empty
				m.Run("install", "-d", "-o", "daemon", "-m", "0750", "/var/vmail")
			}
			before := traces(m)
			// The timer may start qmgr at any time, and that wakes rewrite; then they have to go away again.
			m.WriteFile("/etc/posthouse/conf.d/idle.yaml", "daemons: {qmgr: {max_idle: 100ms}, rewrite: {max_idle: 100ms}}\n", 0o644)
			m.InstallPackage("")

			if state, failed := systemState(t, m); state != "running" {
				t.Errorf("the system is %s: %s", state, failed)
			}
			if got := m.Run("dpkg-query", "-W", "-f", "${Status}", "posthouse"); got != "install ok installed" {
				t.Errorf("status of the package: %s", got)
			}
			if open := m.Run("ss", "-Htuln"); open != "" {
				t.Errorf("listens to the network: %s", open)
			}
			testSockets(t, m)
			together(m)
			m.WaitFor("no daemon to be resident", time.Minute, func() bool {
				return m.Run("systemctl", "list-units", "--no-legend", "--state=active,activating,deactivating", "posthouse-*.service") == ""
			})

			if out := m.Script("dpkg --purge posthouse 2>&1"); strings.Contains(out, "/usr/lib/posthouse") {
				t.Errorf("dpkg --purge: %s", out)
			}
			m.Settle()
			after := traces(m)
			for _, trace := range missing(after, before) {
				t.Errorf("left by dpkg --purge: %s", trace)
			}
			for _, trace := range missing(before, after) {
				t.Errorf("taken by dpkg --purge: %s", trace)
			}
			if kills := m.SeccompKills(); len(kills) > 0 {
				t.Errorf("forbidden system calls:\n%s", strings.Join(kills, "\n"))
			}
		})
	}
}

// systemState returns systemd's verdict and the units that failed.
func systemState(t *testing.T, m *mailtest.Machine) (state, failed string) {
	t.Helper()
	// Its status is not 0 when the system is degraded.
	r, err := m.Try("systemctl", "is-system-running")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(r.Stdout), m.Run("systemctl", "--failed", "--no-legend")
}

// testSockets: the sockets that the preset enables are active, all others not.
func testSockets(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	enabled := make(map[string]bool)
	for line := range strings.Lines(m.ReadFile("/usr/lib/systemd/system-preset/50-posthouse.preset")) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "enable" {
			enabled[f[1]] = true
		}
	}
	// These come with another one.
	enabled["posthouse-pickup-wake.socket"] = enabled["posthouse-pickup.socket"]
	enabled["posthouse-qmgr-wake.socket"] = enabled["posthouse-qmgr.socket"]
	enabled["posthouse-queue.socket"] = enabled["posthouse-qmgr.socket"]
	enabled["posthouse-recipient.socket"] = enabled["posthouse-local.socket"]
	units := strings.Fields(m.Script("cd /usr/lib/systemd/system && ls -d posthouse-*.socket | grep -v @"))
	if len(units) == 0 {
		t.Fatal("the package has no sockets")
	}
	for _, unit := range units {
		state := strings.TrimSpace(m.Run("systemctl", "show", "-P", "ActiveState", unit))
		want := "inactive"
		if enabled[unit] {
			want = "active"
		}
		if state != want {
			t.Errorf("%s is %s, not %s", filepath.Base(unit), state, want)
		}
	}
}

// together: who has started a socket finds those that come with it.
func together(m *mailtest.Machine) {
	for socket, with := range map[string]string{"qmgr": "private/queue public/qmgr", "local": "private/recipient", "pickup": "public/pickup"} {
		m.Script(fmt.Sprintf(`cd /run/posthouse; for i in $(seq 20); do
			systemctl stop posthouse-%[1]s.socket && systemctl start posthouse-%[1]s.socket && ls %[2]s >/dev/null || exit 1
		done`, socket, with))
	}
}

// traces lists all that a package may leave: files outside of what dpkg, systemd
// and the test itself write, users, groups and units.
func traces(m *mailtest.Machine) []string {
	return strings.Split(m.Script(`
		find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /run -o -path /root -o -path /var/log \
			-o -path /var/lib/dpkg -o -path /var/lib/systemd -o -path /var/cache -o -path /var/tmp \) -prune -o -print |
			grep -v '^/etc/\(passwd\|group\|shadow\|gshadow\)-$'
		find /run /var/lib/systemd /var/lib/dpkg/info /var/cache -xdev -name '*posthouse*'
		cut -d: -f1 /etc/passwd | sed 's/^/user /'
		cut -d: -f1 /etc/group | sed 's/^/group /'
		systemctl list-units --all --plain --no-legend 'posthouse*' | sed 's/ .*//; s/^/unit /'`), "\n")
}

// missing returns what is in all and not in some.
func missing(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}
