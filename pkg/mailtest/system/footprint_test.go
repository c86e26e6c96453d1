//go:build system

package system

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// TestLatency: how long a message takes when nothing runs, and when all does. It
// reports; only a start that hangs fails.
//
// Not parallel to others: they would be measured too.
func TestLatency(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) { latency(t, mailHost(t, suite, "")) })
	}
}

func latency(t *testing.T, m *mailtest.Machine) {
	m.RunInput([]byte("Subject: makes the Maildir\n\nx\n"), "sendmail", "-f", "s@example.org", "alice@example.net")
	emptyQueue(m, time.Minute)
	if inSlice(m) == "" {
		t.Error("posthouse.slice is empty, and daemons run")
	}
	lives(m, "1s", 0, 0)
	measure := func(n int) (all [][3]float64) {
		t.Helper()
		out := m.Run(probePath, "latency", "127.0.0.1:25", "s@example.org", "alice@example.net", alice, strconv.Itoa(n))
		for line := range strings.Lines(out) {
			var greeted, taken, arrived float64
			if _, err := fmt.Sscan(line, &greeted, &taken, &arrived); err != nil {
				t.Fatalf("probe: %q: %v", line, err)
			}
			all = append(all, [3]float64{greeted / 1000, taken / 1000, arrived / 1000})
		}
		return all
	}
	var cold [][3]float64
	for range 5 {
		gone(m)
		if left := inSlice(m); left != "" {
			t.Errorf("nothing is to be done, and in posthouse.slice there are %q", left)
		}
		cold = append(cold, measure(1)...)
	}
	warm := measure(20)
	t.Logf("after the connect, in ms, median (least to most):\n%-6s %-24s %-24s %s\n%s%s", "", "greeting", "250", "file in new/", times("cold", cold), times("warm", warm))
	const limit = 300 // ms, on a machine that has nothing else to do
	if got := median(column(cold, 2)); got > 10*limit {
		t.Errorf("a message took %.0f ms where nothing was running", got)
	}
	gone(m)
	neverFailed(t, m)
	healthy(t, m)
}

// inSlice lists the processes below posthouse.slice.
func inSlice(m *mailtest.Machine) string {
	return strings.TrimSpace(m.Script("find /sys/fs/cgroup -path '*/posthouse.slice/*' -name cgroup.procs -exec cat {} + 2>/dev/null || true"))
}

func column(rows [][3]float64, n int) (out []float64) {
	for _, row := range rows {
		out = append(out, row[n])
	}
	slices.Sort(out)
	return out
}

func median(sorted []float64) float64 { return sorted[len(sorted)/2] }

func times(what string, rows [][3]float64) string {
	line := fmt.Sprintf("%-6s", what)
	for n := range 3 {
		c := column(rows, n)
		line += fmt.Sprintf(" %-24s", fmt.Sprintf("%.1f (%.1f to %.1f)", median(c), c[0], c[len(c)-1]))
	}
	return strings.TrimRight(line, " ") + "\n"
}

// memory of a process, in KiB.
type memory struct {
	peak  int // VmHWM
	anon  int // RssAnon
	share int // PSS
}

func (a memory) plus(b memory) memory {
	return memory{a.peak + b.peak, a.anon + b.anon, a.share + b.share}
}

func (a memory) most(b memory) memory {
	return memory{max(a.peak, b.peak), max(a.anon, b.anon), max(a.share, b.share)}
}

// memories returns the memory of our processes, by program. Where there are
// several of one, it adds them up.
func memories(t *testing.T, m *mailtest.Machine) map[string]memory {
	t.Helper()
	// One that has ended meanwhile has none.
	out := m.Script(`for p in $(ps -eo user:32=,pid= | awk '/^_ph-/ { print $2 }'); do
		set -- $({ cat /proc/$p/comm; awk '/^(VmHWM|RssAnon):/ { print $2 }' /proc/$p/status; awk '/^Pss:/ { print $2 }' /proc/$p/smaps_rollup; } 2>/dev/null)
		if [ $# = 4 ]; then echo "$@"; fi
	done`)
	all := make(map[string]memory)
	for line := range strings.Lines(out) {
		var name string
		var one memory
		if _, err := fmt.Sscan(line, &name, &one.peak, &one.anon, &one.share); err != nil {
			t.Fatalf("memory: %q: %v", line, err)
		}
		all[name] = all[name].plus(one)
	}
	return all
}

// TestMemory: what the daemons take when they have nothing to do, with 50 clients
// each, and for a message that is larger than they may become.
func TestMemory(t *testing.T) {
	t.Parallel()
	m := mailHost(t, "bookworm", "trusted: [127.0.0.0/8, 192.0.2.0/24]\n")
	m.Script("ip address add 192.0.2.1/32 dev lo; install -d -o nobody " + sunk)
	configure(m, "more", "limits: {message_size: 64MiB}\ntransports: {smtp: {concurrency: 50, initial_concurrency: 50}}\n")
	sink(m, "sink", "127.0.0.1:2600", "-d", sunk+"/%M.")
	sink(m, "refuser", "127.0.0.1:2601", "-f", "RCPT")

	idle := wakeAll(t, m)
	busy := manyClients(t, m)
	t.Logf("KiB: PSS and RssAnon; VmHWM\n%-8s %17s %19s\n%s", "", "idle", "50 clients", table(idle, busy))
	m.Script("rm -rf " + alice + "/* " + sunk + "/*")

	retire(m)
	largeMessage(t, m)
	neverFailed(t, m)
	healthy(t, m)
}

func table(idle, busy map[string]memory) string {
	var text string
	row := func(x string, i, b memory) {
		text += fmt.Sprintf("%-8s %8d %8d  %8d %8d %8d\n", x, i.share, i.anon, b.share, b.anon, b.peak)
	}
	var allIdle, allBusy memory
	for _, x := range ours {
		row(x, idle[x], busy[x])
		allIdle, allBusy = allIdle.plus(idle[x]), allBusy.plus(busy[x])
	}
	row("all", allIdle, allBusy)
	return text
}

// wakeAll has every daemon do a little, and returns what they take then.
func wakeAll(t *testing.T, m *mailtest.Machine) map[string]memory {
	t.Helper()
	for _, to := range []string{"alice@example.net", "x@sink.example", "x@dead.example"} { // the last is refused, and comes back
		m.Run("smtp-source", "-f", "alice@example.net", "-t", to, "192.0.2.1:25")
	}
	m.RunInput([]byte("Subject: x\n\nx\n"), "sendmail", "-f", "s@example.org", "alice@example.net", "root@mail.example.org")
	m.Run("mailq")
	emptyQueue(m, time.Minute)
	if got := count(t, m, alice); got != 3 {
		t.Errorf("%d messages for alice, not two and a notification", got)
	}
	all := memories(t, m)
	for _, x := range ours {
		if all[x].share == 0 {
			t.Errorf("%s does not run", x)
		}
	}
	return all
}

// manyClients returns the most that the daemons take with 50 clients each: 50
// messages by SMTP and 50 to pickup that are under way, then 50 to a host that
// does not answer, then 50 sessions that send one message after the other, for a
// delivery to a mailbox cannot be kept waiting.
func manyClients(t *testing.T, m *mailtest.Machine) map[string]memory {
	t.Helper()
	const clients = 50
	all := make(map[string]memory)
	look := func() {
		for x, now := range memories(t, m) {
			all[x] = all[x].most(now)
		}
	}
	before := count(t, m, alice)
	messages := held(t, m, "messages", "hold", "192.0.2.1:25", strconv.Itoa(clients), "s@example.org", "alice@example.net")
	submissions := held(t, m, "submissions", "submit", submitSocket, strconv.Itoa(clients), "s@example.org", "alice@example.net")
	look()
	messages()
	submissions()
	emptyQueue(m, time.Minute)
	if got := count(t, m, alice) - before; got != 2*clients {
		t.Errorf("%d of %d messages arrived", got, 2*clients)
	}

	m.Stop("refuser")
	sink(m, "slow", "127.0.0.1:2601", "-w", "3600")
	m.Run("smtp-source", "-s", "10", "-m", strconv.Itoa(clients), "-f", "s@example.org", "-t", "x@dead.example", "127.0.0.1:25")
	m.WaitFor("deliveries under way", time.Minute, func() bool {
		return strings.Count(m.Run("ss", "-Htn", "state", "established", "dst", "127.0.0.1:2601"), "\n") == clients
	})
	look()
	m.Stop("slow")
	m.WaitFor("the end of deliveries", time.Minute, func() bool { return count(t, m, "/var/spool/posthouse/active") == 0 })
	m.Run("posthouse", "queue", "delete", "--all")
	sink(m, "refuser", "127.0.0.1:2601", "-f", "RCPT")

	m.Start("flood", "smtp-source", "-s", strconv.Itoa(clients), "-m", "2000", "-f", "s@example.org", "-t", "alice@example.net", "127.0.0.1:25")
	m.WaitFor("the end of the flood", 2*time.Minute, func() bool {
		look()
		r, err := m.Try("systemctl", "is-active", "--quiet", "flood")
		return err == nil && r.Code != 0
	})
	emptyQueue(m, time.Minute)
	return all
}

// A message that is larger than a daemon may become.
const (
	largeOctets = 50 << 20
	largeLines  = largeOctets / 78 // of 76 octets, CR and LF
	maxPeak     = 24 << 10         // KiB
)

// largeMessage: a large message goes all ways, and no daemon ever holds it.
//
// What is looked at is VmHWM, the most that the process has ever had resident. It
// is the kernel's, so that no moment is missed, as with samples of RssAnon. It
// counts the memory that the process has written, and the pages of its program,
// a few MiB: so it is never too small. It does not count the page cache of files
// that are written and read, as memory.peak of a cgroup does, which grows with
// every message and means nothing.
func largeMessage(t *testing.T, m *mailtest.Machine) {
	t.Helper()
	// A process that does hold it would be noticed.
	var peak int
	out := m.Run("sh", "-c", fmt.Sprintf(`x=$(head -c %d /dev/zero | tr '\0' x); awk '/^VmHWM:/ { print $2 }' /proc/$$/status`, largeOctets))
	if _, err := fmt.Sscan(out, &peak); err != nil || peak < largeOctets>>10 {
		t.Fatalf("a shell with the message in a variable: %q, %v", out, err)
	}
	for _, to := range []string{"alice@example.net", "x@sink.example", "x@dead.example"} {
		if reply := m.Run(probePath, "big", "127.0.0.1:25", "alice@example.net", to, strconv.Itoa(largeOctets)); !strings.HasPrefix(reply, "250 ") {
			t.Errorf("a large message to %s: %s", to, reply)
		}
	}
	m.Run("sh", "-c", fmt.Sprintf(`{ printf 'Subject: large\n\n'; yes %s | head -n %d; } | sendmail -f s@example.org alice@example.net`, strings.Repeat("x", 76), largeLines))
	m.WaitFor("the messages and a notification", time.Minute, func() bool { return count(t, m, alice) == 3 && count(t, m, sunk) == 1 })
	emptyQueue(m, time.Minute)
	lines := m.Script("cat " + alice + "/* " + sunk + "/* | tr -d '\\r' | grep -cx 'x\\{76\\}'")
	if strings.TrimSpace(lines) != strconv.Itoa(3*largeLines) {
		t.Errorf("%s of %d lines arrived", strings.TrimSpace(lines), 3*largeLines)
	}
	all := memories(t, m)
	text := ""
	for _, x := range []string{"smtpd", "pickup", "cleanup", "rewrite", "qmgr", "virtual", "smtp", "bounce"} {
		if all[x].peak == 0 || all[x].peak >= maxPeak {
			t.Errorf("%s has had %d KiB", x, all[x].peak)
		}
		text += fmt.Sprintf("%-8s %6d\n", x, all[x].peak)
	}
	t.Logf("KiB that were resident at most, with messages of %d KiB:\n%s", largeOctets>>10, text)
}
