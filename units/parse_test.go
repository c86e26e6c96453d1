package units_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// entry is one line of a unit file.
type entry struct{ section, key, value, file string }

// unit is a unit file together with the drop-ins of its prefix and of itself, in the order in which systemd reads them.
type unit struct {
	name    string // file name, with suffix
	own     []entry
	common  []entry
	last    []entry // of a drop-in of the unit itself, whose name sorts behind those of the prefix
	entries []entry // own, common, last
}

// parseUnit reads one unit file or drop-in.
func parseUnit(t *testing.T, path string) []entry {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var es []entry
	section := ""
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[' && strings.HasSuffix(line, "]"):
			section = line[1 : len(line)-1]
		default:
			key, value, ok := strings.Cut(line, "=")
			if !ok || section == "" || strings.HasSuffix(line, `\`) {
				t.Fatalf("%s:%d: not a setting: %q", path, i+1, line)
			}
			// What a template says of its own instance is read as said of itself.
			value = strings.ReplaceAll(strings.TrimSpace(value), "@%i.", "@.")
			es = append(es, entry{section, strings.TrimSpace(key), value, path})
		}
	}
	return es
}

// load reads all units of one kind (service, socket ...), by file name.
func load(t *testing.T, kind string) map[string]unit {
	t.Helper()
	files := glob(t, "posthouse*."+kind)
	dropins := glob(t, "posthouse-."+kind+".d/*.conf")
	us := map[string]unit{}
	for _, f := range files {
		u := unit{name: f, own: parseUnit(t, f)}
		if strings.HasPrefix(f, "posthouse-") {
			for _, d := range dropins {
				u.common = append(u.common, parseUnit(t, d)...)
			}
		}
		for _, d := range glob(t, f+".d/*.conf") {
			if filepath.Base(d) <= filepath.Base(dropins[len(dropins)-1]) {
				t.Errorf("%s is read before the drop-ins of all units", d)
			}
			u.last = append(u.last, parseUnit(t, d)...)
		}
		u.entries = slices.Concat(u.own, u.common, u.last)
		us[f] = u
	}
	if len(us) == 0 {
		t.Fatalf("no %s units", kind)
	}
	return us
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	fs, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(fs)
	return fs
}

// word is the daemon's word: "smtpd" of posthouse-smtpd.service, "pipe" of posthouse-pipe@.service.
func (u unit) word() string {
	w := strings.TrimPrefix(u.name, "posthouse-")
	return strings.TrimSuffix(strings.TrimSuffix(w, filepath.Ext(w)), "@")
}

// template reports whether it is the administrator who makes units of it.
func (u unit) template() bool { return strings.Contains(u.name, "@") }

// socket is the name of the socket unit of a service.
func (u unit) socket() string { return strings.TrimSuffix(u.name, ".service") + ".socket" }

// get is the value in force, the last one that is set.
func (u unit) get(key string) (string, bool) {
	for _, e := range slices.Backward(u.entries) {
		if e.key == key {
			return e.value, true
		}
	}
	return "", false
}

// list is every word of every value of key, since the last that is empty.
func (u unit) list(key string) []string {
	var all []string
	for _, e := range u.entries {
		switch {
		case e.key == key && e.value == "":
			all = nil
		case e.key == key:
			all = append(all, strings.Fields(e.value)...)
		}
	}
	return all
}

// want asserts settings, given as "Key=value".
func (u unit) want(t *testing.T, settings ...string) {
	t.Helper()
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		if got, ok := u.get(key); !ok || got != value {
			t.Errorf("%s: %s=%s, want %s", u.name, key, got, value)
		}
	}
}

// program is the name of the binary of a service.
func (u unit) program() string {
	e, _ := u.get("ExecStart")
	e, _, _ = strings.Cut(e, " ")
	return filepath.Base(e)
}
