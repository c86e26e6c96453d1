package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/protocol/recipient"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/table"
)

// lookupTable is a lookup table: found, not found, or could not look.
type lookupTable interface {
	Lookup(key string) (value string, found bool, err error)
}

// aliasTable gives what an address stands for.
type aliasTable interface {
	Targets(key string) (targets []table.Target, found bool, err error)
}

// userTable knows the virtual users.
type userTable interface {
	Has(user addr.Mailbox) (bool, error)
}

// route is where mail goes: "smtp:[relay.example]:587".
type route struct{ transport, nexthop string }

// rules are what the configuration says of addresses, at one moment.
type rules struct {
	hostname, origin string
	delimiters       string

	local   map[string]bool // domains, in lower case
	virtual map[string]bool
	alias   map[string]bool
	relay   map[string]relayDomain

	defaultRoute, virtualRoute, localRoute route

	// Of mail that goes to the agent local; zero: as to all others.
	mailboxRoute, fallbackRoute route
	luser                       bool // somebody gets what is for nobody

	users      userTable
	aliases    aliasTable
	transports lookupTable
	people     peopleTable
	lost       func(table string) error // says that there is no such table

	maxExpansion int // addresses that one address may stand for
	maxNesting   int
}

type relayDomain struct {
	to         route       // zero: as any other domain
	recipients lookupTable // nil: every recipient is taken
}

// doubleBounce is the sender of reports to the postmaster. Mail to it ends here.
const doubleBounce = "double-bounce"

func (r *rules) isDoubleBounce(m addr.Mailbox, class rewrite.Class) bool {
	return strings.EqualFold(m.Local(), doubleBounce) && (strings.EqualFold(m.Domain(), r.origin) || class == rewrite.ClassLocal)
}

// routing reports whether a local-part has characters with which other mail
// systems have been made to relay: user%host, host!user, a quoted user@host.
// Such an address is nobody's here, whatever its domain.
func routing(m addr.Mailbox) bool { return strings.ContainsAny(m.Local(), "@%!") }

// complete gives an address its domain.
func (r *rules) complete(m addr.Mailbox) (addr.Mailbox, error) {
	if m.IsNull() || m.Domain() != "" {
		return m, nil
	}
	return m.WithDomain(r.origin)
}

// class says how the domain of a complete address is handled. Two of the lists
// having the same domain is an error of the configuration; the first one counts.
func (r *rules) class(m addr.Mailbox) rewrite.Class {
	domain := strings.ToLower(m.Domain())
	switch {
	case r.local[domain]:
		return rewrite.ClassLocal
	case r.alias[domain]:
		return rewrite.ClassAlias
	case r.virtual[domain]:
		return rewrite.ClassVirtual
	}
	if _, ok := r.relay[domain]; ok {
		return rewrite.ClassRelay
	}
	if ip, err := addr.ParseLiteral(domain); err == nil && ip.IsLoopback() {
		return rewrite.ClassLocal
	}
	return rewrite.ClassDefault
}

// unsure is the verdict where a table could not be read: never "unknown user".
func unsure(err error) *dsn.Error {
	return &dsn.Error{Status: dsn.MustParse("4.3.0"), Text: "temporary lookup failure: " + err.Error()}
}

func checkSyntax(m addr.Mailbox) *dsn.Error {
	if m.IsNull() {
		return dsn.Errorf("5.1.3", "null recipient address")
	}
	// A program that is given the address as an argument would take it for an option.
	if strings.HasPrefix(m.Local(), "-") {
		return dsn.Errorf("5.1.3", "bad recipient address syntax")
	}
	return nil
}

// verify answers rewrite.Verify.
func (r *rules) verify(m addr.Mailbox) rewrite.Answer {
	if e := checkSyntax(m); e != nil {
		return rewrite.Answer{Err: e}
	}
	full, err := r.complete(m)
	if err != nil {
		return rewrite.Answer{Err: dsn.Errorf("5.1.3", "%v", err)}
	}
	if routing(full) {
		return rewrite.Answer{Class: rewrite.ClassDefault}
	}
	a := rewrite.Answer{Class: r.class(full)}
	if r.isDoubleBounce(full, a.Class) {
		return rewrite.Answer{Class: rewrite.ClassLocal}
	}
	// An alias that cannot be expanded is refused here, where it is the only one to
	// suffer: cleanup would have to refuse the message for all its recipients.
	x, e := r.expansionOf(full)
	switch {
	case e != nil:
		a.Err = e
		return a
	case len(x.result) == 1 && x.result[0].Fold() == full.Fold():
	case len(x.result) == 1 && strings.EqualFold(x.result[0].Local(), full.Local()):
		// The same user of another domain, as "@old.example: @new.example" makes of everybody,
		// is there where that user is.
		there := r.verify(x.result[0])
		there.Class = a.Class
		return there
	default:
		return a
	}
	if a.Err = r.exists(full, a.Class); a.Err != nil {
		return a
	}
	to, err := r.routeOf(full, a.Class)
	if err != nil {
		a.Err = unsure(err)
		return a
	}
	switch to.transport {
	case "local":
		outcome, err := r.people.Lookup(full.Local())
		a.Unverified = err != nil
		if outcome == recipient.None && r.fallbackRoute == (route{}) && !r.luser {
			a.Err = dsn.Errorf("5.1.1", "User unknown in local recipient table")
		}
	case "error":
		// What the route only defers may come in, and waits.
		if status, text := dsn.Cut(to.nexthop, dsn.MustParse("5.0.0")); status.Class() == dsn.Permanent {
			a.Err = &dsn.Error{Status: status, Text: cmp.Or(text, "mail to this address is refused")}
		}
	}
	return a
}

// exists says whether there is a recipient, aliases apart. A table that has gone may
// be on its way back: who is in it is not known.
func (r *rules) exists(m addr.Mailbox, class rewrite.Class) *dsn.Error {
	switch class {
	case rewrite.ClassVirtual:
		base, _ := m.Fold().SplitExtension(r.delimiters)
		for _, user := range []addr.Mailbox{m.Fold(), base} {
			if found, err := r.users.Has(user); err != nil {
				return unsure(err)
			} else if found {
				return nil
			}
		}
		if err := r.lost(usersTable); err != nil {
			return unsure(err)
		}
		return dsn.Errorf("5.1.1", "User unknown in virtual mailbox table")
	case rewrite.ClassAlias:
		if err := r.lost(aliasesTable); err != nil {
			return unsure(err)
		}
		return dsn.Errorf("5.1.1", "User unknown in virtual alias table")
	case rewrite.ClassRelay:
		table := r.relay[strings.ToLower(m.Domain())].recipients
		if table == nil {
			return nil
		}
		for _, key := range r.keys(m) {
			if _, found, err := table.Lookup(key); err != nil {
				return unsure(err)
			} else if found {
				return nil
			}
		}
		return dsn.Errorf("5.1.1", "User unknown in relay recipient table")
	case rewrite.ClassLocal, rewrite.ClassDefault:
		// The accounts of this machine are known to local, where mail for them goes there.
	}
	return nil
}

// keys are the keys under which a table is asked for an address, most special
// first: user+extension@domain, user@domain, @domain.
func (r *rules) keys(m addr.Mailbox) []string {
	m = m.Fold()
	keys := []string{m.String()}
	if base, _ := m.SplitExtension(r.delimiters); base != m {
		keys = append(keys, base.String())
	}
	return append(keys, "@"+m.Domain())
}

// aliasKey is a key of the alias table, and the extension, with its delimiter,
// that the key leaves out and the targets get.
type aliasKey struct{ key, extension string }

// aliasKeys are the keys under which the alias table is asked, most special first.
func (r *rules) aliasKeys(m addr.Mailbox) []aliasKey {
	folded := m.Fold()
	base, _ := m.SplitExtension(r.delimiters)
	extension := m.Local()[len(base.Local()):]
	keys := []aliasKey{{folded.String(), ""}}
	if extension != "" {
		keys = append(keys, aliasKey{base.Fold().String(), extension})
	}
	domain := folded.Domain()
	if domain == strings.ToLower(r.origin) || r.local[domain] {
		// An address of our own may be given without its domain.
		keys = append(keys, aliasKey{folded.Local(), ""})
		if extension != "" {
			keys = append(keys, aliasKey{base.Fold().Local(), extension})
		}
	}
	return append(keys, aliasKey{"@" + domain, ""})
}

// alias1 looks up what m stands for, one step.
func (r *rules) alias1(m addr.Mailbox) (targets []addr.Mailbox, found bool, err error) {
	for _, k := range r.aliasKeys(m) {
		list, found, err := r.aliases.Targets(k.key)
		if err != nil {
			return nil, false, err
		}
		if found {
			targets, err := r.targets(list, m, k.extension)
			return targets, err == nil, err
		}
	}
	return r.postmaster(m)
}

// postmaster looks up who the postmaster of all domains is, if m is the one of a
// domain of ours that has none of its own (RFC 5321, section 4.5.1).
func (r *rules) postmaster(m addr.Mailbox) (targets []addr.Mailbox, found bool, err error) {
	class := r.class(m)
	if !strings.EqualFold(m.Local(), "postmaster") || class != rewrite.ClassVirtual && class != rewrite.ClassAlias {
		return nil, false, nil
	}
	switch e := r.exists(m, class); {
	case e == nil:
		return nil, false, nil
	case e.Status.Class() != dsn.Permanent:
		return nil, false, e
	}
	list, found, err := r.aliases.Targets("postmaster")
	if err != nil || !found {
		return nil, false, err
	}
	targets, err = r.targets(list, m, "")
	return targets, err == nil, err
}

// targets completes what a table gives for m.
func (r *rules) targets(list []table.Target, m addr.Mailbox, ext string) ([]addr.Mailbox, error) {
	out := make([]addr.Mailbox, 0, len(list))
	for _, t := range list {
		full, err := t.For(m)
		if err == nil {
			full, err = r.complete(full)
		}
		if err == nil && ext != "" && t.Domain == "" { // the same user has it already
			full, err = full.WithLocal(full.Local() + ext)
		}
		if err != nil {
			return nil, fmt.Errorf("alias %s: target %s: %w", m, t, err)
		}
		out = append(out, full)
	}
	return out, nil
}

// expand answers rewrite.Expand: what the address stands for, in the end.
func (r *rules) expand(m addr.Mailbox) rewrite.Answer {
	if e := checkSyntax(m); e != nil {
		return rewrite.Answer{Err: e}
	}
	full, err := r.complete(m)
	if err != nil {
		return rewrite.Answer{Err: dsn.Errorf("5.1.3", "%v", err)}
	}
	x, e := r.expansionOf(full)
	if e != nil {
		return rewrite.Answer{Class: r.class(full), Err: e}
	}
	return rewrite.Answer{Class: r.class(full), Addresses: x.result}
}

func (r *rules) expansionOf(m addr.Mailbox) (*expansion, *dsn.Error) {
	x := &expansion{rules: r, seen: make(map[addr.Mailbox]bool)}
	if err := x.add(m, 0); err != nil {
		return nil, err
	}
	if len(x.result) == 0 {
		return nil, dsn.Errorf("5.4.6", "virtual aliases of %s stand for each other only", m)
	}
	return x, nil
}

// expansion is what one address is being expanded to.
type expansion struct {
	*rules
	seen   map[addr.Mailbox]bool // folded: expanded already, or about to be
	result []addr.Mailbox
}

func (x *expansion) add(m addr.Mailbox, depth int) *dsn.Error {
	if depth > x.maxNesting {
		return dsn.Errorf("4.6.0", "virtual alias nesting is deeper than %d at %s", x.maxNesting, m)
	}
	key := m.Fold()
	if x.seen[key] {
		return nil
	}
	x.seen[key] = true
	var targets []addr.Mailbox
	var found bool
	if !routing(m) && !x.isDoubleBounce(m, x.class(m)) {
		var err error
		if targets, found, err = x.alias1(m); err != nil {
			return unsure(err)
		}
	}
	// An address that stands for itself, alone or among others, is final.
	if !found || slices.ContainsFunc(targets, func(t addr.Mailbox) bool { return t.Fold() == key }) {
		if len(x.result) >= x.maxExpansion {
			return dsn.Errorf("4.6.0", "virtual alias expands to more than %d addresses at %s", x.maxExpansion, m)
		}
		x.result = append(x.result, m)
	}
	for _, t := range targets {
		if err := x.add(t, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// resolve answers rewrite.Resolve.
func (r *rules) resolve(m addr.Mailbox) rewrite.Answer {
	if e := checkSyntax(m); e != nil {
		return rewrite.Answer{Err: e}
	}
	full, err := r.complete(m)
	if err != nil {
		return rewrite.Answer{Err: dsn.Errorf("5.1.3", "%v", err)}
	}
	a := rewrite.Answer{Class: r.class(full), Addresses: []addr.Mailbox{full}}
	domain := strings.ToLower(full.Domain())
	if r.isDoubleBounce(full, a.Class) {
		a.Transport, a.Nexthop = "discard", "undeliverable report to the postmaster"
		return a
	}
	// The account of a virtual user may be gone since the message came.
	if a.Class == rewrite.ClassVirtual || a.Class == rewrite.ClassAlias {
		if a.Err = r.exists(full, a.Class); a.Err != nil {
			return a
		}
	}
	to, err := r.routeOf(full, a.Class)
	if err == nil && to.transport == "local" {
		to, err = r.atHome(full, to)
	}
	if err != nil {
		a.Err = unsure(err)
		return a
	}
	a.Transport, a.Nexthop = to.transport, to.nexthop
	if a.Nexthop == "" {
		a.Nexthop = domain
	}
	return a
}

func (r *rules) routeOf(m addr.Mailbox, class rewrite.Class) (route, error) {
	to := r.defaultRoute
	switch class {
	case rewrite.ClassLocal:
		to = r.localRoute
		if to.nexthop == "" {
			to.nexthop = strings.ToLower(r.hostname)
		}
	case rewrite.ClassVirtual:
		to = r.virtualRoute
	case rewrite.ClassRelay:
		if own := r.relay[strings.ToLower(m.Domain())].to; own != (route{}) {
			to = own
		}
	case rewrite.ClassDefault, rewrite.ClassAlias:
	}
	if r.transports == nil {
		return to, nil
	}
	for _, key := range r.transportKeys(m) {
		value, found, err := r.transports.Lookup(key)
		if err != nil {
			return route{}, err
		}
		if found {
			return override(to, value), nil
		}
	}
	return to, nil
}

// transportKeys are the keys of the transport table, most special first.
func (r *rules) transportKeys(m addr.Mailbox) []string {
	keys := r.keys(m)
	keys[len(keys)-1] = strings.ToLower(m.Domain()) // not @domain
	for domain := strings.ToLower(m.Domain()); ; {
		_, parent, ok := strings.Cut(domain, ".")
		if !ok {
			return append(keys, "*")
		}
		keys = append(keys, "."+parent)
		domain = parent
	}
}

// override applies an entry of the transport table: "transport:nexthop", where
// a transport alone means the recipient's domain, and a nexthop alone keeps the
// transport. An empty entry changes nothing.
func override(to route, value string) route {
	transport, nexthop, _ := strings.Cut(value, ":")
	switch {
	case value == "" || value == ":":
		return to
	case transport == "":
		return route{to.transport, nexthop}
	}
	return route{transport, nexthop}
}
