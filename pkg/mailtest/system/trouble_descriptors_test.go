//go:build system

package system

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestNoDescriptors: daemons that are short of descriptors say so, put off what
// they cannot do, and have lost nothing when there are enough again.
func TestNoDescriptors(t *testing.T) {
	t.Parallel()
	m := mailHost(t, "bookworm", "trusted: [127.0.0.0/8, 192.0.2.0/24]\n")
	l := newLoad(t, m)
	l.send(20)
	t.Run("few", func(t *testing.T) {
		daemons := []string{"smtpd", "cleanup", "qmgr", "smtp"}
		lift := l.limit(60, daemons...)
		l.send(20)
		m.Start("sessions", "sh", "-c", "sleep infinity | exec "+probePath+" hold 127.0.0.1:25 100")
		for _, d := range daemons[1:] {
			m.Start("connections-"+d, "sh", "-c", "sleep infinity | exec "+probePath+" silent 100 "+private+d)
		}
		m.WaitFor("all to be short", time.Minute, func() bool {
			return !slices.ContainsFunc(daemons, func(d string) bool { return l.said(d, "accept: .*too many open files") == 0 })
		})
		// A connection takes two, so that there may be one left, which is enough.
		r, err := m.TryInput([]byte("Subject: short\n\nx\n"), "sendmail", "alice@example.net")
		if err != nil || r.Code != 75 && r.Code != 0 {
			t.Errorf("sendmail: %d %s, %v", r.Code, r.Stderr, err)
		}
		for _, d := range daemons {
			if n := l.said(d, "accept: .*too many open files"); n > 20 { // of twenty in a second
				t.Errorf("%s says %d times that it is short", d, n)
			}
		}
		m.Script("systemctl stop sessions connections-cleanup connections-qmgr connections-smtp || true") // some have given up
		l.send(60)
		m.Run("mailq")
		lift()
		l.flush()
		arrived := m.Run("sh", "-c", "grep -rl 'Subject: short' /var/vmail | wc -l")
		if want := map[int]string{0: "1", 75: "0"}[r.Code]; strings.TrimSpace(arrived) != want {
			t.Errorf("sendmail: %d, and %s messages", r.Code, arrived)
		}
	})
	unshaken(t, m)
	for _, d := range []string{"smtpd", "cleanup", "qmgr", "smtp"} {
		t.Run("too few for "+d, func(t *testing.T) { l.tooFew(t, d) })
	}
	l.send(20)
	l.flush()
	l.check(0)
	if failed := m.Run("systemctl", "--failed", "--no-legend"); failed != "" {
		t.Errorf("failed units: %s", failed)
	}
	if kills := m.SeccompKills(); len(kills) > 0 {
		t.Errorf("forbidden system calls:\n%s", strings.Join(kills, "\n"))
	}
}

// limit gives daemons so few descriptors, until the result is called.
func (l *load) limit(most int, daemons ...string) (lift func()) {
	l.t.Helper()
	var units, files []string
	for _, d := range daemons {
		unit := "posthouse-" + d + ".service"
		file := "/etc/systemd/system/" + unit + ".d/90-files.conf" // behind 10-life.conf
		l.WriteFile(file, fmt.Sprintf("[Service]\nLimitNOFILE=%d\n", most), 0o644)
		units, files = append(units, unit), append(files, file)
	}
	l.Run("systemctl", "daemon-reload")
	l.Stop(units...)
	return func() {
		l.t.Helper()
		l.Run(append([]string{"rm"}, files...)...)
		l.Run("systemctl", "daemon-reload")
	}
}

// tooFew: a daemon that cannot even start tries again, not too often, and then
// its clients are served, or have been told to come back.
func (l *load) tooFew(t *testing.T, d string) {
	to, dir := "alice@example.net", alice
	if d == "smtp" {
		to, dir = "x@sink.example", sunk
	}
	lift := l.limit(5, d)
	l.WriteFile("/root/"+d, "Subject: too few for "+d+"\r\n\r\nx\r\n", 0o644)
	l.Start("client-"+d, probePath, "send", "127.0.0.1:25", loadFrom, to, "/root/"+d)
	failures := func() int {
		return strings.Count(l.Journal("-t", "systemd"), "posthouse-"+d+".service: Main process exited")
	}
	l.WaitFor("two failures", time.Minute, func() bool { return failures() >= 2 })
	l.throttled(t, d)
	lift()
	reply := regexp.MustCompile(`/root/` + d + ` (error .*?)?([245])\d\d `)
	var got []string
	l.WaitFor("the client's reply", 3*time.Minute, func() bool {
		got = reply.FindStringSubmatch(l.Journal("-u", "client-"+d))
		return got != nil
	})
	l.flush()
	want := 0
	if got[2] == "2" {
		want = 1
	}
	if n := arrivals(t, l.Machine, dir, "too few for "+d); got[2] == "5" || n != want {
		t.Errorf("%s: %d have arrived", got[0], n)
	}
}

// flush has everything delivered that is in the queue, without the notices of
// cleanup, which may have got lost.
func (l *load) flush() {
	l.t.Helper()
	l.WaitFor("the end of deliveries", 3*time.Minute, func() bool {
		// It says so where qmgr has no descriptor to look with.
		l.Script("posthouse queue retry --all || [ $? = 75 ]; printf x >/run/posthouse/public/qmgr")
		return l.Script("cd "+spoolDir+" && for i in 1 2; do find deferred hold incoming active -type f ! -path '*/spare/*' || echo changes; done") == ""
	})
}
