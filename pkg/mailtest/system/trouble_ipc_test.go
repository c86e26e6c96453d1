//go:build system

package system

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

const private = "/run/posthouse/private/"

// TestGossip: what daemons and commands say to each other may be anything. Nobody
// falls over it, nobody keeps what he did not ask for, and mail waits or flows.
func TestGossip(t *testing.T) {
	t.Parallel()
	m := mailHost(t, "bookworm", "trusted: [127.0.0.0/8, 192.0.2.0/24]\n")
	configure(m, "local", "domains: {local: [local.example]}\n")
	m.Script("useradd --create-home erin; ip address add 198.51.100.1/32 dev lo") // an address that is not trusted
	l := newLoad(t, m)
	l.send(8)
	t.Run("clients", func(t *testing.T) { l.strangeClients(t) })
	t.Run("servers", func(t *testing.T) { l.impostors(t) })
	l.drain()
	l.check(0)
	unshaken(t, m)
	healthy(t, m)
}

// unshaken: no daemon has ended but of its own accord.
func unshaken(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	for _, log := range []string{m.MailLog(), m.Journal("-t", "systemd")} {
		for line := range strings.Lines(log) {
			if regexp.MustCompile(`panic:|runtime error|fatal error|posthouse\S*: (Main process exited|Failed with result|Watchdog)`).MatchString(line) {
				t.Errorf("%s", line)
			}
		}
	}
}

// strangeClients: every server gets what no client would send.
func (l *load) strangeClients(t *testing.T) {
	args := []string{"garble", "200"}
	var sockets []string
	for _, f := range regexp.MustCompile(`(?m)^(/\S+) \((SequentialPacket|FIFO)\)$`).FindAllStringSubmatch(l.Run("systemctl", "show", "-P", "Listen", "posthouse-*.socket"), -1) {
		args = append(args, f[1])
		if f[2] == "SequentialPacket" {
			sockets = append(sockets, f[1])
		}
	}
	if len(sockets) < 13 || !slices.Contains(sockets, deliverSocket) {
		t.Fatalf("sockets: %q", sockets)
	}
	l.Run(append([]string{probePath}, args...)...)
	l.send(40)
	if kept := l.Script("find /proc/[0-9]*/fd -lname '/root*' -o -lname /dev/zero -o -lname /etc/shadow 2>/dev/null || true"); kept != "" {
		t.Errorf("descriptors that were kept:\n%s", kept)
	}
	// More clients than there is room for, which do not say what they want.
	l.Start("silent", "sh", "-c", "sleep infinity | exec "+probePath+" silent 300 "+strings.Join(sockets, " "))
	l.WaitFor("silent clients", time.Minute, func() bool { return strings.Contains(l.Journal("-u", "silent"), "open") })
	l.send(40)
	l.Run("mailq")
	l.Stop("silent")
	l.drain()
}

// forgetTime is more than the time for which clients remember answers of rewrite.
const forgetTime = time.Second

// impostors: every server is replaced by one that misbehaves, in one way after
// the other.
func (l *load) impostors(t *testing.T) {
	const forbidden = "Subject: not to be taken\nX-Mark: 1000000\n\nx\n" // check sees it
	l.WriteFile("/root/plain", strings.ReplaceAll(forbidden, "\n", "\r\n"), 0o644)
	retry := func(t *testing.T) { l.Run("posthouse", "queue", "retry", "--all") }
	accepted := func(t *testing.T) { l.send(1) }
	toErin := 0
	local := func(t *testing.T) {
		toErin++
		l.RunInput([]byte("Subject: to erin\n\nx\n"), "sendmail", "erin@local.example")
		retry(t)
	}
	stranger := func(t *testing.T) {
		if out := l.Run(probePath, "send", "198.51.100.1:25", loadFrom, "stranger@local.example", "/root/plain"); !regexp.MustCompile(`^/root/plain (error ".*": )?450 4\.1\.1 `).MatchString(out) {
			t.Errorf("by SMTP: %s", out)
		}
	}
	bySMTP := func(t *testing.T) {
		if out := l.Run(probePath, "send", "127.0.0.1:25", loadFrom, "alice@example.net", "/root/plain"); !regexp.MustCompile(`^/root/plain (error ".*": )?4\d\d `).MatchString(out) {
			t.Errorf("by SMTP: %s", out)
		}
	}
	bySendmail := func(t *testing.T) {
		r, err := l.TryInput([]byte(forbidden), "sendmail", "alice@example.net")
		if err != nil || r.Code != 75 {
			t.Errorf("sendmail: %d %s, %v", r.Code, r.Stderr, err)
		}
	}
	for n, c := range []struct {
		server string
		socket string
		stop   string // units
		before int    // messages that are taken before
		ask    func(*testing.T)
	}{
		{"rewrite by SMTP", private + "rewrite", "rewrite", 0, bySMTP},
		{"rewrite by sendmail", private + "rewrite", "rewrite", 0, bySendmail},
		{"rewrite by qmgr", private + "rewrite", "rewrite", -4, retry},
		{"cleanup by SMTP", private + "cleanup", "cleanup", 0, bySMTP},
		{"cleanup by sendmail", private + "cleanup", "cleanup", 0, bySendmail},
		{"pickup", "/run/posthouse/public/submit", "pickup", 0, bySendmail},
		{"qmgr", private + "qmgr", "qmgr qmgr-wake queue", 0, accepted},
		{"dns", private + "dns", "dns", 0, accepted},
		{"virtual", private + "virtual", "virtual", 4, retry},
		{"smtp", private + "smtp", "smtp", 4, retry},
		{"bounce", private + "bounce", "bounce", 4, retry},
		{"recipient", private + "recipient", "recipient", 0, stranger},
		{"local", private + "local", "local", 0, local},
		{"deliver", private + "deliver", "deliver", 0, local},
		{"showq", "/run/posthouse/public/showq", "showq", 0, func(t *testing.T) {
			if r, err := l.Try("mailq"); err != nil || r.Code != 69 || !strings.Contains(r.Stderr, "mailq: ") {
				t.Errorf("mailq: %+v, %v", r, err)
			}
		}},
	} {
		t.Run(c.server, func(t *testing.T) {
			var units []string
			for _, x := range strings.Fields(c.stop) {
				units = append(units, "posthouse-"+x+".socket")
			}
			if c.before < 0 { // they wait in the queue
				l.Stop("posthouse-virtual.socket")
				l.send(-c.before)
				l.Run("systemctl", "start", "posthouse-virtual.socket")
			}
			unit := fmt.Sprintf("impostor%d", n)
			l.Stop(units...)
			time.Sleep(forgetTime)
			l.Start(unit, probePath, "impostor", c.socket)
			l.WaitFor("the impostor", time.Minute, func() bool { return strings.Contains(l.Journal("-u", unit), "impostor at") })
			l.send(max(c.before, 0))
			l.WaitFor("all misbehaviours", 2*time.Minute, func() bool {
				c.ask(t)
				return strings.Count(l.Journal("-u", unit), "misbehaves: ") >= 9 // they take turns
			})
			l.Stop(unit)
			// Where its service has been started by another socket meanwhile it has to go first.
			l.Script("for i in $(seq 20); do systemctl start " + strings.Join(units, " ") + " && exit; systemctl stop posthouse-local.service; done; exit 1")
			l.drain()
		})
	}
	if got := strings.Count(l.ReadFile("/var/mail/erin"), "\nSubject: to erin\n"); got != toErin {
		t.Errorf("%d of %d messages to erin", got, toErin)
	}
}
