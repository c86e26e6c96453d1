//go:build system

package system

import (
	"encoding/json"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// backlogSize is the number of messages that wait. A million takes some minutes, and
// 6 GB below /var/tmp:
//
//	go test -tags system -count=1 -timeout 2h -v -run TestBacklog ./pkg/mailtest/system/ -backlog 1000000
var backlogSize = flag.Int("backlog", 100_000, "messages that wait, in TestBacklog")

const (
	backlogDomains = 1000

	// qmgrMemory is what qmgr takes at most with the default limits of the active
	// queue, in MiB; docs/queue.md has it.
	qmgrMemory = 144
)

// backlog is a machine with very much deferred mail.
type backlog struct {
	*mailtest.Machine
	t *testing.T
	n int // messages
}

// TestBacklog: mail that waits costs nothing, however much there is of it. New mail
// does not wait for it, commands look at what they are for, and qmgr's memory
// has its limit. How long things take is reported.
func TestBacklog(t *testing.T) {
	m := mailHost(t, "bookworm", "routes: {default: \"smtp:[127.0.0.1]:2600\"}\n")
	b := &backlog{Machine: m, t: t, n: *backlogSize}
	b.RunInput([]byte("Subject: makes the Maildir\n\nx\n"), "sendmail", "-f", "s@example.org", "alice@example.net")
	emptyQueue(m, time.Minute)
	m.Stop("posthouse.target")
	b.timed("fill", func() {
		b.Script("setpriv --reuid=_ph-qmgr --regid=_ph-queue --clear-groups " + fmt.Sprintf("%s fill %s %d %d 7200", probePath, spoolDir, b.n, backlogDomains))
	})
	b.untouched()
	b.fresh("start until new mail is there", func() { b.Run("systemctl", "start", "posthouse.target", "posthouse-smtpd.socket") })
	b.expectRead("start and new mail", 0, 0)
	sink(m, "sink", "127.0.0.1:2600")
	b.listing()
	b.destinations()
	b.deletions()
	b.flush()
	healthy(t, m)
}

// timed reports how long f takes.
func (b *backlog) timed(what string, f func()) {
	b.t.Helper()
	start := time.Now()
	f()
	b.t.Logf("%-34s %6.2f s", what, time.Since(start).Seconds())
}

// untouched has files remember when they are read: relatime keeps that only where
// they have not been for a day.
func (b *backlog) untouched() {
	b.Script("find " + spoolDir + "/deferred -type f -print0 | xargs -0r touch -a -d @1")
}

// read returns how many deferred messages have been read since, and how many there are.
func (b *backlog) read() (read, all int) {
	b.t.Helper()
	out := b.Script("cd " + spoolDir + "; { find deferred -type f -newerat @2 || true; } 2>/dev/null | wc -l; { find deferred -type f || true; } 2>/dev/null | wc -l") // buckets go meanwhile
	if _, err := fmt.Sscan(out, &read, &all); err != nil {
		b.t.Fatal(err)
	}
	return read, all
}

func (b *backlog) expectRead(after string, least, most int) {
	b.t.Helper()
	read, all := b.read()
	if read < least || read > most {
		b.t.Errorf("%s: %d of %d messages that wait have been read", after, read, all)
	}
	if all != b.n {
		b.t.Errorf("%s: %d messages wait, not %d", after, all, b.n)
	}
}

// fresh has a message delivered while others wait, after f.
func (b *backlog) fresh(what string, f func()) {
	b.t.Helper()
	before := count(b.t, b.Machine, alice)
	b.timed(what, func() {
		f()
		b.RunInput([]byte("Subject: fresh\n\nx\n"), "sendmail", "-f", "s@example.org", "alice@example.net")
		b.WaitFor("new mail", time.Minute, func() bool { return count(b.t, b.Machine, alice) == before+1 })
	})
}

// showqReads returns how often showq has read something, which is once for each
// message. It sees the queue read-only, where files do not remember it.
func (b *backlog) showqReads() int {
	b.t.Helper()
	var n int
	out := b.Script("p=$(systemctl show -P MainPID posthouse-showq.service); if [ $p = 0 ]; then echo 0; else sed -n 's/^syscr: //p' /proc/$p/io; fi")
	if _, err := fmt.Sscan(out, &n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// listing: the first message is shown while most have not been read, and in the end
// all of them are.
func (b *backlog) listing() {
	b.t.Helper()
	b.Start("reader", "sh", "-c", "mailq | { read -r heading; read -r first; echo \"$first\" >/run/first; exec sleep 1000; }")
	b.WaitFor("the first line", time.Minute, func() bool { return b.Script("cat /run/first 2>/dev/null || true") != "" })
	if line := b.ReadFile("/run/first"); !strings.Contains(line, "@fill.example") {
		b.t.Errorf("the first line: %q", line)
	}
	reads := b.showqReads()
	b.WaitFor("showq to wait for its reader", time.Minute, func() bool {
		before := reads
		reads = b.showqReads()
		return reads == before
	})
	if reads == 0 || reads > b.n/2 {
		b.t.Errorf("the first line of a listing took %d reads", reads)
	}
	b.Stop("reader")
	b.timed("mailq, first line", func() { b.Script("mailq | head -n 2 || true") })
	b.WaitFor("the end of listings", time.Minute, func() bool { return b.Script("pgrep -x mailq || true") == "" })
	reads = b.showqReads()
	var out string
	b.timed("mailq", func() { out = b.Run("sh", "-c", "mailq | tail -n 1") })
	if !strings.Contains(out, fmt.Sprintf(" in %d Requests.", b.n)) {
		b.t.Errorf("mailq: %s", out)
	}
	if reads = b.showqReads() - reads; reads < b.n {
		b.t.Errorf("a whole listing took %d reads", reads)
	}
	b.expectRead("mailq", 0, 0)
}

// destinations: nothing is read but what waits for the one that is asked for. The
// probe has not made an index: at first everything is read.
func (b *backlog) destinations() {
	b.t.Helper()
	retry := func(what, domain string) {
		b.t.Helper()
		each := *backlogSize / backlogDomains
		b.timed(what, func() { b.steer(each, "retry", "--destination", domain) })
		b.n -= each
		b.WaitFor("the mail for "+domain, time.Minute, func() bool { _, all := b.read(); return all == b.n && count(b.t, b.Machine, spoolDir+"/active") == 0 })
	}
	b.untouched()
	retry("retry --destination, no index", "d1.example")
	b.expectRead("a retry without an index", b.n, b.n)
	b.untouched()
	retry("retry --destination", "D2.example")
	b.expectRead("a retry", 0, 0)
	b.Run("systemctl", "restart", "posthouse-qmgr.service")
	retry("retry --destination, qmgr restarted", "d3.example")
	b.expectRead("a retry after a restart", 0, 0)
	b.Run("systemctl", "kill", "-s", "KILL", "posthouse-qmgr.service")
	b.WaitFor("qmgr's end", time.Minute, func() bool {
		return b.Run("systemctl", "show", "-P", "ActiveState", "posthouse-qmgr.service") != "active\n"
	})
	retry("retry --destination, qmgr killed", "d4.example")
}

// steer runs posthouse queue; it is to act on that many messages.
func (b *backlog) steer(done int, args ...string) {
	b.t.Helper()
	var got struct{ Done int }
	out := b.Run(append([]string{"posthouse", "queue", args[0], "--json"}, args[1:]...)...)
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Done != done {
		b.t.Errorf("%q: %s, want %d, %v", args, out, done, err)
	}
}

// deletions: what is selected goes, and nothing else.
func (b *backlog) deletions() {
	b.t.Helper()
	var gone int // what has been delivered, of the senders ending in 7
	if _, err := fmt.Sscan(b.Script("mailq | grep -c '7@fill.example$' || true"), &gone); err != nil {
		b.t.Fatal(err)
	}
	b.timed(fmt.Sprintf("delete of %d by filter", gone), func() { b.steer(gone, "delete", "--sender", "7@fill.example") })
	b.n -= gone
	if left := strings.TrimSpace(b.Script("mailq | grep -c '@fill.example$' || true")); gone < b.n/20 || left != strconv.Itoa(b.n) {
		b.t.Errorf("%d were deleted, and %s are left, not %d", gone, left, b.n)
	}
	if left := strings.TrimSpace(b.Script("mailq | grep -c '7@fill.example$' || true")); left != "0" {
		b.t.Errorf("%s are left of what was deleted", left)
	}
	id := strings.Fields(b.Run("sh", "-c", "mailq | sed -n 2p"))[0]
	b.timed("delete of one by ID", func() { b.steer(1, "delete", id) })
	b.n--
}

// flush: everything is tried, new mail does not wait for that, and qmgr never takes
// more memory than it may.
func (b *backlog) flush() {
	b.t.Helper()
	start := time.Now()
	b.timed("retry --all", func() { b.steer(b.n, "retry", "--all") })
	b.fresh("new mail beside that", func() {})
	if _, all := b.read(); all == 0 {
		b.t.Error("new mail comes after all else")
	}
	b.WaitFor("the flush", time.Duration(b.n)*10*time.Millisecond, func() bool {
		time.Sleep(time.Second)
		_, all := b.read()
		return all == 0 && count(b.t, b.Machine, spoolDir+"/active") == 0
	})
	b.t.Logf("%-34s %6.2f s", fmt.Sprintf("flush of %d", b.n), time.Since(start).Seconds())
	b.fresh("new mail after that", func() {}) // with which qmgr is there
	peak := memories(b.t, b.Machine)["qmgr"].peak / 1024
	b.t.Logf("qmgr took %d MiB at most", peak)
	if peak == 0 || peak > qmgrMemory {
		b.t.Errorf("qmgr took %d MiB, limit %d", peak, qmgrMemory)
	}
	b.WaitFor("an end of indexes of nothing", 2*time.Minute, func() bool {
		return b.Run("find", spoolDir+"/index", "-type", "f", "-name", "[0-9]*") == ""
	})
}
