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

// farAway is the address of a host that is none of the machine's, for all that
// its daemons can tell.
const farAway = "198.51.100.7"

// answer is what a name server knows of a domain, and what becomes of mail there.
type answer struct {
	domain string
	says   string // of it and of other names
	want   string // dsn=, and the word for the outcome
	why    string // in the log
}

const notFoundText = "Host or domain name not found. Name service error for name="

var answers = []answer{
	{"good.example", "good.example MX 10 mx.good.example\nmx.good.example A " + farAway, "2.0.0 sent", ""},
	{"no-mx.example", "no-mx.example A " + farAway, "2.0.0 sent", ""},
	{"alias.example", "alias.example CNAME good.example", "2.0.0 sent", ""},
	{"second.example", "second.example MX 5 nowhere.example\nsecond.example MX 10 mx.good.example", "2.0.0 sent", ""},
	{"truncated.example", "truncated.example MX 10 mx.good.example\ntruncated.example ! truncate", "2.0.0 sent", ""},

	{"missing.example", "", "5.4.4 bounced", notFoundText + "missing.example type=A: Host not found)"},
	{"dangling.example", "dangling.example CNAME nowhere.example", "5.4.4 bounced", notFoundText + "dangling.example type=A: Host not found)"},
	{"null.example", "null.example MX 0 .", "5.1.10 bounced", "Domain null.example does not accept mail (nullMX)"},
	{"bare.example", "bare.example", "5.4.4 bounced", notFoundText + "bare.example type=A: Host found but no data record of requested type"},
	{"gone.example", "gone.example MX 10 nowhere.example", "5.4.4 bounced", notFoundText + "nowhere.example type=A: Host not found)"},
	{"no-address.example", "no-address.example MX 10 empty.example\nempty.example", "5.4.4 bounced", notFoundText + "empty.example type=A: Host found but no data record of requested type"},
	{"zero.example", "zero.example MX 10 any.example\nany.example A 0.0.0.0", "5.4.4 bounced", notFoundText + "any.example type=A: Host found but no data record of requested type"},
	{"self.example", "self.example MX 10 mail.example.org", "5.4.6 bounced", "mail for self.example loops back to myself"},
	{"local.example", "local.example MX 10 lo.example\nlo.example A 127.0.0.1", "5.4.6 bounced", "mail for local.example loops back to myself"},

	{"failing.example", "failing.example ! servfail", "4.4.3 deferred", notFoundText + "failing.example type=MX: Host not found, try again (server failure: ServerFailure)"},
	{"refused.example", "refused.example ! refused", "4.4.3 deferred", "Host not found, try again (server failure: Refused)"},
	{"silent.example", "silent.example ! silent", "4.4.3 deferred", "Host not found, try again (no answer)"},
	{"garbage.example", "garbage.example ! garbage", "4.4.3 deferred", "Host not found, try again (no answer)"},
	{"forged.example", "forged.example MX 10 evil.example\nforged.example ! wrong-id", "4.4.3 deferred", "Host not found, try again (no answer)"},
	{"lie.example", "lie.example MX 10 evil.example\nlie.example ! wrong-question", "4.4.3 deferred", "Host not found, try again (no answer)"},
	{"loop.example", "loop.example CNAME loop2.example\nloop2.example CNAME loop.example", "4.4.3 deferred", "Host not found, try again (CNAMEs of loop.example do not come to an end)"},
	{"dead-mx.example", "dead-mx.example MX 10 mx.failing.example\nmx.failing.example ! servfail", "4.4.3 deferred", notFoundText + "mx.failing.example type=A: Host not found, try again (server failure: ServerFailure)"},
	{"half.example", "half.example MX 10 nowhere.example\nhalf.example MX 20 mx.failing.example", "4.4.3 deferred", notFoundText + "mx.failing.example type=A: Host not found, try again"},
}

// TestBadNames: whatever becomes of a question to the DNS, only what it says for
// certain makes mail bounce; all else waits, the log says why, and when the names
// are there again the mail arrives.
func TestBadNames(t *testing.T) {
	t.Parallel()
	m := mailHost(t, "bookworm", "trusted: [127.0.0.0/8, 192.0.2.0/24]\n")
	m.Script("ip address add 192.0.2.1/32 dev lo; ip route add local 198.51.100.0/24 dev lo src 192.0.2.1; mkdir " + sunk)
	// In place: it is bound to the daemons. Long, so that a slow machine is not taken for a dead server.
	m.WriteFile("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:10 attempts:1\n", 0o644)

	// Without any server. A client's name is of no importance.
	m.WriteFile("/root/plain", "Subject: plain\r\n\r\nx\r\n", 0o644)
	if out := m.Run(probePath, "send", "192.0.2.1:25", "alice@example.net", "x@unserved.example", "/root/plain"); !strings.Contains(out, " 250 ") {
		t.Errorf("by SMTP: %s", out)
	}
	if !strings.Contains(m.Journal("-t", "posthouse/smtpd"), "connect from unknown[192.0.2.1]") {
		t.Error("the client has a name")
	}
	outcome(t, m, answer{"unserved.example", "", "4.4.3 deferred", "connection refused)"})

	m.Stop("posthouse-smtpd.socket", "posthouse-smtpd.service") // its port is that of the far host
	m.Start("far", probePath, "sink", farAway+":25", sunk)
	var script []string
	for _, a := range answers {
		script = append(script, a.says)
	}
	nameServer(m, script...)
	for _, a := range answers {
		m.RunInput([]byte("Subject: to "+a.domain+"\n\nx\n"), "sendmail", "-f", "alice@example.net", "x@"+a.domain)
	}
	sent, bounced := 0, 0
	for _, a := range answers {
		outcome(t, m, a)
		switch strings.Fields(a.want)[1] {
		case "sent":
			sent++
		case "deferred":
			if list := m.Run("mailq"); !strings.Contains(list, "x@"+a.domain) {
				t.Errorf("%s is not in the queue", a.domain)
			}
		default:
			bounced++
		}
	}
	m.WaitFor("the notifications", time.Minute, func() bool { return count(t, m, alice) >= bounced })
	m.Stop("names")

	script = []string{"unserved.example A " + farAway}
	for _, a := range answers {
		script = append(script, a.domain+" A "+farAway)
	}
	nameServer(m, script...)
	m.Run("posthouse", "queue", "retry", "--all")
	emptyQueue(m, 2*time.Minute)
	if n := count(t, m, sunk); n != 1+len(answers)-bounced {
		t.Errorf("%d messages have arrived, %d of them at once; want all but the %d that bounced, of %d", n, sent, bounced, 1+len(answers))
	}
	if n := count(t, m, alice); n != bounced {
		t.Errorf("%d notifications, want %d", n, bounced)
	}
	unshaken(t, m)
	healthy(t, m)
}

// nameServer serves names until the unit is stopped.
func nameServer(m *mailtest.Machine, script ...string) {
	m.WriteFile("/root/names", strings.Join(script, "\n")+"\n", 0o644)
	served := strings.Count(m.Journal("-u", "names"), "serves names")
	m.Start("names", "sh", "-c", "exec "+probePath+" dns 127.0.0.1:53 </root/names")
	m.WaitFor("the name server", time.Minute, func() bool { return strings.Count(m.Journal("-u", "names"), "serves names") > served })
}

// outcome waits for the first outcome of the message to a domain.
func outcome(t *testing.T, m *mailtest.Machine, a answer) {
	t.Helper()
	line := regexp.MustCompile(`(?m)^.*: to=<x@` + regexp.QuoteMeta(a.domain) + `>, .*dsn=(\S+), status=(\S+) .*$`)
	var f []string
	m.WaitFor("an outcome at "+a.domain, 2*time.Minute, func() bool {
		f = line.FindStringSubmatch(m.Journal("-t", "posthouse/smtp", "-o", "cat"))
		return f != nil
	})
	if got := fmt.Sprint(f[1], " ", f[2]); got != a.want || !strings.Contains(f[0], a.why) {
		t.Errorf("%s: %s, want %s: %s", a.domain, f[0], a.want, a.why)
	}
}
