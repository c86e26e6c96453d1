package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"posthouse/pkg/cli"
)

// fakeSystemd is systemd with some units installed.
type fakeSystemd struct {
	units map[string]setting
	fail  string // a verb
	calls int
}

func (f *fakeSystemd) run(_ context.Context, args ...string) (string, error) {
	verb := args[0]
	if verb == f.fail {
		return "", errors.New("failed")
	}
	var out strings.Builder
	for _, u := range args[slices.Index(args, "--")+1:] {
		s, ok := f.units[u]
		switch verb {
		case "show":
			if !ok {
				fmt.Fprintf(&out, "Id=%s\nLoadState=not-found\nUnitFileState=\nActiveState=inactive\n\n", u)
				continue
			}
			fmt.Fprintf(&out, "Id=%s\nLoadState=loaded\nUnitFileState=%s\nActiveState=%s\n\n", u,
				map[bool]string{true: "enabled", false: "disabled"}[s.enabled], map[bool]string{true: "active", false: "inactive"}[s.active])
			continue
		case "enable", "disable":
			s.enabled = verb == "enable"
		case "start", "stop":
			s.active = verb == "start"
		}
		if !ok {
			return "", fmt.Errorf("%s is not installed", u)
		}
		f.calls++
		f.units[u] = s
	}
	return out.String(), nil
}

// configDir is where the configuration is.
var configDir string

// configure writes the configuration.
func configure(t *testing.T, text string) {
	t.Helper()
	configDir = t.TempDir()
	if err := os.WriteFile(filepath.Join(configDir, "posthouse.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// install has a systemd with all units of the source, enabled by the preset.
func install(t *testing.T) *fakeSystemd {
	t.Helper()
	configure(t, "domains: {local: []}\n")
	f := &fakeSystemd{units: map[string]setting{}}
	enabled := presets(t)
	for _, u := range installable(t) {
		f.units[u] = setting{u, enabled[u], enabled[u]}
	}
	old, oldFile := systemctl, presetFile
	systemctl, presetFile = f.run, filepath.Join(t.TempDir(), "presets/40.preset")
	t.Cleanup(func() { systemctl, presetFile = old, oldFile })
	return f
}

// installable are the units that can be enabled.
func installable(t *testing.T) (units []string) {
	t.Helper()
	files, err := filepath.Glob("../../../units/posthouse*.*")
	if err != nil || len(files) == 0 {
		t.Fatal(err, files)
	}
	for _, f := range files {
		if strings.Contains(f, "@") {
			continue // what is made of a template is the administrator's, whatever the profile
		}
		if data, err := os.ReadFile(f); err == nil && strings.Contains(string(data), "[Install]") {
			units = append(units, filepath.Base(f))
		}
	}
	return units
}

func presets(t *testing.T) map[string]bool {
	t.Helper()
	data, err := os.ReadFile("../../../units/system-preset/50-posthouse.preset")
	if err != nil {
		t.Fatal(err)
	}
	enabled := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "enable" {
			enabled[f[1]] = true
		}
	}
	return enabled
}

func runProfile(t *testing.T, args ...string) (out string, status int) {
	t.Helper()
	var o, e strings.Builder
	status = profileCommand(&configDir).Main(t.Context(), cli.Streams{Out: &o, Err: &e}, args)
	return o.String() + e.String(), status
}

// TestProfileTable: each unit is in the table once for each profile, but for
// submission, which a mail host or relay may have or not. The package's preset is
// within the profile of a mail host.
func TestProfileTable(t *testing.T) {
	all := installable(t)
	for _, p := range profiles {
		for _, u := range all {
			n := 0
			for _, x := range slices.Concat(p.on, p.off) {
				if x == u {
					n++
				}
			}
			if free := (p.name == "relay" || p.name == "mailhost") && u == "posthouse-submission.socket"; n != 1 && !(free && n == 0) {
				t.Errorf("%s: %s is %d times in the table", p.name, u, n)
			}
			if p.name == "mailhost" && presets(t)[u] && !slices.Contains(p.on, u) {
				t.Errorf("the preset enables %s, %s does not have it", u, p.name)
			}
		}
	}
}

// TestProfile: a profile makes units what it says, once, can be followed by
// another one, and all of it can be undone.
func TestProfile(t *testing.T) {
	f := install(t)
	f.units["posthouse-submission.socket"] = setting{"posthouse-submission.socket", false, true} // by hand
	before := fmt.Sprint(f.units)
	if out, status := runProfile(t); status != cli.OK || out != "no profile is in force\n" {
		t.Errorf("%d %s", status, out)
	}
	out, status := runProfile(t, "workstation", "--dry-run")
	if status != cli.OK || fmt.Sprint(f.units) != before || f.calls > 0 {
		t.Errorf("a dry run: %d %s", status, out)
	}
	if _, err := os.Stat(presetFile); err == nil {
		t.Error("a dry run leaves a preset")
	}
	again, status := runProfile(t, "workstation")
	want := "stop posthouse-dns.socket posthouse-submission.socket posthouse-virtual.socket posthouse-local.socket posthouse-deliver.socket\n" +
		"disable posthouse-dns.socket posthouse-virtual.socket posthouse-local.socket posthouse-deliver.socket\n"
	if status != cli.OK || again != out || again != want {
		t.Errorf("%d %s, the dry run said %s", status, again, out)
	}
	for u, s := range f.units {
		if on := slices.Contains(core, u); s.enabled != on || s.active != on {
			t.Errorf("workstation: %+v", s)
		}
	}
	if out, _ := runProfile(t, "workstation"); out != "nothing to be done\n" {
		t.Errorf("again: %s", out)
	}
	f.units["posthouse-virtual.socket"] = setting{"posthouse-virtual.socket", true, true}
	if out, _ := runProfile(t); !strings.HasPrefix(out, "workstation: ") || !strings.HasSuffix(out, "\nposthouse-virtual.socket is enabled, the profile has it disabled\n") {
		t.Errorf("shown: %s", out)
	}
	if out, status := runProfile(t, "relay"); status != cli.OK || !strings.Contains(out, "enable posthouse-smtpd.socket posthouse-dns.socket\nstart posthouse-smtpd.socket posthouse-dns.socket\n") {
		t.Errorf("relay: %d %s", status, out)
	}
	preset, err := os.ReadFile(presetFile)
	if err != nil || !strings.Contains(string(preset), "\nenable posthouse-smtpd.socket\n") || !strings.Contains(string(preset), "\ndisable posthouse-virtual.socket\n") {
		t.Errorf("preset: %v\n%s", err, preset)
	}
	if out, status := runProfile(t, "undo"); status != cli.OK || fmt.Sprint(f.units) != before {
		t.Errorf("undone: %d %s%v, was %s", status, out, f.units, before)
	}
	if out, status := runProfile(t, "undo"); status != cli.OK || out != "no profile is in force\n" {
		t.Errorf("undone twice: %d %s", status, out)
	}
}

// TestProfileFails: what could be done can be undone, and nothing is done that
// could not be.
func TestProfileFails(t *testing.T) {
	f := install(t)
	before := fmt.Sprint(f.units)
	f.fail = "start"
	if out, status := runProfile(t, "relay"); status != cli.TempFail || !strings.Contains(out, "failed") {
		t.Errorf("%d %s", status, out)
	}
	f.fail = ""
	if out, status := runProfile(t, "undo"); status != cli.OK || fmt.Sprint(f.units) != before {
		t.Errorf("undone: %d %s", status, out)
	}
	for _, args := range [][]string{{"unknown"}, {"relay", "mailhost"}, {"--unknown"}} {
		if out, status := runProfile(t, args...); status != cli.Usage {
			t.Errorf("%q: %d %s", args, status, out)
		}
	}
	f.calls = 0
	presetFile = "/proc/nonexistent/preset"
	if out, status := runProfile(t, "relay"); status == cli.OK || f.calls > 0 {
		t.Errorf("nothing is remembered: %d %s", status, out)
	}
}

// TestProfileHint: who has local off is told what mail would wait for it.
func TestProfileHint(t *testing.T) {
	install(t)
	const hint = "\nmail for mail.example.org, localhost, example.org, such as that of cron, waits for posthouse-local.socket, which is off: "
	for _, c := range []struct {
		more, profile string
		hinted        bool
	}{
		{"", "workstation", true},
		{"", "relay", true},
		{"", "mailhost", false},
		{"", "none", false},
		{"domains: {local: []}\n", "workstation", false},
		{"domains: {local: []}\n", "relay", false},
		{"routes: {local: \"smtp:[192.0.2.1]\"}\n", "workstation", false},
		{"no: such setting\n", "workstation", false},
	} {
		configure(t, "hostname: mail.example.org\norigin: example.org\n"+c.more)
		if out, status := runProfile(t, c.profile); status != cli.OK || strings.Contains(out, hint) != c.hinted || strings.Contains(out, "cron") != c.hinted {
			t.Errorf("%s with %q: %d %s", c.profile, c.more, status, out)
		}
	}
}
