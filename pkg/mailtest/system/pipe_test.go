//go:build system

package system

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// pipeConf has two commands: dovecot-lda as Dovecot's manual has it for Postfix,
// and one that is called as Mailman's wrapper is.
const pipeConf = `
pipes:
  lda: {command: [/usr/lib/dovecot/dovecot-lda, %s, -f, "${sender}", -a, "${original_recipient}"], flags: DORhu}
  list: {command: [/usr/local/bin/list, post, "${user}", "${extension}"], flags: R}
`

const pipeRoutes = "lda.example pipe-lda:\nlists.example pipe-list:\n"

// ldaArgs say where the mailboxes are, for Dovecot of a suite.
var ldaArgs = map[string]string{
	"bookworm": `-o, "mail_location=maildir:/srv/lda/${user}"`,
	"trixie":   `-o, mail_driver=maildir, -o, mail_home=/srv/lda, -o, "mail_path=/srv/lda/${user}", -o, "mail_inbox_path=/srv/lda/${user}"`,
}

// listProgram is called as "list post NAME EXTENSION". What NAME is to do is a script
// that the test writes; the message is kept, whole or not at all.
const listProgram = `#!/bin/sh
test "$1" = post || exit 64
test -e "/srv/list/$2" || { echo "5.1.1 no list $2"; exit 1; }
. "/srv/list/$2"
cat >"/srv/list/tmp/$$" && mv "/srv/list/tmp/$$" "/srv/list/new/$(date +%s%N).$$"
`

// pipes is a machine with commands.
type pipes struct {
	*mailtest.Machine
	t *testing.T
}

// TestPipe: commands get mail, as the user and in the sandbox of their unit.
func TestPipe(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m := mailHost(t, suite, fmt.Sprintf(pipeConf, ldaArgs[suite]))
			// The transport table; and domains for which mail is taken.
			m.WriteFile("/etc/posthouse/tables/transport", pipeRoutes, 0o644)
			configure(m, "relay", "domains: {relay: {lda.example: {}, lists.example: {}}}\ndaemons: {pipe: {max_idle: 1h}}\n")
			m.WriteFile("/usr/local/bin/list", listProgram, 0o755)
			m.Run("posthouse", "check")
			p := pipes{m, t}
			for _, name := range []string{"lda", "list"} {
				m.Script("id " + name + " || useradd --system --home-dir /srv/" + name + " " + name + "; install -d -o " + name + " -g " + name + " /srv/" + name)
				p.edit(name, "User="+name, "ReadWritePaths=/srv/"+name)
			}
			m.Script("install -d -o list -g list /srv/list/tmp /srv/list/new; touch /srv/list/members")
			p.send("first", "alice@example.net") // makes her mailbox
			emptyQueue(m, time.Minute)
			p.off()
			p.delivers()
			p.verdicts()
			p.confined()
			p.network()
			p.limits()
			p.upgrade()
			p.slow()
			p.killed()
			emptyQueue(m, time.Minute)
			healthy(t, m)
		})
	}
}

// edit writes the drop-in of an instance, as systemctl edit does.
func (p pipes) edit(name string, lines ...string) {
	p.t.Helper()
	unit := "posthouse-pipe@" + name + ".service"
	p.WriteFile("/etc/systemd/system/"+unit+".d/override.conf", "[Service]\n"+strings.Join(lines, "\n")+"\n", 0o644)
	p.Run("systemctl", "daemon-reload")
	p.Run("systemctl", "stop", unit)
}

// list says what the list called name does before it keeps a message.
func (p pipes) list(name, script string) {
	p.t.Helper()
	p.WriteFile("/srv/list/"+name, script+"\n", 0o644)
}

func (p pipes) send(subject, to string) {
	p.t.Helper()
	p.RunInput([]byte("Subject: "+subject+"\n\nFrom here\n"), "sendmail", "-f", "alice@example.net", to)
}

// waits waits until the reason why mail waits contains text.
func (p pipes) waits(text string) {
	p.t.Helper()
	p.WaitFor("the reason: "+text, time.Minute, func() bool {
		return strings.Contains(strings.Join(strings.Fields(p.Run("mailq")), " "), text)
	})
}

func (p pipes) arrives() {
	p.t.Helper()
	p.Run("posthouse", "queue", "retry", "--all")
	emptyQueue(p.Machine, time.Minute)
}

// off: mail for a command that is off waits, and says what for.
func (p pipes) off() {
	p.t.Helper()
	p.send("early", "bob@lda.example")
	p.send("early", "members@lists.example")
	for _, name := range []string{"lda", "list"} {
		p.waits("mail transport pipe-" + name + " is switched off: enable posthouse-pipe@" + name + ".socket")
		p.Run("systemctl", "enable", "--now", "posthouse-pipe@"+name+".socket")
	}
	p.arrives()
	for _, dir := range []string{"/srv/lda/bob/new", "/srv/list/new"} {
		if n := count(p.t, p.Machine, dir); n != 1 {
			p.t.Errorf("%d messages in %s", n, dir)
		}
	}
	if out := p.Run("posthouse", "status"); !regexp.MustCompile(`(?m)^posthouse-pipe@lda\.socket +enabled +active$`).MatchString(out) {
		p.t.Errorf("status: %s", out)
	}
}

// delivers: what comes by SMTP is in the mailbox that the command has made of it.
func (p pipes) delivers() {
	p.t.Helper()
	p.Run("swaks", "--server", "127.0.0.1", "--from", "s@sender.example", "--to", "Carol+X@LDA.example", "--header", "Subject: by SMTP", "--body", "From here")
	emptyQueue(p.Machine, time.Minute)
	got := p.Script("cat /srv/lda/carol/new/*")
	if want := "Return-Path: <s@sender.example>\nX-Original-To: Carol+X@LDA.example\nDelivered-To: Carol+X@LDA.example\n"; !strings.HasPrefix(got, want) ||
		!strings.Contains(got, "\n\nFrom here\n") || strings.Contains(got, "\r") {
		p.t.Errorf("what has arrived: %q", got)
	}
	if got := p.Script("stat -c '%U %G' /srv/lda/carol/new/*"); got != "lda lda\n" {
		p.t.Errorf("owner: %s", got)
	}
	if log := p.Journal("-t", "posthouse/pipe", "-o", "cat"); !strings.Contains(log, "to=<Carol+X@LDA.example>, relay=pipe-lda, ") || !strings.Contains(log, "dsn=2.0.0, status=sent (delivered via pipe-lda service)") {
		p.t.Errorf("log: %s", log)
	}
}

// verdicts: what fails for good comes back, what may work later waits.
func (p pipes) verdicts() {
	p.t.Helper()
	p.list("full", "echo 5.2.2 the archive is full; exit 75")
	for to, want := range map[string]string{
		"nosuch": `dsn=5.1.1, status=bounced (command died with status 1: "/usr/local/bin/list". Command output: no list nosuch)`,
		"full":   `dsn=5.2.2, status=bounced (temporary failure. Command output: the archive is full)`,
	} {
		before := count(p.t, p.Machine, alice)
		p.send("x", to+"@lists.example")
		p.WaitFor("the notification about "+to, time.Minute, func() bool { return count(p.t, p.Machine, alice) == before+1 })
		if log := p.Journal("-t", "posthouse/pipe", "-o", "cat"); !strings.Contains(log, want) {
			p.t.Errorf("%s: no %q in\n%s", to, want, log)
		}
	}
	for script, want := range map[string]string{
		"exit 75":                       "(temporary failure)",
		"echo 4.7.1 ask later; exit 67": "Command output: ask later",
		"kill -KILL $$":                 "command died: signal: killed",
	} {
		before := count(p.t, p.Machine, "/srv/list/new")
		p.list("later", script)
		p.send("later", "later@lists.example")
		p.waits(want)
		p.list("later", "")
		p.arrives()
		if n := count(p.t, p.Machine, "/srv/list/new"); n != before+1 {
			p.t.Errorf("%s: %d messages more", script, n-before)
		}
	}
}

// confined: a command is the user of its unit, and has no more of the machine than
// that says.
func (p pipes) confined() {
	p.t.Helper()
	p.Script("install -d -m 755 /home/mallory; echo secret >/home/mallory/secret; chmod 644 /home/mallory/secret")
	p.list("who", `exec >/srv/list/who.out 2>&1; id -un; id -gn; id -Gn; cat /proc/self/status; ls -l /proc/self/fd; env`)
	p.send("x", "who@lists.example")
	emptyQueue(p.Machine, time.Minute)
	got := p.ReadFile("/srv/list/who.out")
	if !strings.HasPrefix(got, "list\nlist\nlist\n") {
		p.t.Errorf("who: %s", got)
	}
	for _, line := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(got, line+"\n") {
			p.t.Errorf("no %q in\n%s", line, got)
		}
	}
	if strings.Contains(got, "socket:") || strings.Contains(got, "LISTEN_") || strings.Contains(got, "NOTIFY_SOCKET") {
		p.t.Errorf("something of pipe: %s", got)
	}
	try := func(what string) string {
		p.list("try", "( "+what+" ) >/srv/list/try.out 2>&1; echo status $? >>/srv/list/try.out")
		p.send("x", "try@lists.example")
		emptyQueue(p.Machine, time.Minute)
		return p.ReadFile("/srv/list/try.out")
	}
	for _, forbidden := range []string{
		"touch /etc/new", "touch /usr/new", "touch /var/lib/new", "touch /run/new", "touch /srv/lda/new", "cat /home/mallory/secret", "ls /root",
		"ls /var/spool/posthouse/", "ls /run/posthouse/private", "ls /var/log", "cat /etc/shadow", "cat /proc/1/environ", "cat /etc/posthouse/tables/users",
		"cp /bin/true /srv/list/mine && chmod 4755 /srv/list/mine", "unshare -U true", "perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0) or exit 1'",
		"mount -t tmpfs x /tmp", "chown root /srv/list/who",
	} {
		if got := try(forbidden); strings.HasSuffix(got, "status 0\n") {
			p.t.Errorf("a command may %s: %s", forbidden, got)
		}
	}
	before := count(p.t, p.Machine, alice)
	for _, allowed := range []string{"touch /srv/list/new/../x /tmp/new", "perl -e 1", "ls /usr/bin", "echo Subject: from a command | sendmail alice@example.net"} {
		if got := try(allowed); !strings.HasSuffix(got, "status 0\n") {
			p.t.Errorf("a command may not %s: %s", allowed, got)
		}
	}
	p.WaitFor("mail from a command", time.Minute, func() bool { return count(p.t, p.Machine, alice) == before+1 })
	// The same without a drop-in, and not as root.
	p.edit("list")
	p.list("writes", "id -un; touch /srv/list/tmp/x || exit 75")
	p.send("x", "writes@lists.example")
	p.waits("Command output: _ph-pipe?touch: cannot touch '/srv/list/tmp/x': Read-only file system")
	p.edit("list", "User=root", "ReadWritePaths=/srv/list")
	p.Run("posthouse", "queue", "retry", "--all")
	p.waits("nothing is run as root: posthouse-pipe@list.service needs another User= and Group=")
	p.edit("list", "User=list", "ReadWritePaths=/srv/list")
	p.arrives()
}

// network: the drop-in in docs/pipe.md, which docs/decisions.md has, too, opens what it says and nothing else.
func (p pipes) network() {
	p.t.Helper()
	drop := recipe(p.t, "docs/pipe.md")
	if other := recipe(p.t, "docs/decisions.md"); !slices.Equal(drop, other) {
		p.t.Errorf("docs/pipe.md: %q, docs/decisions.md: %q", drop, other)
	}
	p.edit("list", append(drop, "User=list", "ReadWritePaths=/srv/list")...)
	p.Script("ip address add 192.0.2.1/32 dev lo; ip address add 2001:db8::1/128 dev lo")
	p.list("reach", `for to in 127.0.0.1 192.0.2.1 2001:db8::1; do
		timeout 5 bash -c "</dev/tcp/$to/25" && echo $to
	done >/srv/list/reach.out 2>/dev/null`)
	p.send("x", "reach@lists.example")
	emptyQueue(p.Machine, time.Minute)
	if got := p.ReadFile("/srv/list/reach.out"); got != "127.0.0.1\n" {
		p.t.Errorf("with %q a command reaches %q", drop, got)
	}
	// Both are there for who may reach them.
	for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
		p.Run("bash", "-c", "</dev/tcp/"+to+"/25")
	}
	p.edit("list", "User=list", "ReadWritePaths=/srv/list")
}

// recipe is the drop-in for a network in a file of the documentation.
func recipe(t *testing.T, file string) []string {
	t.Helper()
	top, err := mailtest.Top()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(top, file))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^ +PrivateNetwork=no(?:\n +\w+=.*)+`).FindString(string(doc))
	var lines []string
	for line := range strings.Lines(found) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}

// limits: a drop-in has them, and mail that needs more waits.
func (p pipes) limits() {
	p.t.Helper()
	p.edit("list", "User=list", "ReadWritePaths=/srv/list", "LimitFSIZE=64K")
	before := count(p.t, p.Machine, "/srv/list/new")
	p.RunInput([]byte("Subject: large\n\n"+strings.Repeat("a line\n", 20_000)), "sendmail", "members@lists.example")
	p.waits("file too large")
	p.edit("list", "User=list", "ReadWritePaths=/srv/list")
	p.arrives()
	if n := count(p.t, p.Machine, "/srv/list/new"); n != before+1 {
		p.t.Errorf("%d messages more", n-before)
	}
}

// upgrade: the package does not know the instances, and restarts those that run.
// Their sockets stay.
func (p pipes) upgrade() {
	p.t.Helper()
	p.send("x", "members@lists.example")
	emptyQueue(p.Machine, time.Minute)
	show := func(property, unit string) string {
		return p.Run("systemctl", "show", "-P", property, "posthouse-pipe@list."+unit)
	}
	pid, since := show("MainPID", "service"), show("ActiveEnterTimestampMonotonic", "socket")
	if pid == "0\n" {
		p.t.Error("pipe has gone already")
	}
	p.Run("dpkg", "--install", "/root/package.deb")
	if got := show("MainPID", "service"); got == pid {
		p.t.Errorf("pipe is still process %s", got)
	}
	if got := show("ActiveEnterTimestampMonotonic", "socket"); got != since {
		p.t.Error("its socket was stopped")
	}
}

// slow: while a command takes its time, pipe may go for a new process, other mail
// does not wait, and a stop has the command come to its end.
func (p pipes) slow() {
	p.t.Helper()
	const unit = "posthouse-pipe@list.service"
	pid := func() string { return p.Run("systemctl", "show", "-P", "MainPID", unit) }
	p.Script("mkfifo -m 666 /srv/list/fifo")
	p.list("slow", "read line </srv/list/fifo")
	before := count(p.t, p.Machine, "/srv/list/new")
	p.send("slow", "slow@lists.example")
	p.WaitFor("the command", time.Minute, func() bool { return p.Script("pgrep -u list -x list || true") != "" })
	old := pid()
	p.Run("systemctl", "reload", unit)
	p.WaitFor("the successor", time.Minute, func() bool { return pid() != old })
	p.send("meanwhile", "members@lists.example")
	p.WaitFor("other mail", time.Minute, func() bool { return count(p.t, p.Machine, "/srv/list/new") == before+1 })
	p.Start("stop", "systemctl", "stop", unit)
	p.WaitFor("a stop", time.Minute, func() bool {
		return strings.TrimSpace(p.Run("systemctl", "show", "-P", "ActiveState", unit)) == "deactivating"
	})
	p.Script("echo done >/srv/list/fifo")
	emptyQueue(p.Machine, time.Minute)
	if n := count(p.t, p.Machine, "/srv/list/new"); n != before+2 {
		p.t.Errorf("%d messages more, not 2", n-before)
	}
	if n := strings.Count(p.Script("grep -h ^Subject: /srv/list/new/*"), "Subject: slow\n"); n != 1 {
		p.t.Errorf("the slow one has arrived %d times", n)
	}
	p.WaitFor("the end of the stop", time.Minute, func() bool {
		return strings.TrimSpace(p.Run("systemctl", "show", "-P", "ActiveState", unit)) == "inactive"
	})
}

// killed: pipe is killed again and again while commands have their messages.
// Nothing is lost, and no copy is a part of a message.
func (p pipes) killed() {
	p.t.Helper()
	const unit, messages, lines = "posthouse-pipe@list.service", 30, 20_000
	p.Script("rm -rf /srv/list/new/* /srv/list/tmp/*")
	// Until the test says go, a command stays when it has read and kept half.
	p.list("many", "head -c 100000 >/srv/list/begun.$$; test -e /srv/list/go || sleep 1000; cat >>/srv/list/begun.$$; mv /srv/list/begun.$$ /srv/list/new/$$.$(date +%s%N); exit 0")
	p.Script(fmt.Sprintf("for i in $(seq %d); do (printf 'Subject: mark %%s\\n\\n' $i; seq %d) | sendmail -f alice@example.net many@lists.example; done", messages, lines))
	const kills = 3
	for range kills {
		p.WaitFor("commands that have begun", time.Minute, func() bool { return p.Script("find /srv/list -name 'begun.*'") != "" })
		p.Run("systemctl", "kill", "--kill-who=main", "-s", "KILL", unit)
		p.WaitFor("the end of the commands", time.Minute, func() bool { return p.Script("pgrep -u list -x sleep || true") == "" })
		p.Script("rm -f /srv/list/begun.*")
		p.Run("posthouse", "queue", "retry", "--all")
	}
	p.Script("touch /srv/list/go")
	atKill := 0
	p.WaitFor("all messages", 2*time.Minute, func() bool {
		p.Run("posthouse", "queue", "retry", "--all")
		// In the middle of it, and each time some have arrived: whoever is killed in step with his starts gets nothing done.
		if n := count(p.t, p.Machine, "/srv/list/new"); n >= atKill+3 && n < messages {
			p.Script("systemctl kill --kill-who=main -s KILL " + unit + " || true") // it may be about to start again
			atKill = n
		}
		return p.Script("cd /var/spool/posthouse && for i in 1 2; do find deferred incoming active -type f ! -path '*/spare/*' || echo changes; done") == ""
	})
	journal := p.Journal("-t", "systemd", "-o", "cat")
	if n := strings.Count(journal, unit+": Main process exited, code=killed, status=9/KILL"); n < kills {
		p.t.Errorf("killed %d times", n)
	}
	seen := p.Script("cd /srv/list/new; for f in *; do echo $(sed -n 's/^Subject: mark //p' $f) $(tail -n 1 $f) $(sed '1,/^$/d' $f | wc -l); done | sort -n")
	times := map[string]int{}
	for line := range strings.Lines(seen) {
		mark, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if times[mark]++; rest != fmt.Sprintf("%d %d", lines, lines) {
			p.t.Errorf("a part of a message: %s", line)
		}
	}
	for i := range messages {
		if times[fmt.Sprint(i+1)] == 0 {
			p.t.Errorf("message %d is lost", i+1)
		}
	}
	p.t.Logf("%d messages: %d copies", messages, strings.Count(seen, "\n"))
}
