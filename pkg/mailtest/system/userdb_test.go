//go:build system

package system

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// TestUserdb: accounts that only systemd-userdbd knows have mail like others. While
// it does not answer nobody is unknown.
func TestUserdb(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m := mailHost(t, suite, "")
			configure(m, "local", "domains: {local: [local.example, example.org]}\n")
			// By drop-ins of the administrator, and of the running system.
			for i, file := range []string{"/etc/userdb/zoe", "/run/userdb/yann"} {
				name, id := file[strings.LastIndexByte(file, '/')+1:], 70000+i
				m.WriteFile(file+".user", fmt.Sprintf(`{"userName":"%s","uid":%d,"homeDirectory":"/home/%s","shell":"/bin/sh"}`, name, id, name), 0o644)
				m.WriteFile(file+".group", fmt.Sprintf(`{"groupName":"%s","gid":%d}`, name, id), 0o644)
				m.Script(fmt.Sprintf("install -d -o %d -g %d /home/%s", id, id, name))
			}
			m.Script("groupadd --gid 7777 extra; echo {} >/etc/userdb/zoe:extra.membership; ip address add 198.51.100.1/32 dev lo; useradd --create-home bob")
			m.Run("systemctl", "start", "systemd-userdbd.socket")

			userdbKnows(t, m)
			userdbAway(t, m)
			healthy(t, m)
		})
	}
}

// userdbKnows: what it knows is taken from it, up to groups.
func userdbKnows(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	m.Script(`echo '"|id >id; exit 0", \zoe' >/home/zoe/.forward; chown 70000:70000 /home/zoe/.forward`)
	for _, to := range []string{"zoe", "yann", "bob"} {
		if out, code := swaks(t, m, "--server", "198.51.100.1", "--to", to+"@local.example"); code != 0 {
			t.Errorf("to %s: %s", to, out)
		}
	}
	emptyQueue(m, time.Minute)
	if got := m.Script("cd /var/mail; stat -c '%n %u %g %a' *; cat /home/zoe/id"); got != "bob 1000 8 600\nyann 70001 8 600\nzoe 70000 8 600\nuid=70000 gid=70000 groups=70000,7777(extra)\n" {
		t.Errorf("mailboxes: %s", got)
	}
	if out, _ := swaks(t, m, "--server", "198.51.100.1", "--to", "nosuch@local.example"); !strings.Contains(out, "550 5.1.1") {
		t.Errorf("nosuch: %s", out)
	}
}

// userdbAway: while it is stopped mail waits, from the door on.
func userdbAway(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	m.Run("systemctl", "stop", "posthouse-rewrite.service") // which remembers for a while
	m.Run("systemctl", "stop", "systemd-userdbd.socket", "systemd-userdbd.service")
	time.Sleep(3 * time.Second) // local and deliver remember accounts for two
	for _, to := range []string{"zoe@local.example", "nosuch@local.example", "bob@local.example"} {
		if out, _ := swaks(t, m, "--server", "198.51.100.1", "--to", to); !strings.Contains(out, "** 450 4.1.1 ") {
			t.Errorf("%s: %s", to, out)
		}
	}
	before := strings.Count(m.ReadFile("/var/mail/zoe"), "\nSubject: ")
	m.RunInput([]byte("Subject: waits\n\nx\n"), "sendmail", "-f", "alice@example.net", "zoe@local.example")
	m.WaitFor("a reason", time.Minute, func() bool { return strings.Contains(m.Run("mailq"), "look up the account zoe") })
	m.Run("systemctl", "start", "systemd-userdbd.socket")
	m.Run("posthouse", "queue", "retry", "--all")
	emptyQueue(m, time.Minute)
	if got := strings.Count(m.ReadFile("/var/mail/zoe"), "\nSubject: "); got != before+1 {
		t.Errorf("%d messages, not %d", got, before+1)
	}
	if sent := m.Script("find /var/vmail -type f"); sent != "" {
		t.Errorf("notifications: %s", sent)
	}
}
