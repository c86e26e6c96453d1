//go:build system

package system

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// Who is not a daemon, in the tables below.
const (
	anybody = "*"       // every local user
	mallory = "mallory" // a local user
	admin   = "admin"   // one of the group _ph-admin
	root    = "root"
)

// mayConnect is the table of docs/architecture.md: who may use which socket.
// All others must fail.
var mayConnect = map[string][]string{
	"packet:/run/posthouse/public/submit":     {anybody},
	"packet:/run/posthouse/public/showq":      {anybody},
	"packet:/run/posthouse/private/queue":     {root, admin},
	"packet:/run/posthouse/private/qmgr":      {root, "cleanup"},
	"fifo:/run/posthouse/public/pickup":       {anybody},
	"fifo:/run/posthouse/public/qmgr":         {root, "cleanup"},
	"packet:/run/posthouse/private/cleanup":   {root, "smtpd", "submission", "pickup", "bounce", "local"},
	"packet:/run/posthouse/private/rewrite":   {root, "smtpd", "submission", "cleanup", "qmgr"},
	"packet:/run/posthouse/private/deliver":   {root, "local"},
	"packet:/run/posthouse/private/dns":       {root, "smtpd", "submission"},
	"packet:/run/posthouse/private/bounce":    {root, "qmgr"},
	"packet:/run/posthouse/private/smtp":      {root, "qmgr"},
	"packet:/run/posthouse/private/virtual":   {root, "qmgr"},
	"packet:/run/posthouse/private/local":     {root, "qmgr"},
	"packet:/run/posthouse/private/recipient": {root, "rewrite"},
	"packet:/run/posthouse/private/pipe-sand": {root, "qmgr"},
}

// exposure is what systemd-analyze security may say of a unit, at most.
var exposure = map[string]float64{"virtual": 0.7, "smtp": 1.4, "dns": 1.4, "deliver": 2.0}

const otherExposure = 0.5

// instance is that of a template, in this test.
const instance = "sand"

// runsCommands says that a daemon has no root of its own, and may execute anything.
func runsCommands(daemon string) bool { return daemon == "deliver" || daemon == "pipe@"+instance }

// Where a probe is below the root of all daemons: not in libexec/, so that
// Machine.SeccompKills, here and in other tests, goes on to mean daemons.
const (
	daemonRoot = "/usr/lib/posthouse/root"
	inRoot     = "/probe"
)

// sandboxes is a machine, and the daemons that its units describe.
type sandboxes struct {
	*mailtest.Machine
	t       *testing.T
	daemons []string // X of posthouse-X.service
}

// TestSandbox: no daemon can do more than its row in the design says. A program
// of our own takes the place of each, under its user and in its sandbox, and
// tries.
func TestSandbox(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			// Daemons go as soon as they have served the probe.
			idle := "daemons:\n"
			for _, x := range []string{"bounce", "cleanup", "deliver", "dns", "local", "pickup", "pipe", "qmgr", "rewrite", "showq", "smtp", "smtpd", "virtual"} {
				idle += "  " + x + ": {max_idle: 100ms}\n"
			}
			s := sandboxes{Machine: mailHost(t, suite, idle), t: t}
			units := s.Run("systemctl", "list-unit-files", "--no-legend", "posthouse-*.service")
			for _, match := range regexp.MustCompile(`(?m)^posthouse-(\S+)\.service `).FindAllStringSubmatch(units, -1) {
				if strings.HasSuffix(match[1], "@") {
					match[1] += instance
				}
				s.daemons = append(s.daemons, match[1])
			}
			if len(s.daemons) < 11 {
				t.Fatalf("units of daemons: %q", s.daemons)
			}
			s.Run("systemctl", "start", "posthouse-submission.socket", "posthouse-pipe@"+instance+".socket")
			s.Run("useradd", "--create-home", mallory)
			s.Run("useradd", "--no-create-home", "--groups", "_ph-admin", admin)
			s.Run("install", "-m", "755", probePath, daemonRoot+inRoot)

			s.exposures()
			s.packageFiles()
			s.identities()
			things := s.fill()
			healthy(t, s.Machine)

			s.there(things)
			// What is in the maildrop would start pickup, which is the probe, again and again.
			s.Run("systemctl", "mask", "--runtime", "posthouse-pickup.path")
			for _, daemon := range s.daemons {
				if daemon != "pipe@"+instance { // see TestPipe
					s.confined(daemon, things)
				}
			}
			s.Run("systemctl", "unmask", "--runtime", "posthouse-pickup.path")
			s.Script("find /var/spool/posthouse -mindepth 2 ! -path " + dropDir + " ! -path '*/incoming/spare' -delete; systemctl start posthouse.target posthouse-smtpd.socket posthouse-submission.socket posthouse-pipe@" + instance + ".socket")
			for _, daemon := range s.daemons {
				s.connects(daemon)
			}
			s.idle()
			healthy(t, s.Machine)
			s.links()
		})
	}
}

// exposures: systemd's own opinion of the units.
func (s sandboxes) exposures() {
	s.t.Helper()
	verdict := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+) `)
	for _, daemon := range s.daemons {
		limit, ok := exposure[daemon]
		if !ok {
			limit = otherExposure
		}
		out := s.Run("systemd-analyze", "security", "--no-pager", "posthouse-"+daemon+".service")
		match := verdict.FindStringSubmatch(out)
		if match == nil {
			s.t.Errorf("systemd-analyze security has no verdict on %s:\n%s", daemon, out)
			continue
		}
		if level, err := strconv.ParseFloat(match[1], 64); err != nil || level > limit {
			s.t.Errorf("%s: exposure %s, at most %v", daemon, match[1], limit)
		}
	}
}

// packageFiles: no file gives rights to whoever runs it, none can be written by
// everybody. That holds for what the package makes later, too.
func (s sandboxes) packageFiles() {
	s.t.Helper()
	files := strings.Fields(s.Run("dpkg", "-L", "posthouse"))
	if !slices.Contains(files, "/usr/bin/posthouse") || !slices.Contains(files, daemonRoot+"/libexec/smtpd") {
		s.t.Fatalf("dpkg -L: %q", files)
	}
	made := s.Script("find /etc/posthouse /var/spool/posthouse /var/vmail /run/posthouse /usr/lib/posthouse")
	files = append(files, strings.Fields(made)...)
	for line := range strings.Lines(s.Run(append([]string{"stat", "-c", "%a %F:%n"}, files...)...)) {
		what, name, _ := strings.Cut(strings.TrimSpace(line), ":")
		octal, kind, _ := strings.Cut(what, " ")
		mode, err := strconv.ParseUint(octal, 8, 16)
		switch {
		case err != nil:
			s.t.Errorf("stat: %s", line)
		case kind == "symbolic link":
		case kind != "directory" && mode&0o6000 != 0:
			s.t.Errorf("%s %s is set-uid or set-gid: %s", kind, name, octal)
		case name == dropDir: // which nobody reaches: the directory above it is root's
		case mode&0o002 != 0 && !slices.Contains(mayConnect[map[string]string{"socket": "packet:", "fifo": "fifo:"}[kind]+name], anybody):
			s.t.Errorf("%s %s can be written by everybody: %s", kind, name, octal)
		}
	}
	var deeds []string
	for _, name := range files {
		deeds = append(deeds, "filecap:"+name)
	}
	for deed, got := range outcomes(s.Run(append([]string{probePath, "try"}, deeds...)...)) {
		if got != "ENODATA" {
			s.t.Errorf("capabilities, %s: %s", deed, got)
		}
	}
	// One would be noticed.
	s.Script("cp /bin/true /root/capable; setcap cap_net_raw=ep /root/capable")
	if got := outcomes(s.Run(probePath, "try", "filecap:/root/capable")); got["filecap:/root/capable"] != "ok" {
		s.t.Errorf("a file with capabilities: %q", got)
	}
}

// outcomes reads what the probe has printed: what it tried, and what came of it.
func outcomes(out string) map[string]string {
	got := make(map[string]string)
	for line := range strings.Lines(out) {
		if f := strings.SplitN(strings.TrimSpace(line), " ", 3); f[0] == "try" && len(f) == 3 {
			got[f[1]] = f[2]
		}
	}
	return got
}

// sockets returns the attempts to connect to all sockets of the installed units,
// all of which listen.
func (s sandboxes) sockets() []string {
	s.t.Helper()
	var deeds []string
	listen := s.Run("systemctl", "show", "-P", "Listen", "posthouse-*.socket")
	for _, match := range regexp.MustCompile(`(?m)^(\S+) \((\w+)\)$`).FindAllStringSubmatch(listen, -1) {
		switch match[2] {
		case "SequentialPacket":
			deeds = append(deeds, "packet:"+match[1])
		case "FIFO":
			deeds = append(deeds, "fifo:"+match[1])
		case "Stream":
			if strings.HasPrefix(match[1], "/") {
				s.t.Errorf("stream socket %s", match[1])
			}
		default:
			s.t.Errorf("socket %s", match[0])
		}
	}
	slices.Sort(deeds)
	for _, deed := range deeds {
		if mayConnect[deed] == nil {
			s.t.Errorf("%s is not in the table", deed)
		}
	}
	if len(deeds) != len(mayConnect) {
		s.t.Errorf("%d sockets are active, %d in the table: %q", len(deeds), len(mayConnect), deeds)
	}
	return deeds
}

// identities: what file permissions alone let each user do, without a sandbox.
func (s sandboxes) identities() {
	s.t.Helper()
	deeds := s.sockets()
	users := append([]string{mallory, admin, root}, s.daemons...)
	for _, who := range users {
		command := []string{"systemd-run", "--quiet", "--wait", "--pipe", "--collect"}
		if slices.Contains(s.daemons, who) {
			for _, key := range []string{"User", "Group", "SupplementaryGroups"} {
				value := strings.TrimSpace(s.Run("systemctl", "show", "-P", key, "posthouse-"+who+".service"))
				if value == "" && key != "SupplementaryGroups" && (key != "Group" || !strings.Contains(who, "@")) {
					s.t.Errorf("%s has no %s", who, key)
				}
				command = append(command, "-p", key+"="+value)
			}
		} else {
			command = append(command, "-p", "User="+who)
		}
		got := outcomes(s.Run(slices.Concat(command, []string{probePath, "try"}, deeds)...))
		for _, deed := range deeds {
			want := "EACCES"
			if may := mayConnect[deed]; slices.Contains(may, who) || slices.Contains(may, anybody) {
				want = "ok"
			}
			if got[deed] != want {
				s.t.Errorf("as %s, %s: %q, not %s", who, deed, got[deed], want)
			}
		}
	}
}

// connects: the same from within a daemon's sandbox. Its own view lacks most.
func (s sandboxes) connects(daemon string) {
	s.t.Helper()
	s.idle()
	deeds := s.sockets()
	got := s.inside(daemon, "connects", [][]string{deeds})
	for _, deed := range deeds {
		want := refused
		if may := mayConnect[deed]; slices.Contains(may, daemon) {
			want = []string{"ok"}
		} else if slices.Contains(may, anybody) {
			want = append([]string{"ok"}, refused...) // cleanup sees public/
		}
		if !slices.Contains(want, got[deed]) {
			s.t.Errorf("in the sandbox of %s, %s: %q, not %q", daemon, deed, got[deed], want)
		}
	}
}

// idle waits until no daemon runs, so that none takes the place of the probe.
func (s sandboxes) idle() {
	s.t.Helper()
	s.WaitFor("no daemon to be resident", time.Minute, func() bool {
		return s.Run("systemctl", "list-units", "--no-legend", "--state=active,activating,deactivating", "posthouse-*.service") == ""
	})
	s.Settle()
}

// fill returns, by name, files of every kind that only some daemons may see.
func (s sandboxes) fill() map[string]string {
	s.t.Helper()
	s.RunInput([]byte("Subject: to be delivered\n\nx\n"), "sendmail", "alice@example.net")
	s.RunInput([]byte("Subject: to be deferred\n\nx\n"), "sendmail", "x@dead.example")
	find := func(dir string) string {
		var file string
		s.WaitFor("a file in "+dir, time.Minute, func() bool {
			file = strings.TrimSpace(s.Script("find " + dir + " -type f 2>/dev/null | sed 1q || true"))
			return file != ""
		})
		return file
	}
	things := map[string]string{"message": find(alice), "deferred": find("/var/spool/posthouse/deferred")}
	s.Stop("posthouse.target")
	for _, state := range []string{"incoming", "active", "hold", "corrupt"} {
		things[state] = "/var/spool/posthouse/" + state + "/sample"
		s.Run("cp", "-p", things["deferred"], things[state])
	}
	things["dropped"] = dropDir + "/sample"
	s.Script("cd " + dropDir + "; echo x >sample; chown " + mallory + ":_ph-pickup sample; chmod 640 sample")
	// Everybody may read these; whoever does not see them cannot.
	s.Script("chmod 755 /home/" + mallory + " /root; for f in /home/" + mallory + "/secret /root/secret /srv/secret; do echo secret >$f; chmod 644 $f; done")
	return things
}

// there: what daemons are kept from can be read where nothing keeps from it, so
// that a refusal is one.
func (s sandboxes) there(things map[string]string) {
	s.t.Helper()
	var deeds []string
	for _, d := range files(root, things) {
		if kind, _, _ := strings.Cut(d.what, ":"); kind == "read" || kind == "list" {
			deeds = append(deeds, d.what)
		}
	}
	got := outcomes(s.Run(append([]string{probePath, "try"}, deeds...)...))
	for _, deed := range deeds {
		if got[deed] != "ok" {
			s.t.Errorf("as root, without a sandbox, %s: %q", deed, got[deed])
		}
	}
}

// refused are the ways to say that a file may not be had, or is not there.
var refused = []string{"EACCES", "ENOENT", "EROFS"}

// deed is what may be tried, who may do it, and what the others must get.
type deed struct {
	what string
	may  []string // daemons
	want []string // one of these, for the others
}

// files are attempts at files and sockets, for a daemon that may do a few.
func files(daemon string, things map[string]string) []deed {
	queue := "/var/spool/posthouse/"
	deeds := []deed{
		{"read:/etc/posthouse/tables/users", []string{"rewrite"}, refused},
		{"append:/etc/posthouse/tables/users", nil, refused},
		{"write:/etc/posthouse/conf.d/" + daemon + ".yaml", nil, refused},
		{"read:" + things["message"], []string{"virtual"}, refused},
		{"list:/var/vmail/example.net", []string{"virtual"}, refused},
		{"write:/var/vmail/" + daemon, []string{"virtual"}, refused},
		{"append:" + things["message"], []string{"virtual"}, refused},
		{"list:/home", nil, refused},
		{"read:/home/" + mallory + "/secret", nil, refused},
		{"read:/root/secret", nil, refused},
		{"read:/srv/secret", nil, refused},
		{"read:/etc/shadow", nil, refused},
		{"read:/etc/passwd", []string{"local"}, refused},
		{"read:/usr/bin/posthouse", nil, refused}, {"list:/usr", nil, refused}, {"list:/sys", nil, refused}, {"list:/sys/fs/cgroup", nil, refused},
		{"list:/var/log/journal", nil, refused},
		{"list:/var/lib/dpkg", nil, refused},
		{"list:/run/systemd/system", nil, refused},
		{"read:/proc/1/status", nil, refused},
		{"read:/proc/sys/kernel/hostname", nil, refused},
		{"read:/proc/kallsyms", nil, refused},
		{"write:/" + daemon, nil, refused},
		{"write:/etc/" + daemon, nil, refused},
		{"write:/libexec/" + daemon + ".new", nil, refused},
		{"append:/libexec/smtpd", nil, refused},
		{"write:" + daemonRoot + "/libexec/" + daemon + ".new", nil, refused},
		{"append:" + daemonRoot + "/libexec/smtpd", nil, refused},
		{"write:/run/posthouse/private/" + daemon + ".new", nil, refused},
		// Shared by all: what one writes another would read.
		{"write:/dev/shm/" + daemon, nil, refused},
	}
	deeds = append(deeds, deed{"read:" + things["dropped"], []string{"pickup"}, refused}, deed{"write:" + dropDir + "/" + daemon, []string{"pickup"}, refused})
	readers := []string{"qmgr", "showq"}
	for _, state := range []string{"incoming", "active", "deferred", "hold", "corrupt"} {
		read, write := readers, []string{"qmgr"}
		if state == "incoming" {
			read, write = append(read, "cleanup"), append(write, "cleanup")
		}
		deeds = append(deeds, deed{"read:" + things[state], read, refused},
			deed{"append:" + things[state], write, refused}, deed{"write:" + queue + state + "/" + daemon, write, refused})
	}
	deeds = append(deeds, deed{"write:" + queue + "index/" + daemon, []string{"qmgr"}, refused})
	return deeds
}

// deeds are attempts at what is forbidden by other means than permissions.
func deeds(daemon string) []deed {
	network := []string{"smtp", "dns"}
	no := []string{"EAFNOSUPPORT"}
	list := []deed{
		{"family:inet", network, no}, {"family:inet6", network, no},
		{"family:netlink", nil, no}, {"family:packet", nil, no}, {"family:vsock", nil, no},
		{"wx", nil, []string{"EPERM", "EACCES"}}, // a filter; PR_SET_MDWE
		{"userns", nil, []string{"EPERM"}},
		{"setuid:/tmp/" + daemon, nil, []string{"EPERM"}},
	}
	// The programs of the others.
	for _, program := range []string{"bounce", "cleanup", "deliver", "deliver-as", "dns", "local", "pickup", "pipe", "qmgr", "rewrite", "showq", "smtp", "smtpd", "virtual"} {
		if program != daemon && (program != "smtpd" || daemon != "submission") {
			list = append(list, deed{"become:/libexec/" + program, nil, []string{"EACCES"}})
		}
	}
	// Programs that it has written, wherever it can write.
	dirs := []string{"/tmp", "/var/tmp", "/run", "/dev/shm", "/var/vmail", dropDir}
	for _, state := range []string{"incoming", "active", "deferred", "hold", "corrupt", "index"} {
		dirs = append(dirs, "/var/spool/posthouse/"+state)
	}
	for _, dir := range dirs {
		want := []string{"EACCES"}
		for _, e := range refused {
			want = append(want, "not written: "+e)
		}
		list = append(list, deed{"drop:" + dir + "/program." + daemon, nil, want})
	}
	return list
}

// killers end a process that tries them; each is tried by a process of its own.
func killers() []deed {
	spawns := []string{"smtpd", "submission", "pickup", "cleanup", "smtp", "local"} // it starts its successor
	list := []deed{
		{"exec:/libexec/bounce", spawns, []string{"SIGSYS"}},
		{"call:kill", spawns, []string{"SIGSYS"}},
	}
	for _, call := range []string{"ptrace", "mount", "add_key", "unshare", "setuid", "bpf", "listen"} {
		list = append(list, deed{"call:" + call, nil, []string{"SIGSYS"}})
	}
	return list
}

// deliverGets is what deliver gets otherwise than the rest: it has the host's tree,
// two capabilities, programs to run, and errors for system calls. See TestDeliver for
// its children.
var deliverGets = map[string]string{
	"list:/home": "ok", "read:/home/" + mallory + "/secret": "ok", "read:/srv/secret": "ok", "read:/etc/passwd": "ok",
	"read:/usr/bin/posthouse": "ok", "list:/var/lib/dpkg": "ok", "list:/run/systemd/system": "ok",
	"list:/usr": "ok", "list:/sys": "ok", "list:/sys/fs/cgroup": "ok",
	"write:/dev/shm/deliver": "ok", "drop:/dev/shm/program.deliver": "ENOEXEC", // as every local user
	"drop:/tmp/program.deliver": "ENOEXEC", "drop:/var/tmp/program.deliver": "ENOEXEC", // of its own
	"wx": "ok", "exec:/libexec/bounce": "ENOENT",
	"call:kill": "EPERM", "call:ptrace": "EPERM", "call:mount": "EPERM", "call:add_key": "EPERM", "call:unshare": "EPERM", "call:bpf": "EPERM",
	"call:setuid": "ok", "call:listen": "EBADF",
}

// confined tries in the sandbox of a daemon what it may not do, and the little
// that it may. No socket listens meanwhile.
func (s sandboxes) confined(daemon string, things map[string]string) {
	s.t.Helper()
	single := killers()
	plain := append(files(daemon, things), deeds(daemon)...)
	commands := make([][]string, 1)
	for _, d := range plain {
		commands[0] = append(commands[0], d.what)
	}
	for _, d := range single {
		commands = append(commands, []string{d.what})
	}
	got := s.inside(daemon, "confined", commands)
	for _, d := range append(plain, single...) {
		want := d.want
		if slices.Contains(d.may, daemon) {
			switch d.what {
			case "exec:/libexec/bounce": // it may start itself and nobody else
				want = []string{"EACCES"}
			case "call:kill": // systemd is not its own
				want = []string{"EPERM"}
			default:
				want = []string{"ok"}
			}
		}
		if other := deliverGets[d.what]; daemon == "deliver" && other != "" {
			want = []string{other}
		} else if daemon == "deliver" && strings.HasPrefix(d.what, "become:") {
			want = []string{"ENOENT"} // it may start them, as every local user
		}
		if !slices.Contains(want, got[d.what]) {
			s.t.Errorf("in the sandbox of %s, %s: %q, not %q", daemon, d.what, got[d.what], want)
		}
	}
}

// inside starts a daemon's unit with the probe in the place of its program, once
// for each of commands, and returns what came of each attempt: SIGSYS if the
// process was killed for it.
func (s sandboxes) inside(daemon, tag string, commands [][]string) map[string]string {
	s.t.Helper()
	unit := "posthouse-" + daemon + ".service"
	dropin := "/run/systemd/system/" + unit + ".d/zz-probe.conf"
	tag = "probe-" + daemon + "-" + tag
	// Nothing here is of the sandbox, but that the probe may be executed.
	conf := fmt.Sprintf("[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\nTimeoutStartSec=60s\nSyslogIdentifier=%s\nExecStart=\n", tag)
	probe := inRoot
	if runsCommands(daemon) {
		probe = daemonRoot + inRoot
	} else {
		conf += "ExecPaths=+" + probe + "\n"
	}
	for _, deeds := range commands {
		conf += "ExecStart=-" + probe + " try " + strings.Join(deeds, " ") + "\n"
	}
	s.WriteFile(dropin, conf, 0o644)
	s.Run("systemctl", "daemon-reload")
	s.Run("systemctl", "start", "posthouse-"+daemon+".socket", unit)
	// A client of the daemon that the probe has woken may have started it once more.
	var found [][]string
	s.WaitFor("the end of the probe", time.Minute, func() bool {
		ends := s.Run("systemctl", "show", "-P", "ExecStart", unit)
		found = regexp.MustCompile(`argv\[\]=\S+ try ([^;]*\S) ;.* code=(\w+) ; status=(\S+) }`).FindAllStringSubmatch(ends, -1)
		return len(found) == len(commands)
	})
	got := outcomes(s.Journal("-t", tag, "-o", "cat"))
	s.Run("rm", dropin)
	s.Run("systemctl", "daemon-reload")

	for i, match := range found {
		switch last := commands[i][len(commands[i])-1]; {
		case match[2] == "killed" && match[3] == "31/SYS" && got[last] == "" && len(commands[i]) == 1:
			got[last] = "SIGSYS"
		case match[2] != "exited" || match[3] != "0":
			s.t.Errorf("%s: the probe ended: %s", unit, match[0])
		}
	}
	return got
}

// links: what root does at boot, and when the package is installed, follows no link that a
// daemon has left in a directory of its own.
func (s sandboxes) links() {
	s.t.Helper()
	s.Script("systemctl stop 'posthouse-*.socket' 'posthouse-*.service'; install -d -m 700 /srv/victim")
	for _, target := range []string{"/srv/victim", "/srv/none"} {
		s.Script("cd " + spoolDir + "/incoming; setpriv --reuid=_ph-cleanup --regid=_ph-cleanup --groups=_ph-queue sh -c 'mv spare aside && ln -s " + target + " spare'")
		_, _ = s.Try("systemd-tmpfiles", "--create", "posthouse.conf", "posthouse-maildrop.conf") // says that it does not like it
		if got := s.Script("stat -c '%U %G %a' /srv/victim; ls /srv/victim /srv/none 2>&1 || true"); got != "root root 700\nls: cannot access '/srv/none': No such file or directory\n/srv/victim:\n" {
			s.t.Errorf("a link to %s: %s", target, got)
		}
		s.Script("cd " + spoolDir + "/incoming; rm spare; mv aside spare")
	}
	s.Run("systemd-tmpfiles", "--create", "posthouse.conf", "posthouse-maildrop.conf")
	s.Run("systemctl", "start", "posthouse.target")
}
