//go:build system

package system

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestCrashLocal: local and deliver are killed again and again while mail for UNIX
// accounts comes in. What was acknowledged is in the mailbox file and in the Maildir,
// maybe twice; of nothing is there only a part.
func TestCrashLocal(t *testing.T) {
	t.Parallel()
	m := mailHost(t, "bookworm", "")
	configure(m, "local", "domains: {local: [local.example]}\n")
	m.Script("useradd --create-home erin; useradd --create-home frank; echo '~/Maildir/' >/home/frank/.forward; chown frank: /home/frank/.forward")
	to := []string{"erin@local.example", "frank@local.example"}

	const rounds, lot = 8, 60
	acked := make(map[int]bool)
	send := func(n int, command ...string) {
		args := []string{probePath, "load", "127.0.0.1:25", loadFrom, strings.Join(to, ","), strconv.Itoa(len(acked)), strconv.Itoa(n)}
		for line := range strings.Lines(m.Run(append(args, command...)...)) {
			if word, number, _ := strings.Cut(strings.TrimSpace(line), " "); word == "acked" {
				mark, err := strconv.Atoi(number)
				if err != nil {
					t.Fatalf("probe: %q", line)
				}
				acked[mark] = true
			}
		}
	}
	// A lock that a killed process has left would be waited for.
	const unlock = "find /var/mail -name '*.lock' -exec touch -d '1 hour ago' {} +"
	send(lot)
	for round := range rounds {
		unit := []string{"posthouse-deliver.service", "posthouse-local.service"}[round%2]
		m.Script(unlock)
		m.Run("posthouse", "queue", "retry", "--all")
		m.WaitFor(unit+" to run", time.Minute, func() bool {
			return strings.TrimSpace(m.Run("systemctl", "show", "-P", "ActiveState", unit)) == "active"
		})
		send(lot, strconv.Itoa(lot/2+round), "sh", "-c", "sleep 0.0"+strconv.Itoa(round)+"; systemctl kill --kill-who=main -s KILL "+unit)
	}
	m.WaitFor("the end of deliveries", 3*time.Minute, func() bool {
		m.Script(unlock)
		m.Run("posthouse", "queue", "retry", "--all")
		return m.Script("find /var/spool/posthouse -type f ! -path '*/spare/*' ! -path '*/index/*'") == ""
	})
	journal := m.Journal("-t", "systemd", "-o", "cat")
	for _, unit := range []string{"deliver", "local"} {
		if n := strings.Count(journal, "posthouse-"+unit+".service: Main process exited, code=killed, status=9/KILL"); n == 0 {
			t.Errorf("%s was never killed", unit)
		}
	}

	const split = "/var/tmp/split"
	m.Script("mkdir " + split + `; awk -v dir=` + split + ` '
		function last() {for (; held > 1; held--) print "" >file; held = 0; close(file)}
		/^From / {if (n++) last(); file = dir "/" n; next}
		/^$/ {held++; next}
		{for (; held > 0; held--) print "" >file; print >file}
		END {last()}' /var/mail/erin`)
	copies := 0
	for i, dir := range []string{split, "/home/frank/Maildir/new"} {
		got := make(map[int]int)
		for line := range strings.Lines(m.Run(probePath, "marks", dir)) {
			f := strings.Fields(line)
			mark, err := strconv.Atoi(f[1])
			if err != nil || f[0] != "message" || f[2] != "ok" || mark%len(to) != i {
				t.Errorf("for %s: %s", to[i], line)
			}
			got[mark]++
			copies++
		}
		for mark := range acked {
			if mark%len(to) == i && got[mark] == 0 {
				t.Errorf("message %d for %s was acknowledged, and is not there", mark, to[i])
			}
		}
	}
	if len(acked) != (rounds+1)*lot {
		t.Errorf("%d messages were acknowledged", len(acked))
	}
	t.Logf("%d messages, %d of them twice", len(acked), copies-len(acked))
	healthy(t, m)
}
