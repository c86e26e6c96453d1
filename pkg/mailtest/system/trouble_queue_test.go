//go:build system

package system

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
	"posthouse/pkg/queueid"
)

const spoolDir = "/var/spool/posthouse"

// What becomes of rubbish in the queue.
const (
	damaged   = "moved to corrupt: "
	leftAlone = "left alone"
	unsaid    = "" // delivered, or still being written for all that can be known
)

// rubbish is a thing in the queue that should not be there.
type rubbish struct {
	what string
	name string // a queue ID, if none is given
	data []byte // of a file
	make string // or the command that makes it, of the path $1 where $2 is a message
	want string // in the log
}

// TestGarbledQueue: whatever lies in the queue, it goes to corrupt/ or is left
// alone with one line in the log, qmgr and mailq go on, and other mail flows.
func TestGarbledQueue(t *testing.T) {
	t.Parallel()
	m := mailHost(t, "bookworm", "trusted: [127.0.0.0/8, 192.0.2.0/24]\n")
	l := newLoad(t, m)
	l.send(8)
	l.drain()
	good := deferredMessage(t, m)
	before := m.Run("systemctl", "show", "-P", "NRestarts", "posthouse-qmgr.service")
	// Its sockets stay; it looks into active/ when it starts, which the timer would have it do too early.
	m.Stop("posthouse-qmgr.timer")
	m.Stop("posthouse-qmgr.service")

	m.WriteFile(templatePath, string(good), 0o644)
	m.Run("install", "-d", "-o", "_ph-qmgr", "-g", "_ph-queue", "-m", "2770", spoolDir+"/deferred/0000000060")
	g := &garbage{Machine: m, t: t, said: make(map[string]string)}
	for _, dir := range []string{"incoming", "active", "deferred/0000000060", "hold"} {
		for _, r := range garbled(good) {
			g.put(dir, r)
		}
	}
	for _, r := range []rubbish{
		{name: "0000000120", what: "a file with the name of a time", make: `echo x >"$1"`, want: leftAlone},
		{name: "0000000180", what: "a link with the name of a time", make: `ln -s /etc "$1"`, want: leftAlone},
		{name: "12345", what: "a directory with another name", make: `mkdir "$1"`, want: leftAlone},
		{what: "a damaged message in no bucket", data: good[:len(good)/2], want: damaged},
	} {
		g.put("deferred", r)
	}
	m.Run("mailq")
	m.Run("systemctl", "start", "posthouse-qmgr.timer")
	l.send(40) // wakes qmgr
	// What is root's cannot be moved, and who has asked for it hears that.
	if r, err := m.Try("posthouse", "queue", "release", "--all"); err != nil || r.Code != 75 || !strings.Contains(r.Stderr, "not all that was asked for could be done") {
		t.Errorf("posthouse queue release: %+v, %v", r, err)
	}
	g.settle()
	for range 3 { // more looks say nothing new
		m.Script("printf x >/run/posthouse/public/qmgr")
		m.Run("posthouse", "queue", "retry", "--all")
		l.send(8)
	}
	g.settle()
	g.check()
	l.check(0)
	if list := m.Run("mailq"); strings.Count(list, "(damaged)") == 0 {
		t.Errorf("mailq:\n%s", list)
	}
	if after := m.Run("systemctl", "show", "-P", "NRestarts", "posthouse-qmgr.service"); after != before {
		t.Errorf("qmgr was restarted: %s times, before %s", after, before)
	}
	unshaken(t, m)
	if kills := m.SeccompKills(); len(kills) > 0 {
		t.Errorf("forbidden system calls:\n%s", strings.Join(kills, "\n"))
	}

	// The messages of root are well but for that.
	m.Script("find " + spoolDir + " -type f -user root -size +200c -exec chown _ph-cleanup:_ph-queue {} + -exec chmod 660 {} +; systemctl restart posthouse-qmgr.service")
	const templates = 1 + 4*2 + 4 // the first, those with damaged outcomes, those of root
	m.WaitFor("the messages that were of root", 3*time.Minute, func() bool {
		return arrivals(t, m, alice, "template") == templates
	})
}

// deferredMessage returns a message for alice that has been tried, as it is on disk.
func deferredMessage(t *testing.T, m *mailtest.Machine) []byte {
	t.Helper()
	m.Stop("posthouse-virtual.socket")
	m.RunInput([]byte("Subject: template\n\nA body that is long enough to have some bits turned.\n"), "sendmail", "-f", "alice@example.net", "alice@example.net")
	m.WaitFor("the deferral", time.Minute, func() bool { return strings.Contains(m.Run("mailq"), "posthouse-virtual.socket") })
	good := ""
	m.WaitFor("it to be put away", time.Minute, func() bool { // mailq knows why before that
		good = m.Script("cd " + spoolDir + "/deferred && cat */* 2>/dev/null || true")
		return good != ""
	})
	m.Run("systemctl", "start", "posthouse-virtual.socket")
	m.Run("posthouse", "queue", "retry", "--all")
	emptyQueue(m, time.Minute)
	return []byte(good)
}

const headerOctets = 64

// garbled is what can become of a message, and what may lie there in its place.
func garbled(good []byte) []rubbish {
	envelope := int(binary.BigEndian.Uint32(good[8:]))
	content := int(binary.BigEndian.Uint64(good[16:]))
	outcomes := headerOctets + envelope + content
	flip := func(at int) []byte {
		b := slices.Clone(good)
		b[at] ^= 0x10
		return b
	}
	sum := func(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
	long := slices.Clone(good)
	binary.BigEndian.PutUint64(long[16:], 1<<62)
	binary.BigEndian.PutUint32(long[headerOctets-4:], sum(long[:headerOctets-4]))
	record := []byte{0, 0, 0, 5, 0, 0, 0, 0, 99, 1, 2, 3, 4}
	binary.BigEndian.PutUint32(record[4:], sum(record[8:]))
	return []rubbish{
		{what: "cut in the envelope", data: good[:headerOctets+envelope/2], want: damaged},
		{what: "cut in the content", data: good[:outcomes-content/2], want: damaged},
		{what: "cut in the outcomes", data: good[:len(good)-3], want: unsaid},
		{what: "a bit of the name of the format", data: flip(3), want: damaged},
		{what: "a bit of the length of the envelope", data: flip(11), want: damaged},
		{what: "a bit of the envelope", data: flip(headerOctets + envelope/2), want: damaged},
		{what: "a bit of the content", data: flip(outcomes - 5), want: damaged},
		{what: "a bit of the outcomes", data: flip(len(good) - 4), want: unsaid},
		{what: "impossible lengths", data: long, want: damaged},
		{what: "an outcome of another kind", data: append(slices.Clone(good), record...), want: damaged},
		{what: "noise", data: []byte(strings.Repeat("\xff\x00noise", 1000)), want: damaged},
		{what: "empty", data: []byte{}, want: damaged},
		{what: "cut in the header", data: good[:headerOctets-1], want: damaged},
		{what: "a directory", make: `install -d -o _ph-cleanup -g _ph-queue -m 2770 "$1"`, want: damaged},
		{what: "a directory of root", make: `install -d -m 755 "$1"`, want: leftAlone},
		{what: "a link to a file of others", make: `ln -s /etc/shadow "$1"`, want: damaged},
		{what: "a link to a message", make: `ln -s "$2" "$1"`, want: damaged},
		{what: "a FIFO", make: `mkfifo "$1"; chown _ph-cleanup:_ph-queue "$1"; chmod 660 "$1"`, want: damaged},
		{what: "a message of root", make: `install -m 600 "$2" "$1"`, want: leftAlone},
		{name: "core", what: "another name", make: `cp "$2" "$1"`, want: leftAlone},
		{name: "not-a-queueid", what: "a name of that length", make: `cp "$2" "$1"`, want: leftAlone},
	}
}

// garbage is what has been put into the queue of a machine.
type garbage struct {
	*mailtest.Machine
	t    *testing.T
	n    uint32
	left []string          // paths below the queue, buckets left out, where it stays
	said map[string]string // what the log has to say of a name, once
}

const templatePath = "/root/template" // in the machine: a message

// put makes one thing in dir.
func (g *garbage) put(dir string, r rubbish) {
	g.t.Helper()
	g.n++
	queue, _, _ := strings.Cut(dir, "/")
	about := dir + "/" + r.name
	if r.name == "" {
		r.name = queueid.New(time.Now().Add(-time.Hour), g.n).String()
		about = r.name
	}
	if queue == "incoming" && r.make == "" && len(r.data) < headerOctets {
		r.want = unsaid // it may still be written
		g.left = append(g.left, queue+"/"+r.name)
	}
	if r.make == "" {
		file := filepath.Join(g.t.TempDir(), "x")
		if err := os.WriteFile(file, r.data, 0o600); err != nil {
			g.t.Fatal(err)
		}
		g.CopyTo(file, "/root/x")
		r.make = `install -o _ph-cleanup -g _ph-queue -m 660 /root/x "$1"`
	}
	g.Run("sh", "-euc", r.make, "sh", path.Join(spoolDir, dir, r.name), templatePath)
	if r.want == leftAlone {
		switch {
		case queue == "hold" && r.what == "a message of root":
			queue = "deferred" // it is released
		case queue == "hold" && r.what == "a directory of root":
			r.want = "permission denied" // when it is to be released
		}
		g.left = append(g.left, queue+"/"+r.name)
	}
	if r.want != unsaid {
		g.said[about] = r.want
	}
}

// settle waits until all of it is where it is to stay, and nothing else is there.
func (g *garbage) settle() {
	g.t.Helper()
	slices.Sort(g.left)
	want := strings.Join(g.left, "\n") + "\n"
	got := ""
	defer func() {
		if got != want {
			g.t.Logf("in the queue:\n%swanted:\n%s", got, want)
		}
	}()
	g.WaitFor("the queue to settle", 3*time.Minute, func() bool {
		got = g.Script("cd " + spoolDir + ` && { find incoming active deferred hold -mindepth 1 -not -path '*/spare*' -not \( -type d -regex 'deferred/[0-9]*' -name '??????????' \) || echo changes; } |
			sed 's,deferred/[0-9]\{10\}/,deferred/,' | LC_ALL=C sort`)
		return got == want
	})
}

// check: the log says of each what it has to, once.
func (g *garbage) check() {
	g.t.Helper()
	log := g.Journal("-t", "posthouse/qmgr", "-o", "cat")
	for about, want := range g.said {
		var lines []string
		for line := range strings.Lines(log) {
			if strings.HasPrefix(line, "warning: "+about+": ") || strings.HasPrefix(line, "error: "+about+": ") {
				lines = append(lines, line)
			}
		}
		if len(lines) != 1 || !strings.Contains(lines[0], want) {
			g.t.Errorf("%s: want one line with %q: %q", about, want, lines)
		}
	}
	corrupt := 0
	for _, want := range g.said {
		if want == damaged {
			corrupt++
		}
	}
	if n := count(g.t, g.Machine, spoolDir+"/corrupt"); n != corrupt {
		g.t.Errorf("%d are in corrupt/, not %d", n, corrupt)
	}
}
