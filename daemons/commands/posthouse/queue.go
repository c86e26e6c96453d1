package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"posthouse/pkg/cli"
	"posthouse/pkg/ipc"
	"posthouse/pkg/mailq"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/protocol/showq"
	"posthouse/pkg/queueid"
)

// listTimeout bounds a listing of the whole queue.
const listTimeout = 10 * time.Minute

// filter selects messages. An empty field selects all.
type filter struct {
	queue, sender, recipient, domain, reason string
}

func (f *filter) flags(set *flag.FlagSet) {
	set.StringVar(&f.queue, "queue", "", "only messages in this `QUEUE`: active, incoming, deferred, hold, corrupt")
	set.StringVar(&f.sender, "sender", "", "only messages from this `ADDRESS`, or part of one; <> for none")
	set.StringVar(&f.recipient, "recipient", "", "only messages to this `ADDRESS`, or part of one")
	set.StringVar(&f.domain, "domain", "", "only messages to this `DOMAIN`")
	set.StringVar(&f.reason, "reason", "", "only messages whose last reason has this `TEXT`")
}

func (f *filter) any() bool { return *f != filter{} }

func contains(s, part string) bool {
	return strings.Contains(strings.ToLower(s), strings.ToLower(part))
}

// match reports whether e is selected: by one of its recipients where the
// filter says something about recipients.
func (f *filter) match(e *showq.Entry) bool {
	if f.queue != "" && e.Queue.String() != f.queue {
		return false
	}
	if f.sender == "<>" && !e.Sender.IsNull() || f.sender != "" && f.sender != "<>" && !contains(e.Sender.String(), f.sender) {
		return false
	}
	if f.recipient == "" && f.domain == "" && f.reason == "" {
		return true
	}
	for i := range e.Recipients {
		r := &e.Recipients[i]
		if contains(r.Address.String(), f.recipient) && (f.domain == "" || strings.EqualFold(r.Address.Domain(), f.domain)) && contains(r.Reason, f.reason) {
			return true
		}
	}
	return false
}

func queueCommand() *cli.Command {
	c := &cli.Command{Name: "queue", Summary: "show and steer the queue", Subs: []*cli.Command{listCommand(), showCommand()}}
	for _, op := range []struct {
		op            queuectl.Op
		name, summary string
	}{
		{queuectl.Hold, "hold", "set messages aside until they are released"},
		{queuectl.Release, "release", "end the hold of messages"},
		{queuectl.Retry, "retry", "deliver messages now that wait for their next attempt"},
		{queuectl.Requeue, "requeue", "treat messages as new: forget what was tried"},
		{queuectl.Delete, "delete", "remove messages; nobody is told"},
	} {
		c.Subs = append(c.Subs, steerCommand(op.op, op.name, op.summary))
	}
	return c
}

func listCommand() *cli.Command {
	var f filter
	var asJSON bool
	return &cli.Command{
		Name: "list", Summary: "list the queue",
		Flags: func(set *flag.FlagSet) { f.flags(set); set.BoolVar(&asJSON, "json", false, "one JSON object a line") },
		Run: func(ctx context.Context, std cli.Streams, args []string) int {
			if len(args) > 0 {
				return std.Errorf(cli.Usage, "posthouse queue list takes no arguments")
			}
			var p mailq.Printer = &mailq.Text{W: std.Out}
			if asJSON {
				p = mailq.JSON{W: std.Out}
			}
			return list(ctx, std, &f, p)
		},
	}
}

// list prints what f selects.
func list(ctx context.Context, std cli.Streams, f *filter, p mailq.Printer) int {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	err := showq.List(ctx, showq.Path, func(e *showq.Entry) error {
		if !f.match(e) {
			return nil
		}
		return p.Entry(e)
	})
	if err == nil {
		err = p.End()
	}
	return report(std, "posthouse-showq.socket", err)
}

// report prints an error and returns the exit status for it.
func report(std cli.Streams, unit string, err error) int {
	var off *ipc.UnavailableError
	switch {
	case err == nil || errors.Is(err, syscall.EPIPE):
		return cli.OK
	case errors.As(err, &off):
		return std.Errorf(cli.Unavailable, "The mail system is off: %v\nTry: systemctl enable --now %s", err, unit)
	case errors.Is(err, fs.ErrPermission):
		return std.Errorf(cli.NoPerm, "Not allowed: %v", err)
	}
	return std.Errorf(cli.TempFail, "%v", err)
}

func showCommand() *cli.Command {
	return &cli.Command{
		Name: "show", Args: "ID...", Summary: "show messages of the queue, with all that is known of their recipients",
		Run: func(ctx context.Context, std cli.Streams, args []string) int {
			ids, err := parseIDs(args)
			if err != nil || len(ids) == 0 {
				return std.Errorf(cli.Usage, "posthouse queue show: %v", orMissing(err))
			}
			ctx, cancel := context.WithTimeout(ctx, listTimeout)
			defer cancel()
			err = showq.List(ctx, showq.Path, func(e *showq.Entry) error {
				if ids[e.ID] {
					delete(ids, e.ID)
					return show(std.Out, e)
				}
				return nil
			})
			if status := report(std, "posthouse-showq.socket", err); status != cli.OK {
				return status
			}
			for id := range ids {
				fmt.Fprintf(std.Err, "%s: not in the queue\n", id)
			}
			if len(ids) > 0 {
				return cli.DataErr
			}
			return cli.OK
		},
	}
}

func orMissing(err error) error {
	if err == nil {
		return errors.New("no queue ID is given")
	}
	return err
}

func show(w io.Writer, e *showq.Entry) error {
	var b strings.Builder
	fmt.Fprintf(&b, "ID:        %s\nQueue:     %s\nSize:      %d octets\nArrival:   %s\nSender:    %s\n",
		e.ID, e.Queue, e.Size, e.Arrival.Format(time.RFC1123Z), e.Sender.Path())
	if !e.Next.IsZero() {
		fmt.Fprintf(&b, "Next try:  %s\n", e.Next.Format(time.RFC1123Z))
	}
	for i := range e.Recipients {
		r := &e.Recipients[i]
		fmt.Fprintf(&b, "Recipient: %s\n", r.Address.Path())
		if !r.Original.IsNull() && r.Original != r.Address {
			fmt.Fprintf(&b, "  given as %s\n", r.Original.Path())
		}
		if r.Reason != "" {
			fmt.Fprintf(&b, "  %s (%s)\n", r.Reason, r.Status)
		}
	}
	_, err := fmt.Fprintln(w, b.String())
	return err
}

func parseIDs(args []string) (map[queueid.ID]bool, error) {
	ids := make(map[queueid.ID]bool)
	for _, s := range args {
		id, err := queueid.Parse(s)
		if err != nil {
			return nil, err
		}
		ids[id] = true
	}
	return ids, nil
}

// steerCommand makes the command for one operation. Which messages: by ID, by a
// filter, or all of them.
func steerCommand(op queuectl.Op, name, summary string) *cli.Command {
	var f filter
	var all bool
	return &cli.Command{
		Name: name, Args: "[ID...]", Summary: summary,
		Description: "Messages are named by queue ID, or selected by the options, or --all.",
		Flags: func(set *flag.FlagSet) {
			f.flags(set)
			set.BoolVar(&all, "all", false, "every message for which it makes sense")
		},
		Run: func(ctx context.Context, std cli.Streams, args []string) int {
			ids, err := parseIDs(args)
			if err != nil {
				return std.Errorf(cli.Usage, "posthouse queue %s: %v", name, err)
			}
			ways := 0
			for _, used := range []bool{all, len(ids) > 0, f.any()} {
				if used {
					ways++
				}
			}
			if ways != 1 {
				return std.Errorf(cli.Usage, "posthouse queue %s: give queue IDs, or options that select, or --all", name)
			}
			req := queuectl.Request{Op: op, All: all}
			for id := range ids {
				req.IDs = append(req.IDs, id)
			}
			return steer(ctx, std, &f, req)
		},
	}
}

func steer(ctx context.Context, std cli.Streams, f *filter, req queuectl.Request) int {
	if f.any() {
		lctx, cancel := context.WithTimeout(ctx, listTimeout)
		defer cancel()
		err := showq.List(lctx, showq.Path, func(e *showq.Entry) error {
			if f.match(e) && len(req.IDs) < queuectl.MaxIDs {
				req.IDs = append(req.IDs, e.ID)
			}
			return nil
		})
		if status := report(std, "posthouse-showq.socket", err); status != cli.OK {
			return status
		}
		if len(req.IDs) == 0 {
			fmt.Fprintln(std.Err, "0 messages")
			return cli.OK
		}
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	reply, err := queuectl.Do(ctx, queuectl.Path, req)
	if err == nil && reply.Err != nil {
		err = reply.Err
	}
	if status := report(std, "posthouse-queue.socket", err); status != cli.OK {
		return status
	}
	for _, id := range reply.Missing {
		fmt.Fprintf(std.Err, "%s: not in the queue, or nothing to do\n", id)
	}
	fmt.Fprintf(std.Err, "%d messages\n", reply.Done)
	if len(reply.Missing) > 0 {
		return cli.DataErr
	}
	return cli.OK
}
