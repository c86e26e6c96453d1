//go:build system

package system

import (
	"strings"
	"testing"
	"time"
)

// TestStrangers: one client cannot take all places of smtpd; where many together do,
// those have to go that are silent, and others get in. Our own clients keep theirs.
func TestStrangers(t *testing.T) {
	t.Parallel()
	m := mailHost(t, "bookworm", "trusted: [127.0.0.0/8]\ndaemons: {smtpd: {max_clients: 60}}\n")
	m.Script("for i in 1 2 3; do ip address add 198.51.100.$i/32 dev lo; done") // who connects to one comes from it
	m.WriteFile("/var/tmp/message", "Subject: in\r\n\r\nx\r\n", 0o644)
	send := func(address, want string) {
		t.Helper()
		r, err := m.Try(probePath, "send", address+":25", "s@elsewhere.example", "alice@example.net", "/var/tmp/message")
		if out := r.Stdout + r.Stderr; err != nil || !strings.Contains(out, want) {
			t.Fatalf("from %s: %s, %v; want %s", address, out, err, want)
		}
	}
	held(t, m, "one", "hold", "198.51.100.1:25", "50")
	send("198.51.100.1", "421 4.7.0 mail.example.org Error: too many connections from 198.51.100.1")
	send("198.51.100.2", " 250 2.0.0 Ok: queued as ")
	held(t, m, "another", "hold", "198.51.100.2:25", "8")
	own := held(t, m, "own", "hold", "127.0.0.1:25", "2") // that makes sixty
	send("198.51.100.3", " 250 2.0.0 Ok: queued as ")     // its time is a minute, a silent client's would be five
	own()
	m.WaitFor("mail", time.Minute, func() bool { return count(t, m, alice) == 2 })
	for _, line := range []string{
		"Connection concurrency limit exceeded: 51 from unknown[198.51.100.1] for service smtp\n",
		"service smtp: nearly all of 60 places are taken", "timeout after EHLO from unknown[198.51.100.",
	} {
		if !strings.Contains(m.MailLog(), line) {
			t.Errorf("the log lacks %q", line)
		}
	}
	healthy(t, m)
}
