package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"posthouse/pkg/account"
	"posthouse/pkg/addr"
	"posthouse/pkg/aliases"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/table"
)

// maxNesting is how deep aliases may stand for aliases.
const maxNesting = 100

// walk follows one recipient to all that it stands for.
type walk struct {
	*request
	rcpt  *envelope.Recipient
	path  []string           // names that are being followed, outermost first
	seen  map[string]outcome // names that have been followed
	out   []outgoing
	count int // addresses in out
}

// name follows a local-part, whatever its domain.
func (w *walk) name(m addr.Mailbox) outcome {
	n := w.directory.name(m)
	if o, ok := w.seen[n.full]; ok {
		return o
	}
	if slices.Contains(w.path, n.full) {
		return failed(dsn.Errorf("5.4.6", "alias loop: %s, %s", strings.Join(w.path, ", "), n.full))
	}
	if len(w.path) >= maxNesting {
		return failed(dsn.Errorf("5.4.6", "aliases are nested deeper than %d at %s", maxNesting, n.full))
	}
	w.path = append(w.path, n.full)
	o := w.resolve(n)
	w.path = w.path[:len(w.path)-1]
	w.seen[n.full] = o
	return o
}

// root is who the postmaster is where no alias says so.
func (w *walk) root() (addr.Mailbox, error) { return addr.New("root", w.home()) }

func (w *walk) resolve(n name) outcome {
	key, targets, err := w.directory.alias(n)
	switch {
	case err != nil:
		return failed(err)
	case key != "":
		return w.alias(n, key, targets)
	case n.isPostmaster():
		root, err := w.root()
		if err != nil {
			return failed(err)
		}
		return w.name(root)
	}
	return w.user(n)
}

// alias delivers to what the alias key stands for, by which n goes.
func (w *walk) alias(n name, key string, targets []aliases.Target) outcome {
	owner, err := w.owner(key)
	if err != nil {
		return failed(err)
	}
	var o outcome
	for _, t := range targets {
		switch t.Kind {
		case aliases.Command:
			o.add(w.command(nobody, t.Text, n))
		case aliases.File:
			o.add(w.file(nobody, t.Text))
		case aliases.Include:
			o.add(w.include(t.Text, owner))
		case aliases.Address:
			o.add(w.aliasAddress(key, t, owner))
		}
	}
	return o
}

// nobody has what aliases have done, for they belong to no account (Postfix's
// default_privs).
const nobody = "nobody"

// owner returns who sends in the name of a list, if there is somebody.
func (w *walk) owner(key string) (addr.Mailbox, error) {
	const prefix = "owner-"
	if strings.HasPrefix(key, prefix) {
		return addr.Mailbox{}, nil
	}
	_, found, err := w.directory.lookup(prefix + key)
	if err != nil || !found {
		return addr.Mailbox{}, err
	}
	return addr.New(prefix+key, w.home())
}

// aliasAddress delivers to an address in an alias.
func (w *walk) aliasAddress(key string, t aliases.Target, owner addr.Mailbox) outcome {
	m, err := w.complete(t.Address)
	if err != nil {
		return failed(err)
	}
	if !isLocal(w.cfg, m) {
		return w.forward(m, owner)
	}
	n := w.directory.name(m)
	if t.Exact {
		return w.exactly(n)
	}
	self, err := w.directory.isSelf(n, key)
	switch {
	case err != nil:
		return failed(err)
	case self: // who is an alias of itself is the account
		return w.user(n)
	case !owner.IsNull():
		return w.forward(m, owner)
	}
	return w.name(m)
}

// include sends to the addresses in a file, which may be many: in a new message
// each of them has a state of its own.
func (w *walk) include(path string, owner addr.Mailbox) outcome {
	list, err := readInclude(path)
	if err != nil {
		w.warning("%v", err)
		return failed(err)
	}
	var o outcome
	for _, t := range list {
		if t.Kind != aliases.Address {
			// Whoever may write the file is not known.
			o.add(failed(dsn.Errorf("5.7.0", "%s names a command or file, which is not allowed there", path)))
			continue
		}
		m, err := w.complete(t.Address)
		if err != nil {
			o.add(failed(err))
			continue
		}
		o.add(w.forward(m, owner))
	}
	return o
}

func readInclude(path string) ([]aliases.Target, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("include: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("include: %s is not a regular file", path)
	case info.Mode()&(fs.ModePerm&0o002) != 0:
		return nil, fmt.Errorf("include: everybody may write to %s", path)
	}
	list, err := table.NewFile(path, aliases.ParseList, func(error) {}).Get()
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("include: no address in %s", path)
	}
	return list, err
}

// user delivers to an account: to what its .forward file says, else to its
// mailbox.
func (w *walk) user(n name) outcome {
	a, err := w.directory.account(w.ctx, n)
	switch {
	case err != nil:
		return failed(err)
	case a == nil:
		return w.unknown(n)
	case w.cfg.Local.MailboxTransport != "" && len(w.path) > 1:
		return w.again(n) // rewrite sends it there
	case a.UID == 0 || !w.cfg.Local.Forward:
		return w.mailbox(a, n)
	}
	files := []string{".forward"}
	switch {
	case strings.Contains(n.extension, "/"):
		w.warning("the extension of %s has a slash, and selects no .forward file", n.full)
	case a.Name == n.user && n.extension != "":
		files = []string{".forward" + n.full[len(n.user):], ".forward"}
	}
	reply, o := w.readForward(a, files)
	switch {
	case reply.Else:
		return o // of the mailbox
	case o.status.Class() == dsn.Success && !reply.Found && w.cfg.Local.MailboxCommand != "":
		return w.mailbox(a, n)
	case o.status.Class() == dsn.Success && !reply.Found:
		return failed(errors.New("deliver has not said whether there is a .forward file"))
	case o.status.Class() != dsn.Success:
		// A .forward file that cannot be read may say anything.
		o.status = o.status.With(dsn.Transient)
		return o
	}
	targets, err := aliases.ParseList("~"+a.Name+"/"+reply.Name, []byte(reply.Forward))
	switch {
	case err != nil:
		w.warning("%v", err)
		return failed(dsn.Errorf("4.3.5", "%v", err))
	case len(targets) == 0:
		return w.mailbox(a, n)
	}
	return w.forwardFile(a, n, targets)
}

// forwardFile delivers to what is in the .forward file of an account, which n is.
func (w *walk) forwardFile(a *account.Account, n name, targets []aliases.Target) outcome {
	var o outcome
	for _, t := range targets {
		switch t.Kind {
		case aliases.Command:
			o.add(w.usersCommand(a, t.Text, n))
		case aliases.File:
			o.add(w.file(a.Name, t.Text))
		case aliases.Include:
			o.add(failed(dsn.Errorf("4.3.5", "the .forward file of %s includes a file, which is for aliases only", a.Name)))
		case aliases.Address:
			o.add(w.forwardAddress(a, n, t.Address))
		}
	}
	return o
}

// forwardAddress delivers to an address in the .forward file of an account, which n is.
func (w *walk) forwardAddress(a *account.Account, n name, m addr.Mailbox) outcome {
	m, err := w.complete(m)
	own := false
	if err == nil && isLocal(w.cfg, m) {
		own, err = w.directory.isAccount(w.ctx, w.directory.name(m), a.Name)
	}
	switch {
	case err != nil:
		return failed(err)
	case own: // who names himself wants his mailbox
		return w.mailbox(a, n)
	}
	return w.forward(m, addr.Mailbox{})
}

// exactly delivers to the mailbox of an account, without looking at what it
// stands for.
func (w *walk) exactly(n name) outcome {
	a, err := w.directory.account(w.ctx, n)
	switch {
	case err != nil:
		return failed(err)
	case a == nil:
		return w.unknown(n)
	}
	return w.mailbox(a, n)
}

// unknown is for names that stand for nobody.
func (w *walk) unknown(n name) outcome {
	switch l := &w.cfg.Local; {
	case l.FallbackTransport != "" && len(w.path) > 1:
		return w.again(n)
	case l.FallbackTransport != "":
		// rewrite has not seen it yet.
		return failed(dsn.Errorf("4.3.5", "unknown user: %q; waiting for local.fallback_transport", n.full))
	case l.LuserRelay != "":
		m, err := addr.Parse(l.LuserRelay)
		if err == nil {
			m, err = w.complete(m)
		}
		if err != nil {
			return failed(err)
		}
		return w.forward(m, addr.Mailbox{})
	}
	return failed(dsn.Errorf("5.1.1", "unknown user: %q", n.full))
}

// again sends to a name of this system by way of the queue.
func (w *walk) again(n name) outcome {
	m, err := addr.New(n.full, w.home())
	if err != nil {
		return failed(err)
	}
	return w.forward(m, addr.Mailbox{})
}

func (w *walk) complete(m addr.Mailbox) (addr.Mailbox, error) {
	if m.Domain() != "" {
		return m, nil
	}
	return m.WithDomain(w.cfg.Origin)
}

// home is the domain in which names of this system are written: the origin,
// unless that is somebody else's.
func (w *walk) home() string {
	for _, domain := range w.cfg.Domains.Local {
		if strings.EqualFold(domain, w.cfg.Origin) {
			return w.cfg.Origin
		}
	}
	if len(w.cfg.Domains.Local) > 0 {
		return w.cfg.Domains.Local[0]
	}
	return w.cfg.Hostname
}

// isLocal reports whether the domain of m is one of UNIX accounts here.
func isLocal(c *config.Config, m addr.Mailbox) bool {
	for _, domain := range c.Domains.Local {
		if strings.EqualFold(domain, m.Domain()) {
			return true
		}
	}
	ip, err := addr.ParseLiteral(m.Domain())
	return err == nil && ip.IsLoopback()
}
