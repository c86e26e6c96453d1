//go:build system

package system

import (
	"regexp"
	"slices"
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
	configure(m, "test", conf)
	m.Run("posthouse", "user", "add", "--no-password", mailFor)
	units := func() string {
		// systemctl lists what a pattern matches in the order of systemd's hash table, which changes.
		shown := m.Script("systemctl show --property=Id,UnitFileState,ActiveState 'posthouse*.socket' 'posthouse*.timer' 'posthouse*.path' posthouse.target --all")
		each := strings.Split(strings.TrimSpace(shown), "\n\n")
		slices.Sort(each)
		return strings.Join(each, "\n\n")
	}
	before := units()
	if got := m.Run("posthouse", "profile"); got != "no profile is in force\n" {
		t.Errorf("at first: %s", got)
	}
	listed(t, m)
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

	smarthost(t, m)

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

	missed(t, m)
	unmanaged(t, m)

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

// listed: status has what is off, too, of which systemd has nothing in memory.
func listed(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	if out := m.Run("posthouse", "status"); !regexp.MustCompile(`(?m)^posthouse-smtpd\.socket +disabled +inactive$`).MatchString(out) ||
		strings.Count(out, "\nposthouse-qmgr.socket ") != 1 || strings.Contains(out, "@") {
		t.Errorf("status: %s", out)
	}
}

// smarthost: with what the README has for a workstation, mail for the machine itself goes to
// the smarthost. Without, the command says what would become of it.
func smarthost(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	const hint = "mail for mail.example.org, localhost, example.org, such as that of cron, waits for posthouse-local.socket"
	if out := m.Run("posthouse", "profile", "workstation"); !strings.Contains(out, hint) {
		t.Errorf("no hint: %s", out)
	}
	m.Run("install", "-d", "-o", "nobody", "/var/tmp/smarthost")
	sink(m, "smarthost", "127.0.0.1:2602", "-d", "/var/tmp/smarthost/%M.")
	m.WriteFile("/etc/posthouse/conf.d/workstation.yaml", "domains: {local: []}\nroutes: {default: \"smtp:[127.0.0.1]:2602\"}\n", 0o644)
	if out := m.Run("posthouse", "profile", "workstation"); strings.Contains(out, "cron") {
		t.Errorf("a hint all the same: %s", out)
	}
	m.Stop("posthouse-*.service") // they remember for a while
	for _, to := range []string{"root", "root@mail.example.org", "root@localhost"} {
		m.RunInput([]byte("Subject: from cron\n\nx\n"), "sendmail", "-i", "-FCronDaemon", to)
	}
	m.WaitFor("mail at the smarthost", time.Minute, func() bool {
		return strings.Count(m.Script("cat /var/tmp/smarthost/* 2>/dev/null || true"), "\nSubject: from cron\n") == 3
	})
	got := m.Script("cat /var/tmp/smarthost/*")
	for _, to := range []string{"root@example.org", "root@mail.example.org", "root@localhost"} {
		if !strings.Contains(got, "\nX-Rcpt-Args: <"+to+">") || !strings.Contains(got, "X-Mail-Args: <root@example.org>") {
			t.Errorf("nothing for %s: %s", to, got)
		}
	}
	// The sink has a message before it says so.
	m.WaitFor("the end of deliveries", time.Minute, func() bool {
		return m.Script("cd /var/spool/posthouse && for i in 1 2; do find incoming active -type f ! -path '*/spare/*' || echo changes; done") == ""
	})
	m.Script("rm /etc/posthouse/conf.d/workstation.yaml; systemctl stop smarthost 'posthouse-*.service'")
}

// unmanaged: without qmgr mail comes in and waits. What starts qmgr beside its
// socket does not switch it on, and systemd does not try again and again.
func unmanaged(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	m.Stop("posthouse-*.service", "posthouse-qmgr.socket")
	if out, code := swaks(t, m, "--to", mailFor, "--header", "Subject: without qmgr"); code != 0 {
		t.Errorf("qmgr off: %s", out)
	}
	m.Settle()
	for _, unit := range []string{"posthouse-qmgr.service", "posthouse-qmgr.socket", "posthouse-qmgr-wake.socket", "posthouse-queue.socket"} {
		if r, err := m.Try("systemctl", "is-active", unit); err != nil || strings.TrimSpace(r.Stdout) != "inactive" {
			t.Errorf("%s is %s, %v", unit, r.Stdout, err)
		}
	}
	if n := strings.Count(m.Journal("-u", "posthouse-qmgr.service", "-o", "cat"), "Dependency failed for"); n == 0 || n > 3 {
		t.Errorf("systemd tried %d times to start qmgr", n)
	}
	if n := strings.TrimSpace(m.Script("find /var/spool/posthouse/incoming -maxdepth 1 -type f | wc -l")); n != "1" {
		t.Errorf("%s messages wait", n)
	}
	m.Run("systemctl", "start", "posthouse-qmgr.socket", "posthouse-qmgr.service")
	emptyQueue(m, time.Minute)
}

// missed: mail for a subsystem that is off comes in and waits, with the unit to
// enable as its reason. Who does not exist is refused all the same where that is
// known; where only the agent could say it, clients that are not trusted have to
// come back.
func missed(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	configure(m, "local", "domains: {local: [local.example]}\n")
	m.Run("useradd", "--create-home", "erin")
	m.CopyTo(buildProbe(t), probePath)
	m.Script("chmod 755 " + probePath + "; mkdir " + sunk + "; ip address add 198.51.100.1/32 dev lo")
	m.Start("sink", probePath, "sink", "127.0.0.1:2600", sunk)
	m.WaitFor("the sink", time.Minute, func() bool { return m.Run("ss", "-Htln", "sport = 2600") != "" })
	for _, c := range []struct{ units, to, arrives, toReply, stranger, strangerReply string }{
		{"virtual", mailFor, alice, "250 2.1.5", "stranger@example.net", "550 5.1.1"},
		{"smtp", "x@sink.example", sunk, "250 2.1.5", "x@elsewhere.example", "554 5.7.1"},
		{"local", "erin@local.example", "/var/mail/erin", "450 4.1.1", "stranger@local.example", "450 4.1.1"},
		{"deliver", "erin@local.example", "/var/mail/erin", "250 2.1.5", "stranger@local.example", "550 5.1.1"},
	} {
		var sockets []string
		for unit := range strings.FieldsSeq(c.units) {
			sockets = append(sockets, "posthouse-"+unit+".socket")
		}
		// rewrite remembers for a while.
		m.Run(append([]string{"systemctl", "stop", "posthouse-rewrite.service"}, sockets...)...)
		subject := "without " + c.units
		if out, code := swaks(t, m, "--to", c.to, "--header", "Subject: "+subject); code != 0 {
			t.Errorf("%s off: %s", c.units, out)
		}
		for to, want := range map[string]string{c.to: c.toReply, c.stranger: c.strangerReply} {
			if out, _ := swaks(t, m, "--server", "198.51.100.1", "--to", to, "--quit-after", "RCPT"); !strings.Contains(out, " "+want+" ") {
				t.Errorf("%s off, to %s: no %s in %s", c.units, to, want, out)
			}
		}
		m.WaitFor("the reason to name "+sockets[0], time.Minute, func() bool {
			return strings.Contains(strings.Join(strings.Fields(m.Run("mailq")), " "), "enable "+sockets[0])
		})
		arrived := func() int {
			return strings.Count(m.Script("grep -rh '^Subject: "+subject+"' "+c.arrives+" || true"), "\n")
		}
		if n := arrived(); n != 0 {
			t.Errorf("%s off: %d messages have arrived", c.units, n)
		}
		m.Run(append([]string{"systemctl", "start"}, sockets...)...)
		m.Run("posthouse", "queue", "retry", "--all")
		emptyQueue(m, time.Minute)
		if n := arrived(); n != 1 {
			t.Errorf("%s on again: %d messages have arrived", c.units, n)
		}
	}
	m.Script("rm /etc/posthouse/conf.d/local.yaml; systemctl stop sink")
}
