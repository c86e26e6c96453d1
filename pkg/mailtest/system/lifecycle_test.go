//go:build system

package system

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// ours are all daemons, as daemons: in the configuration names them.
var ours = []string{"bounce", "cleanup", "deliver", "dns", "local", "pickup", "qmgr", "rewrite", "showq", "smtp", "smtpd", "virtual"}

// Uses of a process, where it is to be renewed often.
const (
	sessionsOfOne = 150
	requestsOfOne = 20
)

const submitSocket = "/run/posthouse/public/submit"

// TestRecycling: daemons go because they have been idle, or because they have
// served enough, as often as can be; no client notices.
func TestRecycling(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m := mailHost(t, suite, "trusted: [127.0.0.0/8, 192.0.2.0/24]\n")
			// The name of a client with this address is asked for.
			m.Script("ip address add 192.0.2.1/32 dev lo")
			lives(m, "1s", sessionsOfOne, requestsOfOne)
			sent := recycleSessions(t, m)
			sent += stopSuccessor(t, m)
			sent += recycleRequests(t, m)
			lives(m, "20ms", sessionsOfOne, requestsOfOne)
			sent += idleExits(t, m)

			emptyQueue(m, time.Minute)
			if got := count(t, m, alice); got != sent {
				t.Errorf("%d of %d messages arrived", got, sent)
			}
			gone(m)
			neverFailed(t, m)
			healthy(t, m)
		})
	}
}

// lives has daemons go when they have been idle for so long, and smtpd after so
// many sessions, others after so many requests; 0: any. It holds for all that
// start from now on, and waits for those.
func lives(m *mailtest.Machine, idle string, sessions, requests int) {
	text := "daemons:\n"
	for _, x := range ours {
		uses := requests
		switch x {
		case "smtpd":
			uses = sessions
		case "qmgr":
			uses = 0 // goes only when it is idle
		}
		text += fmt.Sprintf("  %s: {max_idle: %s, max_use: %d}\n", x, idle, uses)
	}
	m.WriteFile("/etc/posthouse/conf.d/lives.yaml", text, 0o644)
	retire(m)
}

// retire has all daemons that run go. One that still had something to do is followed by
// another at once, which is told, too.
func retire(m *mailtest.Machine) {
	m.WaitFor("daemons to go when told", time.Minute, func() bool {
		_, _ = m.Try("systemctl", "try-reload-or-restart", "posthouse-*.service") // fails for one that has just gone
		return resident(m) == "" && running(m) == ""
	})
	gone(m)
}

// resident lists our processes, whatever their cgroup.
func resident(m *mailtest.Machine) string {
	return m.Script("ps -eo user:32,pid,args | grep ^_ph- || true")
}

// gone waits until there is none.
func gone(m *mailtest.Machine) {
	m.WaitFor("no daemon to be resident", time.Minute, func() bool { return resident(m) == "" })
	m.WaitFor("systemd to notice", time.Minute, func() bool { return running(m) == "" })
	m.Settle()
}

// running lists the services that systemd has not seen end.
func running(m *mailtest.Machine) string {
	return m.Run("systemctl", "list-units", "--no-legend", "--state=active,activating,deactivating", "posthouse-*.service")
}

// starts counts how often systemd has started a daemon. Successors that a daemon
// has started itself are not among them.
func starts(m *mailtest.Machine, daemon string) int {
	return strings.Count(m.Journal("-t", "systemd"), "Started posthouse-"+daemon+".service")
}

// processes counts the processes of a daemon: those that systemd has started, or
// where they are more, those that have written to the log.
func processes(t *testing.T, m *mailtest.Machine, daemon string) int {
	t.Helper()
	m.Run("journalctl", "--sync")
	out := m.Script("journalctl -q -b -o short -t posthouse/" + daemon + " | sed -n 's,.* posthouse/[a-z]*\\[\\([0-9]*\\)\\]: .*,\\1,p' | sort -u | wc -l")
	n, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	return max(n, starts(m, daemon))
}

// connects: every session is served; see the probe for what else could happen.
func connects(t *testing.T, m *mailtest.Machine, n, workers, pause int) {
	t.Helper()
	out := m.Run(probePath, "connect", "127.0.0.1:25", strconv.Itoa(n), strconv.Itoa(workers), strconv.Itoa(pause))
	if want := fmt.Sprintf("served %d, refused 0, reset 0, stalled 0, other 0; ", n); !strings.HasPrefix(out, want) {
		t.Errorf("%d sessions: %s", n, out)
	}
}

// held starts sessions, or messages, that stay under way until they are released;
// then all of them have to come to a good end.
func held(t *testing.T, m *mailtest.Machine, name string, args ...string) (release func()) {
	t.Helper()
	file := "/run/release." + name
	m.Start(name, "sh", "-c", "while [ ! -e "+file+" ]; do sleep 0.1; done | exec "+probePath+" "+strings.Join(args, " "))
	m.WaitFor("sessions to be held", time.Minute, func() bool { return strings.Contains(m.Journal("-u", name), "open") })
	return func() {
		t.Helper()
		m.Run("touch", file)
		m.WaitFor("the end of "+name, time.Minute, func() bool {
			r, err := m.Try("systemctl", "is-active", "--quiet", name)
			return err == nil && r.Code != 0
		})
		if log := m.Journal("-u", name); !strings.Contains(log, "closed") {
			t.Errorf("held sessions: %s", log)
		}
	}
}

// recycleSessions: 20,000 sessions while smtpd is renewed, without and with long
// sessions that keep the old one, and while it comes and goes.
func recycleSessions(t *testing.T, m *mailtest.Machine) (sent int) {
	t.Helper()
	const rounds, during, after, long = 5, 500, 1750, 3
	for round := range rounds {
		silent := held(t, m, fmt.Sprintf("silent%d", round), "hold", "127.0.0.1:25", strconv.Itoa(long))
		messages := held(t, m, fmt.Sprintf("messages%d", round), "hold", "127.0.0.1:25", strconv.Itoa(long), "s@example.org", "alice@example.net")
		connects(t, m, during, 8, 0)
		if all := resident(m); strings.Count(all, "/libexec/smtpd") != 2 {
			t.Errorf("not one smtpd that drains and its successor:\n%s", all)
		}
		silent()
		messages()
		sent += long
		for range 2 {
			connects(t, m, after, 8, 0)
		}
		gone(m)
	}
	// In each round the first one, its successor, and at least one more when there
	// are no long sessions.
	started, all := starts(m, "smtpd"), processes(t, m, "smtpd")
	if started < rounds || all < 3*rounds {
		t.Errorf("smtpd: %d starts, %d processes", started, all)
	}
	t.Logf("%d sessions: smtpd was started %d times by systemd, %d times by its predecessor", rounds*(during+2*after), started, all-started)
	return sent
}

// stopSuccessor: a process that another one has started, and that has gone, is waited
// for as any other when the unit is stopped: a message under way comes to its end.
func stopSuccessor(t *testing.T, m *mailtest.Machine) (sent int) {
	t.Helper()
	silent := held(t, m, "older", "hold", "127.0.0.1:25", "1")
	connects(t, m, sessionsOfOne, 8, 0) // the last of them, at least, are served by another one
	held(t, m, "younger", "hold", "127.0.0.1:25", "1", "s@example.org", "alice@example.net")
	silent()
	m.WaitFor("the older process to go", time.Minute, func() bool { return strings.Count(resident(m), "/libexec/smtpd") == 1 })
	m.Run("systemctl", "stop", "--no-block", "posthouse-smtpd.service")
	m.WaitFor("the stop to begin", time.Minute, func() bool {
		r, err := m.Try("systemctl", "is-active", "--quiet", "posthouse-smtpd.service")
		return err == nil && r.Code != 0
	})
	m.Run("touch", "/run/release.younger")
	m.WaitFor("the end of the session", time.Minute, func() bool {
		r, err := m.Try("systemctl", "is-active", "--quiet", "younger")
		return err == nil && r.Code != 0
	})
	if log := m.Journal("-u", "younger"); !strings.Contains(log, `"QUIT": 421 `) {
		t.Errorf("a message to a daemon that is being stopped: %s", log)
	}
	return 1
}

// recycleRequests: 2,000 messages while the daemons behind are renewed, at first
// with slow clients that keep the old ones. smtp-source and sendmail try once and
// say so if they fail.
func recycleRequests(t *testing.T, m *mailtest.Machine) (sent int) {
	t.Helper()
	behind := []string{"rewrite", "cleanup", "dns", "pickup", "virtual"}
	before := make(map[string]int)
	for _, x := range behind {
		before[x] = processes(t, m, x)
	}
	const rounds, each = 4, 250
	const slow = 3
	messages := held(t, m, "slow-messages", "hold", "192.0.2.1:25", strconv.Itoa(slow), "s@example.org", "alice@example.net")
	submissions := held(t, m, "slow-submissions", "submit", submitSocket, strconv.Itoa(slow), "s@example.org", "alice@example.net")
	sent += 2 * slow
	for round := range rounds {
		m.Run("smtp-source", "-s", "10", "-m", strconv.Itoa(each), "-f", "s@example.org", "-t", "alice@example.net", "192.0.2.1:25")
		m.Script(fmt.Sprintf(`seq %d | xargs -P 4 -I N sh -c 'printf "Subject: N\n\nx\n" | sendmail -f sN@example.org alice@example.net'`, each)) // an answer is for one sender
		sent += 2 * each
		if round == 0 {
			for _, x := range []string{"cleanup", "pickup"} {
				if all := resident(m); strings.Count(all, "/libexec/"+x) != 2 {
					t.Errorf("not one %s that waits for slow clients and its successor:\n%s", x, all)
				}
			}
			messages()
			submissions()
		}
	}
	// Each is asked once for a message of one kind at least. A process may serve
	// more than it has to while it is renewed.
	for _, x := range behind {
		n := processes(t, m, x) - before[x]
		if n < rounds*each/requestsOfOne/4 {
			t.Errorf("%s: %d processes", x, n)
		}
		t.Logf("%d messages: %d processes of %s", sent, n, x)
	}
	return sent
}

// idleExits: clients come just when daemons are about to go.
func idleExits(t *testing.T, m *mailtest.Machine) (sent int) {
	t.Helper()
	const rounds, sessions, messages = 3, 60, 40
	before := starts(m, "smtpd")
	for range rounds {
		connects(t, m, sessions, 1, 60)
	}
	n := starts(m, "smtpd") - before
	if n < rounds*sessions/10 {
		t.Errorf("smtpd was started %d times", n)
	}
	t.Logf("%d sessions with pauses: smtpd was started %d times", rounds*sessions, n)
	for range rounds {
		m.Script(fmt.Sprintf(`for i in $(seq %d); do printf 'Subject: x\n\nx\n' | sendmail -f s@example.org alice@example.net; sleep 0.0$((RANDOM %% 60 + 10)); done`, messages))
	}
	return rounds * messages
}

// neverFailed: no unit has hit a limit, or failed and recovered.
func neverFailed(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	for result := range strings.Lines(m.Run("systemctl", "show", "-P", "Result", "posthouse-*.service", "posthouse-*.socket", "posthouse-*.path", "posthouse-*.timer")) {
		if result = strings.TrimSpace(result); result != "" && result != "success" {
			t.Errorf("the result of a unit is %s", result)
		}
	}
	failure := regexp.MustCompile(`posthouse-.*(limit-hit|Failed with result|Main process exited|Failed to|timed out)`)
	for line := range strings.Lines(m.Journal("-t", "systemd")) {
		if failure.MatchString(line) {
			t.Errorf("%s", line)
		}
	}
}
