//go:build system

package system

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// accounts is a machine with UNIX accounts.
type accounts struct {
	*mailtest.Machine
	t *testing.T
}

const (
	deliverSocket = "/run/posthouse/private/deliver"
	probeLetter   = "/root/letter"
	// onlyLetter is that letter in a mailbox, less its first line.
	onlyLetter = "Return-Path: <s@example.org>\nSubject: from the probe\n\n>From the start\n\n"
)

// TestDeliver: what is done for users is done by them, and by nobody else.
func TestDeliver(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m := mailtest.Boot(t, mailtest.Options{Suite: suite})
			configure(m, "test", "hostname: mail.example.org\norigin: example.org\ndomains: {local: [example.org]}\n")
			m.CopyTo(buildProbe(t), probePath)
			m.Run("chmod", "755", probePath)
			m.WriteFile(probeLetter, "Subject: from the probe\r\n\r\nFrom the start\r\n", 0o600)
			m.Script("groupadd extra; for u in alice bob mallory; do useradd --create-home --shell /bin/bash $u; done; usermod -aG extra alice; chmod 755 /home/*")
			a := accounts{m, t}
			a.mailboxes()
			a.commands()
			a.children()
			a.threads()
			a.stop()
			a.stopBoth()
			a.refused()
			a.hostile()
			healthy(t, m)
		})
	}
}

// ask has deliver do something n times, by so many workers, and returns what has
// been answered.
func (a accounts) ask(n, workers int, args ...string) string {
	a.t.Helper()
	return a.Run(append([]string{probePath, "deliver", deliverSocket, probeLetter, fmt.Sprint(n), fmt.Sprint(workers)}, args...)...)
}

// wants asks once, and compares the beginning of the answer.
func (a accounts) wants(want string, args ...string) {
	a.t.Helper()
	if got := a.ask(1, 1, args...); !strings.HasPrefix(got, want) {
		a.t.Errorf("%q: %q, not %q", args, got, want)
	}
}

// mailboxes: mail comes to /var/mail, to files and Maildirs, of their owner.
func (a accounts) mailboxes() {
	a.t.Helper()
	a.RunInput([]byte("Subject: to a mailbox\n\nFrom here\n"), "sendmail", "-f", "s@example.net", "alice@example.org")
	a.WaitFor("mail for alice", time.Minute, func() bool { return a.Script("test -s /var/mail/alice && echo yes || true") != "" })
	emptyQueue(a.Machine, time.Minute)
	if got := a.Run("stat", "-c", "%U %G %a %h", "/var/mail/alice"); got != "alice mail 600 1\n" {
		a.t.Errorf("/var/mail/alice: %s", got)
	}
	form := regexp.MustCompile(`(?s)^From s@example\.net  [A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}\nReturn-Path: <s@example\.net>\n.*\n\n>From here\n\n$`)
	if got := a.ReadFile("/var/mail/alice"); !form.MatchString(got) || strings.Contains(got, "\r") {
		a.t.Errorf("/var/mail/alice: %q", got)
	}
	if left := a.Run("find", "/var/mail", "-name", "*.lock"); left != "" {
		a.t.Errorf("left: %s", left)
	}
	a.wants("2.0.0 delivered to maildir", "mailbox", "alice", "Maildir/")
	a.wants("2.0.0 delivered to maildir", "mailbox", "alice", "mail/.Lists/")
	a.wants("2.0.0 delivered to file: /home/alice/mbox", "mailbox", "alice", "mbox")
	a.wants("2.0.0 delivered to mailbox", "spool", "root", "/var/mail")
	a.wants("2.0.0 delivered to mailbox", "user", "alice", "/var/mail")
	a.wants("2.0.0 delivered to maildir", "user", "alice", "mail/.Other/")
	got := a.Script("cd /home/alice; stat -c '%U %G %a' mbox Maildir/new Maildir/new/* mail/.Lists/new/* /var/mail/root")
	if want := "alice alice 600\nalice alice 700\nalice alice 600\nalice alice 600\n_ph-deliver mail 600\n"; got != want {
		a.t.Errorf("owners:\n%s", got)
	}
	// All of many at once, none of them torn.
	if got := a.ask(40, 4, "spool", "bob", "/var/mail"); got != strings.Repeat("2.0.0 delivered to mailbox\n", 40) {
		a.t.Errorf("many at once:\n%s", got)
	}
	if got := a.Script("sed '/^From /d' /var/mail/bob"); got != strings.Repeat(onlyLetter, 40) {
		a.t.Errorf("/var/mail/bob:\n%s", got)
	}
	a.Script("echo bob >/home/alice/.forward; chown alice: /home/alice/.forward")
	a.wants(`2.0.0  .forward "bob\n"`, "forward", "alice", ".forward+x", ".forward")
	a.wants(`2.0.0  .forward "bob\n"`, "user", "alice", "/var/mail")
	a.RunInput([]byte("Subject: forwarded\n\nx\n"), "sendmail", "alice@example.org")
	a.WaitFor("mail that is forwarded", time.Minute, func() bool { return strings.Contains(a.ReadFile("/var/mail/bob"), "Subject: forwarded") })
	a.Run("rm", "/home/alice/.forward")
	emptyQueue(a.Machine, time.Minute)
}

// commands: they have the rights of their user and no others, and no more of the
// machine than they need.
func (a accounts) commands() {
	a.t.Helper()
	a.wants("2.0.0", "command", "alice", "(id -un; id -gn; id -Gn | tr ' ' '\n' | sort; pwd; umask) >who; cat /proc/self/status >status; env >env; ls /proc/$$/fd >fds; cat >in")
	if got := a.ReadFile("/home/alice/who"); got != "alice\nalice\nalice\nextra\n/home/alice\n0077\n" {
		a.t.Errorf("who: %q", got)
	}
	status := a.ReadFile("/home/alice/status")
	for _, line := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, line+"\n") {
			a.t.Errorf("status lacks %q:\n%s", line, status)
		}
	}
	first, in, _ := strings.Cut(a.ReadFile("/home/alice/in"), "\n")
	if !strings.HasPrefix(first, "From s@example.org  ") || in != "Return-Path: <s@example.org>\nSubject: from the probe\n\nFrom the start\n" {
		a.t.Errorf("input: %q %q", first, in)
	}
	for v := range strings.Lines(a.ReadFile("/home/alice/env")) {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "HOME", "USER", "LOGNAME", "SHELL", "PATH", "SENDER", "PWD", "OLDPWD", "_", "SHLVL":
		default:
			a.t.Errorf("environment: %s", v)
		}
	}
	for fd := range strings.FieldsSeq(a.ReadFile("/home/alice/fds")) {
		if len(fd) > 1 && fd != "10" || fd > "2" && fd != "3" { // the last two are the shell's own, of a script and of >fds
			a.t.Errorf("descriptor %s", fd)
		}
	}
	for _, forbidden := range []string{
		"touch /etc/new", "touch /usr/new", "touch /var/lib/new", "touch /run/new", "touch /home/bob/new", "cat /var/mail/bob", "ls /root",
		"ls /var/spool/posthouse", "ls /run/posthouse/private", "ls /run/user", "ls /run/dbus", "ls /var/log", "cat /etc/shadow", "cat /proc/1/environ", "cat /proc/$PPID/environ", "ls /proc/$PPID/fd",
		"cp /bin/true mine && chmod 4755 mine", "unshare -U true", "perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0) or exit 1'", "mount -t tmpfs x /tmp", "setpriv --clear-groups true", "touch given && chown bob given", "touch given && chgrp root given",
	} {
		if got := a.ask(1, 1, "command", "alice", forbidden); strings.HasPrefix(got, "2") {
			a.t.Errorf("a command may %s", forbidden)
		}
	}
	for _, allowed := range []string{"touch new /tmp/new", "chgrp extra new", "perl -e 1", "echo Subject: from a command | sendmail bob@example.org", "test ! -e /tmp/marks", "ls /usr/bin"} {
		a.wants("2.0.0", "command", "alice", allowed)
	}
	a.WaitFor("mail from a command", time.Minute, func() bool { return strings.Contains(a.ReadFile("/var/mail/bob"), "Subject: from a command") })
	a.wants("4.3.0", "command", "alice", "exit 75")
	a.wants("5.1.1", "command", "alice", "exit 67")
	a.wants("5.3.0 command time limit exceeded", "command", "alice", "sleep 1000; true", "1")
	a.wants("2.0.0", "command", "nobody", "test `id -un` = nobody && test `pwd` = /")
}

// children: who a child is, cannot trace it, and can do no more to it than to have
// its own mail wait.
func (a accounts) children() {
	a.t.Helper()
	a.Start("long", probePath, "deliver", deliverSocket, probeLetter, "1", "1", "command", "alice", "sleep 1000; true", "1000")
	var pid string
	a.WaitFor("a child", time.Minute, func() bool {
		pid = strings.TrimSpace(a.Script("pgrep -u alice -f '^deliver-as [0-9]+ alice ' || true"))
		return pid != "" && a.Script("pgrep -u alice -x sleep || true") != ""
	})
	for _, attempt := range []string{"cat /proc/%s/mem", "cat /proc/%s/environ", "ls /proc/%s/fd", "timeout 10 strace -p %s"} {
		if r, err := a.Try("runuser", "-u", "alice", "--", "sh", "-c", fmt.Sprintf(attempt, pid)); err != nil || r.Code == 0 || r.Code == 124 {
			a.t.Errorf("alice: "+attempt+": %+v, %v", pid, r, err)
		}
	}
	if got := strings.Fields(a.Script("ls /proc/" + pid + "/fd; tr '\\0' '\\n' </proc/" + pid + "/environ")); len(got) < 4 {
		a.t.Errorf("child: %q", got)
	}
	if got := a.Script("grep -E '^(Uid|Gid|Groups|Cap(Inh|Prm|Eff|Amb)|NoNewPrivs)' /proc/" + pid + "/status"); strings.Count(got, "\t0000000000000000\n") != 4 || !strings.Contains(got, "NoNewPrivs:\t1\n") {
		a.t.Errorf("child:\n%s", got)
	}
	// Killed, and stopped by its user.
	a.Run("runuser", "-u", "alice", "--", "kill", "-KILL", pid)
	a.WaitFor("an answer", time.Minute, func() bool { return strings.Contains(a.Journal("-u", "long"), "4.3.0") })
	a.wants("2.0.0", "mailbox", "alice", "Maildir/")
	a.wants("2.0.0", "spool", "alice", "/var/mail")
}

// waitForThread waits for a thread of deliver that has a user's rights on files, and
// returns /proc/PID/task/TID of it.
func (a accounts) waitForThread(user string) (dir string) {
	a.t.Helper()
	a.WaitFor("a thread", time.Minute, func() bool {
		status := a.Script(`grep -lsE "^Uid:([[:space:]]+[0-9]+){3}[[:space:]]+$(id -u ` + user + `)$" /proc/[0-9]*/task/*/status || true`)
		for file := range strings.FieldsSeq(status) {
			if dir = strings.TrimSuffix(file, "/status"); strings.HasPrefix(a.Script("cat "+dir+"/comm || true"), "deliver") {
				return true
			}
		}
		return false
	})
	return dir
}

// threads: one has the rights of the user on files and nothing else of a user, who can
// do nothing to it, and no path leads to what deliver has open for others.
func (a accounts) threads() {
	a.t.Helper()
	a.Script("touch /var/mail/bob.lock")
	a.Start("waiting", probePath, "deliver", deliverSocket, probeLetter, "1", "1", "user", "bob", "/var/mail")
	dir := a.waitForThread("bob")
	pid := strings.Split(dir, "/")[2]
	ids := strings.Fields(a.Script("id -u _ph-deliver; id -u bob; id -g _ph-deliver; id -g bob; getent group mail | cut -d: -f3"))
	status := a.ReadFile(dir + "/status")
	for key, want := range map[string]string{
		"Uid": strings.Repeat(ids[0]+" ", 3) + ids[1], "Gid": strings.Repeat(ids[2]+" ", 3) + ids[3], "Groups": ids[4],
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
	} {
		if _, value, _ := strings.Cut(status, "\n"+key+":"); strings.Join(strings.Fields(strings.SplitN(value, "\n", 2)[0]), " ") != want {
			a.t.Errorf("a thread for bob: %s is not %s:\n%s", key, want, status)
		}
	}
	for _, attempt := range []string{"kill -0 %s", "cat /proc/%s/mem", "cat /proc/%s/environ", "ls /proc/%s/fd", "cat /proc/%s/maps", "timeout 10 strace -p %s"} {
		for _, id := range []string{pid, strings.Split(dir, "/")[4]} {
			if r, err := a.Try("runuser", "-u", "bob", "--", "sh", "-c", fmt.Sprintf(attempt, id)); err != nil || r.Code == 0 || r.Code == 124 {
				a.t.Errorf("bob: "+attempt+": %+v, %v", id, r, err)
			}
		}
	}
	// Another user's mail does not wait for it, nor does what paths of theirs lead to.
	a.wants("2.0.0", "user", "alice", "/var/mail")
	answers := a.Script(fmt.Sprintf(`for fd in $(seq 0 30); do
	for path in /proc/self/fd/$fd/ /proc/self/fd/$fd/x /proc/thread-self/fd/$fd /dev/fd/$fd/; do
		echo "$path: $(%s deliver %s %s 1 1 mailbox alice $path)"
	done
done`, probePath, deliverSocket, probeLetter))
	if n := strings.Count(answers, ": 4.2.0 "); n != 4*31 {
		a.t.Errorf("%d are refused of\n%s", n, answers)
	}
	a.Script("rm /var/mail/bob.lock")
	a.WaitFor("mail that has waited", time.Minute, func() bool { return strings.Contains(a.Journal("-u", "waiting"), "2.0.0 delivered to mailbox") })
	// What has no end keeps nobody.
	a.Script("cd /home/alice; mkfifo fifo; ln -s fifo link; chown -h alice: fifo link")
	for _, path := range []string{"fifo", "fifo/", "fifo/x", "fifo/x/", "link", "link/", "link/x"} {
		a.wants("4.2.0", "mailbox", "alice", path)
	}
	a.Script("rm /home/alice/fifo /home/alice/link")
}

// stop: what commands leave behind does not outlive deliver, and keeps nobody's
// mail waiting.
func (a accounts) stop() {
	a.t.Helper()
	a.wants("2.0.0", "command", "alice", "trap '' TERM HUP; setsid sleep 1000 >/dev/null 2>&1 & exit 0")
	a.Run("systemctl", "stop", "posthouse-deliver.service")
	if got := a.Script("pgrep -u alice || true"); got != "" {
		a.t.Errorf("processes of alice are left: %s", got)
	}
	a.Run("systemctl", "start", "posthouse-deliver.socket")
	a.wants("2.0.0", "spool", "alice", "/var/mail")
}

// stopBoth: a stop reaches the process that waits for a slow command, too, after
// its successor has taken over. systemd has nothing to kill.
func (a accounts) stopBoth() {
	a.t.Helper()
	a.Start("slow", probePath, "deliver", deliverSocket, probeLetter, "1", "1", "command", "alice", "touch slow; sleep 1000; true", "1000")
	a.WaitFor("the command", time.Minute, func() bool { return a.Script("ls /home/alice/slow 2>/dev/null || true") != "" })
	before := a.Script("sed '/^From /d' /var/mail/bob; touch /var/mail/bob.lock")
	a.Start("locked", probePath, "deliver", deliverSocket, probeLetter, "1", "1", "spool", "bob", "/var/mail")
	a.waitForThread("bob")
	pid := func() string { return a.Run("systemctl", "show", "-P", "MainPID", "posthouse-deliver.service") }
	old := pid()
	a.Run("systemctl", "reload", "posthouse-deliver.service")
	a.WaitFor("the successor", time.Minute, func() bool { return pid() != old })
	a.wants("2.0.0", "spool", "alice", "/var/mail")
	a.Start("stop", "systemctl", "stop", "posthouse-deliver.service")
	a.WaitFor("the stop", time.Minute, func() bool {
		return a.Run("systemctl", "show", "-P", "ActiveState", "posthouse-deliver.service") == "deactivating\n"
	})
	a.Script("rm /var/mail/bob.lock")
	a.Run("systemctl", "stop", "posthouse-deliver.service") // returns when it has stopped
	if got := a.Run("systemctl", "show", "-P", "Result", "posthouse-deliver.service"); got != "success\n" {
		a.t.Errorf("the stop: %s", got)
	}
	if got := a.Script("pgrep -u alice || true; pgrep -u bob || true"); got != "" {
		a.t.Errorf("processes are left: %s", got)
	}
	if got := a.Journal("-u", "slow"); !strings.Contains(got, `4.3.0 the system is going down: "touch slow; sleep 1000; true"`) {
		a.t.Errorf("the slow command: %s", got)
	}
	// The lock is not waited for for ever.
	want := before
	if answer := a.Journal("-u", "locked"); strings.Contains(answer, "2.0.0 delivered to mailbox") {
		want += onlyLetter
	} else if !strings.Contains(answer, "4.2.0") {
		a.t.Errorf("bob: %s", answer)
	}
	if got := a.Script("sed '/^From /d' /var/mail/bob"); got != want {
		a.t.Errorf("/var/mail/bob: %s", got)
	}
	a.Run("systemctl", "start", "posthouse-deliver.socket")
	a.wants("2.0.0", "spool", "alice", "/var/mail")
}

// refused: nothing is done as root or as the mail system; mail for them waits.
func (a accounts) refused() {
	a.t.Helper()
	a.Script("useradd --non-unique --uid 0 --no-create-home --home-dir / toor")
	for _, user := range []string{"root", "toor", "_ph-qmgr", "_ph-deliver", "no-such-user"} {
		a.wants("4.3.5", "command", user, "touch /tmp/ran")
		a.wants("4.3.5", "mailbox", user, "Maildir/")
		a.wants("4.3.5", "forward", user, ".forward")
	}
	a.wants("4.3.5", "spool", "_ph-qmgr", "/var/mail")
}

// hostile: a user swaps everything that is written to for links, pipes and
// directories, while mail is being delivered. Nothing but their own changes.
func (a accounts) hostile() {
	a.t.Helper()
	// In a spool that everybody may write to; the mailbox of alice as Debian has it.
	a.Script(`chmod 1777 /var/mail; chmod 660 /var/mail/alice; chgrp mail /var/mail/alice
echo SECRET >/home/alice/notes; echo SECRET >/srv/secret; chown alice: /home/alice/notes; chmod 644 /home/alice/notes; chmod 600 /srv/secret
mkdir -p /srv/dir/new /srv/dir/tmp /srv/dir/cur; systemctl stop cron 2>/dev/null || true`)
	a.WriteFile("/usr/local/bin/swap", `use POSIX;
use File::Path "remove_tree";
chdir "/home/mallory" or die;
while (1) {
	for my $at (qw(.forward mbox Maildir Maildir/new Maildir/tmp /var/mail/mallory /var/mail/mallory.lock)) {
		for my $to (qw(/srv/secret /home/alice/notes /var/mail/alice /etc/passwd /srv/dir /srv/dir/new /home/mallory/none /proc/self/fd/9 /proc/thread-self/fd/12)) {
			for my $make (sub { symlink $to, $at }, sub { link $to, $at }, sub { POSIX::mkfifo($at, 0600) }, sub { mkdir $at },
				sub { open my $f, ">", $at or return; print $f "mallory\n" }, sub {}) {
				if (-d $at && !-l $at) {
					my $old = "$at.old" . $n++ % 20;
					remove_tree $old;
					rename $at, $old;
				} else {
					unlink $at;
				}
				$make->();
			}
		}
	}
}
`, 0o644)
	const rest = `set +o pipefail; list() {
	find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /dev -o -path /tmp -o -path /var/tmp -o -path /var/log -o -path /home/mallory \
		-o -path '/var/mail/mallory*' -o -path /var/lib/systemd -o -path /var/spool/posthouse \) -prune -o "$@"
}
{ list \( -type d -printf '%p %m %u %g\n' \) -o -printf '%p %y %m %u %g %s %l\n'; list -type f -print0 | xargs -0 sha256sum; } | sort`
	a.Script(rest + " >/run/before")
	a.Run("systemd-run", "--quiet", "--collect", "--unit", "swap", "-p", "User=mallory", "perl", "/usr/local/bin/swap")
	all := a.besieged()
	for !strings.Contains(all, "\n2.") || !strings.Contains(all, "\n4.") { // nothing was in the way, or all the time
		all += a.besieged()
	}
	a.Stop("swap")
	if strings.Contains(all, "SECRET") || strings.Contains(all, "error ") || strings.Contains(all, "\n5.") {
		a.t.Errorf("answers:\n%s", all)
	}
	if changes := a.Script(rest + " >/run/after; test `wc -l </run/after` -gt 1000; diff /run/before /run/after || true"); changes != "" {
		a.t.Errorf("the rest of the file system has changed:\n%s\nanswers:\n%s", changes, all)
	}
	a.Script("rm -rf /run/answers.*; find /home/mallory -mindepth 1 -delete; rm -rf /var/mail/mallory*")
	a.wants("2.0.0", "spool", "mallory", "/var/mail")
	a.wants("2.0.0", "mailbox", "mallory", "Maildir/")
	a.wants("2.0.0", "spool", "alice", "/var/mail")
}

// besieged has 10,000 things and more done for mallory, all kinds at once, and returns what
// has been answered, each once and after a new line.
func (a accounts) besieged() string {
	a.t.Helper()
	total := 0
	for i, c := range []struct {
		n, workers int
		what       string
	}{
		{4900, 3, "forward mallory .forward"},
		{2900, 3, "mailbox mallory Maildir/"},
		{2000, 2, "user mallory Maildir/"},
		{120, 1, "mailbox mallory mbox"}, // these may wait for locks
		{75, 1, "mailbox mallory .forward"},
		{5, 1, "spool mallory /var/mail"},
		{5, 1, "user mallory /var/mail"},
	} {
		total += c.n
		a.Start(fmt.Sprint("siege", i), "sh", "-c", fmt.Sprintf("exec %s deliver %s %s %d %d %s >/run/answers.%d 2>&1", probePath, deliverSocket, probeLetter, c.n, c.workers, c.what, i))
	}
	start := time.Now()
	a.WaitFor("the end of all deliveries", 20*time.Minute, func() bool {
		return a.Run("systemctl", "list-units", "--no-legend", "siege*") == ""
	})
	a.t.Logf("%d deliveries in %v:\n%s", total, time.Since(start).Round(time.Second), a.Script("cut -c 1 /run/answers.* | sort | uniq -c"))
	if got := a.Script("cat /run/answers.* | wc -l"); got != fmt.Sprintln(total) {
		a.t.Errorf("%s answers, not %d", got, total)
	}
	return "\n" + a.Script("sort -u /run/answers.*")
}
