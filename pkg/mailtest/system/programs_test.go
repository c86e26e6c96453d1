//go:build system

package system

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"posthouse/pkg/mailtest"
)

// programHost is a machine with the accounts and programs of TestPrograms, before
// its mail system.
func programHost(t *testing.T, suite string) *mailtest.Machine {
	t.Helper()
	m := mailtest.Boot(t, mailtest.Options{Suite: suite, Bare: true})
	m.Script(`
		useradd --create-home --comment 'Ann Example,Room 5,,' ann
		useradd --create-home --comment '& "the boss" Bobson' bob
		useradd --create-home --comment 'Cärl Größe' carl
		for user in dora fred proc drop; do useradd --create-home $user; done
		mkdir /home/nobody /home/drop/Maildir
		for home in /home/*; do
			mkdir $home/mail
			chown -R "${home#/home/}:" $home
		done
		chmod -R o= /home/*
		mkdir /home/drop/Maildir/{new,cur,tmp}
		chown drop: /home/drop/Maildir/*`)
	for name, file := range programFiles {
		m.WriteFile(name, file[1], 0o644)
		m.Run("chown", file[0]+":", name)
	}
	m.Run("chmod", "600", "/home/drop/.mailfilter") // it insists
	return m
}

// mailSystem is one of the two that are compared.
type mailSystem struct {
	install func(*mailtest.Machine)
	dovecot string // has Dovecot deliver
	queue   string // lists the files of its queue
}

var mailSystems = map[string]mailSystem{
	"posthouse": {
		install: func(m *mailtest.Machine) {
			m.WriteFile("/etc/posthouse/conf.d/programs.yaml", "hostname: mail.example.org\n", 0o644)
			m.InstallPackage("")
			m.Run("systemctl", "enable", "--now", "posthouse-smtpd.socket")
		},
		// Postfix's local has each recipient delivered by itself.
		dovecot: `printf '%s\n' 'local: {mailbox_transport: "lmtp:unix:/run/dovecot/lmtp"}' 'transports: {lmtp: {recipients: 1}}' >/etc/posthouse/conf.d/dovecot.yaml
			posthouse check
			systemctl stop posthouse-local.service posthouse-rewrite.service posthouse-qmgr.service ||
				systemctl stop posthouse-local.service posthouse-rewrite.service posthouse-qmgr.service # the timer cancels one`,
		queue: "cd /var/spool/posthouse && for i in 1 2; do find deferred hold incoming active corrupt -type f ! -path '*/spare/*' || echo changes; done",
	},
	"postfix": {
		install: func(m *mailtest.Machine) {
			m.Script(`
				export DEBIAN_FRONTEND=noninteractive
				dpkg --install /opt/postfix/postfix.deb
				postconf -e myhostname=mail.example.org myorigin=/etc/mailname \
					'mydestination=example.org, mail.example.org, localhost' mailbox_command=
				newaliases
				systemctl restart postfix`)
		},
		dovecot: `
			printf 'service lmtp {\n  unix_listener /var/spool/postfix/private/dovecot-lmtp {\n    user = postfix\n  }\n}\n' >/etc/dovecot/conf.d/99-test.conf
			postconf -e mailbox_transport=lmtp:unix:private/dovecot-lmtp
			postfix reload`,
		queue: "cd /var/spool/postfix && for i in 1 2; do find maildrop incoming active deferred hold corrupt -type f || echo changes; done",
	},
}

// arrival is what has become of one input.
type arrival struct {
	status int
	boxes  map[string][]string // messages, by mailbox and its mode
}

// TestPrograms: what programs send arrives as it does with Debian's Postfix.
func TestPrograms(t *testing.T) {
	t.Parallel()
	const suite = "trixie" // the programs differ little from those of bookworm
	outcomes := make(map[string][]arrival)
	both := t.Run("systems", func(t *testing.T) {
		for name, system := range mailSystems {
			got := make([]arrival, len(inputs)+len(dovecotInputs))
			outcomes[name] = got
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				m := programHost(t, suite)
				system.install(m)
				m.Script("dpkg --install /opt/bsd-mailx.deb /opt/logwatch.deb; systemctl start atd")
				for i, in := range inputs {
					got[i] = in.run(t, m, system.queue)
				}
				m.Script(system.dovecot)
				m.Run("systemctl", "start", "dovecot.service")
				for i, in := range dovecotInputs {
					got[len(inputs)+i] = in.run(t, m, system.queue)
				}
				if name == "posthouse" {
					healthy(t, m)
				}
			})
		}
	})
	if !both {
		return
	}
	for i, in := range slices.Concat(inputs, dovecotInputs) {
		t.Run(in.name, func(t *testing.T) {
			compare(t, outcomes["postfix"][i], outcomes["posthouse"][i])
		})
	}
}

// input is something that is done on both machines.
type input struct {
	name   string
	user   string
	script string
	arrive int // messages that come when the script is over
}

// inputScript does what its input says as user $1, waits until the queue, which
// $2 lists, is empty and $3 messages are in /var/mail, and puts out the status, and
// the mailboxes, which are empty then.
const inputScript = `
	home=$(getent passwd "$1" | cut -d: -f6) status=0
	runuser -u "$1" -- env -C "$home" HOME="$home" USER="$1" LOGNAME="$1" TZ=UTC LANG=C.UTF-8 bash -eu >&2 || status=$?
	until [ -z "$(eval "$2")" ] && [ "$(cat /var/mail/* 2>/dev/null | grep -c '^From ')" -ge "$3" ]; do sleep 0.05; done
	printf %d $status
	for f in /var/mail/* /home/*/mail/* /home/*/Maildir/new/*; do
		if [ -f "$f" ]; then stat --printf '\0%n %a %U:%G\0' "$f"; cat "$f"; fi
	done
	find /var/mail /home/*/mail /home/*/Maildir -type f -delete
	rm -rf /home/*/repo`

// run does it, and takes what has arrived.
func (in *input) run(t *testing.T, m *mailtest.Machine, queue string) arrival {
	t.Helper()
	r, err := m.TryInput([]byte(in.script), "bash", "-euc", inputScript, "bash", in.user, queue, strconv.Itoa(in.arrive))
	if err != nil || r.Code != 0 {
		t.Fatalf("%s: status %d, %v\n%s\n%s", in.name, r.Code, err, r.Stderr, m.Run("mailq"))
	}
	parts := strings.Split(r.Stdout, "\x00")
	a := arrival{boxes: make(map[string][]string)}
	if a.status, err = strconv.Atoi(parts[0]); err != nil {
		t.Fatal(err)
	}
	if a.status != 0 {
		t.Logf("%s: status %d: %s", in.name, a.status, r.Stderr)
	}
	for i := 1; i+1 < len(parts); i += 2 {
		name, owner, _ := strings.Cut(parts[i], " ")
		if dir, _, ok := strings.Cut(name, "/new/"); ok {
			a.boxes[dir+" "+owner] = append(a.boxes[dir+" "+owner], parts[i+1])
			continue
		}
		if parts[i+1] != "" {
			a.boxes[name+" "+owner] = splitMbox(parts[i+1])
		}
	}
	return a
}

// splitMbox returns the messages of a file.
func splitMbox(text string) []string {
	var list []string
	for {
		i := strings.Index(text, "\n\nFrom ")
		if i < 0 {
			return append(list, text)
		}
		list = append(list, text[:i+2])
		text = text[i+2:]
	}
}
