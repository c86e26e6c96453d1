//go:build system

package system

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// TestRPM: the RPM package installs into a running system, mail flows, an upgrade takes
// nothing from daemons that run, and what an erasure leaves is mail, its users, and the
// configuration. The machine is a Debian with rpm; dependencies are not looked at.
func TestRPM(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m := mailtest.Boot(t, mailtest.Options{Suite: suite, Bare: true})
			// Directories are those of a base system.
			m.Script("mkdir -p /usr/share/{licenses,fish/vendor_completions.d,zsh/site-functions}; ln -s ../bin/update-alternatives /usr/sbin/alternatives; useradd --create-home bob")
			m.WriteFile("/etc/mailname", "example.org\n", 0o644)
			m.CopyTo(rpmPackage(t), rpmPath)
			m.Script("rpm -qa; systemctl daemon-reload") // makes rpm's database
			before := traces(m)

			rpm(t, m, "--install")
			if state, failed := systemState(t, m); state != "running" {
				t.Errorf("the system is %s: %s", state, failed)
			}
			if open := m.Run("ss", "-Htuln"); open != "" {
				t.Errorf("listens to the network: %s", open)
			}
			testSockets(t, m)
			if got := m.Run("readlink", "-e", "/usr/sbin/sendmail", "/usr/lib/sendmail", "/usr/bin/newaliases", "/usr/bin/mailq"); got != strings.Repeat("/usr/sbin/sendmail.posthouse\n", 4) {
				t.Errorf("links: %s", got)
			}
			m.Run("newaliases")
			m.RunInput([]byte("Subject: installed\n\nx\n"), "sendmail", "bob")
			emptyQueue(m, time.Minute)
			rpmUpgrade(t, m)
			if got, want := m.Script("sed -n 's/^Subject: //p' /var/mail/bob"), "installed\nunpacked\nupgraded\n"; got != want {
				t.Errorf("bob has %q, want %q", got, want)
			}
			healthy(t, m)

			rpm(t, m, "--erase")
			after := traces(m)
			kept := regexp.MustCompile(`^(user |group )_ph-|^/var/(spool/posthouse|vmail|mail/bob)|^/etc/posthouse(/tables(/users)?)?$|^/var/lib/rpm/`)
			for _, trace := range missing(after, before) {
				if !kept.MatchString(trace) {
					t.Errorf("left by rpm --erase: %s", trace)
				}
			}
			for _, trace := range missing(before, after) {
				t.Errorf("taken by rpm --erase: %s", trace)
			}
		})
	}
}

// rpmPath is where the package is in the machine.
const rpmPath = "/var/tmp/posthouse.rpm"

func rpmPackage(t *testing.T) string {
	t.Helper()
	top, err := mailtest.Top()
	if err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(top, "build/posthouse-*.rpm"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%d packages build/posthouse-*.rpm, not one: run make rpm (%v)", len(found), err)
	}
	return found[0]
}

// rpm has rpm install, upgrade or erase the package. A script of it that fails would be
// a warning.
func rpm(t *testing.T, m *mailtest.Machine, action string, options ...string) {
	t.Helper()
	what := rpmPath
	if action == "--erase" {
		what = "posthouse"
	}
	args := append([]string{"rpm", action, "--nodeps"}, options...)
	r, err := m.Try(append(args, what)...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 0 || regexp.MustCompile(`(?i)warning|error|fail|cannot`).MatchString(r.Stdout+r.Stderr) {
		t.Errorf("rpm %s: status %d\n%s%s", action, r.Code, r.Stdout, r.Stderr)
	}
	m.Settle()
}

// rpmUpgrade: a daemon that runs sees what it saw while its files are replaced, and one
// that starts afterwards, too.
func rpmUpgrade(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	m.Run("systemctl", "start", "posthouse-rewrite.service")
	pid := func() string {
		return strings.TrimSpace(m.Run("systemctl", "show", "-P", "MainPID", "posthouse-rewrite.service"))
	}
	first := pid()
	rpm(t, m, "--upgrade", "--force", "--noscripts")
	if got := m.ReadFile("/proc/" + first + "/root/etc/mailname"); got != "example.org\n" {
		t.Errorf("while the package is replaced, rewrite reads %q in /etc/mailname", got)
	}
	m.RunInput([]byte("Subject: unpacked\n\nx\n"), "sendmail", "bob")
	emptyQueue(m, time.Minute)
	rpm(t, m, "--upgrade", "--force")
	if second := pid(); second == first {
		t.Error("rewrite runs as before the upgrade")
	}
	m.RunInput([]byte("Subject: upgraded\n\nx\n"), "sendmail", "bob")
	emptyQueue(m, time.Minute)
}
