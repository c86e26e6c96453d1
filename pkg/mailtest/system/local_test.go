//go:build system

package system

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// localFiles are the files of the machine below, by name: of whom they are, and
// what is in them.
var localFiles = map[string][2]string{
	"/etc/aliases": {"root", `# of the test
postmaster: root
root:	bob
team:	carol, "|cat >/home/nobody/team", :include:/etc/team
owner-team: bob
saved:	"|{ id -un; id -Gn; env | sort; cat; } >/home/nobody/saved"
archive: /home/nobody/archive, /dev/null
boss:	\root
broken:	"|echo 5.2.2 is full; exit 1"
twice:	bob, bob@example.org, saved,
	saved
slow:	"|cat /home/nobody/fifo >/home/nobody/slow"
hangs:	"|sleep 1000"
noisy:	"|yes 'what is wrong' | head -c 1000000 >&2; exit 70"
loop:	pool
pool:	loop
`},
	"/etc/team":                {"root", "bob\nalice@example.net\n"},
	"/home/carol/.forward":     {"carol", `\carol, alice@example.net, "|id -un >$HOME/who"`},
	"/home/carol/.forward+job": {"carol", `"|cat >$HOME/job; echo $EXTENSION >$HOME/extension"`},
	"/home/dave/.forward":      {"dave", "erin\n"},
	"/home/erin/.forward":      {"erin", "dave\n"},
}

// localHost is a mail host with some accounts.
func localHost(t *testing.T, suite, more string) *mailtest.Machine {
	t.Helper()
	m := mailHost(t, suite, more)
	for _, user := range []string{"bob", "carol", "dave", "erin"} {
		m.Run("useradd", "--create-home", user)
	}
	m.Script("install -d -o nobody -g nogroup /home/nobody")
	for name, file := range localFiles {
		m.WriteFile(name, file[1], 0o644)
		m.Run("chown", file[0]+":", name)
	}
	m.Run("posthouse", "check")
	return m
}

// TestLocal: UNIX accounts and aliases, from the door to the mailbox.
func TestLocal(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m := localHost(t, suite, "")
			localRecipients(t, m)
			localDelivery(t, m)
			localTrouble(t, m)
			slowCommand(t, m)
			localLimits(t, m)
			localSettings(t, m)
			emptyQueue(m, time.Minute)
			healthy(t, m)
		})
	}
}

// localRecipients: nobody sends to whom there is not.
func localRecipients(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	try := func(to string) string {
		r, err := m.Try("swaks", "--server", "127.0.0.1", "--from", "s@sender.example", "--to", to, "--quit-after", "RCPT")
		if err != nil {
			t.Fatal(err)
		}
		return r.Stdout + r.Stderr
	}
	for _, to := range []string{"bob@example.org", "BOB+x@example.org", "root@localhost", "postmaster@example.org", "team@mail.example.org", "mailer-daemon@example.org"} {
		if out := try(to); !strings.Contains(out, "250 2.1.5 Ok") {
			t.Errorf("%s: %s", to, out)
		}
	}
	for _, to := range []string{"nobody.at.all@example.org", "team-x@example.org"} {
		if out := try(to); !strings.Contains(out, "550 5.1.1 <"+to+">: Recipient address rejected: User unknown in local recipient table") {
			t.Errorf("%s: %s", to, out)
		}
	}
}

// localDelivery: what is sent to a name arrives where the name says.
func localDelivery(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	for _, c := range []struct {
		to   string
		file string   // where it arrives
		want []string // what is in it, beside the subject
	}{
		{"bob", "/var/mail/bob", []string{"From root@example.org ", "\nReturn-Path: <root@example.org>\nX-Original-To: bob\nDelivered-To: bob@example.org\n", "\n>From here\n"}},
		{"root", "/var/mail/bob", []string{"\nX-Original-To: root\nDelivered-To: root@example.org\n"}},
		{"postmaster", "/var/mail/bob", nil},
		{"boss", "/var/mail/root", nil},
		{"carol", "/var/mail/carol", nil},
		{"carol+other", "/var/mail/carol", nil},
		{"carol+job", "/home/carol/job", []string{"Delivered-To: carol+job@example.org\n"}},
		{"archive", "/home/nobody/archive", []string{"From root@example.org "}},
		{"saved+X", "/home/nobody/saved", []string{"nobody\nnogroup\n", "\nEXTENSION=x\n", "\nLOCAL=saved+x\n", "\nRECIPIENT=saved+X@example.org\n", "\nSENDER=root@example.org\n", "\nUSER=nobody\n"}},
		{"team", "/home/nobody/team", nil},
		{"twice", "/home/nobody/saved", []string{"\nLOCAL=saved\n"}},
	} {
		subject := "\nSubject: to " + c.to + "\n"
		m.RunInput([]byte(subject[1:]+"\nFrom here\n"), "sendmail", c.to)
		emptyQueue(m, time.Minute)
		got := m.Script("cat " + c.file + " || true")
		for _, want := range append(c.want, subject) {
			if !strings.Contains("\n"+got, want) {
				t.Errorf("%s: %s lacks %q:\n%s", c.to, c.file, want, got)
			}
		}
	}
	// How often each subject has arrived.
	for file, want := range map[string]string{
		"/var/mail/bob":     "1 bob 1 postmaster 1 root 1 team 1 twice",
		"/var/mail/carol":   "1 carol 1 carol+other 1 team",
		"/var/mail/root":    "1 boss",
		alice + "/*":        "1 carol 1 carol+other 2 team",
		"/home/carol/job":   "1 carol+job",
		"/home/carol/who":   "",
		"/home/nobody/arc*": "1 archive",
	} {
		got := strings.Join(strings.Fields(m.Script("cat "+file+" | sed -n 's/^Subject: to //p' | sort | uniq -c")), " ")
		if got != want {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
	}
	if got := m.Script("cd /home/carol; cat who extension; stat -c %U /var/mail/carol /home/nobody/archive"); got != "carol\njob\ncarol\nnobody\n" {
		t.Errorf("carol: %q", got)
	}
	// A list sends in the name of its owner.
	got := m.Script("grep -h -A1 '^Return-Path: <owner-team@example.org>' " + alice + "/* /var/mail/bob")
	for _, member := range []string{"bob@example.org", "carol@example.org", "alice@example.net"} {
		if strings.Count(got, "X-Original-To: "+member+"\n") != 1 {
			t.Errorf("the owner of a list, and %s: %s", member, got)
		}
	}
}

// localTrouble: what fails for good comes back, what may work later waits.
func localTrouble(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	for to, want := range map[string]string{
		"broken": "dsn=5.2.2, status=bounced (command died with status 1: ",
		"loop":   "dsn=5.4.6, status=bounced (alias loop: loop, pool, loop)",
		"dave":   "dsn=5.4.6, status=bounced (mail forwarding loop for dave@example.org)",
		"nosuch": "dsn=5.1.1, status=bounced (unknown user: \"nosuch\")",
	} {
		before := count(t, m, alice)
		m.RunInput([]byte("Subject: x\n\nx\n"), "sendmail", "-f", "alice@example.net", to)
		m.WaitFor("the notification about "+to, time.Minute, func() bool { return count(t, m, alice) == before+1 })
		if log := m.Journal("-t", "posthouse/local", "-o", "cat"); !strings.Contains(log, want) {
			t.Errorf("%s: no %q in\n%s", to, want, log)
		}
	}
	emptyQueue(m, time.Minute)
	for n, c := range []struct{ breaks, reason, mends string }{
		{"systemctl stop posthouse-deliver.socket", "deliver is switched off: enable posthouse-deliver.socket", "systemctl start posthouse-deliver.socket"},
		{"systemctl stop posthouse-local.socket", "enable posthouse-local.socket", "systemctl start posthouse-local.socket"},
		{"chmod 666 /home/erin/.forward", "/home/erin/.forward is not read", "rm /home/erin/.forward"},
		{"echo /var/tmp/erin >/home/erin/.forward; chown erin: /home/erin/.forward", "/var/tmp is one of the mail system's own", "rm /home/erin/.forward"},
	} {
		subject := fmt.Sprintf("Subject: trouble %d\n", n)
		m.Script(c.breaks)
		m.RunInput([]byte(subject+"\nx\n"), "sendmail", "erin")
		m.WaitFor("the reason: "+c.reason, time.Minute, func() bool {
			return strings.Contains(strings.Join(strings.Fields(m.Run("mailq")), " "), c.reason)
		})
		m.Script(c.mends + "; rm -f /home/erin/.forward; posthouse queue retry --all")
		emptyQueue(m, time.Minute)
		if got := m.Script("cat /var/mail/erin || true"); strings.Count(got, subject) != 1 {
			t.Errorf("after %s: %s", c.breaks, got)
		}
		if n < 2 {
			m.Script("printf 'dave\\n' >/home/erin/.forward; chown erin: /home/erin/.forward")
		}
	}
}

// slowCommand: while somebody's command takes its time, local and deliver may go
// for new processes, and nobody else's mail waits.
func slowCommand(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	m.Script("mkfifo -m 666 /home/nobody/fifo")
	m.RunInput([]byte("Subject: slow\n\nx\n"), "sendmail", "slow")
	m.WaitFor("the command", time.Minute, func() bool { return m.Script("pgrep -u nobody cat || true") != "" })
	for _, unit := range []string{"posthouse-deliver.service", "posthouse-local.service"} {
		pid := func() string { return m.Run("systemctl", "show", "-P", "MainPID", unit) }
		old := pid()
		m.Run("systemctl", "reload", unit)
		m.WaitFor("the successor of "+unit, time.Minute, func() bool { return pid() != old })
	}
	m.RunInput([]byte("Subject: meanwhile\n\nx\n"), "sendmail", "erin")
	m.WaitFor("other mail", time.Minute, func() bool { return strings.Contains(m.ReadFile("/var/mail/erin"), "Subject: meanwhile\n") })
	if out := m.Run("mailq"); !strings.Contains(out, "slow@example.org") {
		t.Errorf("the slow command has ended: %s", out)
	}
	m.Script("echo done >/home/nobody/fifo")
	emptyQueue(m, time.Minute)
	if got := m.ReadFile("/home/nobody/slow"); got != "done\n" {
		t.Errorf("a slow command: %q", got)
	}
}

// localLimits: a command that does not end, or says too much, and a mailbox that is full
// return the message, once and soon; who has no home has a mailbox all the same.
func localLimits(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	configure(m, "zz-local", "limits: {message_size: 1MiB}\nlocal: {mailbox_size: 1MiB, command_timeout: 10s}\n")
	m.Script("useradd --create-home full; printf 'From x\\n%01048560d\\n\\n' 1 >/var/mail/full; chown full /var/mail/full; useradd --no-create-home homeless; useradd --create-home lost; rm -r /home/lost")
	full := m.Run("sha256sum", "/var/mail/full")
	for to, want := range map[string]string{
		"hangs": `dsn=5.3.0, status=bounced (command time limit exceeded: "sleep 1000")`,
		"noisy": "dsn=5.3.0, status=bounced (internal software error. Command output: what is wrong",
		"full":  "dsn=5.2.2, status=bounced (",
	} {
		before := count(t, m, alice)
		m.RunInput([]byte("Subject: limits\n\nx\n"), "sendmail", "-f", "alice@example.net", to)
		emptyQueue(m, time.Minute)
		if n := count(t, m, alice); n != before+1 {
			t.Errorf("%s: %d notifications", to, n-before)
		}
		if log := m.Journal("-t", "posthouse/local", "-o", "cat"); !strings.Contains(log, want) {
			t.Errorf("%s: no %q in\n%s", to, want, log)
		}
	}
	if got := m.Run("sha256sum", "/var/mail/full"); got != full {
		t.Errorf("the mailbox that is full was %s and is %s", full, got)
	}
	if got := m.Script("pgrep -u nobody sleep || true"); got != "" {
		t.Errorf("a command that had its time still runs: %s", got)
	}
	for _, to := range []string{"homeless", "lost"} {
		m.RunInput([]byte("Subject: no home\n\nx\n"), "sendmail", to)
		emptyQueue(m, time.Minute)
		if got := m.ReadFile("/var/mail/" + to); strings.Count(got, "\nSubject: no home\n") != 1 {
			t.Errorf("%s: %s", to, got)
		}
	}
	m.Run("rm", "/etc/posthouse/conf.d/zz-local.yaml")
}

// localSettings: mail goes where the configuration says.
func localSettings(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	set := func(text string) {
		configure(m, "zz-local", text)
	}
	send := func(to string) {
		m.RunInput([]byte("Subject: to "+to+"\n\nx\n"), "sendmail", to)
		emptyQueue(m, time.Minute)
	}
	set("local: {mailbox: Maildir/, luser_relay: bob}\n")
	send("bob")
	send("no.such.user")
	send("boss") // root has no home for mail
	if n := count(t, m, "/home/bob/Maildir/new"); n != 2 {
		t.Errorf("%d messages in a Maildir, not 2", n)
	}
	if got := strings.Count(m.ReadFile("/var/mail/root"), "\nSubject: to boss\n"); got != 2 {
		t.Errorf("%d messages for root, not 2", got)
	}
	set("local: {mailbox_command: \"cat >\\\"$HOME/lda\\\"; echo $USER $EXTENSION >>$HOME/lda\"}\n")
	send("bob+x")
	send("boss") // not as root
	if got := m.ReadFile("/home/bob/lda"); !strings.Contains(got, "\nSubject: to bob+x\n") || !strings.HasSuffix(got, "\nbob x\n") {
		t.Errorf("a command instead of mailboxes has got %s", got)
	}
	if got := strings.Count(m.ReadFile("/var/mail/root"), "\nSubject: to boss\n"); got != 3 {
		t.Errorf("%d messages for root, not 3", got)
	}
	set("local: {mailbox_transport: \"discard:mailbox\", fallback_transport: \"discard:fallback\"}\n")
	for to, want := range map[string]string{"bob": "mailbox", "root": "mailbox", "no.such.user": "fallback"} {
		send(to)
		if log := m.Journal("-t", "posthouse/qmgr", "-o", "cat"); !strings.Contains(log, "status=sent ("+want+")") {
			t.Errorf("%s: no %s in\n%s", to, want, log)
		}
	}
	m.Run("rm", "/etc/posthouse/conf.d/zz-local.yaml")
}
