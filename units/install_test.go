package units_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// lines are the words of each line of a file, without comments.
func lines(t *testing.T, path string) [][]string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var ls [][]string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 0 && f[0][0] != '#' {
			ls = append(ls, f)
		}
	}
	return ls
}

func TestUsersAndGroups(t *testing.T) {
	users, groups := []string{}, []string{}
	for _, l := range lines(t, "sysusers.d/posthouse.conf") {
		switch l[0] {
		case "u":
			users, groups = append(users, l[1]), append(groups, l[1])
		case "g":
			groups = append(groups, l[1])
		default:
			t.Errorf("sysusers.d: %q: units give groups to daemons, and nobody is a member of one", l)
		}
	}
	var wantUsers, wantGroups []string
	for _, u := range load(t, "service") {
		wantUsers = append(wantUsers, "_ph-"+u.word())
		wantGroups = append(append(wantGroups, "_ph-"+u.word()), u.list("SupplementaryGroups")...)
	}
	for _, u := range load(t, "socket") {
		wantGroups = append(wantGroups, u.list("SocketGroup")...)
	}
	slices.Sort(wantGroups)
	same(t, "users", users, wantUsers)
	same(t, "groups", groups, slices.Compact(wantGroups))
	for _, l := range slices.Concat(lines(t, "tmpfiles.d/posthouse.conf"), lines(t, "tmpfiles.d/posthouse-maildrop.conf")) {
		for i := range l[2:5] { // a colon: where it is made, and not where it is there
			var made bool
			if l[2+i], made = strings.CutPrefix(l[2+i], ":"); made == strings.Contains(l[1], "/posthouse") {
				t.Errorf("tmpfiles.d: %q: only what may be of others stays theirs", l)
			}
		}
		if l[3] != "root" && !slices.Contains(users, l[3]) || l[4] != "root" && !slices.Contains(groups, l[4]) {
			t.Errorf("tmpfiles.d: %q: unknown user or group", l)
		}
	}
}

// What is installed enabled, and that none of it listens to the network.
func TestPreset(t *testing.T) {
	var enabled []string
	rules := lines(t, "system-preset/50-posthouse.preset")
	for _, l := range rules {
		if l[0] == "enable" {
			enabled = append(enabled, l[1])
		}
	}
	if last := strings.Join(rules[len(rules)-1], " "); last != "disable posthouse-*" {
		t.Errorf("last rule is %q", last)
	}
	want := []string{"posthouse.target"}
	for name := range load(t, "timer") {
		want = append(want, name)
	}
	for name, u := range load(t, "socket") {
		if _, network := u.get("ListenStream"); !network && !follows(name) && !u.template() {
			want = append(want, name)
		}
	}
	same(t, "enabled units", enabled, want)
}

func TestEveryDaemonHasUnitsAndIsInstalled(t *testing.T) {
	var programs []string
	for _, u := range load(t, "service") {
		programs = append(programs, u.program())
	}
	slices.Sort(programs)
	programs = slices.Compact(programs)

	var daemons []string
	for _, main := range glob(t, "../daemons/*/main.go") {
		daemons = append(daemons, filepath.Base(filepath.Dir(main)))
	}
	for _, d := range daemons {
		if !slices.Contains(programs, d) {
			t.Errorf("no unit starts daemons/%s", d)
		}
	}

	var installed []string
	for _, l := range lines(t, "../packaging/files") {
		if l[0] == "file" && l[2] == "/usr/lib/posthouse/root/libexec/" {
			installed = append(installed, filepath.Base(l[3]))
		}
	}
	same(t, "daemons in packaging/files", installed, append(programs, "deliver-as")) // deliver starts it
}

// systemd makes missing mount points itself, in /usr; so every one is shipped.
func TestMountPointsAreInstalled(t *testing.T) {
	shipped := []string{}
	for _, l := range lines(t, "../packaging/files") {
		if l[0] == "dir" || l[0] == "empty" {
			shipped = append(shipped, l[2])
		}
	}
	for _, u := range load(t, "service") {
		for _, p := range slices.Concat(u.list("BindPaths"), u.list("BindReadOnlyPaths")) {
			at := "/usr/lib/posthouse/root" + strings.TrimPrefix(p, "-")
			if !slices.ContainsFunc(shipped, func(s string) bool { return s == at || strings.HasPrefix(s, at+"/") }) {
				t.Errorf("%s: packaging/files lacks the mount point %s", u.name, at)
			}
		}
	}
}

func TestNothingIsInstalledSetuid(t *testing.T) {
	for _, l := range lines(t, "../packaging/files") {
		if len(l) < 3 || l[0] != "link" && !regexp.MustCompile(`^0[0-7]{3}$`).MatchString(l[1]) {
			t.Errorf("packaging/files: %q: mode", l)
		}
	}
}

// A program that its processes may not read is one whose processes cannot be traced by who they are.
func TestDeliverAsCannotBeRead(t *testing.T) {
	mode := ""
	for _, l := range lines(t, "../packaging/files") {
		if l[0] == "file" && filepath.Base(l[len(l)-1]) == "deliver-as" {
			mode = l[1]
		}
	}
	if mode != "0711" {
		t.Errorf("packaging/files: mode of deliver-as: %q", mode)
	}
}

// TestReloadHasItsProgram: Debian has /bin/kill in a package that a small system need not have.
func TestReloadHasItsProgram(t *testing.T) {
	for _, l := range lines(t, "../packaging/deb/control") {
		if l[0] == "Depends:" && slices.Contains(l, "procps,") {
			return
		}
	}
	t.Error("the package does not depend on procps, whose kill ExecReload= runs")
}
