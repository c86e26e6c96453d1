package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/cli"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/mailq"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/protocol/showq"
	"posthouse/pkg/queueid"
)

// listTimeout bounds a listing of the whole queue.
const listTimeout = 10 * time.Minute

// Where the servers are; tests have their own.
var showqPath, queuePath = showq.Path, queuectl.Path

// filter selects messages. An empty field selects all.
type filter struct {
	queue, sender, recipient, destination, reason string
}

func (f *filter) flags(set *flag.FlagSet) {
	set.Func("queue", "only messages in this `QUEUE`: active, incoming, deferred, hold, corrupt", func(s string) error {
		for q := showq.Active; q <= showq.Corrupt; q++ {
			if q.String() == s {
				f.queue = s
				return nil
			}
		}
		return errors.New("there is no such queue")
	})
	set.StringVar(&f.sender, "sender", "", "only messages from this `ADDRESS`, or part of one; <> for none")
	set.StringVar(&f.recipient, "recipient", "", "only messages to this `ADDRESS`, or part of one")
	set.StringVar(&f.destination, "destination", "", "only messages to this `DOMAIN`")
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
	if f.recipient == "" && f.destination == "" && f.reason == "" {
		return true
	}
	for i := range e.Recipients {
		r := &e.Recipients[i]
		if contains(r.Address.String(), f.recipient) && (f.destination == "" || strings.EqualFold(r.Address.Domain(), f.destination)) && contains(r.Reason, f.reason) {
			return true
		}
	}
	return false
}

// choose returns those that are selected, in the memory of list.
func (f *filter) choose(list []showq.Entry) []showq.Entry {
	return slices.DeleteFunc(list, func(e showq.Entry) bool { return !f.match(&e) })
}

// about is what the manual says of the queue.
const about = `Where several options select, a message has to fit all of them; those about recipients have to fit one of its recipients.
Texts are compared without regard to case.`

func queueCommand() *cli.Command {
	c := &cli.Command{Name: "queue", Summary: "show and steer the queue", Subs: []*cli.Command{listCommand(), showCommand()}}
	for _, op := range []struct {
		op                         queuectl.Op
		name, summary, description string
	}{
		{queuectl.Hold, "hold", "set messages aside until they are released",
			"For messages that are active, incoming or deferred. What is being delivered at this moment is held afterwards. A message grows older on hold, too."},
		{queuectl.Release, "release", "end the hold of messages", "They are delivered at once."},
		{queuectl.Retry, "retry", "deliver messages now that wait for their next attempt",
			"Destinations that did not answer are asked again. With --all this is Postfix's flush. With --destination alone the rest of the queue is not looked at."},
		{queuectl.Requeue, "requeue", "treat messages as new",
			"For those who have not got it a message becomes new: virtual aliases are applied again, it is delivered at once, and its age counts from now on. It keeps its queue ID. A hold ends."},
		{queuectl.Delete, "delete", "remove messages; nobody is told",
			"Damaged messages, in the queue corrupt, are removed when they are named or selected, not by --all."},
	} {
		s := steerCommand(op.op, op.name, op.summary)
		s.Description = op.description + "\n\n" + s.Description
		c.Subs = append(c.Subs, s)
	}
	return c
}

func listCommand() *cli.Command {
	var f filter
	var asJSON bool
	return &cli.Command{
		Name: "list", Summary: "list the queue",
		Description: "Prints what mailq(1) prints, for messages that the options select. In the listing * stands for active and ! for hold. " +
			"With --json every line is an object with queue_name, queue_id, arrival_time, message_size, next_attempt, sender and recipients, " +
			"of which each has address, orig_address, status, and delay_reason or bounce_reason.\n\n" + about,
		Flags: func(set *flag.FlagSet) { f.flags(set); set.BoolVar(&asJSON, "json", false, "one JSON object a line") },
		Run: func(ctx context.Context, std cli.Streams, _ []string) int {
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
	found := false
	err := showq.List(ctx, showqPath, func(page []showq.Entry) error {
		if page = f.choose(page); len(page) == 0 {
			return nil
		}
		found = true
		return output(p.Page(page))
	})
	if _, people := p.(*mailq.Text); err == nil && people && f.any() && !found {
		fmt.Fprintln(std.Err, "no such message is in the queue") // it need not be empty
	} else if err == nil {
		err = output(p.End())
	}
	return report(std, "posthouse-showq.socket", err)
}

// outputError is an error of the output, not of a server.
type outputError struct{ error }

func output(err error) error {
	if err != nil {
		return outputError{err}
	}
	return nil
}

// report prints an error and returns the exit status for it.
func report(std cli.Streams, unit string, err error) int {
	var off *ipc.UnavailableError
	var out outputError
	switch {
	case err == nil || errors.As(err, &out) && errors.Is(out.error, syscall.EPIPE): // whoever reads has enough
		return cli.OK
	case errors.As(err, &out):
		return std.Errorf(cli.IOErr, "%v", err)
	case errors.As(err, &off):
		return std.Errorf(cli.Unavailable, "The mail system is off: %v\nTry: systemctl enable --now %s", err, unit)
	case errors.Is(err, fs.ErrPermission):
		return std.Errorf(cli.NoPerm, "Not allowed: %v", err)
	}
	return std.Errorf(cli.TempFail, "%v", err)
}

func showCommand() *cli.Command {
	var asJSON bool
	return &cli.Command{
		Name: "show", Args: "ID...", Summary: "show messages of the queue, with what is known of the recipients who have not got it",
		Flags: func(set *flag.FlagSet) {
			set.BoolVar(&asJSON, "json", false, "one JSON object a line, as of queue list")
		},
		Run: func(ctx context.Context, std cli.Streams, args []string) int {
			ids, err := parseIDs(args)
			if err != nil || len(ids) == 0 {
				return std.Errorf(cli.Usage, "posthouse queue show: %v", orMissing(err))
			}
			ctx, cancel := context.WithTimeout(ctx, listTimeout)
			defer cancel()
			err = showq.List(ctx, showqPath, func(page []showq.Entry) error {
				page = slices.DeleteFunc(page, func(e showq.Entry) bool { return !ids[e.ID] })
				for i := range page {
					delete(ids, page[i].ID)
				}
				switch {
				case len(page) == 0:
					return nil
				case asJSON:
					return output(mailq.JSON{W: std.Out}.Page(page))
				}
				return output(show(std.Out, page))
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

func show(w io.Writer, list []showq.Entry) error {
	var b strings.Builder
	for i := range list {
		describe(&b, &list[i])
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func describe(b *strings.Builder, e *showq.Entry) {
	fmt.Fprintf(b, "ID:        %s\nQueue:     %s\nSize:      %d octets\nArrival:   %s\nSender:    %s\n",
		e.ID, e.Queue, e.Size, e.Arrival.Format(time.RFC1123Z), maillog.Printable(e.Sender.Path()))
	if !e.Next.IsZero() {
		fmt.Fprintf(b, "Next try:  %s\n", e.Next.Format(time.RFC1123Z))
	}
	for i := range e.Recipients {
		r := &e.Recipients[i]
		fmt.Fprintf(b, "Recipient: %s\n", maillog.Printable(r.Address.Path()))
		if !r.Original.IsNull() && r.Original != r.Address {
			fmt.Fprintf(b, "  given as %s\n", maillog.Printable(r.Original.Path()))
		}
		if r.Reason != "" {
			fmt.Fprintf(b, "  %s (%s)\n", maillog.Printable(r.Reason), r.Status)
		}
	}
	b.WriteByte('\n')
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
	var all, asJSON bool
	return &cli.Command{
		Name: name, Args: "[ID...]", Summary: summary,
		Description: "Messages are named by queue ID, or selected by the options, or --all.\n\n" + about,
		Flags: func(set *flag.FlagSet) {
			f.flags(set)
			set.BoolVar(&all, "all", false, "every message for which it makes sense")
			set.BoolVar(&asJSON, "json", false, "print one JSON object: done is the number of messages, missing are the IDs that were not there")
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
			ctx, cancel := context.WithTimeout(ctx, listTimeout)
			defer cancel()
			work := []queuectl.Request{{Op: op, All: all, Destination: f.destination}}
			switch {
			case len(ids) > 0:
				work = pieces(op, slices.Collect(maps.Keys(ids)), nil)
			case f.any() && (op != queuectl.Retry || f != filter{destination: f.destination}):
				list, buckets, err := matching(ctx, &f)
				if err != nil {
					return report(std, "posthouse-showq.socket", err)
				}
				work = pieces(op, list, buckets)
			case f.any() && addr.CheckDomain(f.destination) != nil:
				work = nil // no mail is for that
			}
			done, err := steer(ctx, work)
			if f.any() {
				done.Missing = nil // moved on since
			}
			if err == nil || done.Done > 0 { // what was done before an error is worth knowing
				if err := done.print(std, asJSON); err != nil {
					return std.Errorf(cli.IOErr, "%v", err)
				}
			}
			if status := report(std, "posthouse-qmgr.socket", err); status != cli.OK || len(done.Missing) == 0 {
				return status
			}
			return cli.DataErr
		},
	}
}

// matching returns the messages that f selects, and their buckets.
func matching(ctx context.Context, f *filter) (ids []queueid.ID, buckets []int64, err error) {
	err = showq.List(ctx, showqPath, func(page []showq.Entry) error {
		for _, e := range f.choose(page) {
			ids, buckets = append(ids, e.ID), append(buckets, e.Bucket)
		}
		return nil
	})
	return ids, buckets, err
}

// pieces makes as many requests as ids take.
func pieces(op queuectl.Op, ids []queueid.ID, buckets []int64) (list []queuectl.Request) {
	for len(ids) > 0 {
		n := min(len(ids), queuectl.MaxIDs)
		r := queuectl.Request{Op: op, IDs: ids[:n]}
		if ids = ids[n:]; buckets != nil {
			r.Buckets, buckets = buckets[:n], buckets[n:]
		}
		list = append(list, r)
	}
	return list
}

// steered is what came of an operation.
type steered struct {
	Done    int      `json:"done"`
	Missing []string `json:"missing"`
}

// steer has requests carried out.
func steer(ctx context.Context, list []queuectl.Request) (steered, error) {
	var sum steered
	for _, r := range list {
		reply, err := queuectl.Do(ctx, queuePath, r)
		if err != nil {
			return sum, err
		}
		sum.Done += int(reply.Done)
		if reply.Err != nil {
			return sum, reply.Err
		}
		for _, id := range reply.Missing {
			sum.Missing = append(sum.Missing, id.String())
		}
	}
	return sum, nil
}

func (s steered) print(std cli.Streams, asJSON bool) error {
	if asJSON {
		s.Missing = append([]string{}, s.Missing...)
		return json.NewEncoder(std.Out).Encode(s)
	}
	for _, id := range s.Missing {
		fmt.Fprintf(std.Err, "%s: not in the queue, or nothing to do\n", id)
	}
	_, err := fmt.Fprintf(std.Err, "%d messages\n", s.Done)
	return err
}
