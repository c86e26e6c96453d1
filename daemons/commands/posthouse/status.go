package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"posthouse/pkg/cli"
	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/showq"
)

// status is the state of the mail system.
type status struct {
	Units []unit         `json:"units"`
	Queue map[string]int `json:"queue,omitempty"` // messages, by queue
	Note  string         `json:"note,omitempty"`  // why there is no queue
}

// queues are those that are shown, in order.
var queues = []showq.Queue{showq.Active, showq.Incoming, showq.Deferred, showq.Hold, showq.Corrupt}

type unit struct {
	Name    string `json:"name"`
	Enabled string `json:"enabled"`
	Active  string `json:"active"`
}

func statusCommand() *cli.Command {
	var asJSON bool
	return &cli.Command{
		Name: "status", Summary: "show which subsystems are on, and how much mail waits",
		Flags: func(set *flag.FlagSet) { set.BoolVar(&asJSON, "json", false, "as JSON") },
		Run: func(ctx context.Context, std cli.Streams, _ []string) int {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			s, err := gather(ctx)
			if err != nil {
				return std.Errorf(cli.Unavailable, "%v", err)
			}
			if asJSON {
				if err := json.NewEncoder(std.Out).Encode(s); err != nil {
					return std.Errorf(cli.IOErr, "%v", err)
				}
				return cli.OK
			}
			for _, u := range s.Units {
				fmt.Fprintf(std.Out, "%-34s %-10s %s\n", u.Name, u.Enabled, u.Active)
			}
			if s.Note != "" {
				fmt.Fprintf(std.Out, "\nqueue: %s\n", s.Note)
				return cli.OK
			}
			fmt.Fprintln(std.Out)
			for _, q := range queues {
				fmt.Fprintf(std.Out, "%-10s %d\n", q, s.Queue[q.String()])
			}
			return cli.OK
		},
	}
}

// gather asks systemd for the sockets, which are what is enabled and disabled,
// and showq for the queue.
func gather(ctx context.Context) (*status, error) {
	units, err := sockets(ctx)
	if err != nil {
		return nil, err
	}
	s := &status{Units: units, Queue: make(map[string]int)}
	for _, q := range queues {
		s.Queue[q.String()] = 0
	}
	err = showq.List(ctx, showqPath, func(page []showq.Entry) error {
		for i := range page {
			s.Queue[page[i].Queue.String()]++
		}
		return nil
	})
	var off *ipc.UnavailableError
	switch {
	case errors.As(err, &off):
		s.Queue, s.Note = nil, "not known: posthouse-showq.socket is off"
	case err != nil:
		return nil, err
	}
	return s, nil
}

// sockets are those that are installed, and instances of templates that systemd has in
// memory: it has none in memory that is off, and a pattern is for what it has.
func sockets(ctx context.Context) ([]unit, error) {
	const pattern = "posthouse*.socket"
	files, err := systemctl(ctx, "list-unit-files", "--no-legend", "--", pattern)
	if err != nil {
		return nil, err
	}
	show := []string{"show", "--property=Id,UnitFileState,ActiveState", "--all", "--", pattern}
	for line := range strings.Lines(files) {
		if f := strings.Fields(line); len(f) > 0 && !strings.Contains(f[0], "@.") {
			show = append(show, f[0])
		}
	}
	out, err := systemctl(ctx, show...)
	if err != nil {
		return nil, err
	}
	return slices.Compact(parseUnits(out)), nil
}

// properties reads what systemctl show prints: properties of units, an empty line
// between two of them.
func properties(text string) (units []map[string]string) {
	for block := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		u := make(map[string]string)
		for line := range strings.Lines(block) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			u[key] = value
		}
		units = append(units, u)
	}
	return units
}

func parseUnits(text string) []unit {
	var units []unit
	for _, u := range properties(text) {
		if u["Id"] != "" {
			units = append(units, unit{u["Id"], u["UnitFileState"], u["ActiveState"]})
		}
	}
	slices.SortFunc(units, func(a, b unit) int { return strings.Compare(a.Name, b.Name) })
	return units
}
