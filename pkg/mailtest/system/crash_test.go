//go:build system

package system

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// The recipients of the load take turns, by mark: two ways to a mailbox, a host
// that takes the mail, and one that refuses the recipient.
var loadTo = []string{"alice@example.net", "x@sink.example", "!alice@example.net", "no@sink.example"}

const (
	toSink   = 1
	toNobody = 3
)

const (
	loadFrom = "alice@example.net"
	sunk     = "/var/tmp/sunk"
)

// TestCrash: daemons are killed in the middle of 2,000 messages, one after the
// other, again and again, and at last all at once. What was acknowledged arrives,
// whole, and nothing stays behind.
func TestCrash(t *testing.T) {
	t.Parallel()
	// The client has an address whose name is looked up, so that dns has work, too.
	m := mailHost(t, "bookworm", "trusted: [127.0.0.0/8, 192.0.2.0/24]\n")
	l := newLoad(t, m)
	var daemons []string
	for _, x := range []string{"smtpd", "cleanup", "rewrite", "qmgr", "virtual", "smtp", "bounce", "pickup", "dns"} {
		daemons = append(daemons, "posthouse-"+x+".service")
	}
	l.send(75) // all daemons are needed, and run then
	const rounds = 3
	for round := range rounds {
		for _, unit := range daemons {
			l.kill(5+25*round, unit)
		}
	}
	l.kill(20, daemons...)

	journal := m.Journal("-t", "systemd", "-o", "cat")
	kills := 0
	for _, unit := range daemons {
		n := strings.Count(journal, unit+": Main process exited, code=killed, status=9/KILL")
		if n < rounds+1 {
			t.Errorf("%s was killed %d times", unit, n)
		}
		kills += n
	}
	l.drain()
	l.check(kills)
	healthy(t, m)
	for state := range strings.Lines(m.Run("systemctl", "show", "-P", "ActiveState", "posthouse-*.socket")) {
		if state = strings.TrimSpace(state); state != "" && state != "active" {
			t.Errorf("a socket is %s", state)
		}
	}
}

// load is a machine and the messages that the probe has sent there.
type load struct {
	*mailtest.Machine
	t     *testing.T
	next  int            // mark
	acked map[int]string // recipient, by mark
	// unsure counts how often a message may have been taken without an answer.
	unsure map[int]int
}

// newLoad prepares a machine: a host for sink.example, and a client's address.
func newLoad(t *testing.T, m *mailtest.Machine) *load {
	t.Helper()
	m.Script("ip address add 192.0.2.1/32 dev lo; mkdir " + sunk)
	m.Start("sink", probePath, "sink", "127.0.0.1:2600", sunk)
	m.WaitFor("the sink", time.Minute, func() bool { return m.Run("ss", "-Htln", "sport = 2600") != "" })
	return &load{Machine: m, t: t, acked: make(map[int]string), unsure: make(map[int]int)}
}

// send sends n messages; command is run in their middle, see the probe.
func (l *load) send(n int, command ...string) {
	l.t.Helper()
	args := []string{probePath, "load", "192.0.2.1:25", loadFrom, strings.Join(loadTo, ","), strconv.Itoa(l.next), strconv.Itoa(n)}
	l.next += n
	for line := range strings.Lines(l.Run(append(args, command...)...)) {
		word, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		mark, err := strconv.Atoi(number)
		switch {
		case err != nil:
			l.t.Fatalf("probe: %q", line)
		case word == "acked":
			l.acked[mark] = loadTo[mark%len(loadTo)]
		case word == "unsure":
			l.unsure[mark]++
		}
	}
}

// kill kills units that run when some messages of a lot have been acknowledged.
func (l *load) kill(after int, units ...string) {
	l.t.Helper()
	l.WaitFor("the daemons to run", time.Minute, func() bool {
		for _, unit := range units {
			if strings.TrimSpace(l.Run("systemctl", "show", "-P", "ActiveState", unit)) != "active" {
				return false
			}
		}
		return true
	})
	l.send(70, append([]string{strconv.Itoa(after), "systemctl", "kill", "-s", "KILL"}, units...)...)
}

// drain has everything delivered that is in the queue, and the files removed that
// their writer has left.
func (l *load) drain() {
	l.t.Helper()
	const files = "find /var/spool/posthouse -type f ! -path '*/spare/*' ! -path '*/index/*'"
	left := ""
	l.WaitFor("the end of deliveries", 2*time.Minute, func() bool {
		l.Run("posthouse", "queue", "retry", "--all")
		if l.Script(files+" -not -path '*/incoming/*'") != "" {
			return false
		}
		left = l.Script(files) // and not a notification that is about to be active
		time.Sleep(time.Second)
		return l.Script(files) == left
	})
	if n := strings.Count(left, "\n"); n > 0 {
		l.t.Logf("%d files of a cleanup that was killed", n)
	}
	// They are removed when nobody can be writing them any more.
	l.Script("find /var/spool/posthouse/incoming -type f -exec touch -d '5 hours ago' {} +; printf x >/run/posthouse/public/qmgr")
	emptyQueue(l.Machine, time.Minute)
	for id := range strings.Lines(left) {
		id = strings.TrimSpace(id[strings.LastIndexByte(id, '/')+1:])
		if log := l.Journal("-t", "posthouse/qmgr", "-g", id+": removed"); !strings.Contains(log, id+": removed: was never completed") {
			l.t.Errorf("%s was in incoming/: %s", id, l.Journal("-g", id))
		}
	}
}

// check: what was acknowledged has arrived, whole; most of it once.
func (l *load) check(kills int) {
	l.t.Helper()
	got := make(map[string]map[int]int) // copies, by what and where, and mark
	for _, dir := range []string{alice, sunk} {
		for line := range strings.Lines(l.Run(probePath, "marks", dir)) {
			f := strings.Fields(line)
			if f[0] == "other" {
				continue // a client that talks nonsense can by chance have said all that it takes
			}
			mark, err := strconv.Atoi(f[1])
			if err != nil || f[2] != "ok" || mark >= l.next {
				l.t.Errorf("in %s: %s", dir, line)
			}
			key := f[0] + " in " + dir
			if got[key] == nil {
				got[key] = make(map[int]int)
			}
			got[key][mark]++
		}
	}
	twice, unsure := 0, 0
	for mark, to := range l.acked {
		want := "message in " + alice
		switch mark % len(loadTo) {
		case toSink:
			want = "message in " + sunk
		case toNobody:
			want = "notice in " + alice
		}
		n := got[want][mark]
		if n == 0 {
			l.t.Errorf("message %d for %s was acknowledged, and there is no %s", mark, to, want)
		}
		twice += max(n-1, 0)
		unsure += min(l.unsure[mark], max(n-1, 0))
		delete(got[want], mark)
	}
	if len(l.acked) != l.next {
		l.t.Errorf("%d of %d messages were acknowledged", len(l.acked), l.next)
	}
	for what, rest := range got {
		for mark := range rest {
			l.t.Errorf("%s: %d, which is not for there", what, mark)
		}
	}
	l.t.Logf("%d messages, %d kills: %d second copies, %d of them after an answer that did not come", len(l.acked), kills, twice, unsure)
	// What was in flight: no more than the deliveries to a destination at once.
	if limit := 20 * kills; twice-unsure > limit {
		l.t.Errorf("%d second copies of messages that had been answered: more than %d", twice-unsure, limit)
	}
}
