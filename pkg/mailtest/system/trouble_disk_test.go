//go:build system

package system

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

const (
	storeDir = "/var/vmail"
	filler   = "/filler"
)

// small mounts file systems of 8 MiB as the queue and as the mail store.
func small(m *mailtest.Machine) {
	m.Stop("posthouse.target")
	m.Script(`for d in ` + spoolDir + ` ` + storeDir + `; do mount -t tmpfs -o size=8m,nr_inodes=10000 small $d; done
		chown _ph-virtual: ` + storeDir + `; systemd-tmpfiles --create posthouse.conf; systemctl start posthouse.target`)
}

// fill leaves no space in a file system, free gives it back.
func fill(m *mailtest.Machine, dir string) {
	m.Script("cat /dev/zero >" + dir + filler + " 2>/dev/null || true")
}

func free(m *mailtest.Machine, dir string) { m.Run("rm", "-f", dir+filler) }

// arrivals counts the files in a directory that have this subject, an extended
// regular expression.
func arrivals(t *testing.T, m *mailtest.Machine, dir, subject string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(m.Script("{ grep -lsE '^Subject: " + subject + "$' " + dir + "/* || true; } | wc -l")))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFullDisk: where there is no space mail is not taken, and what was taken
// waits; when there is some again, exactly what was acknowledged arrives.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	m := mailHost(t, "bookworm", "trusted: [127.0.0.0/8, 192.0.2.0/24]\nlimits: {message_size: 256KiB}\n")
	small(m)
	l := newLoad(t, m)
	m.WriteFile("/root/plain", "Subject: plain\r\n\r\nx\r\n", 0o644)
	l.send(20)
	t.Run("before", func(t *testing.T) { l.refusedFor(t, func() { fill(m, spoolDir) }, func() { free(m, spoolDir) }) })
	t.Run("inodes", func(t *testing.T) {
		inodes := func(n string) { m.Run("mount", "-o", "remount,nr_inodes="+n, spoolDir) }
		l.refusedFor(t, func() { // nor is the file of an old message left to be used again
			inodes(strings.TrimSpace(m.Script("rm -f " + spoolDir + "/incoming/spare/*; df --output=iused " + spoolDir + " | tail -n 1")))
		}, func() { inodes("10000") })
	})
	taken := 0
	t.Run("within", func(t *testing.T) { taken = l.fullWithin(t) })
	t.Run("under load", func(t *testing.T) {
		l.send(60, "20", "sh", "-euc", `cat /dev/zero >`+spoolDir+filler+` 2>/dev/null || true
			until journalctl --sync; journalctl -q -b -t posthouse/cleanup --since=@"$0" | grep -q 'not enough free space'; do sleep 0.2; done
			rm `+spoolDir+filler, strings.TrimSpace(m.Run("date", "+%s")))
	})
	t.Run("deliveries", func(t *testing.T) { l.fullAtDelivery(t) })
	t.Run("store", func(t *testing.T) { l.fullStore(t) })
	l.drain()
	l.check(0)
	if n := arrivals(t, m, alice, "(plain|big|small)"); n != taken {
		t.Errorf("%d messages arrived, and %d were taken", n, taken)
	}
	unshaken(t, m)
}

// refusedFor: in that state no message is taken.
func (l *load) refusedFor(t *testing.T, before, after func()) {
	l.drain()
	before()
	if out := l.Run(probePath, "send", "127.0.0.1:25", loadFrom, "alice@example.net", "/root/plain"); !strings.Contains(out, ": 452 4.3.1 ") {
		t.Errorf("by SMTP: %s", out)
	}
	if r, err := l.TryInput([]byte("Subject: plain\n\nx\n"), "sendmail", "alice@example.net"); err != nil || r.Code != 75 || !strings.Contains(r.Stderr, "Insufficient system storage") {
		t.Errorf("sendmail: %d %s, %v", r.Code, r.Stderr, err)
	}
	l.Run("mailq")
	if n := l.said("cleanup", `not enough free space in the queue|queue file: .*no space left on device`); n == 0 {
		t.Error("the log does not say why")
	}
	after()
	l.send(4)
}

// fullWithin: the space is used up while a message is being sent. A small one may fit
// into what its file has had before; that it is taken is returned.
func (l *load) fullWithin(t *testing.T) (taken int) {
	l.drain()
	const head = "< 220\n> EHLO x\n< 250\n> MAIL FROM:<alice@example.net>\n< 250\n> RCPT TO:<alice@example.net>\n< 250\n> DATA\n< 354\n"
	big := strings.Repeat("> "+strings.Repeat("x", 900)+"\n", 200)
	const tail = "> .\n< 452 4.3.1\n> QUIT\n< 221\n"
	l.WriteFile("/var/tmp/head", head, 0o644)
	l.WriteFile("/var/tmp/big", "> Subject: big\n> \n"+big+tail, 0o644)
	l.WriteFile("/var/tmp/small", "> Subject: small\n> \n> x\n"+tail, 0o644)
	const wait = "until [ -e /var/tmp/go ]; do sleep 0.1; done; "
	for _, name := range []string{"big", "small"} {
		l.Start(name, "sh", "-c", "{ cat /var/tmp/head; "+wait+"cat /var/tmp/"+name+"; } | "+probePath+" talk 127.0.0.1:25 >/var/tmp/"+name+".said 2>&1; echo status $? >>/var/tmp/"+name+".said")
	}
	l.Start("piped", "sh", "-c", "{ printf 'Subject: small\\n\\n'; "+wait+"echo x; } | sendmail alice@example.net; echo status $? >/var/tmp/piped.said")
	l.WaitFor("two sessions in the middle", time.Minute, func() bool {
		return strings.TrimSpace(l.Script("find "+spoolDir+"/incoming -type f ! -path '*/spare/*' | wc -l")) >= "2"
	})
	fill(l.Machine, spoolDir)
	l.Run("touch", "/var/tmp/go")
	for name, want := range map[string]string{"big": "status 0\n", "small": "status 0\n", "piped": "status 75\n"} {
		l.WaitFor("the end of "+name, 2*time.Minute, func() bool {
			return !strings.Contains(l.Run("systemctl", "list-units", "--no-legend", name+".service"), "running")
		})
		switch said := l.ReadFile("/var/tmp/" + name + ".said"); {
		case strings.HasSuffix(said, want):
		case name == "small" && strings.Contains(said, "250 2.0.0 Ok: queued as "):
			taken++
		default:
			t.Errorf("%s: %s", name, said)
		}
	}
	l.WaitFor("nothing to be left behind", time.Minute, func() bool {
		return l.Script("find "+spoolDir+"/incoming -type f ! -path '*/spare/*'") == ""
	})
	free(l.Machine, spoolDir)
	return taken
}

// fullAtDelivery: with no space to write down what became of it mail is
// delivered, or waits, and nobody gets it twice.
func (l *load) fullAtDelivery(t *testing.T) {
	l.Stop("posthouse-virtual.socket", "posthouse-smtp.socket")
	l.send(40)
	fill(l.Machine, spoolDir)
	before := l.said("qmgr", "no space left on device")
	l.WaitFor("qmgr to notice", 2*time.Minute, func() bool { // there is room in the last page of most files
		l.Script("posthouse queue retry --all || [ $? = 75 ]") // which it says, too, where that was in its way
		return l.said("qmgr", "no space left on device") > before
	})
	l.Run("systemctl", "start", "posthouse-virtual.socket", "posthouse-smtp.socket")
	l.Run("mailq")
	free(l.Machine, spoolDir)
}

// fullStore: what the mail store does not take waits in the queue.
func (l *load) fullStore(t *testing.T) {
	l.drain()
	fill(l.Machine, storeDir)
	l.send(20)
	l.WaitFor("the deferral", time.Minute, func() bool { return strings.Contains(l.Run("mailq"), "no space left on device") })
	if n := l.said("virtual", `dsn=4\.3\.1, status=deferred \(maildir delivery failed: .*no space left on device`); n == 0 {
		t.Error("the log does not say why")
	}
	l.Run("posthouse", "queue", "retry", "--all")
	l.WaitFor("the deferral of all", time.Minute, func() bool {
		return l.Script("find "+spoolDir+"/active "+spoolDir+"/incoming -type f ! -path '*/spare/*'") == ""
	})
	if left := l.Script("find " + storeDir + " -path '*/tmp/*'"); left != "" {
		t.Errorf("left behind: %s", left)
	}
	free(l.Machine, storeDir)
}
