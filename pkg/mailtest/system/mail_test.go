//go:build system

package system

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// probePath is where the test's own client is in a machine.
const probePath = "/usr/local/bin/probe"

// buildProbe returns the path of the program, on this host.
func buildProbe(t testing.TB) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "probe")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", out, "posthouse/pkg/mailtest/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("probe: %v\n%s", err, b)
	}
	return out
}

// conf is a mail host for example.net, whose neighbours are in the machine too.
const conf = `
hostname: mail.example.org
origin: example.org
domains:
  virtual: {example.net: {}}
  relay:
    sink.example: {to: "smtp:[127.0.0.1]:2600"}
    dead.example: {to: "smtp:[127.0.0.1]:2601"}
    lmtp.example: {to: "lmtp:unix:/run/dovecot/lmtp"}
queue: {retry: {min: 5m}}
`

const alice = "/var/vmail/example.net/alice/Maildir/new"

// mailHost boots a machine that takes mail at port 25 for alice@example.net.
func mailHost(t testing.TB, suite, more string) *mailtest.Machine {
	t.Helper()
	m := mailtest.Boot(t, mailtest.Options{Suite: suite})
	configure(m, "test", conf+more)
	m.Run("posthouse", "check")
	m.Run("posthouse", "user", "add", "--no-password", "alice@example.net")
	m.Run("systemctl", "enable", "--now", "posthouse-smtpd.socket")
	m.CopyTo(buildProbe(t), probePath)
	m.Run("chmod", "755", probePath)
	return m
}

// configure writes a drop-in. Daemons that run, as after boot, would wait until files have
// been quiet for seconds.
func configure(m *mailtest.Machine, name, text string) {
	m.WriteFile("/etc/posthouse/conf.d/"+name+".yaml", text, 0o644)
	m.Stop("posthouse-*.service")
}

// healthy: no unit has failed, nothing was killed by a filter, no daemon has
// complained.
func healthy(t testing.TB, m *mailtest.Machine) {
	t.Helper()
	if failed := m.Run("systemctl", "--failed", "--no-legend"); failed != "" {
		t.Errorf("failed units: %s", failed)
	}
	if kills := m.SeccompKills(); len(kills) > 0 {
		t.Errorf("forbidden system calls:\n%s", strings.Join(kills, "\n"))
	}
	if s := m.Script("journalctl -b -p err -o cat -t posthouse/smtpd -t posthouse/cleanup -t posthouse/qmgr -t posthouse/virtual -t posthouse/local -t posthouse/deliver -t posthouse/pipe -t posthouse/smtp -t posthouse/bounce -t posthouse/rewrite -t posthouse/pickup -t posthouse/showq -t posthouse/dns || true"); strings.TrimSpace(s) != "" && !strings.Contains(s, "No entries") {
		t.Errorf("errors in the journal:\n%s", s)
	}
	// The trace of a crash is written to standard error, and is information there.
	if s := m.Script("journalctl -b -o cat _SYSTEMD_SLICE=posthouse.slice | grep -E -A 20 '^(panic: |fatal error: |unexpected fault|goroutine [0-9]+ )' || true"); s != "" {
		t.Errorf("a daemon has crashed:\n%s", s)
	}
}

func count(t testing.TB, m *mailtest.Machine, dir string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(m.Script("ls " + dir + " 2>/dev/null | wc -l")))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// emptyQueue waits until no message is in the queue. It looks twice, in the order
// in which messages move, lest one slips by: a notification is there before the
// message that it is about is gone.
func emptyQueue(m *mailtest.Machine, timeout time.Duration) {
	m.WaitFor("an empty queue", timeout, func() bool {
		return m.Script("cd /var/spool/posthouse && for i in 1 2; do find deferred hold incoming active corrupt -type f ! -path '*/spare/*' || echo changes; done") == ""
	})
}

// TestCorpus: real messages by SMTP and by sendmail arrive as they were sent,
// but for what is put before them; those that SMTP forbids are refused.
func TestCorpus(t *testing.T) {
	top, err := mailtest.Top()
	if err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(top, "..", "shared", "corpus", "*.eml"))
	if len(files) == 0 {
		t.Skip("no corpus of real messages beside the project")
	}
	t.Parallel()
	m := mailHost(t, "bookworm", "")
	dir := t.TempDir()
	wire := filepath.Join(dir, "wire")
	if err := os.Mkdir(wire, 0o755); err != nil {
		t.Fatal(err)
	}
	forbidden := make(map[string]bool)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		// A file with LF alone is one whose line ends were turned; a mixture
		// is what it is.
		if !bytes.Contains(b, []byte("\r\n")) {
			b = bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))
		}
		name := filepath.Base(f)
		whole := bytes.ReplaceAll(b, []byte("\r\n"), nil)
		forbidden[name] = bytes.ContainsAny(whole, "\r\n")
		if err := os.WriteFile(filepath.Join(wire, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m.CopyTo(wire, "/root/wire")
	out := m.Script(probePath + " send 127.0.0.1:25 sender@example.org alice@example.net /root/wire/*.eml")
	accepted := 0
	replies := make(map[string]string)
	for line := range strings.Lines(out) {
		file, reply, _ := strings.Cut(strings.TrimSpace(line), " ")
		name := filepath.Base(file)
		replies[name] = reply
		switch {
		case forbidden[name] && !strings.HasPrefix(reply, "521 5.5.2 "):
			t.Errorf("%s, with bare CR or LF: %s", name, reply)
		case !forbidden[name] && !strings.HasPrefix(reply, "250 2.0.0 ") && !strings.HasPrefix(reply, "554 5.4.6 "):
			t.Errorf("%s: %s", name, reply)
		case strings.HasPrefix(reply, "250 "):
			accepted++
		}
	}
	if len(replies) != len(files) || accepted < len(files)/2 {
		t.Fatalf("%d replies, %d accepted, for %d files", len(replies), accepted, len(files))
	}
	emptyQueue(m, time.Minute)
	m.WaitFor("all messages", time.Minute, func() bool { return count(t, m, alice) == accepted })
	if err := os.Mkdir(filepath.Join(dir, "arrived"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.CopyFrom(alice, filepath.Join(dir, "arrived"))
	bodies := arrived(t, filepath.Join(dir, "arrived"))
	for name, reply := range replies {
		if !strings.HasPrefix(reply, "250 ") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(wire, name))
		if err != nil {
			t.Fatal(err)
		}
		want := kept(strings.ReplaceAll(string(b), "\r\n", "\n"))
		if !slices.ContainsFunc(bodies, func(got string) bool { return got == want }) {
			t.Errorf("%s: %s, but no file is what was sent", name, reply)
		}
	}
	t.Logf("%d messages, %d accepted, %d refused for bare CR or LF", len(files), accepted, len(files)-accepted)
	sendmailCorpus(t, m, replies)
	healthy(t, m)
}

var (
	fieldLine = regexp.MustCompile(`^([!-9;-~]+)[ \t]*:`)
	mboxLine  = regexp.MustCompile(`^>*From `)
	dropped   = regexp.MustCompile(`(?i)^(return-path|content-length|bcc|resent-bcc)$`)
)

// kept is what is to arrive of a message: all of it, but for the fields that are
// dropped, a From_ line of an mbox, which becomes a field, and the empty line
// that is put before a body that has none.
func kept(message string) string {
	var b strings.Builder
	lines := strings.SplitAfter(strings.TrimSuffix(message, "\n")+"\n", "\n")
	lines = lines[:len(lines)-1]
	if mboxLine.MatchString(lines[0]) {
		b.WriteString("X-Mailbox-Line: " + lines[0])
		lines = lines[1:]
	}
	skip, any := false, false
	for i, line := range lines {
		name := fieldLine.FindStringSubmatch(line)
		switch {
		case any && (line[0] == ' ' || line[0] == '\t'):
		case name != nil:
			skip, any = dropped.MatchString(name[1]), true
		default:
			if line != "\n" {
				b.WriteString("\n")
			}
			return b.String() + strings.Join(lines[i:], "")
		}
		if !skip {
			b.WriteString(line)
		}
	}
	return b.String()
}

// arrived returns the messages of a Maildir without what was put before them.
func arrived(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		out = append(out, afterTrace(string(b)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// afterTrace cuts off Return-Path, X-Original-To, Delivered-To and the first
// Received field.
func afterTrace(s string) string {
	i := strings.Index(s, "\nReceived: ")
	if i < 0 {
		return s
	}
	s = s[i+1:]
	for {
		_, rest, ok := strings.Cut(s, "\n")
		if !ok {
			return ""
		}
		if s = rest; s == "" || s[0] != '\t' {
			return s
		}
	}
}

// sendmailCorpus sends the same messages by sendmail. Bodies arrive as they were;
// a header may be completed.
func sendmailCorpus(t *testing.T, m *mailtest.Machine, replies map[string]string) {
	t.Helper()
	m.Script("rm -f " + alice + "/*")
	out := m.Script(`cd /root/wire; for f in *.eml; do c=0; tr -d '\r' <$f | sendmail -i -f sender@example.org alice@example.net 2>/dev/null || c=$?; echo $f $c; done`)
	sent := 0
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if f[1] == "0" {
			sent++
		} else if strings.HasPrefix(replies[f[0]], "250 ") {
			t.Errorf("sendmail: exit status %s for %s", f[1], f[0])
		}
	}
	emptyQueue(m, time.Minute)
	m.WaitFor("all messages", time.Minute, func() bool { return count(t, m, alice) == sent })
}

// TestFlow: floods in, floods out, dead and refusing hosts, and the commands.
func TestFlow(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m := mailHost(t, suite, "")
			flood(t, m)
			crowd(t, m)
			relay(t, m)
			deadHost(t, m)
			slowHost(t, m)
			bounces(t, m)
			relayControl(t, m)
			disabled(t, m)
			healthy(t, m)
		})
	}
}

func flood(t *testing.T, m *mailtest.Machine) {
	const n = 5000
	m.Run("smtp-source", "-c", "-s", "20", "-m", strconv.Itoa(n), "-l", "4096", "-f", "s@example.org", "-t", "alice@example.net", "127.0.0.1:25")
	emptyQueue(m, 5*time.Minute)
	if got := count(t, m, alice); got != n {
		t.Errorf("%d of %d messages arrived", got, n)
	}
	m.Script("rm -rf " + alice + "/*")
}

// crowd: more at once than one user has places; each waits for its turn.
func crowd(t *testing.T, m *mailtest.Machine) {
	const n = 300
	m.Script(fmt.Sprintf(`seq %d | xargs -P %d -I{} sh -c 'printf "Subject: {}\n\nx\n" | sendmail alice@example.net'`, n, n))
	emptyQueue(m, time.Minute)
	if got := count(t, m, alice); got != n {
		t.Errorf("%d of %d messages arrived", got, n)
	}
	m.Script("rm -rf " + alice + "/*")
}

// sink starts Postfix's smtp-sink and waits until it listens.
func sink(m *mailtest.Machine, name, address string, options ...string) {
	command := append([]string{"smtp-sink", "-u", "nobody"}, options...)
	m.Start(name, append(command, address, "100")...)
	m.WaitFor("the sink", time.Minute, func() bool { return m.Script("ss -Htln src "+address) != "" })
}

func relay(t *testing.T, m *mailtest.Machine) {
	const n = 2000
	m.Run("install", "-d", "-o", "nobody", "/var/tmp/sunk")
	sink(m, "sink", "127.0.0.1:2600", "-d", "/var/tmp/sunk/%M.")
	m.Run("smtp-source", "-s", "20", "-m", strconv.Itoa(n), "-l", "4096", "-f", "s@example.org", "-t", "x@sink.example", "127.0.0.1:25")
	emptyQueue(m, time.Minute)
	got := strings.TrimSpace(m.Script("cat /var/tmp/sunk/* | grep -c '^X-Rcpt-Args: <x@sink.example>' || true"))
	if got != strconv.Itoa(n) {
		t.Errorf("%s of %d messages were relayed", got, n)
	}
	if log := m.MailLog(); !strings.Contains(log, "conn_use=") {
		t.Error("no connection was used again")
	}
	m.Stop("sink")
}

func deadHost(t *testing.T, m *mailtest.Machine) {
	m.RunInput([]byte("Subject: for the dead\n\nx\n"), "sendmail", "-f", "alice@example.net", "x@dead.example")
	m.WaitFor("the message to be deferred", time.Minute, func() bool {
		q := m.Run("mailq")
		return strings.Contains(q, "Connection refused") && !strings.Contains(q, "*") // or it is about to be put away
	})
	listing := regexp.MustCompile(`(?m)^-Queue ID-  --Size-- ----Arrival Time---- -Sender/Recipient-------\n[0-9A-Za-z]{13} +\d+  \w{3} \w{3} +\d+ \d\d:\d\d:\d\d alice@example\.net\n` +
		` +\(connect to 127\.0\.0\.1\[127\.0\.0\.1\]:2601: Connection refused\)\n +x@dead\.example\n\n-- \d+ Kbytes in 1 Request\.`)
	if q := m.Run("mailq"); !listing.MatchString(q) {
		t.Errorf("mailq:\n%s", q)
	}
	sink(m, "risen", "127.0.0.1:2601")
	m.Run("posthouse", "queue", "retry", "--all")
	emptyQueue(m, time.Minute)
	if !strings.Contains(m.MailLog(), "to=<x@dead.example>, relay=127.0.0.1[127.0.0.1]:2601") {
		t.Error("the log does not say where the message went")
	}
	m.Stop("risen")
}

// slowHost: while an smtp that has to go waits for a slow host, the next one
// delivers to others; what a qmgr that has to go is waiting for, it interrupts.
func slowHost(t *testing.T, m *mailtest.Machine) {
	sink(m, "slow", "127.0.0.1:2601", "-w", "3600")
	m.RunInput([]byte("Subject: for the slow\n\nx\n"), "sendmail", "-f", "alice@example.net", "x@dead.example")
	m.WaitFor("the slow host", time.Minute, func() bool { return m.Script("ss -Htn state established dst 127.0.0.1:2601") != "" })
	m.Run("systemctl", "reload", "posthouse-smtp.service")
	sink(m, "fast", "127.0.0.1:2600")
	m.RunInput([]byte("Subject: for the fast\n\nx\n"), "sendmail", "-f", "alice@example.net", "fast@sink.example")
	m.WaitFor("the other message", time.Minute, func() bool {
		return strings.Contains(m.MailLog(), "to=<fast@sink.example>, relay=127.0.0.1[127.0.0.1]:2600")
	})
	if m.Script("ss -Htn state established dst 127.0.0.1:2601") == "" {
		t.Error("the connection to the slow host has ended")
	}
	m.Run("systemctl", "restart", "posthouse-qmgr.service") // returns when the old one is gone
	m.WaitFor("the end of the delivery", time.Minute, func() bool { return strings.Contains(m.MailLog(), "was interrupted while") })
	m.Stop("slow")
	sink(m, "slow", "127.0.0.1:2601")
	m.Run("posthouse", "queue", "retry", "--all")
	emptyQueue(m, time.Minute)
	m.Stop("slow")
	m.Stop("fast")
}

func bounces(t *testing.T, m *mailtest.Machine) {
	sink(m, "refuser", "127.0.0.1:2601", "-f", "RCPT")
	m.RunInput([]byte("Subject: refused\n\nx\n"), "sendmail", "-f", "alice@example.net", "x@dead.example")
	m.WaitFor("the notification", time.Minute, func() bool { return count(t, m, alice) == 1 })
	dsn := m.Script("cat " + alice + "/*")
	for _, want := range []string{
		"Return-Path: <>\n", "Content-Type: multipart/report; report-type=delivery-status", "Auto-Submitted: auto-replied",
		"Reporting-MTA: dns; mail.example.org", "Final-Recipient: rfc822; x@dead.example", "Action: failed", "Status: 5.",
		"Diagnostic-Code: smtp; 5", "Remote-MTA: dns; [127.0.0.1]", "Subject: refused",
	} {
		if !strings.Contains(dsn, want) {
			t.Errorf("the notification lacks %q:\n%s", want, dsn)
		}
	}
	m.Stop("refuser")
	m.Script("rm " + alice + "/*")
}

func relayControl(t *testing.T, m *mailtest.Machine) {
	m.Script("ip address add 192.0.2.1/32 dev lo")
	for _, to := range []string{
		"<x@elsewhere.example>", "<@mail.example.org:x@elsewhere.example>", "<x%elsewhere.example@example.net>", "<elsewhere.example!x@example.net>",
		`<"x@elsewhere.example"@example.net>`, `<"x%elsewhere.example"@example.net>`, "<x@[192.0.2.7]>", "<x@elsewhere.example@example.net>",
		"<x@EXAMPLE.NET.elsewhere.example>", "<nobody@example.net>",
	} {
		r, err := m.Try("bash", "-c", fmt.Sprintf(`exec 3<>/dev/tcp/192.0.2.1/25; read -u 3 l; printf 'EHLO x\r\n' >&3; while read -u 3 l; do [ "${l:3:1}" = " " ] && break; done
			printf 'MAIL FROM:<s@elsewhere.example>\r\n' >&3; read -u 3 l; printf 'RCPT TO:%%s\r\n' '%s' >&3; read -u 3 l; echo "$l"`, to))
		if err != nil {
			t.Fatal(err)
		}
		// The client's address is 192.0.2.1 too, which is not trusted.
		if !strings.HasPrefix(r.Stdout, "5") {
			t.Errorf("RCPT TO:%s: %s%s", to, r.Stdout, r.Stderr)
		}
	}
}

func disabled(t *testing.T, m *mailtest.Machine) {
	m.Run("systemctl", "disable", "--now", "posthouse-virtual.socket")
	m.RunInput([]byte("Subject: waits\n\nx\n"), "sendmail", "alice@example.net")
	m.WaitFor("the reason to name the unit", time.Minute, func() bool { return strings.Contains(m.Run("mailq"), "posthouse-virtual.socket") })
	m.Run("systemctl", "enable", "--now", "posthouse-virtual.socket")
	m.Run("posthouse", "queue", "retry", "--all")
	emptyQueue(m, time.Minute)
	if count(t, m, alice) != 1 {
		t.Error("the message that waited did not arrive")
	}
	// Without pickup the caller keeps the message, and the log says what is the matter. That of root is dropped, see
	// TestMaildrop.
	m.Run("systemctl", "disable", "--now", "posthouse-pickup.socket")
	r, err := m.TryInput([]byte("Subject: not taken\n\nx\n"), "runuser", "-u", "nobody", "--", "/usr/sbin/sendmail", "alice@example.net")
	const off = "the mail system is off (systemctl enable --now posthouse-pickup.socket)"
	if err != nil || r.Code != 75 || !strings.Contains(r.Stderr, "sendmail: "+off) {
		t.Errorf("sendmail without pickup: %+v, %v", r, err)
	}
	m.WaitFor("the log of sendmail", time.Minute, func() bool { return strings.Contains(m.MailLog(), ": error: nobody(65534): "+off) })
	m.Run("systemctl", "enable", "--now", "posthouse-pickup.socket")
}
