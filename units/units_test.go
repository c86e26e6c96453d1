// Package units_test holds the units to what docs/architecture.md and the design promise.
package units_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Settings that add up when they are given again. All others may be set once only, for a drop-in wins over its unit.
var lists = []string{
	"After", "BindPaths", "BindReadOnlyPaths", "Environment", "ExecPaths", "ListenStream", "NoExecPaths",
	"RestrictAddressFamilies", "SupplementaryGroups", "SystemCallFilter", "Wants",
}

func TestEachSettingStandsInOnePlace(t *testing.T) {
	for _, kind := range []string{"service", "socket", "timer", "target", "slice"} {
		for _, u := range load(t, kind) {
			seen := map[string]entry{}
			for _, e := range slices.Concat(u.own, u.common) {
				if first, ok := seen[e.key]; ok && !slices.Contains(lists, e.key) {
					t.Errorf("%s: %s= is in %s and in %s", u.name, e.key, first.file, e.file)
				}
				seen[e.key] = e
			}
		}
	}
}

// Limits whose default ends in a failed socket, so in refused connections, and conditions that make systemd spin.
func TestDaemonsMayComeAndGo(t *testing.T) {
	for _, u := range load(t, "service") {
		u.want(t, "StartLimitIntervalSec=0", "PartOf=posthouse.target", "Slice=posthouse.slice", "Type=notify", "NotifyAccess=main",
			"Restart=on-failure", "RestartSec=2s", "WatchdogSec=60s", "ExecReload=+/bin/kill -HUP $MAINPID",
			"RootDirectoryStartOnly=yes")
		// What wants a daemon started beside it must not switch it on: Requires= and
		// Sockets= would start the socket.
		u.want(t, "Requisite="+u.socket())
		for _, key := range []string{"Requires", "Sockets"} {
			if _, ok := u.get(key); ok {
				t.Errorf("%s: %s= brings back a socket that is off", u.name, key)
			}
		}
		if !slices.Contains(u.list("After"), u.socket()) {
			t.Errorf("%s: After= lacks its own socket", u.name)
		}
		if _, ok := u.get("TimeoutStopSec"); !ok {
			t.Errorf("%s: no TimeoutStopSec=", u.name)
		}
		for _, e := range u.entries {
			if strings.HasPrefix(e.key, "Condition") || strings.HasPrefix(e.key, "Assert") {
				t.Errorf("%s: %s= in an activated service makes systemd spin", u.name, e.key)
			}
			if e.section == "Install" {
				t.Errorf("%s: services are started by their sockets, and not enabled", u.name)
			}
		}
		if strings.Contains(strings.Join(u.list("Environment"), " "), "GOMEMLIMIT=") == false {
			t.Errorf("%s: no GOMEMLIMIT", u.name)
		}
	}
	for _, u := range load(t, "socket") {
		u.want(t, "StartLimitIntervalSec=0", "TriggerLimitIntervalSec=0", "PartOf=posthouse.target", "Accept=no",
			"RemoveOnStop=yes", "DefaultDependencies=no", "Requires=sysinit.target", "Conflicts=shutdown.target", "Before=posthouse.target shutdown.target")
		if !slices.Contains(u.list("After"), "sysinit.target") {
			t.Errorf("%s is not after sysinit.target", u.name)
		}
		if !follows(u.name) {
			u.want(t, "WantedBy=posthouse.target")
		}
	}
}

// Units that come and go with a socket, by that, and are not enabled or disabled themselves.
var follow = map[string][]string{
	"posthouse-pickup.socket": {"posthouse-pickup.path", "posthouse-pickup-wake.socket"},
	"posthouse-qmgr.socket":   {"posthouse-qmgr-wake.socket", "posthouse-queue.socket"},
	"posthouse-local.socket":  {"posthouse-recipient.socket"},
}

func follows(name string) bool {
	for _, units := range follow {
		if slices.Contains(units, name) {
			return true
		}
	}
	return false
}

// What starts a daemon beside its socket must not do so where that is off: systemd
// would try again and again. So the socket wants it, and it is bound to the socket.
func TestWhatFollowsASocket(t *testing.T) {
	all := load(t, "socket")
	maps.Copy(all, load(t, "path"))
	for name, followers := range follow {
		same(t, "Wants", all[name].list("Wants"), followers)
		for _, follower := range followers {
			u := all[follower]
			u.want(t, "BindsTo="+name, "PartOf=posthouse.target", "TriggerLimitIntervalSec=0", "StartLimitIntervalSec=0")
			first, second := all[name], u
			if strings.HasSuffix(follower, ".socket") { // who has started the socket finds it
				first, second = u, all[name]
			}
			if !slices.Contains(second.list("After"), first.name) {
				t.Errorf("%s is not after %s", second.name, first.name)
			}
			for _, e := range u.own {
				if e.section == "Install" {
					t.Errorf("%s can be enabled by itself", u.name)
				}
			}
		}
	}
	for _, u := range all {
		service, named := u.get("Service")
		if named && !follows(u.name) {
			t.Errorf("%s starts %s, and does not follow its socket", u.name, service)
		}
	}
}

func TestMaildrop(t *testing.T) {
	paths := load(t, "path")
	paths["posthouse-pickup.path"].want(t, "Unit=posthouse-pickup.service", "DirectoryNotEmpty="+maildrop,
		"DefaultDependencies=no", "Requires=sysinit.target", "Conflicts=shutdown.target", "Before=shutdown.target")
	if len(paths) != 1 {
		t.Errorf("%d path units", len(paths))
	}
	modes := map[string][]string{}
	for _, l := range lines(t, "tmpfiles.d/posthouse-maildrop.conf") {
		modes[l[1]] = l[2:]
	}
	same(t, "who may reach the maildrop", modes[filepath.Dir(maildrop)], []string{"0700", "root", "root"})
	same(t, "the maildrop", modes[maildrop], []string{"3733", "_ph-pickup", "_ph-pickup"})
}

const maildrop = "/var/spool/posthouse/maildrop/drop"

// Services that run programs of others.
var commands = []string{"deliver", "pipe"}

func TestSandbox(t *testing.T) {
	for _, u := range load(t, "service") {
		if slices.Contains(commands, u.word()) {
			continue
		}
		u.want(t, "User=_ph-"+u.word(), "Group=_ph-"+u.word(), "RootDirectory=/usr/lib/posthouse/root",
			"ExecPaths=+/libexec/"+u.program(), "NoExecPaths=+/", "SyslogIdentifier=posthouse/"+u.program(),
			"NoNewPrivileges=yes", "CapabilityBoundingSet=", "AmbientCapabilities=", "SystemCallArchitectures=native",
			"ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes", "PrivateDevices=yes", "DevicePolicy=closed",
			"PrivateIPC=yes", "PrivateMounts=yes", "ProtectProc=invisible", "ProcSubset=pid", "ProtectHostname=yes",
			"ProtectKernelModules=yes", "ProtectKernelLogs=yes", "ProtectControlGroups=yes", "RestrictNamespaces=yes",
			"RestrictRealtime=yes", "RestrictSUIDSGID=yes", "LockPersonality=yes", "MemoryDenyWriteExecute=yes",
			"KeyringMode=private", "RemoveIPC=yes", "LimitCORE=0")
		for _, key := range []string{"SystemCallErrorNumber", "DynamicUser", "PermissionsStartOnly", "ExecStartPre", "ExecStartPost", "ReadWritePaths", "DeviceAllow"} {
			if _, ok := u.get(key); ok {
				t.Errorf("%s: %s= is set", u.name, key)
			}
		}
		for _, call := range u.list("SystemCallFilter") {
			if !regexp.MustCompile(`^[a-z_0-9]+$`).MatchString(call) {
				t.Errorf("%s: SystemCallFilter=%s: only single calls that are allowed", u.name, call)
			}
		}
		umask := "0077"
		if slices.Contains([]string{"cleanup", "qmgr"}, u.word()) {
			umask = "0007" // queue files are for the group _ph-queue
		}
		u.want(t, "UMask="+umask)
	}
}

// The rows of the design's table of daemons: who has a network, who sees callers, who sees which files.
func TestWhatADaemonSees(t *testing.T) {
	network := []string{"dns", "smtp"}
	spawns := []string{"smtpd", "submission", "pickup", "cleanup", "smtp", "local"}
	private, public, spool := "/run/posthouse/private", "/run/posthouse/public", "/var/spool/posthouse"
	reads := map[string][]string{
		"smtpd": {private}, "submission": {private}, "pickup": {private}, "bounce": {private}, "qmgr": {private}, "rewrite": {private},
		"cleanup": {private, public},
		"showq":   {spool},
		"dns":     {"-/etc/resolv.conf", "-/etc/hosts"},
		"local":   {private, "/etc", "-/run/systemd/userdb"},
		"smtp":    {"-/etc/resolv.conf", "-/etc/hosts", "-/run/dovecot"},
	}
	writes := map[string][]string{"cleanup": {spool + "/incoming"}, "pickup": {"-" + maildrop}, "qmgr": {spool}, "virtual": {"/var/vmail"}}
	common := []string{"/etc/posthouse", "-/etc/mailname", "-/etc/localtime", "/run/systemd/journal/socket"}
	for _, u := range load(t, "service") {
		if slices.Contains(commands, u.word()) {
			continue
		}
		same(t, u.name+" BindReadOnlyPaths", u.list("BindReadOnlyPaths"), slices.Concat(common, reads[u.word()]))
		same(t, u.name+" BindPaths", u.list("BindPaths"), writes[u.word()])
		families := u.list("RestrictAddressFamilies")
		if slices.Contains(network, u.word()) {
			same(t, u.name+" RestrictAddressFamilies", families, []string{"AF_UNIX", "AF_INET", "AF_INET6"})
		} else {
			same(t, u.name+" RestrictAddressFamilies", families, []string{"AF_UNIX"})
			u.want(t, "PrivateNetwork=yes", "IPAddressDeny=any")
		}
		if u.word() == "pickup" { // has to know which user submits
			u.want(t, "ProtectClock=yes", "ProtectKernelTunables=yes")
			if _, ok := u.get("PrivateUsers"); ok {
				t.Errorf("%s: PrivateUsers= hides the callers", u.name)
			}
		} else {
			u.want(t, "PrivateUsers=yes")
		}
		// Ended before the network is; no unit pulls it in.
		after, wants := u.list("After"), u.list("Wants")
		if slices.Contains(after, "network.target") != slices.Contains([]string{"smtpd", "submission", "smtp", "dns"}, u.word()) ||
			slices.Contains(after, "network-online.target") != slices.Contains(network, u.word()) ||
			slices.Contains(after, "nss-lookup.target") != slices.Contains(network, u.word()) || slices.Contains(wants, "network-online.target") {
			t.Errorf("%s: After=%q Wants=%q", u.name, after, wants)
		}
		calls := u.list("SystemCallFilter")
		for _, call := range []string{"fsync", "unlinkat", "renameat", "linkat", "pwrite64", "mkdirat"} {
			removes := u.word() == "pickup" && (call == "unlinkat" || call == "renameat") // and writes nothing
			writes := u.word() != "pickup" && writes[u.word()] != nil
			if slices.Contains(calls, call) != (writes || removes) {
				t.Errorf("%s: system call %s", u.name, call)
			}
		}
		for _, call := range []string{"kill", "pidfd_open", "waitid", "dup3"} {
			if slices.Contains(calls, call) != slices.Contains(spawns, u.word()) {
				t.Errorf("%s: system call %s", u.name, call)
			}
		}
		for _, call := range []string{"listen", "ptrace", "mount", "splice", "io_uring_setup", "fchown", "fchownat", "chown"} {
			if slices.Contains(calls, call) {
				t.Errorf("%s: system call %s", u.name, call)
			}
		}
	}
}

// Programs of others, in deliver and pipe, need the host's tree, and a list of system calls that are an error. All else is
// as it is for others, and no other unit has anything of this.
func TestCommands(t *testing.T) {
	for _, u := range load(t, "service") {
		if !slices.Contains(commands, u.word()) {
			if len(u.last) > 0 {
				t.Errorf("%s has a drop-in of its own: %q", u.name, u.last)
			}
			continue
		}
		u.want(t, "User=_ph-"+u.word(), "RootDirectory=",
			"SyslogIdentifier=posthouse/"+u.word(), "UMask=0077", "KillMode=mixed", "NoNewPrivileges=yes",
			"ProtectSystem=strict", "PrivateTmp=yes", "PrivateDevices=yes", "DevicePolicy=closed", "PrivateIPC=yes",
			"PrivateMounts=yes", "ProtectProc=invisible", "ProcSubset=pid", "ProtectHostname=yes", "ProtectClock=yes",
			"ProtectKernelModules=yes", "ProtectKernelLogs=yes", "ProtectKernelTunables=yes", "ProtectControlGroups=yes",
			"RestrictNamespaces=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes", "LockPersonality=yes", "KeyringMode=private",
			"RemoveIPC=yes", "LimitCORE=0", "PrivateNetwork=yes", "IPAddressDeny=any", "SystemCallArchitectures=native",
			"SystemCallErrorNumber=EPERM")
		stop := `/bin/sh -c '[ -z "$MAINPID" ] || { kill "$MAINPID" && exec tail --pid="$MAINPID" --sleep-interval=0.1 -f /dev/null; }'`
		if got, _ := u.get("ExecStop"); strings.TrimLeft(got, "-+") != stop {
			t.Errorf("%s: ExecStop=%s", u.name, got)
		}
		for _, key := range []string{"DynamicUser", "PermissionsStartOnly", "ExecStartPre", "ExecStartPost", "DeviceAllow"} {
			if _, ok := u.get(key); ok {
				t.Errorf("%s: %s= is set", u.name, key)
			}
		}
		same(t, u.name+" RestrictAddressFamilies", u.list("RestrictAddressFamilies"), []string{"AF_UNIX"})
		same(t, u.name+" ReadOnlyPaths", u.list("ReadOnlyPaths"), []string{"+/run"})
		same(t, u.name+" BindPaths", u.list("BindPaths"), nil)
		if calls := u.list("SystemCallFilter"); len(calls) == 0 || calls[0] != "@system-service" {
			t.Errorf("%s: SystemCallFilter=%q", u.name, calls)
		}
	}
}

// deliver becomes users: it has two capabilities, and sees their homes.
func TestDeliver(t *testing.T) {
	u := load(t, "service")["posthouse-deliver.service"]
	u.want(t, "ExecStart=/usr/lib/posthouse/root/libexec/deliver", "Group=_ph-deliver", "ProtectHome=no", "OOMPolicy=continue", "MemoryMax=50%", "TasksMax=2048",
		"CapabilityBoundingSet=CAP_SETUID CAP_SETGID", "AmbientCapabilities=CAP_SETUID CAP_SETGID")
	if _, ok := u.get("PrivateUsers"); ok {
		t.Errorf("%s: PrivateUsers= is set", u.name)
	}
	load(t, "socket")["posthouse-deliver.socket"].want(t, "RequiresMountsFor=/home /var/mail")
	same(t, "ReadWritePaths", u.list("ReadWritePaths"), []string{"-/home", "-/var/mail", "-/var/spool/mail"})
	same(t, "InaccessiblePaths", u.list("InaccessiblePaths"), []string{"/root", "-/var/vmail", "-/var/spool/posthouse", "-/var/log", "/run/posthouse/private", "-/run/user", "-/run/dbus", "-/run/screen"})
}

// A command is one unprivileged user, whom a drop-in names: without a group of ours, which would stay.
func TestPipe(t *testing.T) {
	u := load(t, "service")["posthouse-pipe@.service"]
	u.want(t, "ExecStart=/usr/lib/posthouse/root/libexec/pipe %i", "ProtectHome=yes", "CapabilityBoundingSet=", "AmbientCapabilities=",
		"PrivateUsers=yes", "OOMPolicy=continue", "MemoryMax=50%", "TasksMax=1024")
	for _, key := range []string{"Group", "SupplementaryGroups", "ReadWritePaths"} {
		if value, ok := u.get(key); ok {
			t.Errorf("%s: %s=%s", u.name, key, value)
		}
	}
	same(t, "InaccessiblePaths", u.list("InaccessiblePaths"), []string{"-/var/spool/posthouse", "-/var/log", "/run/posthouse/private", "-/run/user", "-/run/dbus", "-/run/screen"})
}

// same compares two lists as sets.
func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// row is one internal socket in the table of docs/architecture.md.
type row struct {
	served  string
	clients []string
}

// table reads the rows of private sockets and of the FIFO.
func table(t *testing.T) map[string]row {
	t.Helper()
	doc, err := os.ReadFile("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]row{}
	re := regexp.MustCompile("(?m)^\\| (?:FIFO )?`((?:private|public)/[a-z]+(?:-NAME)?)`[^|]*\\|[^|]*\\| ([a-z]+) \\| ([^|]*) \\|$")
	for _, m := range re.FindAllStringSubmatch(string(doc), -1) {
		rows["/run/posthouse/"+strings.Replace(m[1], "NAME", "%i", 1)] = row{served: m[2], clients: regexp.MustCompile(`[\w-]+`).FindAllString(m[3], -1)}
	}
	if len(rows) < 11 {
		t.Fatalf("docs/architecture.md: %d rows of internal sockets, want at least 11", len(rows))
	}
	return rows
}

func TestWhoMayTalkToWhom(t *testing.T) {
	services := load(t, "service")
	rows := table(t)
	path := func(u unit) string {
		for _, key := range []string{"ListenSequentialPacket", "ListenFIFO"} {
			if p, ok := u.get(key); ok {
				return p
			}
		}
		return ""
	}
	seen := map[string]bool{}
	for _, u := range load(t, "socket") {
		p := path(u)
		if p == "" { // the network's
			if !slices.Contains([]string{"smtpd", "submission"}, u.word()) {
				t.Errorf("%s: listens on neither a packet socket nor a FIFO", u.name)
			}
			continue
		}
		seen[p] = true
		r, ok := rows[p]
		if !ok {
			t.Errorf("%s: %s is not in docs/architecture.md", u.name, p)
			continue
		}
		service, ok := u.get("Service")
		if !ok {
			service = strings.TrimSuffix(u.name, ".socket") + ".service"
		}
		if service != "posthouse-"+r.served+".service" && !(u.template() && service == "posthouse-"+r.served+"@.service") {
			t.Errorf("%s: served by %s, want %s", u.name, service, r.served)
		}
		checkAccess(t, u, strings.TrimSuffix(filepath.Base(p), "-%i"), r, services)
	}
	for p := range rows {
		if !seen[p] {
			t.Errorf("no unit for %s", p)
		}
	}
}

// checkAccess compares a socket's owner, group and mode, and the services that have its group, with the table.
func checkAccess(t *testing.T, u unit, name string, r row, services map[string]unit) {
	t.Helper()
	group := "_ph-to-" + name
	switch u.word() {
	case "pickup", "showq":
		u.want(t, "SocketMode=0666")
		return
	case "queue":
		group = "_ph-admin"
		u.want(t, "SocketMode=0660")
		r.clients = nil // people
	case "qmgr-wake":
		u.want(t, "SocketMode=0220")
	case "pickup-wake": // whoever has dropped something
		u.want(t, "SocketMode=0622")
		return
	default:
		u.want(t, "SocketMode=0660")
	}
	u.want(t, "SocketUser=root", "SocketGroup="+group)
	var clients []string
	for _, s := range services {
		if slices.Contains(s.list("SupplementaryGroups"), group) {
			clients = append(clients, s.word())
		}
	}
	want := slices.DeleteFunc(slices.Clone(r.clients), func(c string) bool { return c == "root" })
	if slices.Contains(want, "smtpd") { // submission is a second instance of it
		want = append(want, "submission")
	}
	same(t, u.name+" clients", clients, want)
}

func TestDescriptorNames(t *testing.T) {
	names := map[string]string{"smtpd": "smtp", "submission": "submission", "pickup": "submit", "queue": "queue", "qmgr-wake": "wake", "pickup-wake": "wake", "recipient": "recipient"}
	for _, u := range load(t, "socket") {
		name, ok := names[u.word()]
		if !ok {
			name = "ipc"
		}
		u.want(t, "FileDescriptorName="+name)
	}
}
