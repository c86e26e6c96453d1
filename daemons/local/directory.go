package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"

	"posthouse/pkg/account"
	"posthouse/pkg/addr"
	"posthouse/pkg/aliases"
	"posthouse/pkg/config"
	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/deliver"
	"posthouse/pkg/protocol/recipient"
)

// accounts is Lookup of an account.Cache, or a double.
type accounts func(ctx context.Context, name string) (*account.Account, error)

// directory knows the names of this system.
type directory struct {
	config   func() *config.Config
	accounts accounts
	warn     func(error)

	mu     sync.Mutex
	tables map[string]*aliases.Table // by file
}

func newDirectory(cfg func() *config.Config, a accounts, warn func(error)) *directory {
	return &directory{config: cfg, accounts: a, warn: warn, tables: make(map[string]*aliases.Table)}
}

// name is a local-part in lower case, and its parts.
type name struct {
	full, user, extension string
	address               addr.Mailbox // as it was given
}

func (d *directory) name(m addr.Mailbox) name {
	folded := m.Fold()
	base, extension := folded.SplitExtension(d.config().RecipientDelimiter)
	return name{folded.Local(), base.Local(), extension, m}
}

// keys are the names under which n is looked up.
func (n name) keys() []string { return slices.Compact([]string{n.full, n.user}) }

// isSelf reports whether n, in the alias key, is the account of that name: an address
// with an extension may have an alias of its own.
func (d *directory) isSelf(n name, key string) (bool, error) {
	if n.full == key || n.user != key {
		return n.full == key, nil
	}
	_, found, err := d.lookup(n.full)
	return !found && err == nil, err
}

// isAccount reports whether mail to n goes to the account called name, whatever is in its
// .forward file. With a hyphen for a delimiter, user-x may be another account, or a list.
func (d *directory) isAccount(ctx context.Context, n name, user string) (bool, error) {
	if n.full == user || n.user != user {
		return n.full == user, nil
	}
	if _, found, err := d.lookup(n.full); found || err != nil {
		return false, err
	}
	a, err := d.account(ctx, n)
	return a != nil && a.Name == user, err
}

// alias returns what n stands for, and the key that said so; "" where there is
// no alias.
func (d *directory) alias(n name) (key string, targets []aliases.Target, err error) {
	for _, key := range n.keys() {
		targets, found, err := d.lookup(key)
		if err != nil {
			return "", nil, err
		}
		if found {
			return key, targets, nil
		}
	}
	return "", nil, nil
}

// lookup asks the files in their order.
func (d *directory) lookup(key string) (targets []aliases.Target, found bool, err error) {
	for _, path := range d.config().Local.Aliases {
		targets, found, err = d.table(path).Lookup(key)
		if found || err != nil {
			return targets, found, err
		}
	}
	return nil, false, nil
}

func (d *directory) table(path string) *aliases.Table {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.tables[path]
	if t == nil {
		t = aliases.New(path, d.warn)
		d.tables[path] = t
	}
	return t
}

// account returns the account that n is; nil where there is none.
func (d *directory) account(ctx context.Context, n name) (*account.Account, error) {
	for _, key := range n.keys() {
		if deliver.CheckUser(key) != nil {
			continue
		}
		a, err := d.accounts(ctx, key)
		if !errors.Is(err, account.ErrNone) {
			return a, err
		}
	}
	return nil, nil
}

// isPostmaster reports whether n is one of the names that always mean somebody
// (RFC 5321, section 4.5.1, and the sender of other systems' notifications).
func (n name) isPostmaster() bool { return n.full == "postmaster" || n.full == "mailer-daemon" }

// handle answers questions of rewrite.
func (d *directory) handle(ctx context.Context, c *ipc.Conn, msg []byte, file *os.File) error {
	if file != nil {
		_ = file.Close() // not asked for
	}
	list, err := recipient.DecodeRequest(msg)
	if err != nil {
		return err
	}
	outcomes := make([]recipient.Outcome, len(list))
	for i, local := range list {
		outcomes[i] = d.outcome(ctx, local)
	}
	m := ipc.NewMessage()
	recipient.EncodeReply(m, outcomes)
	return c.Send(m)
}

func (d *directory) outcome(ctx context.Context, local string) recipient.Outcome {
	m, err := addr.New(local, "")
	if err != nil {
		return recipient.None
	}
	n := d.name(m)
	key, _, err := d.alias(n)
	switch {
	case err != nil:
		return recipient.Unknown // the table has said why
	case key != "" || n.isPostmaster():
		return recipient.Alias
	}
	a, err := d.account(ctx, n)
	switch {
	case err != nil:
		d.warn(err)
		return recipient.Unknown
	case a != nil:
		return recipient.Account
	}
	return recipient.None
}
