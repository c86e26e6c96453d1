package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"posthouse/pkg/cli"
	"posthouse/pkg/config"
)

// core are the units without which no mail moves. What comes and goes with one of
// them, as pickup's path unit does, is not listed.
var core = []string{
	"posthouse.target", "posthouse-pickup.socket", "posthouse-cleanup.socket", "posthouse-rewrite.socket",
	"posthouse-qmgr.socket", "posthouse-qmgr.timer",
	"posthouse-bounce.socket", "posthouse-showq.socket", "posthouse-smtp.socket",
}

// Subsystems that not everybody has a use for. Those that are not installed are
// skipped.
var (
	network = []string{"posthouse-smtpd.socket", "posthouse-dns.socket"}
	inside  = []string{"posthouse-virtual.socket", "posthouse-local.socket", "posthouse-deliver.socket"}
	submit  = []string{"posthouse-submission.socket"}
)

// profile is a set of units. What is in neither list is left as it is.
type profile struct {
	name, summary string
	on, off       []string
}

var profiles = []profile{
	{"workstation", "sendmail, the queue, and smtp to a smarthost; nothing listens, nothing is delivered here", core, slices.Concat(network, submit, inside)},
	{"relay", "takes mail at port 25, and delivers by smtp only", slices.Concat(core, network), inside},
	{"mailhost", "takes mail at port 25, and delivers to mailboxes, too", slices.Concat(core, network, inside), nil},
	{"none", "all is off; what is in the queue stays there, and sendmail has only the maildrop, if that is open", nil, slices.Concat(core, network, submit, inside)},
}

// presetFile says which profile is in force, to posthouse and to systemctl preset,
// and how it was before. Tests have their own.
var presetFile = "/etc/systemd/system-preset/40-posthouse-profile.preset"

// systemctl runs systemctl; tests have their own.
var systemctl = func(ctx context.Context, args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("systemctl %s: %w: %s", args[0], err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// systemctlTime bounds one call: a stop may drain for as long as its unit says.
const systemctlTime = 5 * time.Minute

func profileCommand(dir *string) *cli.Command {
	dry := false
	c := &cli.Command{
		Name: "profile", Args: "[NAME]", Summary: "say which subsystems this machine has",
		Description: "Without an argument: which profile is in force, and which units are not as it has them. With the name of a profile: enables and starts " +
			"the units that it has, disables and stops those that it does not have, and says so. The profile becomes a preset, in " + presetFile + ", so that systemctl preset agrees. " +
			"posthouse profile undo makes the units what they were before the first profile.\n\nMail for a subsystem that is off waits in the queue, and mailq says what for. " +
			"A workstation or relay needs domains: {local: []} in posthouse.yaml, and in origin the domain of its users, or mail for its own root, such as that of cron, waits for local.",
		Flags: func(set *flag.FlagSet) { set.BoolVar(&dry, "dry-run", false, "say what would be done, and do nothing") },
		Run: func(ctx context.Context, std cli.Streams, args []string) int {
			ctx, cancel := context.WithTimeout(ctx, systemctlTime)
			defer cancel()
			var err error
			switch {
			case len(args) == 0:
				err = showProfile(ctx, std)
			case len(args) > 1:
				return std.Errorf(cli.Usage, "posthouse profile takes one name")
			case args[0] == "undo":
				err = undoProfile(ctx, std, dry)
			default:
				i := slices.IndexFunc(profiles, func(p profile) bool { return p.name == args[0] })
				if i < 0 {
					return std.Errorf(cli.Usage, "posthouse profile: there is no profile %q\nTry: posthouse profile --help", args[0])
				}
				if err = setProfile(ctx, std, profiles[i], dry); err == nil {
					profiles[i].hint(std, *dir)
				}
			}
			switch {
			case errors.Is(err, fs.ErrPermission):
				return std.Errorf(cli.NoPerm, "Not allowed: %v", err)
			case err != nil:
				return std.Errorf(cli.TempFail, "%v", err)
			}
			return cli.OK
		},
	}
	for _, p := range profiles {
		c.Description += "\n\n" + p.name + ": " + p.summary + "."
	}
	return c
}

// setting is what a unit is, or is to be.
type setting struct {
	unit            string
	enabled, active bool
}

// states asks systemd for units. Those that are not installed are left out, as are
// those that the administrator has masked.
func states(ctx context.Context, units []string) (list []setting, err error) {
	out, err := systemctl(ctx, append([]string{"show", "--property=Id,LoadState,UnitFileState,ActiveState", "--"}, units...)...)
	if err != nil {
		return nil, err
	}
	for _, u := range properties(out) {
		if u["LoadState"] == "loaded" {
			list = append(list, setting{u["Id"], strings.HasPrefix(u["UnitFileState"], "enabled"), u["ActiveState"] == "active"})
		}
	}
	return list, nil
}

// changes are what installed units are, and what they are to be in p.
func (p profile) changes(ctx context.Context) (c changes, err error) {
	c.now, err = states(ctx, slices.Concat(p.on, p.off))
	for _, s := range c.now {
		on := slices.Contains(p.on, s.unit)
		c.want = append(c.want, setting{s.unit, on, on})
	}
	return c, err
}

func setProfile(ctx context.Context, std cli.Streams, p profile, dry bool) error {
	c, err := p.changes(ctx)
	if err != nil {
		return err
	}
	if !dry {
		_, before, err := readPreset()
		if err != nil {
			return err
		}
		for _, s := range c.now {
			if !slices.ContainsFunc(before, func(b setting) bool { return b.unit == s.unit }) {
				before = append(before, s)
			}
		}
		// First, so that there is something to undo, whatever happens.
		if err := p.writePreset(before); err != nil {
			return err
		}
	}
	return c.apply(ctx, std, dry)
}

// hint: the default of domains.local has the machine and its origin, so that the mail of
// cron would wait for local, where that is off, until it is given up.
func (p profile) hint(std cli.Streams, dir string) {
	if p.on == nil || !slices.Contains(p.off, "posthouse-local.socket") {
		return
	}
	c, err := config.Load(dir)
	// What is wrong with it is for posthouse check to say.
	if err != nil || len(c.Domains.Local) == 0 || c.Routes.Local != "local:" {
		return
	}
	fmt.Fprintf(std.Out, "mail for %s, such as that of cron, waits for posthouse-local.socket, which is off: set origin to the domain of its users, "+
		"and domains: {local: []}, and it goes where theirs goes\n", strings.Join(c.Domains.Local, ", "))
}

// step is one call of systemctl, for units that need it.
type step struct {
	verb  string
	needs func(now, want setting) bool
}

var steps = []step{
	{"stop", func(now, want setting) bool { return now.active && !want.active }},
	{"disable", func(now, want setting) bool { return now.enabled && !want.enabled }},
	{"enable", func(now, want setting) bool { return !now.enabled && want.enabled }},
	{"start", func(now, want setting) bool { return !now.active && want.active }},
}

// changes are what units are and what they are to be, in the same order.
type changes struct{ now, want []setting }

// apply makes the changes, and says what it does.
func (c changes) apply(ctx context.Context, std cli.Streams, dry bool) error {
	done := 0
	for _, s := range steps {
		var units []string
		for i, now := range c.now {
			if s.needs(now, c.want[i]) {
				units = append(units, now.unit)
			}
		}
		if len(units) == 0 {
			continue
		}
		done++
		fmt.Fprintf(std.Out, "%s %s\n", s.verb, strings.Join(units, " "))
		if dry {
			continue
		}
		if _, err := systemctl(ctx, append([]string{s.verb, "--"}, units...)...); err != nil {
			return err
		}
	}
	if done == 0 {
		fmt.Fprintln(std.Out, "nothing to be done")
	}
	return nil
}

func showProfile(ctx context.Context, std cli.Streams) error {
	name, _, err := readPreset()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(profiles, func(p profile) bool { return p.name == name })
	if i < 0 {
		fmt.Fprintln(std.Out, "no profile is in force")
		return nil
	}
	fmt.Fprintf(std.Out, "%s: %s\n", name, profiles[i].summary)
	c, err := profiles[i].changes(ctx)
	if err != nil {
		return err
	}
	words := map[bool]string{true: "enabled", false: "disabled"}
	for i, w := range c.want {
		if n := c.now[i]; n.enabled != w.enabled {
			fmt.Fprintf(std.Out, "%s is %s, the profile has it %s\n", n.unit, words[n.enabled], words[w.enabled])
		} else if n.active != w.active {
			fmt.Fprintf(std.Out, "%s is %s, but %s\n", n.unit, words[n.enabled], map[bool]string{true: "active", false: "not active"}[n.active])
		}
	}
	return nil
}

func undoProfile(ctx context.Context, std cli.Streams, dry bool) error {
	_, before, err := readPreset()
	if err != nil {
		return err
	}
	if before == nil {
		fmt.Fprintln(std.Out, "no profile is in force")
		return nil
	}
	var units []string
	for _, b := range before {
		units = append(units, b.unit)
	}
	var c changes
	if c.now, err = states(ctx, units); err != nil {
		return err
	}
	for _, n := range c.now { // some may have been removed
		c.want = append(c.want, before[slices.IndexFunc(before, func(b setting) bool { return b.unit == n.unit })])
	}
	if err := c.apply(ctx, std, dry); err != nil || dry {
		return err
	}
	return os.Remove(presetFile)
}

// The lines of the preset file that are for posthouse: which profile it is, and
// how units were.
const (
	profileLine = "# profile "
	beforeLine  = "# before "
)

func (p profile) writePreset(before []setting) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s\n# Written by posthouse profile; posthouse profile undo removes it.\n", profileLine, p.name)
	for _, s := range before {
		fmt.Fprintf(&b, "%s%s %t %t\n", beforeLine, s.unit, s.enabled, s.active)
	}
	for _, u := range p.on {
		fmt.Fprintf(&b, "enable %s\n", u)
	}
	for _, u := range p.off {
		fmt.Fprintf(&b, "disable %s\n", u)
	}
	if err := os.MkdirAll(filepath.Dir(presetFile), 0o755); err != nil {
		return err
	}
	temp := presetFile + ".new"
	if err := os.WriteFile(temp, []byte(b.String()), 0o644); err != nil {
		return err
	}
	return os.Rename(temp, presetFile)
}

// readPreset returns "" and nil where no profile is in force.
func readPreset() (name string, before []setting, err error) {
	data, err := os.ReadFile(presetFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, nil
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, profileLine); ok {
			name = rest
		}
		if rest, ok := strings.CutPrefix(line, beforeLine); ok {
			if f := strings.Fields(rest); len(f) == 3 {
				before = append(before, setting{f[0], f[1] == "true", f[2] == "true"})
			}
		}
	}
	return name, before, err
}
