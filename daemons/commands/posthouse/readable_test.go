package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"posthouse/pkg/config"
)

// TestReadable: what root can read and daemons cannot is named, and nothing else.
func TestReadable(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(dir string) error
		want   string // less the directory
	}{
		"all is well":              {func(string) error { return nil }, ""},
		"a file":                   {chmod("conf.d/site.yaml", 0o600), "conf.d/site.yaml: daemons cannot read it: mode 0600, "},
		"the main file":            {chmod("posthouse.yaml", 0o640), "posthouse.yaml: daemons cannot read it: mode 0640, "},
		"a directory":              {chmod("conf.d", 0o751), "conf.d: daemons cannot read it: mode 0751, "},
		"tables":                   {chmod("tables", 0o744), "tables: daemons cannot read it: mode 0744, "},
		"tables that nobody lists": {chmod("tables", 0o711), ""},
		"all of it":                {chmod(".", 0o700), ": daemons cannot read it: mode 0700, "},
		"a table":                  {chmod("tables/relays", 0o600), "tables/relays: daemons cannot read it: mode 0600, "},
		"aliases":                  {chmod("aliases", 0o600), "aliases: daemons cannot read it: mode 0600, "},
		"what is no table":         {chmod("tables/Makefile", 0o600), ""},
		"an editor's file":         {chmod("conf.d/.site.yaml.swp", 0o600), ""},
		"a link inside":            {link("posthouse.yaml", "sites/main"), ""},
		"a link by the whole path": {func(dir string) error { return link("posthouse.yaml", dir+"/sites/main")(dir) }, ""},
		"a link to what is hidden": {func(dir string) error {
			return errors.Join(link("posthouse.yaml", "sites/main")(dir), chmod("sites", 0o700)(dir))
		}, "sites: daemons cannot read it"},
		"a link out":                 {link("posthouse.yaml", "/etc/hosts"), "posthouse.yaml: leads to /etc/hosts, and daemons see nothing outside of "},
		"a directory that leads out": {link("tables", "/etc"), "tables/users: leads to /etc/users, and"},
		"links to each other": {func(dir string) error {
			return errors.Join(link("tables/users", "transport")(dir), link("tables/transport", "users")(dir))
		}, "tables/users: more than 40 links"},
		"a link to nothing": {link("tables/users", "none"), "tables/users: leads to "},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, file := range []string{"posthouse.yaml", "conf.d/site.yaml", "conf.d/.site.yaml.swp", "tables/relays", "tables/Makefile", "aliases", "sites/main"} {
				path := filepath.Join(dir, file)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			cfg, err := config.Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			cfg.Local.Aliases = []string{dir + "/aliases", "/etc/shadow"}
			cfg.Domains.Relay = map[string]config.RelayDomain{"a.example": {}, "b.example": {Recipients: "relays"}}
			if err := tt.change(dir); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = chmod(".", 0o755)(dir) }()
			var errs []string
			readable(dir, cfg, func(err error) { errs = append(errs, strings.TrimPrefix(err.Error(), dir+"/")) })
			if len(errs) == 0 && tt.want != "" || len(errs) > 0 && (tt.want == "" || !strings.Contains(errs[0], tt.want)) {
				t.Errorf("%q, want %q", errs, tt.want)
			}
			// The directory may be a link itself.
			if tt.want == "" && name != "a link by the whole path" {
				other := filepath.Join(t.TempDir(), "posthouse")
				if err := os.Symlink(dir, other); err != nil {
					t.Fatal(err)
				}
				readable(other, cfg, func(err error) { t.Errorf("by a link: %v", err) })
			}
		})
	}
}

// TestCheckAliases: aliases that local does not see are named.
func TestCheckAliases(t *testing.T) {
	dir, srv := t.TempDir(), t.TempDir()
	defer func(old func(context.Context, ...string) (string, error)) { systemctl = old }(systemctl)
	state := "loaded"
	systemctl = func(context.Context, ...string) (string, error) {
		return "BindPaths=\nBindReadOnlyPaths=/etc:/etc:rbind -" + srv + "/lists:" + srv + "/lists:rbind\nLoadState=" + state + "\n", nil
	}
	err := errors.Join(os.MkdirAll(srv+"/lists/a", 0o755), os.WriteFile(srv+"/lists/a/b", nil, 0o644), os.WriteFile(srv+"/listserver", nil, 0o644),
		os.Symlink("lists/a/b", srv+"/good"), os.Symlink("../listserver", srv+"/lists/bad"))
	if err != nil {
		t.Fatal(err)
	}
	needs := func(name string) string {
		return "local.aliases: posthouse-local.service does not see " + srv + name + ": it needs a drop-in with BindReadOnlyPaths=" + srv
	}
	for path, want := range map[string]string{
		dir + "/aliases":    "",
		"/etc/passwd":       "",
		srv + "/lists/none": "local.aliases: lstat " + srv + "/lists/none: ",
		srv + "/lists/a/b":  "",
		srv + "/good":       needs("/good"),
		srv + "/listserver": needs("/listserver"),
		srv + "/lists/bad":  needs("/listserver"),
		"/etc/shadow":       "/etc/shadow: daemons cannot read it: mode 0",
	} {
		if err := os.WriteFile(dir+"/posthouse.yaml", []byte("local: {aliases: ["+path+"]}\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		checkAliases(dir, cfg, func(err error) { got += err.Error() })
		if want == "" && got != "" || !strings.HasPrefix(strings.TrimPrefix(got, dir+"/posthouse.yaml:1: "), want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
		state = "not-found"
		checkAliases(dir, cfg, func(err error) { t.Errorf("without the unit: %v", err) })
		state = "loaded"
	}
}

func chmod(name string, mode fs.FileMode) func(dir string) error {
	return func(dir string) error { return os.Chmod(filepath.Join(dir, name), mode) }
}

// link puts a link in the place of what is there.
func link(name, target string) func(dir string) error {
	return func(dir string) error {
		return errors.Join(os.RemoveAll(filepath.Join(dir, name)), os.Symlink(target, filepath.Join(dir, name)))
	}
}

// TestReader: who may is said by one of three parts of the mode.
func TestReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	uid, gid := fmt.Sprint(os.Getuid()), fmt.Sprint(os.Getgid())
	for _, tt := range []struct {
		r    reader
		mode fs.FileMode
		may  bool
	}{
		{reader{}, 0o604, true},
		{reader{}, 0o640, false},
		{reader{"4711", []string{"4711", gid}}, 0o640, true},
		{reader{"4711", []string{"4711", gid}}, 0o604, false},
		{reader{"4711", []string{"4711"}}, 0o640, false},
		{reader{uid, []string{gid}}, 0o400, true},
		{reader{uid, []string{gid}}, 0o044, false},
	} {
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := tt.r.may(path, info, false); (err == nil) != tt.may {
			t.Errorf("%+v, mode %04o: %v", tt.r, tt.mode, err)
		}
	}
}

// TestCheckReadable: posthouse check says so.
func TestCheckReadable(t *testing.T) {
	dir := t.TempDir()
	conf := "hostname: mx.example\nlocal: {aliases: [" + dir + "/aliases]}\n"
	for mode, want := range map[fs.FileMode]int{0o644: 0, 0o600: 1} {
		err := errors.Join(os.WriteFile(filepath.Join(dir, "posthouse.yaml"), []byte(conf), 0o644), chmod("posthouse.yaml", mode)(dir))
		if err != nil {
			t.Fatal(err)
		}
		if errs := check(dir); len(errs) != want {
			t.Errorf("mode %04o: %v", mode, errs)
		}
	}
}

// TestCheckStore: a mail store that is not the agent's is reported, where it is for the
// agent to write there.
func TestCheckStore(t *testing.T) {
	store := t.TempDir()
	uid := strconv.Itoa(os.Getuid())
	for _, tt := range []struct {
		settings string
		r        reader
		mode     fs.FileMode
		faults   int
	}{
		{"", reader{uid: uid}, 0o750, 0},
		{"", reader{uid: "4711"}, 0o755, 1},
		{"", reader{uid: "4711", gids: []string{strconv.Itoa(os.Getgid())}}, 0o775, 0},
		{"", reader{}, 0o755, 0}, // nothing is installed
		{"routes: {virtual: 'lmtp:unix:/run/dovecot/lmtp'}\n", reader{uid: "4711"}, 0o755, 0},
		{"virtual: {base: " + store + "/none}\n", reader{uid: "4711"}, 0o755, 1},
	} {
		dir := t.TempDir()
		settings := tt.settings
		if !strings.Contains(settings, "base:") {
			settings += "virtual: {base: " + store + "}\n"
		}
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "posthouse.yaml"), []byte("domains: {virtual: {example.net: {}}}\n"+settings), 0o644), os.Chmod(store, tt.mode)); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		var faults []error
		checkStore(cfg, tt.r, func(err error) { faults = append(faults, err) })
		if len(faults) != tt.faults {
			t.Errorf("%q, %+v, mode %04o: %v", tt.settings, tt.r, tt.mode, faults)
		}
	}
}
