//go:build system

package system

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

const (
	dropDir  = "/var/spool/posthouse/maildrop/drop"
	openFor  = "/etc/tmpfiles.d/posthouse-maildrop.conf"
	mailFor  = "alice@example.net"
	bobLocal = "bob"
)

// sendAs runs sendmail as a user.
func sendAs(t *testing.T, m *mailtest.Machine, user, subject string, args ...string) mailtest.Result {
	t.Helper()
	args = append([]string{"runuser", "-u", user, "--", "sendmail"}, args...)
	r, err := m.TryInput([]byte("Subject: "+subject+"\n\nx\n"), append(args, mailFor)...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// dropAs is sendAs for a message that goes into the maildrop.
func dropAs(t *testing.T, m *mailtest.Machine, user, subject string) (path string) {
	t.Helper()
	r := sendAs(t, m, user, subject, "-v")
	_, path, ok := strings.Cut(strings.TrimSpace(r.Stderr), "the mail system is off: the message waits in ")
	if r.Code != 0 || !ok {
		t.Errorf("%s drops %s: %+v", user, subject, r)
	}
	return path
}

// cannot fails where a user can do something.
func cannot(t *testing.T, m *mailtest.Machine, user, script string) {
	t.Helper()
	if r, err := m.Try("runuser", "-u", user, "--", "sh", "-c", script); err != nil || r.Code == 0 {
		t.Errorf("%s can: %s: %v", user, script, err)
	}
}

// openMaildrop says who may drop; upgrades leave it at that.
func openMaildrop(t *testing.T, m *mailtest.Machine, mode, group string) {
	t.Helper()
	m.WriteFile(openFor, "d /var/spool/posthouse/maildrop "+mode+" root "+group+"\nd "+dropDir+" 3733 _ph-pickup _ph-pickup\n", 0o644)
	m.Run("systemd-tmpfiles", "--create")
	m.Run("systemd-tmpfiles", "--create", "posthouse-maildrop.conf", "posthouse.conf") // as packages do
	if got := m.Run("stat", "-c", "%a %G", "/var/spool/posthouse/maildrop"); got != strings.TrimPrefix(mode, "0")+" "+group+"\n" {
		t.Errorf("who may drop: %s", got)
	}
}

// subjects waits until nothing is in the maildrop, and takes what has arrived.
func subjects(t *testing.T, m *mailtest.Machine) string {
	t.Helper()
	m.WaitFor("an empty maildrop", 2*time.Minute, func() bool { return m.Script("ls "+dropDir) == "" })
	var all []string
	for _, text := range takeAll(t, m, alice) {
		_, rest, _ := strings.Cut(text, "\nSubject: ")
		subject, _, _ := strings.Cut(rest, "\n")
		all = append(all, subject)
	}
	return strings.Join(all, ",")
}

// TestMaildrop: what is sent while the mail system is off arrives when it is on
// again, if the administrator has allowed it, and whatever else somebody has put
// there.
func TestMaildrop(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m := mailHost(t, suite, "")
			lives(m, "100ms", 0, 0)
			m.Script("groupadd droppers; useradd --create-home " + mallory + "; useradd --create-home --groups droppers " + bobLocal)
			m.Stop("posthouse.target")
			if r := sendAs(t, m, mallory, "closed"); r.Code != 75 || !strings.Contains(r.Stderr, "the mail system is off") {
				t.Errorf("closed: %+v", r)
			}
			openMaildrop(t, m, "0710", "droppers")
			if r := sendAs(t, m, mallory, "no member"); r.Code != 75 {
				t.Errorf("no member: %+v", r)
			}
			dropAs(t, m, bobLocal, "member")
			openMaildrop(t, m, "0711", "root")
			hostileDrops(t, m)

			m.Run("systemctl", "start", "posthouse.target")
			if got := subjects(t, m); got != "member,private" && got != "private,member" {
				t.Errorf("arrived: %s", got)
			}
			if n := strings.Count(m.Journal("-t", "posthouse/pickup"), ": set aside as"); n != 8 {
				t.Errorf("%d lines about what was set aside, of 8", n)
			}
			gone(m)
			if n := starts(m, "pickup"); n > 5 { // and not again and again for what stays there
				t.Errorf("pickup was started %d times", n)
			}
			offIsOff(t, m)
			laterIsNotLost(t, m)
			neverFailed(t, m)
			healthy(t, m)
		})
	}
}

// hostileDrops: nobody reads, removes or hinders another one's mail; what is no
// message harms nobody.
func hostileDrops(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	private := dropAs(t, m, bobLocal, "private")
	for _, script := range []string{"ls " + dropDir, "cat " + private, "rm -f " + private, "mv " + private + " " + dropDir + "/x", "ln " + private + " " + dropDir + "/x"} {
		cannot(t, m, mallory, script)
	}
	mine := dropAs(t, m, mallory, "two names")
	m.Run("runuser", "-u", mallory, "--", "bash", "-euc", "cd "+dropDir+"; ln "+mine+` other
		ln -s /etc/shadow link; ln -s `+private+` link2; mkfifo -m 640 fifo; mkdir dir; truncate -s 1T huge; chmod 640 huge
		head -c 100 /dev/urandom >half; echo no >.hidden`)
	// The two names, two links, the FIFO, the directory, the hole, and half a message.
	if got := strings.Fields(m.Script("ls " + dropDir)); len(got) != 10 {
		t.Errorf("dropped: %q", got)
	}
}

// offIsOff: where pickup's socket is off, what is dropped starts nothing.
func offIsOff(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	m.Run("systemctl", "disable", "--now", "posthouse-pickup.socket")
	m.Settle()
	dropAs(t, m, mallory, "while off")
	m.Run("systemctl", "start", "posthouse.target")
	m.Settle()
	for _, unit := range []string{"posthouse-pickup.path", "posthouse-pickup-wake.socket", "posthouse-pickup.socket", "posthouse-pickup.service"} {
		if r, err := m.Try("systemctl", "is-active", unit); err != nil || strings.TrimSpace(r.Stdout) != "inactive" {
			t.Errorf("%s: %s, %v", unit, r.Stdout, err)
		}
	}
	m.Run("systemctl", "enable", "--now", "posthouse-pickup.socket")
	if got := subjects(t, m); got != "while off" {
		t.Errorf("arrived: %s", got)
	}
}

// laterIsNotLost: what cannot be taken now stays, and a byte of anybody has pickup
// look.
func laterIsNotLost(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	m.Stop("posthouse.target")
	dropAs(t, m, mallory, "later")
	m.Run("systemctl", "start", "posthouse-pickup.socket")
	m.WaitFor("the trouble in the log", time.Minute, func() bool {
		return strings.Contains(m.Journal("-t", "posthouse/pickup"), "private/cleanup: nobody listens")
	})
	if m.Script("ls "+dropDir) == "" {
		t.Error("it is gone")
	}
	m.Run("systemctl", "start", "posthouse.target")
	m.Run("runuser", "-u", mallory, "--", "sh", "-c", "echo >/run/posthouse/public/pickup")
	if got := subjects(t, m); got != "later" {
		t.Errorf("arrived: %s", got)
	}
	gone(m)
}

// TestMaildropShared: a machine without a mail system drops into a directory that
// another one shares.
func TestMaildropShared(t *testing.T) {
	t.Parallel()
	shared := t.TempDir()
	drop := filepath.Join(shared, "drop")
	if err := os.Mkdir(drop, 0o700); err != nil {
		t.Fatal(err)
	}
	binds := []string{shared + ":" + filepath.Dir(dropDir)}
	server := mailtest.Boot(t, mailtest.Options{Binds: binds})
	configure(server, "test", conf)
	server.Run("posthouse", "user", "add", "--no-password", mailFor)
	openMaildrop(t, server, "0711", "root")
	client := mailtest.Boot(t, mailtest.Options{Bare: true, Binds: binds, Hostname: "client.example.org"})
	programs := t.TempDir()
	server.CopyFrom("/usr/sbin/sendmail", programs)
	client.CopyTo(filepath.Join(programs, "sendmail"), "/usr/sbin/sendmail")
	client.Run("useradd", "--uid", "4711", mallory)

	if r := sendAs(t, client, mallory, "another"); r.Code != 0 {
		t.Errorf("to drop: %+v", r)
	}
	dropAs(t, client, mallory, "from the client")
	uid, err := strconv.Atoi(strings.TrimSpace(client.Run("id", "-u", mallory)))
	if err != nil {
		t.Fatal(err)
	}
	server.WaitFor("an empty maildrop", 2*time.Minute, func() bool { return server.Script("ls "+dropDir) == "" })
	if got := subjects(t, server); !strings.Contains(got, "from the client") || strings.Count(got, ",") != 1 {
		t.Errorf("arrived: %s", got)
	}
	if !strings.Contains(server.MailLog(), fmt.Sprintf(": uid=%d from=<mallory>", uid)) {
		t.Error("the log does not say who has sent it")
	}
	// Where files do not get the group nothing is dropped that could not be read.
	server.Run("chmod", "g-s", dropDir)
	if r := sendAs(t, client, mallory, "wrong group"); r.Code != 75 || !strings.Contains(r.Stderr, "set-gid") {
		t.Errorf("without a set-gid directory: %+v", r)
	}
	healthy(t, server)
}
