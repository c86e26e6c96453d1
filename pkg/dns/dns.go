// Package dns is a stub resolver: it asks the recursive servers of
// resolv.conf(5), believes no answer that does not fit its question, and tells
// "there is none" from "not known now", which decides whether mail bounces or
// waits.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/idna"

	"posthouse/pkg/addr"
)

// What DNS says for certain. Every other error is temporary.
var (
	ErrNoName = errors.New("no such name")           // NXDOMAIN
	ErrNoData = errors.New("no record of that type") // the name exists
)

// MX is a mail exchanger (RFC 5321, section 5.1).
type MX struct {
	Preference uint16
	Host       string // in lower case, without the final dot; "" is the null MX (RFC 7505)
}

// Bounds of what is taken from answers.
const (
	maxChain   = 10  // CNAMEs that lead to an answer
	maxRecords = 100 // of one answer
	maxNames   = 10  // of one address that are checked
)

// Resolver asks. It has no cache: the recursive server has one.
type Resolver struct {
	settings func() settings
}

// settings say whom to ask, and for how long.
type settings struct {
	servers []netip.AddrPort
	timeout time.Duration // of one try
	rounds  int           // through all servers
}

const (
	defaultTimeout = 5 * time.Second
	defaultRounds  = 2
)

// New returns a resolver that asks servers.
func New(servers []netip.AddrPort) *Resolver {
	s := settings{servers, defaultTimeout, defaultRounds}
	return &Resolver{func() settings { return s }}
}

// System returns a resolver for the servers that the file at path names, which
// is looked at again when it changes. Without any it asks this host.
func System(path string) *Resolver {
	f := &resolvConf{path: path}
	return &Resolver{f.current}
}

// MX returns the mail exchangers of domain as DNS lists them.
func (r *Resolver) MX(ctx context.Context, domain string) ([]MX, error) {
	records, err := r.lookup(ctx, domain, dnsmessage.TypeMX)
	if err != nil {
		return nil, err
	}
	var list []MX
	for _, rec := range records {
		body, ok := rec.(*dnsmessage.MXResource)
		if !ok {
			continue
		}
		host := plain(body.MX)
		if host != "" && addr.CheckDomain(host) != nil {
			continue // nobody can be reached by such a name
		}
		list = append(list, MX{body.Pref, host})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("MX records of %s: all malformed", domain)
	}
	return list, nil
}

// Addresses returns the addresses of host, of both families. Where one family
// is not known now the error is temporary, and comes with those of the other.
func (r *Resolver) Addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	type result struct {
		list []netip.Addr
		err  error
	}
	six := make(chan result, 1)
	go func() {
		list, err := r.family(ctx, host, dnsmessage.TypeAAAA)
		six <- result{list, err}
	}()
	list, err := r.family(ctx, host, dnsmessage.TypeA)
	other := <-six
	list = append(other.list, list...)
	for _, e := range []error{err, other.err} {
		if e != nil && !errors.Is(e, ErrNoName) && !errors.Is(e, ErrNoData) {
			return list, e
		}
	}
	if len(list) > 0 {
		return list, nil
	}
	return nil, err
}

func (r *Resolver) family(ctx context.Context, host string, t dnsmessage.Type) ([]netip.Addr, error) {
	records, err := r.lookup(ctx, host, t)
	var list []netip.Addr
	for _, rec := range records {
		switch body := rec.(type) {
		case *dnsmessage.AResource:
			list = append(list, netip.AddrFrom4(body.A))
		case *dnsmessage.AAAAResource:
			list = append(list, netip.AddrFrom16(body.AAAA).Unmap())
		}
	}
	return list, err
}

// Name returns a name of ip that leads back to ip. ErrNoName says that there is
// none.
func (r *Resolver) Name(ctx context.Context, ip netip.Addr) (string, error) {
	records, err := r.lookup(ctx, reverse(ip), dnsmessage.TypePTR)
	if errors.Is(err, ErrNoData) {
		err = ErrNoName
	}
	if err != nil {
		return "", err
	}
	var unsure error
	for _, rec := range records[:min(len(records), maxNames)] {
		body, ok := rec.(*dnsmessage.PTRResource)
		if !ok {
			continue
		}
		name := plain(body.PTR)
		if addr.CheckDomain(name) != nil || strings.HasPrefix(name, "[") || !isASCII(name) {
			continue // what is looked up for the last would be another name, and headers are ASCII
		}
		list, err := r.Addresses(ctx, name)
		switch {
		case slices.Contains(list, ip.Unmap()):
			return name, nil
		case err != nil && !errors.Is(err, ErrNoName) && !errors.Is(err, ErrNoData):
			unsure = err
		}
	}
	if unsure != nil {
		return "", unsure
	}
	return "", ErrNoName
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}

// plain is a name without its final dot, in lower case.
func plain(n dnsmessage.Name) string {
	return strings.ToLower(strings.TrimSuffix(n.String(), "."))
}

// reverse is the name under which names of ip are found (RFC 1035, section 3.5;
// RFC 3596, section 2.5).
func reverse(ip netip.Addr) string {
	const hex = "0123456789abcdef"
	ip = ip.Unmap()
	var b strings.Builder
	if ip.Is4() {
		a := ip.As4()
		return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa", a[3], a[2], a[1], a[0])
	}
	a := ip.As16()
	for i := len(a) - 1; i >= 0; i-- {
		b.Write([]byte{hex[a[i]&15], '.', hex[a[i]>>4], '.'})
	}
	return b.String() + "ip6.arpa"
}

// lookup returns the records of a type, at name or where its CNAMEs lead.
func (r *Resolver) lookup(ctx context.Context, name string, t dnsmessage.Type) ([]dnsmessage.ResourceBody, error) {
	ascii := name
	if !isASCII(name) {
		var err error
		if ascii, err = idna.Lookup.ToASCII(name); err != nil {
			return nil, fmt.Errorf("%w: %v", ErrNoName, err)
		}
	}
	qname, err := dnsmessage.NewName(strings.TrimSuffix(ascii, ".") + ".")
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %v", ErrNoName, name, err)
	}
	for range maxChain {
		q := dnsmessage.Question{Name: qname, Type: t, Class: dnsmessage.ClassINET}
		a, err := r.ask(ctx, q)
		if err != nil {
			return nil, fmt.Errorf("%s record of %s: %w", strings.TrimPrefix(t.String(), "Type"), name, err)
		}
		if len(a.records) > 0 {
			return a.records, nil
		}
		if a.next == "" {
			return nil, fmt.Errorf("%s record of %s: %w", strings.TrimPrefix(t.String(), "Type"), name, ErrNoData)
		}
		if qname, err = dnsmessage.NewName(a.next); err != nil {
			return nil, fmt.Errorf("CNAME of %s: %w", name, err)
		}
	}
	return nil, fmt.Errorf("CNAMEs of %s do not come to an end", name)
}

// answer is what a response says.
type answer struct {
	records []dnsmessage.ResourceBody
	next    string // where the CNAMEs lead; its records are not in the response
}

// errRefused is the answer of a server that cannot, or will not, say; errFormat of one
// that does not understand the question, as where it does not know EDNS.
var (
	errRefused = errors.New("server failure")
	errFormat  = fmt.Errorf("%w: question not understood", errRefused)
)

// parse reads the response to q. A response that does not fit it is an error
// that is not about the name.
func parse(b []byte, id uint16, q dnsmessage.Question) (a answer, truncated bool, err error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		return answer{}, false, err
	}
	if !h.Response || h.ID != id || h.OpCode != 0 {
		return answer{}, false, errors.New("not the response")
	}
	if h.RCode == dnsmessage.RCodeFormatError || h.RCode == dnsmessage.RCodeNotImplemented {
		return answer{}, false, errFormat // who does not understand a question may not repeat it
	}
	questions, err := p.AllQuestions()
	if err != nil {
		return answer{}, false, err
	}
	if len(questions) != 1 || questions[0].Type != q.Type || questions[0].Class != q.Class || !strings.EqualFold(questions[0].Name.String(), q.Name.String()) {
		return answer{}, false, errors.New("the response to another question")
	}
	switch {
	case h.Truncated:
		return answer{}, true, nil
	case h.RCode == dnsmessage.RCodeNameError:
		return answer{}, false, ErrNoName
	case h.RCode != dnsmessage.RCodeSuccess:
		return answer{}, false, fmt.Errorf("%w: %s", errRefused, strings.TrimPrefix(h.RCode.String(), "RCode"))
	}
	a, truncated, err = collect(&p, q)
	if err == nil && len(a.records) == 0 && a.next == "" && !h.Authoritative && !h.RecursionAvailable {
		// A referral: this server does not look further, and knows nothing of the name.
		return answer{}, false, fmt.Errorf("%w: not recursive", errRefused)
	}
	return a, truncated, err
}

// collect takes the records that answer q from the answer section.
func collect(p *dnsmessage.Parser, q dnsmessage.Question) (a answer, truncated bool, err error) {
	records := make(map[string][]dnsmessage.ResourceBody)
	aliases := make(map[string]string)
	for range maxRecords {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil {
			return answer{}, false, err
		}
		owner := strings.ToLower(h.Name.String())
		if h.Class != q.Class || h.Type != q.Type && h.Type != dnsmessage.TypeCNAME {
			if err := p.SkipAnswer(); err != nil {
				return answer{}, false, err
			}
			continue
		}
		rec, err := p.Answer()
		if err != nil {
			return answer{}, false, err
		}
		if cname, ok := rec.Body.(*dnsmessage.CNAMEResource); ok {
			aliases[owner] = strings.ToLower(cname.CNAME.String())
			continue
		}
		records[owner] = append(records[owner], rec.Body)
	}
	name := strings.ToLower(q.Name.String())
	for range maxChain {
		if len(records[name]) > 0 {
			return answer{records: records[name]}, false, nil
		}
		next, ok := aliases[name]
		if !ok {
			break
		}
		name, a.next = next, next
	}
	return a, false, nil
}
