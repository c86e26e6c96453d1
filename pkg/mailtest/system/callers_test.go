//go:build system

package system

import (
	"strings"
	"testing"
	"time"
)

// callers run sendmail in all ways in which services and scripts do that have been
// given little: each sends a message, of which {} stands for the subject.
var callers = []string{
	// Of services: no privilege to gain, nowhere to write, a user whom nobody knows.
	"systemd-run --quiet --wait --pipe --collect -p DynamicUser=yes -p NoNewPrivileges=yes -p RestrictSUIDSGID=yes -p ProtectSystem=strict -p ProtectHome=yes " +
		"-p PrivateTmp=yes -p PrivateDevices=yes -p PrivateNetwork=yes -p RestrictAddressFamilies=AF_UNIX -p SystemCallFilter=@system-service -p MemoryDenyWriteExecute=yes sendmail alice@example.net",
	"systemd-run --quiet --wait --pipe --collect -p User=nobody -p CapabilityBoundingSet= -p ReadOnlyPaths=/ -p InaccessiblePaths=/tmp -p LimitNOFILE=16 -p TasksMax=30 sendmail alice@example.net",
	"setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs sendmail alice@example.net",
	// Of scripts.
	"env -i /usr/sbin/sendmail alice@example.net",
	"env LD_PRELOAD=/none LD_LIBRARY_PATH=/none GODEBUG=x=y,gctrace=1 GOTRACEBACK=crash TZ=/etc/shadow IFS=a PATH= /usr/sbin/sendmail alice@example.net",
	"bash -c 'ulimit -f 0 -c 0 -s 100; umask 777; exec sendmail alice@example.net'",
	"bash -c 'exec sendmail alice@example.net >&- 2>&-'",
	"bash -c 'mkdir /tmp/gone; cd /tmp/gone; rmdir /tmp/gone; exec sendmail alice@example.net'",
	"bash -c 'trap \"\" HUP PIPE TERM; exec -a /nonsense sendmail alice@example.net'",
}

// TestCallers: whatever a caller has left of what processes have, its message arrives
// (SEC-50, SEC-53). Options that have made other programs read or write files do not.
func TestCallers(t *testing.T) {
	t.Parallel()
	m := mailHost(t, "trixie", "")
	// More than is kept in memory: where no file can be written it is passed on as it comes.
	m.Script("{ echo; seq 200000; } >/srv/body")
	for _, caller := range callers {
		r, err := m.TryInput(nil, "bash", "-c", `{ echo "Subject: $1"; cat /srv/body; } | eval "$1"`, "bash", caller)
		if err != nil || r.Code != 0 {
			t.Errorf("%s: %+v, %v", caller, r, err)
			continue
		}
		emptyQueue(m, time.Minute)
		got := takeAll(t, m, alice)
		if len(got) != 1 || !strings.Contains(got[0], "\nSubject: "+caller+"\n") || !strings.HasSuffix(got[0], "\n\n"+m.ReadFile("/srv/body")[1:]) {
			t.Errorf("%s: %d messages have arrived", caller, len(got))
		}
	}
	m.Script("install -d -m 777 /var/tmp/marks; useradd --create-home " + mallory)
	for _, options := range []string{
		"-C/etc/shadow", "-C /var/tmp/marks/cf", "-D/var/tmp/marks/debug", "-X/var/tmp/marks/log", "-X /var/tmp/marks/log", "-d0-99.9", "-d-1", "-be", "-bt", "-bd", "-qS",
		"-oQ/var/tmp/marks", "-OQueueDirectory=/var/tmp/marks", "-OQueueDirectory=/var/tmp/marks -X/var/tmp/marks/log", "-oA/etc/shadow", "-p x:y", "-ps", "-M x", "-h 99", "-L /var/tmp/marks/tag",
	} {
		r, err := m.TryInput([]byte("Subject: x\n\nx\n"), "runuser", "-u", mallory, "--", "sh", "-c", "cd /var/tmp/marks; sendmail "+options+" alice@example.net")
		if err != nil || r.Code != 0 && r.Code != 64 || r.Stdout != "" {
			t.Errorf("%s: %+v, %v", options, r, err)
		}
	}
	if got := m.Script("ls -A /var/tmp/marks"); got != "" {
		t.Errorf("written: %s", got)
	}
	emptyQueue(m, time.Minute)
	uid := strings.TrimSpace(m.Run("id", "-u", mallory))
	configure(m, "senders", "pickup: {users: {"+uid+": {senders: ["+mallory+", '@shop.example']}}}\n")
	for sender, want := range map[string]int{mallory: 0, mallory + "+x@example.org": 0, "any@shop.example": 0, "root": 77, "<>": 77, "alice@example.net": 77} {
		if r := sendAs(t, m, mallory, "x", "-f", sender); r.Code != want {
			t.Errorf("as %s: %+v", sender, r)
		}
	}
	healthy(t, m)
}
