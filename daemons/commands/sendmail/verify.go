package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"posthouse/pkg/addr"
	"posthouse/pkg/cli"
	"posthouse/pkg/dsn"
	"posthouse/pkg/header"
	"posthouse/pkg/protocol/rewrite"
)

// verify prints what would become of mail to the arguments (-bv): what each
// stands for, and where that goes. Postfix sends a probe and mails a report.
func (c *call) verify(path string, args []string) int {
	var list []addr.Mailbox
	for _, arg := range args {
		more, err := header.ParseAddressList(arg)
		if err != nil {
			return c.fail(cli.Usage, fmt.Errorf("recipient %.100q: %w", arg, err))
		}
		list = append(list, more...)
	}
	if len(list) == 0 || len(list) > rewrite.MaxAddresses {
		return c.fail(cli.Usage, fmt.Errorf("-bv takes 1 to %d addresses", rewrite.MaxAddresses))
	}
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	client := rewrite.NewClient(path)
	status := cli.OK
	for _, m := range list {
		one, err := c.expand(ctx, client, m)
		switch {
		case errors.Is(err, fs.ErrPermission):
			return c.fail(cli.NoPerm, fmt.Errorf("-bv takes root: %w", err))
		case err != nil:
			return c.fail(cli.TempFail, err)
		}
		status = worse(status, one)
	}
	return status
}

// worse is the status of two: that of a failure for good, where there is one.
func worse(a, b int) int {
	if a == cli.NoUser || b == cli.OK {
		return a
	}
	return b
}

// undeliverable prints why name cannot be delivered to.
func (c *call) undeliverable(name string, e *dsn.Error) int {
	fmt.Fprintf(c.Out, "%s: %s %s\n", name, e.Status, e.Text)
	if e.Status.Class() == dsn.Permanent {
		return cli.NoUser
	}
	return cli.TempFail
}

// expand prints what m stands for, and returns the status for that.
func (c *call) expand(ctx context.Context, client *rewrite.Client, m addr.Mailbox) (status int, err error) {
	ask := func(op rewrite.Op, to addr.Mailbox) (rewrite.Answer, error) {
		answers, err := client.Ask(ctx, rewrite.Request{Op: op, Addresses: []addr.Mailbox{to}})
		if err != nil {
			return rewrite.Answer{}, err
		}
		return answers[0], nil
	}
	all, err := ask(rewrite.Expand, m)
	switch {
	case err != nil:
		return 0, err
	case all.Err != nil:
		return c.undeliverable(m.String(), all.Err), nil
	}
	for _, to := range all.Addresses {
		a, err := ask(rewrite.Verify, to)
		if err == nil && a.Err == nil {
			a, err = ask(rewrite.Resolve, to)
		}
		if err != nil {
			return 0, err
		}
		name := m.String()
		if to != m {
			name += " -> " + to.String()
		}
		if a.Err != nil {
			status = worse(status, c.undeliverable(name, a.Err))
			continue
		}
		fmt.Fprintf(c.Out, "%s: deliverable: transport %s, nexthop %s\n", name, a.Transport, a.Nexthop)
	}
	return status, nil
}
