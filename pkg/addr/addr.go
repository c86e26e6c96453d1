// Package addr holds mail addresses: the mailbox of RFC 5321, section 4.1.2.
//
// A Mailbox can be made by parsing only, so a function that takes one cannot
// be called with unchecked input. It is held in its internal form, that is
// without quotes; String gives the external form, quoted where needed.
package addr

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"
)

// Limits of RFC 5321, section 4.5.3.1, in octets. The local-part limit is that
// of Postfix's practice rather than the RFC's 64: longer ones are in use (VERP,
// SRS), and a relay has no business refusing what its neighbour takes.
const (
	MaxLocal  = 256
	MaxDomain = 255
)

// Mailbox is a checked address. The zero value is the null reverse-path "<>".
//
// The domain may be empty only for an address that has not been completed yet:
// "postmaster" (RFC 5321, section 4.5.1) and what local users submit.
type Mailbox struct {
	local, domain string
}

// Local returns the local-part without quotes.
func (m Mailbox) Local() string { return m.local }

// Domain returns the domain as it was given: a dot-string in lower, upper or
// mixed case, or an address literal with its brackets.
func (m Mailbox) Domain() string { return m.domain }

// IsNull reports whether m is the null reverse-path.
func (m Mailbox) IsNull() bool { return m == Mailbox{} }

// WithDomain returns m with its domain replaced; it fails where domain is not one.
func (m Mailbox) WithDomain(domain string) (Mailbox, error) {
	if err := checkDomain(domain); err != nil {
		return Mailbox{}, err
	}
	return Mailbox{m.local, domain}, nil
}

// WithLocal returns m with its local-part replaced.
func (m Mailbox) WithLocal(local string) (Mailbox, error) {
	if err := checkLocal(local); err != nil {
		return Mailbox{}, err
	}
	return Mailbox{local, m.domain}, nil
}

// Fold returns m in lower case, for comparing and for table lookups. Remote
// systems may tell cases of a local-part apart (RFC 5321, section 2.4), so the
// result is never what a message is sent to.
func (m Mailbox) Fold() Mailbox {
	return Mailbox{strings.ToLower(m.local), strings.ToLower(m.domain)}
}

// IsASCII reports whether m can travel without SMTPUTF8 (RFC 6531).
func (m Mailbox) IsASCII() bool { return isASCII(m.local) && isASCII(m.domain) }

// SplitExtension cuts the local-part at the first of the given delimiter
// characters, as Postfix's recipient_delimiter does. A delimiter at the very
// start does not count, nor does one in "owner-list" or "list-request" when
// the delimiter is "-". ext is empty where there is none.
func (m Mailbox) SplitExtension(delimiters string) (base Mailbox, ext string) {
	if delimiters == "" || strings.EqualFold(m.local, "postmaster") || strings.EqualFold(m.local, "mailer-daemon") {
		return m, ""
	}
	if strings.Contains(delimiters, "-") {
		low := strings.ToLower(m.local)
		if strings.HasPrefix(low, "owner-") || strings.HasSuffix(low, "-request") {
			return m, ""
		}
	}
	i := strings.IndexAny(m.local, delimiters)
	if i <= 0 {
		return m, ""
	}
	return Mailbox{m.local[:i], m.domain}, m.local[i+1:]
}

// String returns the external form, with the local-part quoted where RFC 5321
// asks for it; the null reverse-path gives "".
func (m Mailbox) String() string {
	if m.IsNull() {
		return ""
	}
	local := m.local
	if !isDotString(local) {
		local = quote(local)
	}
	if m.domain == "" {
		return local
	}
	return local + "@" + m.domain
}

// Path returns the external form in angle brackets.
func (m Mailbox) Path() string { return "<" + m.String() + ">" }

var (
	errEmpty   = errors.New("empty address")
	errControl = errors.New("control character in address")
)

// Parse reads the external form, local-part@domain or a local-part alone. It
// accepts UTF-8 (RFC 6531) in both parts; callers that may not take it check
// IsASCII. The empty string is an error: the null reverse-path has a spelling
// of its own, which ParsePath knows. As programs and people write them, and there are
// mailboxes of such names, dots may stand anywhere in the local-part, and one may end
// the domain; the external form is that of RFC 5321, with the local-part in quotes.
func Parse(s string) (Mailbox, error) {
	m, rest, err := parse(s)
	if err == nil && rest != "" {
		err = fmt.Errorf("%q after the address", rest)
	}
	if err != nil {
		return Mailbox{}, fmt.Errorf("address %q: %w", clip(s), err)
	}
	return m, nil
}

// Clone returns m with memory of its own: the parts of one that was read are parts
// of what it was read from.
func (m Mailbox) Clone() Mailbox { return Mailbox{strings.Clone(m.local), strings.Clone(m.domain)} }

// ParsePath reads a path of MAIL or RCPT, brackets included, from the start of
// s, and returns what follows it. A source route is dropped as RFC 5321,
// appendix C allows; "<>" gives the null reverse-path.
func ParsePath(s string) (m Mailbox, rest string, err error) {
	if !strings.HasPrefix(s, "<") {
		return Mailbox{}, "", fmt.Errorf("path %q: no angle bracket", clip(s))
	}
	body := s[1:]
	if strings.HasPrefix(body, ">") {
		return Mailbox{}, body[1:], nil
	}
	if strings.HasPrefix(body, "@") {
		route, tail, ok := strings.Cut(body, ":")
		if !ok {
			return Mailbox{}, "", fmt.Errorf("path %q: source route without end", clip(s))
		}
		for hop := range strings.SplitSeq(route, ",") {
			if domain, ok := strings.CutPrefix(hop, "@"); !ok || checkDomain(domain) != nil {
				return Mailbox{}, "", fmt.Errorf("path %q: malformed source route", clip(s))
			}
		}
		body = tail
	}
	m, rest, err = parse(body)
	if err == nil && !strings.HasPrefix(rest, ">") {
		err = errors.New("no closing angle bracket")
	}
	if err != nil {
		return Mailbox{}, "", fmt.Errorf("path %q: %w", clip(s), err)
	}
	return m, rest[1:], nil
}

// New makes a mailbox of its internal parts; domain may be empty.
func New(local, domain string) (Mailbox, error) {
	if err := checkLocal(local); err != nil {
		return Mailbox{}, err
	}
	if domain != "" {
		if err := checkDomain(domain); err != nil {
			return Mailbox{}, err
		}
	}
	return Mailbox{local, domain}, nil
}

// parse reads one address from the start of s and stops where it cannot go on.
func parse(s string) (m Mailbox, rest string, err error) {
	if s == "" {
		return Mailbox{}, "", errEmpty
	}
	local := ""
	if s[0] == '"' {
		local, rest, err = unquote(s)
		if err != nil {
			return Mailbox{}, "", err
		}
	} else {
		n := 0
		for n < len(s) && (isAtext(s[n]) || s[n] == '.') {
			n++
		}
		local, rest = s[:n], s[n:]
		if strings.Trim(local, ".") == "" {
			return Mailbox{}, "", errors.New("malformed local-part")
		}
	}
	if err := checkLocal(local); err != nil {
		return Mailbox{}, "", err
	}
	if !strings.HasPrefix(rest, "@") {
		return Mailbox{local: local}, rest, nil
	}
	rest = rest[1:]
	n := 0
	if strings.HasPrefix(rest, "[") {
		n = strings.IndexByte(rest, ']') + 1
	} else {
		for n < len(rest) && (isLetterDigit(rest[n]) || rest[n] == '-' || rest[n] == '.' || rest[n] == '_') {
			n++
		}
	}
	domain := strings.TrimSuffix(rest[:n], ".")
	if err := checkDomain(domain); err != nil {
		return Mailbox{}, "", err
	}
	return Mailbox{local, domain}, rest[n:], nil
}

func checkLocal(s string) error {
	switch {
	case s == "":
		return errors.New("empty local-part")
	case len(s) > MaxLocal:
		return fmt.Errorf("local-part of %d octets, limit %d", len(s), MaxLocal)
	case !utf8.ValidString(s):
		return errors.New("local-part is not UTF-8")
	case hasControl(s):
		return errControl
	}
	return nil
}

// checkDomain accepts a dot-string of labels, in ASCII or UTF-8, or an address
// literal (RFC 5321, section 4.1.3). An underscore is let through, for it
// occurs; a trailing dot is not: who reads an address drops it.
func checkDomain(s string) error {
	if s == "" {
		return errors.New("empty domain")
	}
	if len(s) > MaxDomain {
		return fmt.Errorf("domain of %d octets, limit %d", len(s), MaxDomain)
	}
	if s[0] == '[' {
		if _, err := ParseLiteral(s); err != nil {
			return err
		}
		return nil
	}
	if !utf8.ValidString(s) || hasControl(s) {
		return errors.New("domain is not printable UTF-8")
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("malformed domain %q", clip(s))
		}
		for i := range len(label) {
			if c := label[i]; !isLetterDigit(c) && c != '-' && c != '_' {
				return fmt.Errorf("malformed domain %q", clip(s))
			}
		}
	}
	return nil
}

// CheckDomain reports whether s can be the domain of a mailbox.
func CheckDomain(s string) error { return checkDomain(s) }

// ParseLiteral reads an address literal with its brackets: [192.0.2.1],
// [IPv6:2001:db8::1]. General address literals are refused: nobody can route them.
func ParseLiteral(s string) (netip.Addr, error) {
	body, ok1 := strings.CutPrefix(s, "[")
	body, ok2 := strings.CutSuffix(body, "]")
	if !ok1 || !ok2 {
		return netip.Addr{}, fmt.Errorf("malformed address literal %q", clip(s))
	}
	v6, is6 := body, false
	if len(body) > 5 && strings.EqualFold(body[:5], "IPv6:") {
		v6, is6 = body[5:], true
	}
	a, err := netip.ParseAddr(v6)
	if err != nil || a.Zone() != "" || is6 == a.Is4() {
		return netip.Addr{}, fmt.Errorf("malformed address literal %q", clip(s))
	}
	return a, nil
}

func unquote(s string) (local, rest string, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; c {
		case '"':
			return b.String(), s[i+1:], nil
		case '\\':
			i++
			if i == len(s) {
				return "", "", errors.New("quoted local-part without end")
			}
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", errors.New("quoted local-part without end")
}

func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	b.WriteByte('"')
	return b.String()
}

func isDotString(s string) bool {
	for atom := range strings.SplitSeq(s, ".") {
		if atom == "" {
			return false
		}
		for i := range len(atom) {
			if !isAtext(atom[i]) {
				return false
			}
		}
	}
	return true
}

func isAtext(c byte) bool {
	return isLetterDigit(c) || strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

// isLetterDigit counts octets of UTF-8 sequences in (RFC 6531, section 3.3).
func isLetterDigit(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c >= 0x80
}

// hasControl also finds the C1 controls, which a terminal obeys, and the line
// separators of Unicode.
func hasControl(s string) bool {
	for _, r := range s {
		if r < 0x20 || 0x7f <= r && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return true
		}
	}
	return false
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}
