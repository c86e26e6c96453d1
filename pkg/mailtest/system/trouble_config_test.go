//go:build system

package system

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	mainFile = "/etc/posthouse/posthouse.yaml"
	tables   = "/etc/posthouse/tables/"
)

// lingering keeps daemons, so that there is one with old settings in force.
const lingering = "trusted: [127.0.0.0/8, 192.0.2.0/24]\ndaemons: {smtpd: {max_idle: 24h}, cleanup: {max_idle: 24h}, rewrite: {max_idle: 24h}, qmgr: {max_idle: 24h}, " +
	"virtual: {max_idle: 24h}, smtp: {max_idle: 24h}, bounce: {max_idle: 24h}, pickup: {max_idle: 24h}, dns: {max_idle: 24h}}\n"

// fault is a file that is broken.
type fault struct {
	what string
	file string
	make string // a command that makes it at $1
	want string // of posthouse check, and in the log
}

// TestBadConfiguration: whatever is written into the configuration and the
// tables, what was in force stays so; a daemon that comes up has its clients
// wait; and when it is mended everything goes on by itself.
func TestBadConfiguration(t *testing.T) {
	t.Parallel()
	m := mailHost(t, "bookworm", lingering)
	m.Script("cp -a " + mainFile + " /root/main.yaml; touch " + tables + "{virtual_aliases,transport}; for t in users virtual_aliases transport; do cp -a " + tables + "$t /root/$t; done")
	l := newLoad(t, m)
	l.send(40) // all daemons run
	late := 0
	for _, f := range []fault{
		{"syntax", mainFile, `printf 'origin: example.org\ndomains: [\n' >"$1"`, mainFile + `:\d+: `},
		{"no YAML", mainFile, `printf 'origin: example.org\n\001\002\n' >"$1"`, mainFile + `:2: control characters`},
		{"unknown key", mainFile, `printf 'origin: example.org\nhostnam: x\n' >"$1"`, mainFile + `:2: unknown setting "hostnam"`},
		{"wrong type", mainFile, `printf 'origin: example.org\nqueue: {retry: {min: [1]}}\n' >"$1"`, mainFile + `:2: queue.retry.min: one value`},
		{"bad value", mainFile, `printf 'origin: example.org\n\nlimits: {recipients: -3}\n' >"$1"`, mainFile + `:3: limits.recipients: -3 is out of bounds`},
		{"contradiction", mainFile, `printf 'queue: {retry: {max: 1m}}\n' >"$1"`, `test.yaml:\d+: queue.retry: min 5m is more than max 1m`},
		{"huge", mainFile, `head -c 2000000 /dev/zero | tr '\0' '#' >"$1"`, mainFile + `: larger than`},
		{"a directory", mainFile, `rm "$1"; mkdir "$1"`, mainFile + `: is a directory`},
		{"a FIFO", mainFile, `rm "$1"; mkfifo "$1"`, mainFile + `: is a FIFO`},
		{"a broken drop-in", "/etc/posthouse/conf.d/zz.yaml", `echo 'trusted: [all]' >"$1"`, `zz.yaml:1: trusted: "all" is not a network`},
	} {
		t.Run("configuration, "+f.what, func(t *testing.T) { l.inForce(t, f, "smtpd", "cleanup", "rewrite", "qmgr", "virtual", "smtp") })
	}
	for _, f := range []fault{
		{"garbage", tables + "users", `printf '# x\nalice@example.net\n' >"$1"`, `users:2: 1 fields`},
		{"control characters", tables + "users", `printf '\001' >>"$1"`, `users:\d+: control character`},
		{"an address twice", tables + "users", `cat "$1" "$1" >/root/twice; cat /root/twice >"$1"`, `users:\d+: alice@example.net is there twice`},
		{"one line of 1 MiB", tables + "users", `head -c 1048576 /dev/zero | tr '\0' x >"$1"`, `users:1: 1 fields`},
		{"a directory", tables + "users", `rm "$1"; mkdir "$1"`, `users: is a directory`},
		{"a FIFO", tables + "users", `rm "$1"; mkfifo "$1"`, `users: is a FIFO`},
		{"a program", tables + "virtual_aliases", `printf '# x\n\ninfo@example.net: |/bin/sh\n' >"$1"`, `virtual_aliases:3: `},
		{"continues nothing", tables + "virtual_aliases", `printf '  alice@example.net\n' >"$1"`, `virtual_aliases:1: continues nothing`},
		{"one line of 65 MiB", tables + "virtual_aliases", `head -c 68157440 /dev/zero | tr '\0' x >"$1"`, `virtual_aliases: larger than`},
		{"binary", tables + "transport", `printf 'example.org smtp:[127.0.0.1]\n\377\376\n' >"$1"`, `transport:2: control character or bad UTF-8`},
	} {
		t.Run("table, "+f.what, func(t *testing.T) {
			l.inForce(t, f, "rewrite")
			late += l.fromTheStart(t, f)
		})
	}
	t.Run("not readable", func(t *testing.T) {
		l.inForce(t, fault{"", mainFile, `echo 'origin: example.org' >"$1"; chmod 600 "$1"`, ""}, "smtpd", "rewrite", "qmgr")
		late += l.fromTheStart(t, fault{"", tables + "users", `chmod 600 "$1"; chown root:root "$1"`, `users: permission denied`})
	})
	t.Run("a start", func(t *testing.T) { l.brokenStart(t) })
	l.drain()
	l.check(0)
	if n := arrivals(t, m, alice, "late"); n != late {
		t.Errorf("of %d messages that were taken without a table %d have come", late, n)
	}
}

// spoil breaks a file; the result mends it.
func (l *load) spoil(f fault) (mend func()) {
	l.t.Helper()
	l.Run("sh", "-euc", f.make, "sh", f.file)
	return func() {
		l.t.Helper()
		l.Script("rm -rf " + f.file + `; b=$(basename ` + f.file + `); case $b in posthouse.yaml) b=main.yaml ;; esac; [ ! -e /root/$b ] || cp -a /root/$b ` + f.file)
	}
}

// said counts the lines of a daemon's log that fit.
func (l *load) said(daemon, pattern string) int {
	l.t.Helper()
	return len(regexp.MustCompile(pattern).FindAllString(l.Journal("-t", "posthouse/"+daemon, "-o", "cat"), -1))
}

// checked: posthouse check names what is wrong.
func (l *load) checked(t *testing.T, want string) {
	t.Helper()
	r, err := l.Try("posthouse", "check")
	if err != nil || r.Code != 78 || !regexp.MustCompile(want).MatchString(r.Stderr) {
		t.Errorf("posthouse check: status %d, %s, want %s, %v", r.Code, r.Stderr, want, err)
	}
}

// inForce: with a broken file mail flows as before, and the daemons say so once.
func (l *load) inForce(t *testing.T, f fault, daemons ...string) {
	before := make(map[string]int)
	want, check := f.want, f.want
	if want == "" {
		want, check = "permission denied", f.file+": daemons cannot read it"
	}
	defer func() { l.Run("posthouse", "check") }() // it is mended
	for _, d := range daemons {
		before[d] = l.said(d, want)
	}
	defer l.spoil(f)()
	l.checked(t, check)
	l.WaitFor("the daemons to notice", time.Minute, func() bool {
		l.send(4)
		for _, d := range daemons {
			if l.said(d, want) == before[d] {
				return false
			}
		}
		return true
	})
	l.send(20)
	for _, d := range daemons {
		if n := l.said(d, want) - before[d]; n != 1 {
			t.Errorf("%s says it %d times", d, n)
		}
	}
}

// fromTheStart: without a table that could be used mail is not refused, and what
// is in the queue waits. It returns the number of messages that were taken
// meanwhile: sendmail asks for aliases only.
func (l *load) fromTheStart(t *testing.T, f fault) (taken int) {
	l.Stop("posthouse-virtual.socket")
	l.send(4)
	mend := l.spoil(f)
	l.Stop("posthouse-rewrite.service")
	time.Sleep(forgetTime)
	l.WriteFile("/root/late", "Subject: late\r\n\r\nx\r\n", 0o644)
	if out := l.Run(probePath, "send", "127.0.0.1:25", loadFrom, "alice@example.net", "/root/late"); !strings.Contains(out, "451 4.3.0 ") {
		t.Errorf("by SMTP: %s", out)
	}
	switch r, err := l.TryInput([]byte("Subject: late\n\nx\n"), "sendmail", "alice@example.net"); {
	case err == nil && r.Code == 0:
		taken++
	case err != nil || r.Code != 75:
		t.Errorf("sendmail: %d %s, %v", r.Code, r.Stderr, err)
	}
	l.Run("systemctl", "start", "posthouse-virtual.socket")
	if f.file != tables+"virtual_aliases" { // what is in the queue has been expanded
		l.WaitFor("the deferral", time.Minute, func() bool {
			l.Run("posthouse", "queue", "retry", "--all")
			return strings.Contains(l.Run("mailq"), "temporary lookup failure: ")
		})
	}
	if n := l.said("rewrite", f.want); n == 0 {
		t.Errorf("rewrite does not say what is wrong: %s", f.want)
	}
	mend()
	l.send(4) // nobody has to start anything
	l.drain()
	return taken
}

// brokenStart: daemons that find a broken configuration when they start try
// again, not too often; their clients wait, or are told to come back, and when
// it is mended nobody has to do anything.
func (l *load) brokenStart(t *testing.T) {
	l.Stop("posthouse-virtual.socket")
	l.send(4) // what is in the queue waits
	l.Run("systemctl", "start", "posthouse-virtual.socket")
	mend := l.spoil(fault{"", mainFile, `printf 'origin: example.org\nhostnam: x\n' >"$1"`, ""})
	l.Stop("posthouse-*.service")
	l.Script("printf x >/run/posthouse/public/qmgr")
	l.Start("patient", "sh", "-c", `printf 'Subject: patient\n\nx\n' | sendmail alice@example.net; echo status $?`)
	starts := []string{"qmgr", "pickup"}
	l.WaitFor("two failures of each", time.Minute, func() bool {
		for _, d := range starts {
			if l.said(d, regexp.QuoteMeta(mainFile)+`:2: unknown setting "hostnam"`) < 2 {
				return false
			}
		}
		return true
	})
	l.throttled(t, starts...)
	mend()
	status := regexp.MustCompile(`status (\d+)`)
	l.WaitFor("the client that waits", 2*time.Minute, func() bool { return status.MatchString(l.Journal("-u", "patient")) })
	code := status.FindStringSubmatch(l.Journal("-u", "patient"))[1]
	if code != "0" && code != "75" {
		t.Errorf("sendmail ends with %s", code)
	}
	l.send(20)
	l.drain()
	if n := arrivals(t, l.Machine, alice, "patient"); n != map[string]int{"0": 1}[code] {
		t.Errorf("sendmail ended with %s, %d have come", code, n)
	}
	if failed := l.Run("systemctl", "--failed", "--no-legend"); failed != "" {
		t.Errorf("failed units: %s", failed)
	}
}

// throttled: between two starts of a daemon that fails are the two seconds of
// RestartSec=.
func (l *load) throttled(t *testing.T, daemons ...string) {
	t.Helper()
	for _, d := range daemons {
		log := l.Journal("-t", "systemd", "-o", "short-unix", "-g", "posthouse-"+d+`.service: Main process exited`)
		last := 0.0
		for _, f := range regexp.MustCompile(`(?m)^(\d+\.\d+) `).FindAllStringSubmatch(log, -1) {
			at, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			if at-last < 1.9 {
				t.Errorf("%s fails again after %.3f s", d, at-last)
			}
			last = at
		}
		if last == 0 {
			t.Errorf("%s has not failed: %s", d, fmt.Sprint(log))
		}
	}
}
