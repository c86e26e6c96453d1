package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"posthouse/pkg/addr"
	"posthouse/pkg/aliases"
	"posthouse/pkg/cli"
	"posthouse/pkg/config"
	"posthouse/pkg/table"
	"posthouse/pkg/users"
)

func checkCommand(dir *string) *cli.Command {
	var asJSON bool
	return &cli.Command{
		Name: "check", Summary: "verify configuration and tables",
		Description: "Every fault is shown with its file and its line, setting or key, and so are files that root can read and daemons cannot. The daemons refuse what this refuses, and stay with what was in force before.",
		Flags: func(set *flag.FlagSet) {
			set.BoolVar(&asJSON, "json", false, "one JSON object: errors is a list of texts")
		},
		Run: func(_ context.Context, std cli.Streams, _ []string) int {
			errs := check(*dir)
			texts := make([]string, len(errs))
			for i, err := range errs {
				texts[i] = err.Error()
			}
			status := cli.OK
			if len(errs) > 0 {
				status = cli.Config
			}
			if asJSON {
				if err := json.NewEncoder(std.Out).Encode(map[string][]string{"errors": texts}); err != nil {
					return std.Errorf(cli.IOErr, "%v", err)
				}
				return status
			}
			for _, text := range texts {
				fmt.Fprintln(std.Err, text)
			}
			if status == cli.OK {
				fmt.Fprintln(std.Out, "configuration and tables are fine")
			}
			return status
		},
	}
}

// check returns everything that is wrong.
func check(dir string) []error {
	cfg, err := config.Load(dir)
	if err != nil {
		return []error{err}
	}
	var errs []error
	add := func(err error) {
		if !slices.ContainsFunc(errs, func(e error) bool { return e.Error() == err.Error() }) {
			errs = append(errs, err)
		}
	}
	readable(dir, cfg, add)
	checkAliases(dir, cfg, add)
	checkRoutes(cfg, add)
	tables := config.TablesDir(dir)
	// A lookup of anything makes a table read its file; it reports the rest.
	nobody, err := addr.New("nobody", "invalid")
	if err != nil {
		return append(errs, err)
	}
	if _, err := users.NewTable(filepath.Join(tables, "users"), add).Has(nobody); err == nil { // else it has been said
		list, err := users.NewFile(filepath.Join(tables, "users")).List()
		if err != nil {
			add(err)
		}
		for _, u := range list {
			if err := reachable(u.Address, cfg); err != nil {
				add(fmt.Errorf("%s: %w", filepath.Join(tables, "users"), err))
			}
		}
	}
	_, _, _ = table.NewAliases(filepath.Join(tables, "virtual_aliases"), add).Targets("")
	checkTransports(filepath.Join(tables, "transport"), cfg, add)
	for _, path := range cfg.Local.Aliases {
		_, _, _ = aliases.New(path, add).Lookup("")
	}
	for domain, d := range cfg.Domains.Relay {
		if d.Recipients == "" {
			continue
		}
		path := filepath.Join(tables, d.Recipients)
		if _, err := os.Stat(path); err != nil {
			setting := "domains.relay." + domain + ".recipients"
			add(fmt.Errorf("%s: %s: %w", cfg.SourceOf(setting), setting, err))
			continue
		}
		_, _, _ = table.NewText(path, add).Lookup("")
	}
	checkStore(cfg, newReader("_ph-virtual", "_ph-virtual"), add)
	return errs
}

func configCommand(dir *string) *cli.Command {
	var asJSON, changed bool
	return &cli.Command{
		Name: "config", Args: "[KEY...]", Summary: "show the settings in force and where they come from",
		Description: "A KEY selects the settings that begin with it.",
		Flags: func(set *flag.FlagSet) {
			set.BoolVar(&asJSON, "json", false, "one JSON object a line")
			set.BoolVar(&changed, "changed", false, "only what is not a default")
		},
		Run: func(_ context.Context, std cli.Streams, args []string) int {
			cfg, err := config.Load(*dir)
			if err != nil {
				return std.Errorf(cli.Config, "%v", err)
			}
			for _, key := range args {
				if !config.Known(key) {
					return std.Errorf(cli.Usage, "there is no setting %q: see posthouse.yaml(5)", key)
				}
			}
			for _, s := range cfg.Settings() {
				if changed && s.Source == "default" || !selected(s.Key, args) {
					continue
				}
				if asJSON {
					err = json.NewEncoder(std.Out).Encode(s)
				} else {
					_, err = fmt.Fprintf(std.Out, "%-40s %-30s # %s\n", s.Key+":", fmt.Sprint(s.Value), s.Source)
				}
				if err != nil {
					return std.Errorf(cli.IOErr, "%v", err)
				}
			}
			return cli.OK
		},
	}
}

func selected(key string, prefixes []string) bool {
	for _, p := range prefixes {
		if key == p || strings.HasPrefix(key, p+".") {
			return true
		}
	}
	return len(prefixes) == 0
}
