package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"posthouse/pkg/config"
	"posthouse/pkg/table"
)

// ownTransports are those that need no unit of their own, or have it from us. Commands are
// pipe-NAME.
var ownTransports = strings.Fields("smtp relay lmtp local virtual error retry discard")

// unitDirs is where the administrator and packages put units; tests have their own.
var unitDirs = []string{"/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// checkRoutes reports settings by which mail goes where nobody is.
func checkRoutes(cfg *config.Config, add func(error)) {
	look := func(setting, route string) {
		if err := checkRoute(cfg, route); err != nil {
			add(fmt.Errorf("%s: %s: %w", cfg.SourceOf(setting), setting, err))
		}
	}
	routes := cfg.AllRoutes()
	for _, setting := range slices.Sorted(maps.Keys(routes)) {
		look(setting, routes[setting])
	}
	for _, transport := range cfg.Queue.DeferTransports {
		look("queue.defer_transports", transport)
	}
}

// checkTransports reports entries of the transport table that lead nowhere, or that nothing
// is looked up by.
func checkTransports(path string, cfg *config.Config, add func(error)) {
	transports, err := table.NewText(path, add).Entries()
	if err != nil {
		return // it has been said
	}
	for _, key := range slices.Sorted(maps.Keys(transports)) {
		err := checkRoute(cfg, transports[key])
		if strings.HasSuffix(key, ":") {
			err = errors.New("no colon stands behind the key in this table")
		}
		if err != nil {
			add(fmt.Errorf("%s: %s: %w", path, key, err))
		}
	}
}

// checkRoute reports that the transport of a route does not exist, or that its next hop is
// no host or has a port that is none. Either may be missing.
func checkRoute(cfg *config.Config, route string) error {
	transport, nexthop, _ := strings.Cut(route, ":")
	if err := cfg.CheckTransport(transport); err != nil {
		return err
	}
	if _, pipe := config.PipeOf(transport); transport != "" && !pipe && !slices.Contains(ownTransports, transport) && !hasUnit(transport) {
		return fmt.Errorf("transport %s is none of %s, and there is no posthouse-%s.socket", transport, strings.Join(ownTransports, ", "), transport)
	}
	if !slices.Contains([]string{"smtp", "relay", "lmtp"}, transport) {
		return nil
	}
	if path, unix := strings.CutPrefix(nexthop, "unix:"); unix {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%q is not the path of a socket", path)
		}
		return nil
	}
	host, _, _, err := config.SplitNexthop(strings.TrimPrefix(nexthop, "inet:"))
	if err == nil && strings.ContainsAny(host, "/@ ") { // smtp://host
		err = fmt.Errorf("%q is not a host", host)
	}
	return err
}

// hasUnit reports whether a site has an agent of its own.
func hasUnit(transport string) bool {
	return slices.ContainsFunc(unitDirs, func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "posthouse-"+transport+".socket"))
		return err == nil
	})
}
