//go:build system

package system

import (
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// TestProfile: a profile turns subsystems on and off, mail for those that are off
// waits, and all of it can be undone.
func TestProfile(t *testing.T) {
	t.Parallel()
	m := mailtest.Boot(t, mailtest.Options{})
	m.WriteFile("/etc/posthouse/conf.d/test.yaml", conf, 0o644)
	m.Run("posthouse", "user", "add", "--no-password", mailFor)
	units := func() string {
		return m.Script("systemctl show --property=Id,UnitFileState,ActiveState 'posthouse*.socket' 'posthouse*.timer' 'posthouse*.path' posthouse.target --all")
	}
	before := units()
	if got := m.Run("posthouse", "profile"); got != "no profile is in force\n" {
		t.Errorf("at first: %s", got)
	}
	told := m.Run("posthouse", "profile", "--dry-run", "workstation")
	if now := units(); now != before {
		t.Errorf("a dry run has changed units: %s", now)
	}
	if did := m.Run("posthouse", "profile", "workstation"); did != told || !strings.Contains(did, "disable posthouse-dns.socket posthouse-virtual.socket posthouse-local.socket") {
		t.Errorf("done: %s, announced: %s", did, told)
	}
	m.RunInput([]byte("Subject: waits\n\nx\n"), "sendmail", mailFor)
	m.WaitFor("the reason to name the unit", time.Minute, func() bool { return strings.Contains(m.Run("mailq"), "posthouse-virtual.socket") })
	if open := m.Run("ss", "-Htln"); open != "" {
		t.Errorf("a workstation listens: %s", open)
	}

	m.Run("posthouse", "profile", "relay")
	m.Run("systemctl", "preset", "posthouse-smtpd.socket", "posthouse-virtual.socket")
	if got := m.Run("posthouse", "profile"); !strings.HasPrefix(got, "relay: ") || strings.Count(got, "\n") != 1 {
		t.Errorf("the preset does not agree: %s", got)
	}
	if out, code := swaks(t, m, "--to", "x@sink.example", "--quit-after", "RCPT"); code != 0 {
		t.Errorf("a relay: %s", out)
	}
	if m.Run("mailq") == "Mail queue is empty\n" {
		t.Error("the message did not wait")
	}

	m.Run("posthouse", "profile", "mailhost")
	m.Run("posthouse", "queue", "retry", "--all")
	if got := takeAll(t, m, alice); len(got) != 1 {
		t.Errorf("%d messages have waited", len(got))
	}

	m.Run("posthouse", "profile", "none")
	if on := m.Run("systemctl", "list-units", "--no-legend", "--state=active", "posthouse*.socket", "posthouse*.service", "posthouse*.timer", "posthouse*.path", "posthouse*.target"); on != "" {
		t.Errorf("still on: %s", on)
	}
	m.Run("posthouse", "profile", "undo")
	m.Settle()
	if now := units(); now != before {
		t.Errorf("undone:\n%s\nbefore:\n%s", now, before)
	}
	m.Run("useradd", mallory)
	if r, err := m.Try("runuser", "-u", mallory, "--", "posthouse", "profile", "relay"); err != nil || r.Code != 77 {
		t.Errorf("a user: %+v, %v", r, err)
	}
	healthy(t, m)
}
