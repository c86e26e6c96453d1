package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/dns"
	"posthouse/pkg/dsn"
)

// resolver looks names up. Its errors are dns.ErrNoName and dns.ErrNoData where the
// DNS says so, wrapped or not; all others are temporary.
type resolver interface {
	MX(ctx context.Context, domain string) ([]dns.MX, error)
	Addresses(ctx context.Context, host string) ([]netip.Addr, error)
}

// target is one address to try.
type target struct {
	host   string // as in texts
	socket string // path of a UNIX socket
	addr   netip.AddrPort
	lesser bool // a mail server that is not among the best of its domain
}

// name is how texts call t.
func (t target) name() string {
	if t.socket != "" {
		return t.host + "[" + t.socket + "]"
	}
	return t.host + "[" + t.addr.Addr().String() + "]"
}

// relay is how the log calls t.
func (t target) relay() string {
	if t.socket != "" {
		return t.name()
	}
	return t.name() + ":" + strconv.Itoa(int(t.addr.Port()))
}

// network returns the arguments for a dialer.
func (t target) network() (network, address string) {
	if t.socket != "" {
		return "unix", t.socket
	}
	return "tcp", t.addr.String()
}

// router finds the addresses of a next hop (RFC 5321, section 5.1).
type router struct {
	ctx      context.Context
	cfg      *config.Config
	resolver resolver
	own      func(netip.Addr) bool // is an address of this machine
	hop      *nexthop
}

// route returns the addresses to try, in order, at least one. The error is a
// *dsn.Error.
func (r *router) route() ([]target, error) {
	switch {
	case r.hop.socket != "":
		return []target{{host: r.cfg.Hostname, socket: r.hop.socket}}, nil
	case r.hop.addr.IsValid():
		list := []target{r.target(r.hop.host, r.hop.addr)}
		if r.ourselves(list) {
			return nil, r.loop()
		}
		return list, nil
	case !r.hop.mx || r.hop.host == localhost:
		return r.host()
	}
	list, err := r.resolver.MX(r.ctx, r.hop.host)
	switch {
	case errors.Is(err, dns.ErrNoData), errors.Is(err, dns.ErrNoName), err == nil && len(list) == 0:
		// The domain is its own mail server. Some name servers say that there is no such
		// name where there is no such record (RFC 4074, section 4.2).
		list = []dns.MX{{Host: r.hop.host}}
	case err != nil:
		return nil, notFound(r.hop.host, "MX", err)
	}
	return r.domain(list)
}

// localhost is never looked up.
const localhost = "localhost"

func (r *router) target(host string, a netip.Addr) target {
	return target{host: host, addr: netip.AddrPortFrom(a, r.hop.port)}
}

// host is a next hop that names a host.
func (r *router) host() ([]target, error) {
	list, err := r.lookup(r.hop.host)
	if err != nil {
		return nil, notFound(r.hop.host, r.addressType(), err)
	}
	if r.ourselves(list) {
		return nil, r.loop()
	}
	list = alternate(list)
	return list[:min(len(list), r.cfg.Smtp.Addresses)], nil
}

// ourselves reports whether one of the addresses is ours. Another port may
// belong to another mail system of the same machine.
func (r *router) ourselves(list []target) bool {
	return r.hop.detectsLoops() && slices.ContainsFunc(list, func(t target) bool { return r.own(t.addr.Addr()) })
}

func (r *router) loop() error {
	return dsn.Errorf("5.4.6", "mail for %s loops back to myself", r.hop.text)
}

// lookup returns the addresses of one host that may be used. The DNS can hold
// names that are none of a host.
func (r *router) lookup(host string) ([]target, error) {
	if err := addr.CheckDomain(host); err != nil {
		return nil, dns.ErrNoName
	}
	addrs := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	var err error // where it comes with addresses there may be more of them
	if host != localhost {
		addrs, err = r.resolver.Addresses(r.ctx, host)
	}
	var list []target
	for _, a := range addrs {
		a = a.Unmap()
		if r.usable(a) {
			list = append(list, r.target(host, a))
		}
	}
	if len(list) > 0 {
		return list, nil
	}
	if err == nil {
		err = dns.ErrNoData
	}
	return nil, err
}

// usable says no to what is no address of a host, besides the protocols that are
// switched off: 0.0.0.0 is this machine, for one.
func (r *router) usable(a netip.Addr) bool {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return false
	}
	switch r.cfg.Smtp.Protocols {
	case "ipv4":
		return a.Is4()
	case "ipv6":
		return a.Is6()
	}
	return true
}

func (r *router) addressType() string {
	if r.cfg.Smtp.Protocols == "ipv6" {
		return "AAAA"
	}
	return "A"
}

// domain orders the mail servers of a domain and looks up as many of them as
// give enough addresses.
func (r *router) domain(list []dns.MX) ([]target, error) {
	null := slices.ContainsFunc(list, func(m dns.MX) bool { return m.Host == "" })
	list = slices.DeleteFunc(slices.Clone(list), func(m dns.MX) bool { return m.Host == "" })
	if len(list) == 0 && null {
		return nil, dsn.Errorf("5.1.10", "Domain %s does not accept mail (nullMX)", r.hop.text)
	}
	better := beforeOurselves(list, r.cfg.Hostname)
	if len(better) == 0 {
		return nil, r.loop()
	}
	all, ours, err := r.hosts(better)
	switch {
	case len(all) > 0:
		return all[:min(len(all), r.cfg.Smtp.Addresses)], nil
	case ours == better[0].preference:
		return nil, r.loop()
	case len(better) < len(list) || ours < noPreference:
		// It is us who keep the mail until a better server is there.
		return nil, dsn.Errorf("4.4.4", "unable to find primary relay for %s", r.hop.text)
	}
	return nil, err
}

// exchanger is a mail server of a domain.
type exchanger struct {
	host       string
	preference int
}

// noPreference is worse than any of DNS.
const noPreference = 1 << 16

// beforeOurselves returns the mail servers in order, best first, those of the
// same preference at random, without the one called own and all that are no
// better, lest mail goes round in circles.
func beforeOurselves(list []dns.MX, own string) []exchanger {
	limit := noPreference
	for _, m := range list {
		if strings.EqualFold(m.Host, own) {
			limit = min(limit, int(m.Preference))
		}
	}
	var better []exchanger
	for _, m := range list {
		if int(m.Preference) < limit {
			better = append(better, exchanger{m.Host, int(m.Preference)})
		}
	}
	rand.Shuffle(len(better), func(i, j int) { better[i], better[j] = better[j], better[i] })
	slices.SortStableFunc(better, func(a, b exchanger) int { return a.preference - b.preference })
	return better
}

// maxHosts bounds how many mail servers of a domain are looked up.
const maxHosts = 20

// hosts looks mail servers up until there are enough addresses, or one is ours:
// then those of its preference do not count either, which is returned. The error
// is that of the last lookup, or a temporary one if there was any: with that
// server's address the mail might have got through.
func (r *router) hosts(list []exchanger) (all []target, ours int, err error) {
	var verdict *dsn.Error
	var group []target // of one preference
	for i, m := range list[:min(len(list), maxHosts)] {
		if i > 0 && m.preference != list[i-1].preference {
			all, group = append(all, alternate(group)...), nil
			if len(all) >= r.cfg.Smtp.Addresses {
				break
			}
		}
		found, err := r.lookup(m.host)
		if err != nil {
			e := notFound(m.host, r.addressType(), err)
			if verdict == nil || verdict.Status.Class() == dsn.Permanent {
				verdict = e
			}
			continue
		}
		if r.ourselves(found) {
			return all, m.preference, nil
		}
		for k := range found {
			found[k].lesser = m.preference > list[0].preference
		}
		group = append(group, found...)
	}
	all = append(all, alternate(group)...)
	if len(all) == 0 {
		return nil, noPreference, verdict
	}
	return all, noPreference, nil
}

// alternate puts addresses of both families in turns, IPv6 first, so that one
// that leads nowhere does not use up all attempts.
func alternate(list []target) []target {
	var v4, v6, out []target
	for _, t := range list {
		if t.addr.Addr().Is4() {
			v4 = append(v4, t)
		} else {
			v6 = append(v6, t)
		}
	}
	for i := range max(len(v4), len(v6)) {
		if i < len(v6) {
			out = append(out, v6[i])
		}
		if i < len(v4) {
			out = append(out, v4[i])
		}
	}
	return out
}

// notFound makes a verdict of a lookup's error.
func notFound(name, typ string, err error) *dsn.Error {
	cause := err
	if inner := errors.Unwrap(err); inner != nil {
		cause = inner // without the name, which is there already
	}
	status, why := "4.4.3", "Host not found, try again ("+cause.Error()+")"
	switch {
	case errors.Is(err, dns.ErrNoName):
		status, why = "5.4.4", "Host not found"
	case errors.Is(err, dns.ErrNoData):
		status, why = "5.4.4", "Host found but no data record of requested type"
	}
	return dsn.Errorf(status, "Host or domain name not found. Name service error for name=%s type=%s: %s", name, typ, why)
}
