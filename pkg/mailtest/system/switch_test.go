//go:build system

package system

import (
	"slices"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// TestSwitch: a machine with Debian's Postfix becomes one with Posthouse when that
// is installed. Mail is where it was, aliases and .forward files hold, and what is
// left of Postfix does no harm, nor does its going.
func TestSwitch(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m := postfixHost(t, suite)
			boxes := []string{"ann", "bob", "carl", "root"}
			before := make(map[string]string)
			for _, box := range boxes {
				before[box] = m.ReadFile("/var/mail/" + box)
			}
			// As manuals have it for Dovecot.
			m.Script("useradd --system vmail; install -d -o vmail -g vmail -m 2770 /var/vmail")
			privileged := setIDs(m)
			leftover := m.Script("find /var/spool/postfix/{hold,deferred} -type f")

			install(t, m)
			if got := m.Run("stat", "--format=%U:%G %a", "/var/vmail"); got != "vmail:vmail 2770\n" {
				t.Errorf("/var/vmail is %s", got)
			}
			commandsAreOurs(t, m)
			newPrivileges(t, m, privileged)
			switched(t, m)
			nobodyIsRoot(t, m)
			unpacked(t, m)
			if got := m.Script("find /var/spool/postfix/{hold,deferred} -type f"); got != leftover || strings.Count(got, "\n") != 2 {
				t.Errorf("Postfix's queue was %q and is %q", leftover, got)
			}
			for _, box := range boxes {
				if got := m.ReadFile("/var/mail/" + box); !strings.HasPrefix(got, before[box]+"From ") {
					t.Errorf("the mailbox of %s was\n%sand is\n%s", box, before[box], got)
				}
			}

			m.Run("dpkg", "--purge", "postfix")
			if got := m.Run("dpkg", "--verify", "posthouse"); got != "" {
				t.Errorf("after purging postfix: %s", got)
			}
			commandsAreOurs(t, m)
			m.RunInput([]byte("Subject: purged\n\nx\n"), "sendmail", "team")
			emptyQueue(m, time.Minute)
			for _, box := range []string{"ann", "bob"} {
				if got := m.ReadFile("/var/mail/" + box); strings.Count(got, "\nSubject: purged\n") != 1 {
					t.Errorf("after purging postfix, %s has %s", box, got)
				}
			}
			healthy(t, m)
		})
	}
}

// postfixHost is a machine with Postfix that has done some work.
func postfixHost(t *testing.T, suite string) *mailtest.Machine {
	t.Helper()
	m := mailtest.Boot(t, mailtest.Options{Suite: suite, Bare: true})
	m.WriteFile("/etc/mailname", "example.org\n", 0o644)
	m.WriteFile("/etc/aliases", "postmaster: root\nroot: ann, \\root\nteam: ann, bob@example.org\nrun: \"|cat /run/fifo\"\n", 0o644)
	m.WriteFile("/etc/postfix/virtual", "sales@example.org\tann\n", 0o644)
	m.Script(`
		export DEBIAN_FRONTEND=noninteractive
		for user in ann bob carl; do useradd --create-home $user; done
		echo '\carl, bob, "|cat >$HOME/copy"' >/home/carl/.forward
		chown carl: /home/carl/.forward
		dpkg --install /opt/postfix/postfix.deb /opt/bsd-mailx.deb
		postconf -e myhostname=mail.example.org myorigin=/etc/mailname 'mydestination=example.org, mail.example.org, localhost' \
			mailbox_command= virtual_alias_maps=hash:/etc/postfix/virtual
		postmap /etc/postfix/virtual
		newaliases
		systemctl restart postfix
		for to in root bob carl sales; do echo "with Postfix" | mail -s "to $to" $to; done
		until [ "$(cat /var/mail/* | grep -c '^Subject: to ')" = 6 ]; do sleep 0.1; done
		# Two messages that nobody will deliver.
		echo lost | mail -s 'to nobody' x@nowhere.example
		until ls /var/spool/postfix/deferred/*/* >/dev/null 2>&1; do sleep 0.1; done
		postsuper -h ALL
		echo lost | mail -s 'to nobody' x@nowhere.example
		until ls /var/spool/postfix/deferred/*/* >/dev/null 2>&1; do sleep 0.1; done`)
	return m
}

// debPath is where the package is in the machine.
const debPath = "/var/tmp/posthouse.deb"

// install installs the package as an administrator does.
func install(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	file, err := mailtest.DebianPackage()
	if err != nil {
		t.Fatal(err)
	}
	m.CopyTo(file, debPath)
	out := m.Run("apt-get", "install", "--yes", debPath)
	if !strings.Contains(out, "The following packages will be REMOVED:\n  postfix\n") && !strings.Contains(out, "REMOVING:\n  postfix\n") {
		t.Errorf("apt removes not postfix, or others: %s", out)
	}
	m.Settle()
	m.Run("systemctl", "reset-failed", "postfix*") // that of bookworm does not stop well while it is removed
	if state, failed := systemState(t, m); state != "running" {
		t.Errorf("the system is %s: %s", state, failed)
	}
	if got := m.Run("dpkg-query", "--show", "--showformat", "${Status}\n", "posthouse", "postfix", "bsd-mailx"); got != "install ok installed\ndeinstall ok config-files\ninstall ok installed\n" &&
		got != "install ok installed\ninstall ok installed\ndeinstall ok config-files\n" {
		t.Errorf("packages: %s", got)
	}
	m.Run("posthouse", "check")
}

// commandsAreOurs: what programs call is of our package.
func commandsAreOurs(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	for _, name := range []string{"/usr/sbin/sendmail", "/usr/lib/sendmail", "/usr/bin/newaliases", "/usr/bin/mailq", "/usr/share/man/man1/sendmail.1.gz"} {
		if got := m.Run("dpkg", "--search", name); got != "posthouse: "+name+"\n" {
			t.Errorf("%s is of %s", name, got)
		}
	}
	if got := m.Run("readlink", "-e", "/usr/lib/sendmail", "/usr/bin/newaliases", "/usr/bin/mailq"); got != strings.Repeat("/usr/sbin/sendmail\n", 3) {
		t.Errorf("links: %s", got)
	}
	m.Run("newaliases")
	if got := m.Run("mailq"); got != "Mail queue is empty\n" {
		t.Errorf("mailq: %s", got)
	}
}

// setIDs lists all that is set-uid or set-gid.
func setIDs(m *mailtest.Machine) []string {
	return strings.Fields(m.Run("find", "/", "-xdev", "-perm", "/6000", "-printf", "%y:%p\n"))
}

// newPrivileges: the package has brought no file that is set-uid or set-gid. The
// directories are those whose files go to a group; that is all that the bit does
// there.
func newPrivileges(t *testing.T, m *mailtest.Machine, before []string) {
	t.Helper()
	const spool = "d:/var/spool/posthouse/"
	ours := []string{spool + "active", spool + "corrupt", spool + "deferred", spool + "hold", spool + "incoming", spool + "incoming/spare", spool + "maildrop/drop"}
	got := missing(setIDs(m), before)
	slices.Sort(got)
	if !slices.Equal(got, ours) {
		t.Errorf("set-uid or set-gid: %q", got)
	}
}

// switched: mail for all kinds of names arrives.
func switched(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	// The mailbox of root is one of the mail system's own, as docs/decisions.md says.
	m.Run("chown", "_ph-deliver", "/var/mail/root")
	m.WriteFile("/etc/posthouse/tables/virtual_aliases", "sales@example.org ann\n", 0o644)
	for _, to := range []string{"root", "bob", "carl", "sales", "team"} {
		m.RunInput([]byte("with Posthouse\n"), "mail", "-s", "now to "+to, to)
	}
	emptyQueue(m, time.Minute)
	for file, want := range map[string]string{
		"/var/mail/ann":    "1 root 1 sales 1 team",
		"/var/mail/bob":    "1 bob 1 carl 1 team",
		"/var/mail/carl":   "1 carl",
		"/var/mail/root":   "1 root",
		"/home/carl/copy ": "1 carl",
	} {
		if got := strings.Join(strings.Fields(m.Script("sed -n 's/^Subject: now to //p' "+file+" | sort | uniq -c")), " "); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

// nobodyIsRoot: while a command of an alias gets its message, no process of the
// mail system is root, nor is the command.
func nobodyIsRoot(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	m.Run("mkfifo", "-m", "666", "/run/fifo")
	m.RunInput([]byte("Subject: x\n\nx\n"), "sendmail", "run", "bob")
	m.WaitFor("the command", time.Minute, func() bool { return m.Script("pgrep -u nobody cat || true") != "" })
	out := m.Script(`cd /sys/fs/cgroup/posthouse.slice; cat cgroup.procs */cgroup.procs | while read pid; do
		sed -n 's/^Name:\t//p; s/^[UG]id:\t//p' /proc/$pid/status 2>/dev/null | tr '\n\t' '  ' || true; echo; done`)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) < 5 || !strings.Contains(out, "cat 65534 ") || !strings.Contains(out, "deliver ") {
		t.Errorf("processes: %s", out)
	}
	for _, line := range lines {
		if slices.Contains(strings.Fields(line), "0") {
			t.Errorf("a process of root: %s", line)
		}
	}
	m.Script("echo done >/run/fifo")
	emptyQueue(m, time.Minute)
}

// unpacked: a daemon that runs sees what it saw while the package is replaced, before its
// scripts restart services, and so does one that starts afterwards.
func unpacked(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	m.Run("systemctl", "start", "posthouse-rewrite.service")
	pid := strings.TrimSpace(m.Run("systemctl", "show", "--property=MainPID", "--value", "posthouse-rewrite.service"))
	m.Run("dpkg", "--unpack", debPath)
	if got := m.ReadFile("/proc/" + pid + "/root/etc/mailname"); got != "example.org\n" {
		t.Errorf("while the package is unpacked, rewrite reads %q in /etc/mailname", got)
	}
	m.RunInput([]byte("Subject: unpacked\n\nx\n"), "sendmail", "bob")
	emptyQueue(m, time.Minute)
	m.Run("dpkg", "--configure", "posthouse")
	m.RunInput([]byte("Subject: configured\n\nx\n"), "sendmail", "bob")
	emptyQueue(m, time.Minute)
	for _, subject := range []string{"unpacked", "configured"} {
		if got := m.ReadFile("/var/mail/bob"); strings.Count(got, "\nSubject: "+subject+"\n") != 1 {
			t.Errorf("%s: bob has %s", subject, got)
		}
	}
}
