//go:build system

package system

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// dovecotVersions are those of the suites, as docs/dovecot.md calls them.
var dovecotVersions = map[string]string{"bookworm": "2.3", "trixie": "2.4"}

// dovecotQuick keeps Dovecot from letting those wait who fail to log in.
const dovecotQuick = `
auth_failure_delay = 0
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
`

// dovecotOthers makes users known to Dovecot alone, of whom one has a quota that
// no message fits into.
var dovecotOthers = map[string]string{
	"2.3": `
passdb {
  driver = passwd-file
  args = /etc/dovecot/users
}
userdb {
  driver = passwd-file
  args = /etc/dovecot/users
}
protocol lmtp {
  mail_plugins = $mail_plugins quota
}
plugin {
  quota = count:user
  quota_vsizes = yes
}
`, "2.4": `
passdb others {
  driver = passwd-file
  passwd_file_path = /etc/dovecot/users
}
userdb others {
  driver = passwd-file
  passwd_file_path = /etc/dovecot/users
}
protocol lmtp {
  mail_plugins {
    quota = yes
  }
}
quota user {
  quota_storage_grace = 0
}
`}

// bobsMail is where Dovecot puts the mail of a user that it alone knows.
const bobsMail = "/var/vmail/lmtp.example/bob/Maildir/new"

// TestDovecot: Dovecot, set up as docs/dovecot.md says, serves the mail of virtual
// users, and takes mail by LMTP.
func TestDovecot(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m := mailHost(t, suite, "")
			startDovecot(t, m, dovecotVersions[suite])
			dovecotServes(t, m)
			dovecotRefuses(t, m)
			dovecotKeeps(t, m)
			dovecotAnswers(t, m)
			dovecotAway(t, m)
			dovecotDelivers(t, m)
			healthy(t, m)
		})
	}
}

// guide returns what docs/dovecot.md shows in the first block of that kind.
func guide(t *testing.T, kind string) string {
	t.Helper()
	top, err := mailtest.Top()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(top, "docs/dovecot.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^```" + regexp.QuoteMeta(kind) + "\n(.*?)^```$").FindSubmatch(b)
	if block == nil {
		t.Fatalf("docs/dovecot.md has no block %s", kind)
	}
	return string(block[1])
}

func startDovecot(t *testing.T, m *mailtest.Machine, version string) {
	t.Helper()
	if got := m.Run("dovecot", "--version"); !strings.HasPrefix(got, version+".") {
		t.Fatalf("Dovecot %s, not %s", got, version)
	}
	m.Run("sed", "-i", "s/^!include auth-system/#&/", "/etc/dovecot/conf.d/10-auth.conf")
	m.WriteFile("/etc/dovecot/conf.d/99-posthouse.conf", guide(t, "dovecot-"+version), 0o644)
	m.WriteFile("/etc/dovecot/conf.d/99-test.conf", dovecotOthers[version]+dovecotQuick, 0o644)
	owner := strings.TrimSpace(m.Run("id", "-u", "_ph-virtual")) + ":" + strings.TrimSpace(m.Run("id", "-g", "_ph-virtual"))
	var users strings.Builder
	for name, extra := range map[string]string{"bob": "", "full": " userdb_quota_rule=*:storage=1K userdb_quota_storage_size=1K"} {
		fmt.Fprintf(&users, "%s@lmtp.example:{CRYPT}!:%s::/var/vmail/lmtp.example/%s::userdb_mail=maildir:~/Maildir userdb_mail_driver=maildir "+
			"userdb_mail_path=~/Maildir userdb_mail_inbox_path=~/Maildir%s\n", name, owner, name, extra)
	}
	m.WriteFile("/etc/dovecot/users", users.String(), 0o644)
	m.RunInput([]byte(password+"\n"), "posthouse", "user", "passwd", "alice@example.net")
	m.Run("posthouse", "user", "add", "--no-password", "mute@example.net")
	m.Run("systemctl", "start", "dovecot.service")
}

const password = "correct: horse, bättery"

// denied is curl's exit status where the server does not let a user in.
const denied = 67

// fetch asks an IMAP or POP3 server by a URL of curl's, of its URL with a command
// of IMAP.
func fetch(t *testing.T, m *mailtest.Machine, user, url string, command ...string) (string, int) {
	t.Helper()
	args := []string{"curl", "-sS", "--max-time", "60", "-u", user, url}
	for _, c := range command {
		args = append(args, "-X", c)
	}
	r, err := m.Try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(r.Stdout, "\r\n", "\n"), r.Code
}

// imap has alice do something to her inbox.
func imap(t *testing.T, m *mailtest.Machine, command string) string {
	t.Helper()
	out, code := fetch(t, m, "alice@example.net:"+password, "imap://127.0.0.1/INBOX", command)
	if code != 0 {
		t.Fatalf("%s: status %d: %s", command, code, out)
	}
	return out
}

const letter = "From: Sénder <sender@example.org>\nSubject: a letter\nX-Folded: one\n\ttwo\n\n.dot\n\nümlaut  \nFrom here\n"

// post sends the letter to alice and waits for it to be in her mailbox.
func post(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	m.WriteFile("/root/letter.eml", strings.ReplaceAll(letter, "\n", "\r\n"), 0o644)
	if out := m.Run(probePath, "send", "127.0.0.1:25", "sender@example.org", "alice@example.net", "/root/letter.eml"); !strings.Contains(out, " 250 ") {
		t.Fatal(out)
	}
	emptyQueue(m, time.Minute)
}

// dovecotServes: what came by SMTP and by sendmail is there by IMAP and by POP3,
// octet by octet.
func dovecotServes(t *testing.T, m *mailtest.Machine) {
	post(t, m)
	m.RunInput([]byte("Subject: local\n\nby sendmail\n"), "sendmail", "-f", "sender@example.org", "alice+tag@example.net")
	emptyQueue(m, time.Minute)
	if out := imap(t, m, "STATUS INBOX (MESSAGES RECENT UNSEEN)"); !strings.Contains(out, "(MESSAGES 2 RECENT 2 UNSEEN 2)") {
		t.Errorf("STATUS: %s", out)
	}
	for _, url := range []string{"imap://127.0.0.1/INBOX;MAILINDEX=1", "pop3://127.0.0.1/1"} {
		// The address is one, however it is written.
		got, code := fetch(t, m, "Alice@EXAMPLE.net:"+password, url)
		if code != 0 || afterTrace(got) != letter {
			t.Errorf("%s: status %d, %q", url, code, got)
		}
		if !strings.HasPrefix(got, "Return-Path: <sender@example.org>\nX-Original-To: alice@example.net\nDelivered-To: alice@example.net\n") {
			t.Errorf("%s: what was put before it: %q", url, got)
		}
	}
	if got, _ := fetch(t, m, "alice@example.net:"+password, "pop3://127.0.0.1/2"); !strings.HasSuffix(got, "\n\nby sendmail\n") {
		t.Errorf("by sendmail: %q", got)
	}
}

// dovecotRefuses: only the password that was given last opens the mailbox, and
// none one that has no password.
func dovecotRefuses(t *testing.T, m *mailtest.Machine) {
	refused := func(users ...string) {
		t.Helper()
		for _, user := range users {
			for _, url := range []string{"imap://127.0.0.1/INBOX", "pop3://127.0.0.1/"} {
				if out, code := fetch(t, m, user, url); code != denied {
					t.Errorf("%s as %s: status %d, %q", url, user, code, out)
				}
			}
		}
	}
	refused("alice@example.net:"+password+"x", "alice@example.net:", "alice:"+password, "mute@example.net:!", "mute@example.net:", "mute@example.net:{CRYPT}!")
	for _, p := range []string{"another", password} {
		m.RunInput([]byte(p+"\n"), "posthouse", "user", "passwd", "alice@example.net")
		// Dovecot looks at the file once a second.
		m.WaitFor("the new password", time.Minute, func() bool {
			_, code := fetch(t, m, "alice@example.net:"+p, "imap://127.0.0.1/INBOX")
			return code == 0
		})
		if p != password {
			refused("alice@example.net:" + password)
		}
	}
}

// dovecotKeeps: what a user does to her mail stays while more comes.
func dovecotKeeps(t *testing.T, m *mailtest.Machine) {
	imap(t, m, "CREATE Kept")
	imap(t, m, `STORE 1 +FLAGS (\Flagged \Seen)`)
	imap(t, m, "MOVE 2 Kept")
	const more = 3
	for range more {
		post(t, m)
	}
	if out := imap(t, m, "STATUS INBOX (MESSAGES)"); !strings.Contains(out, fmt.Sprintf("(MESSAGES %d)", 1+more)) {
		t.Errorf("STATUS: %s", out)
	}
	if out := imap(t, m, "STATUS Kept (MESSAGES)"); !strings.Contains(out, "(MESSAGES 1)") {
		t.Errorf("STATUS of the folder: %s", out)
	}
	if out := imap(t, m, "SEARCH FLAGGED SEEN"); strings.TrimSpace(out) != "* SEARCH 1" {
		t.Errorf("flagged: %q", out)
	}
	for i := range 1 + more {
		got, code := fetch(t, m, "alice@example.net:"+password, fmt.Sprintf("imap://127.0.0.1/INBOX;MAILINDEX=%d", 1+i))
		if code != 0 || afterTrace(got) != letter {
			t.Errorf("message %d: status %d, %q", 1+i, code, got)
		}
	}
	imap(t, m, `STORE 1:* +FLAGS (\Deleted)`)
	imap(t, m, "EXPUNGE")
	if n := count(t, m, alice) + count(t, m, alice+"/../cur"); n != 0 {
		t.Errorf("%d messages after EXPUNGE", n)
	}
}

// dovecotAnswers: of three recipients one gets the message, one is unknown and
// one has no room; the sender is told of these two.
func dovecotAnswers(t *testing.T, m *mailtest.Machine) {
	body := strings.Repeat("A line of a message.\n", 200)
	m.RunInput([]byte("Subject: by LMTP\n\n"+body), "sendmail", "-f", "alice@example.net", "bob@lmtp.example", "none@lmtp.example", "full@lmtp.example")
	m.WaitFor("the notification", time.Minute, func() bool { return count(t, m, alice) == 1 })
	emptyQueue(m, time.Minute)
	got := m.Script("cat " + bobsMail + "/*")
	if !strings.HasSuffix(got, "\n\n"+body) || !strings.HasPrefix(got, "Return-Path: <alice@example.net>\n") {
		t.Errorf("arrived: %.1000q", got)
	}
	if n := count(t, m, "/var/vmail/lmtp.example/full/Maildir/new"); n != 0 {
		t.Errorf("%d messages in a mailbox without room", n)
	}
	note := m.Script("cat " + alice + "/*")
	for _, want := range []string{
		"Final-Recipient: rfc822; none@lmtp.example\nOriginal-Recipient: rfc822;none@lmtp.example\nAction: failed\nStatus: 5.1.1\n",
		"Final-Recipient: rfc822; full@lmtp.example\nOriginal-Recipient: rfc822;full@lmtp.example\nAction: failed\nStatus: 5.2.2\n",
		"550 5.1.1 <none@lmtp.example> ", "552 5.2.2 <full@lmtp.example> ",
	} {
		if !strings.Contains(note, want) {
			t.Errorf("the notification lacks %q", want)
		}
	}
	if strings.Contains(note, "bob@lmtp.example") {
		t.Error("the notification is about a recipient who got the message")
	}
	if t.Failed() {
		t.Log(note)
	}
	log := m.MailLog()
	for _, want := range []string{
		"to=<bob@lmtp.example>, relay=mail.example.org[/run/dovecot/lmtp], ", "status=sent (250 2.0.0 <bob@lmtp.example> ",
		"status=bounced (host mail.example.org[/run/dovecot/lmtp] said: 552 5.2.2 <full@lmtp.example> ",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q", want)
		}
	}
	m.Script("rm " + bobsMail + "/* " + alice + "/*")
}

// dovecotAway: mail waits for Dovecot, and a Dovecot that is on its way at boot
// is waited for.
func dovecotAway(t *testing.T, m *mailtest.Machine) {
	letter := []byte("Subject: waits\n\nx\n")
	deferred := func() int { return strings.Count(m.MailLog(), "to=<bob@lmtp.example>, relay=none, ") }
	m.RunInput(letter, "sendmail", "-f", "alice@example.net", "bob@lmtp.example")
	emptyQueue(m, time.Minute)
	m.Stop("dovecot.service")
	m.RunInput(letter, "sendmail", "-f", "alice@example.net", "bob@lmtp.example")
	m.WaitFor("the message to be deferred", time.Minute, func() bool { return deferred() == 1 })
	m.Run("systemctl", "start", "dovecot.service")
	m.Run("posthouse", "queue", "retry", "--all")
	emptyQueue(m, time.Minute)

	m.Stop("dovecot.service", "posthouse-smtp.service")
	m.Run("rm", "-r", "/run/dovecot")
	m.WriteFile("/run/systemd/system/dovecot.service.d/slow.conf", "[Service]\nExecStartPre=/bin/sleep 3\n", 0o644)
	m.Run("systemctl", "daemon-reload")
	m.Run("systemctl", "start", "--no-block", "dovecot.service")
	m.RunInput(letter, "sendmail", "-f", "alice@example.net", "bob@lmtp.example")
	emptyQueue(m, time.Minute)
	if n := deferred(); n != 1 {
		t.Errorf("%d attempts failed while Dovecot was starting", n-1)
	}
	if n := count(t, m, bobsMail); n != 3 {
		t.Errorf("%d of 3 messages arrived", n)
	}
}

// dovecotDelivers: with the route of the guide the mail of virtual users goes to
// Dovecot.
func dovecotDelivers(t *testing.T, m *mailtest.Machine) {
	m.WriteFile("/etc/posthouse/conf.d/route.yaml", guide(t, "yaml"), 0o644)
	m.Run("posthouse", "check")
	m.WaitFor("daemons to reload", time.Minute, func() bool {
		r, err := m.Try("systemctl", "reload", "posthouse-*.service") // fails for one that has just gone
		return err == nil && r.Code == 0
	})
	m.Run("systemctl", "disable", "--now", "posthouse-virtual.socket")
	post(t, m)
	m.RunInput([]byte("Subject: tag\n\nx\n"), "sendmail", "-f", "sender@example.org", "Alice+tag@example.net")
	emptyQueue(m, time.Minute)
	if n := strings.Count(m.MailLog(), "@example.net>, relay=mail.example.org[/run/dovecot/lmtp], "); n != 2 {
		t.Errorf("%d messages for virtual users went to Dovecot, not 2", n)
	}
	if got, _ := fetch(t, m, "alice@example.net:"+password, "imap://127.0.0.1/INBOX;MAILINDEX=1"); !strings.HasSuffix(got, letter) {
		t.Errorf("arrived: %q", got)
	}
	if out := imap(t, m, "STATUS INBOX (MESSAGES)"); !strings.Contains(out, "(MESSAGES 2)") {
		t.Errorf("STATUS: %s", out)
	}
	if out := m.Run(probePath, "send", "127.0.0.1:25", "sender@example.org", "nobody@example.net", "/root/letter.eml"); !strings.Contains(out, " 550 5.1.1 ") {
		t.Errorf("unknown user: %s", out)
	}
}
