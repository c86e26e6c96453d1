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
	hop      *nexthop
}

// route returns the addresses to try, in order, at least one. The error is a
// *dsn.Error.
func (r *router) route() ([]target, error) {
	switch {
	case r.hop.socket != "":
		return []target{{host: r.cfg.Hostname, socket: r.hop.socket}}, nil
	case r.hop.addr.IsValid():
		return []target{r.target(r.hop.host, r.hop.addr)}, nil
	case !r.hop.mx || r.hop.host == localhost:
		return r.host()
	}
	list, err := r.resolver.MX(r.ctx, r.hop.host)
	switch {
	case errors.Is(err, dns.ErrNoData), err == nil && len(list) == 0:
		// The domain is its own mail server.
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
	list = alternate(list)
	return list[:min(len(list), r.cfg.Smtp.Addresses)], nil
}

// lookup returns the addresses of one host that may be used. The DNS can hold
// names that are none of a host.
func (r *router) lookup(host string) ([]target, error) {
	if err := addr.CheckDomain(host); err != nil {
		return nil, dns.ErrNoName
	}
	addrs := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	if host != localhost {
		var err error
		if addrs, err = r.resolver.Addresses(r.ctx, host); err != nil {
			return nil, err
		}
	}
	var list []target
	for _, a := range addrs {
		a = a.Unmap()
		if r.usable(a) {
			list = append(list, r.target(host, a))
		}
	}
	if len(list) == 0 {
		return nil, dns.ErrNoData
	}
	return list, nil
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
		return nil, dsn.Errorf("5.4.6", "mail for %s loops back to myself", r.hop.text)
	}
	all, err := r.hosts(better)
	switch {
	case len(all) > 0:
		return all[:min(len(all), r.cfg.Smtp.Addresses)], nil
	case len(better) < len(list):
		// It is us who keep the mail until a better server is there.
		return nil, dsn.Errorf("4.4.4", "unable to find primary relay for %s", r.hop.text)
	}
	return nil, err
}

// beforeOurselves drops the server called own and all that are no better, lest
// mail goes round in circles.
func beforeOurselves(list []dns.MX, own string) []dns.MX {
	limit := 1 << 16
	for _, m := range list {
		if strings.EqualFold(m.Host, own) {
			limit = min(limit, int(m.Preference))
		}
	}
	return slices.DeleteFunc(slices.Clone(list), func(m dns.MX) bool { return int(m.Preference) >= limit })
}

// maxHosts bounds how many mail servers of a domain are looked up.
const maxHosts = 20

// hosts looks mail servers up, best first, those of the same preference in
// random order. The error is that of the last lookup, or a temporary one if
// there was any: with that server's address the mail might have got through.
func (r *router) hosts(list []dns.MX) (all []target, err error) {
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(a, b dns.MX) int { return int(a.Preference) - int(b.Preference) })
	var verdict *dsn.Error
	var group []target // of one preference
	for i, m := range list[:min(len(list), maxHosts)] {
		if i > 0 && m.Preference != list[i-1].Preference {
			all, group = append(all, alternate(group)...), nil
		}
		if len(all)+len(group) >= r.cfg.Smtp.Addresses {
			break
		}
		found, err := r.lookup(m.Host)
		if err != nil {
			e := notFound(m.Host, r.addressType(), err)
			if verdict == nil || verdict.Status.Class() == dsn.Permanent {
				verdict = e
			}
			continue
		}
		group = append(group, found...)
	}
	all = append(all, alternate(group)...)
	if len(all) == 0 {
		return nil, verdict
	}
	return all, nil
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
	status, why := "4.4.3", "Host not found, try again"
	switch {
	case errors.Is(err, dns.ErrNoName):
		status, why = "5.4.4", "Host not found"
	case errors.Is(err, dns.ErrNoData):
		status, why = "5.4.4", "Host found but no data record of requested type"
	}
	return dsn.Errorf(status, "Host or domain name not found. Name service error for name=%s type=%s: %s", name, typ, why)
}
