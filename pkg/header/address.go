package header

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"posthouse/pkg/addr"
)

// Limits of an address list. They are far above what occurs.
const (
	MaxAddresses = 10000
	MaxComments  = 20 // comments within comments
)

// ParseAddressList reads the addresses of a field such as To (RFC 5322, section
// 3.4), which may be folded. Names, comments, source routes and the names of
// groups are left out; an empty address and an empty group give nothing.
//
// It is lenient where that changes no address: white space around dots, empty
// elements, a group without end, anything for a name. What could be read in two
// ways is an error, and then there is no result.
//
// A local-part may come without a domain.
func ParseAddressList(s string) ([]addr.Mailbox, error) {
	p := &addressParser{in: s}
	for !p.end() {
		m, err := p.element()
		if err != nil {
			return nil, fmt.Errorf("address list: %w, at %.60q", err, p.in[p.start:])
		}
		if m.IsNull() {
			continue
		}
		if len(p.list) == MaxAddresses {
			return nil, fmt.Errorf("address list: more than %d addresses", MaxAddresses)
		}
		p.list = append(p.list, m)
	}
	return p.list, nil
}

// Complete returns the field with @domain behind each of its addresses that has
// no domain, and otherwise as it came. A field that does not hold addresses which
// can be read in one way only stays as it is.
func (f Field) Complete(domain string) []byte {
	colon := bytes.IndexByte(f.Raw, ':') + 1
	p := &addressParser{in: string(f.Raw[colon:])}
	for !p.end() {
		if _, err := p.element(); err != nil {
			return f.Raw
		}
	}
	if len(p.bare) == 0 {
		return f.Raw
	}
	out := bytes.Clone(f.Raw[:colon])
	from := 0
	for _, at := range p.bare {
		out = append(out, p.in[from:at]...)
		out = append(out, "@"+domain...)
		from = at
	}
	return append(out, p.in[from:]...)
}

type tokenKind uint8

const (
	tokenEnd tokenKind = iota
	tokenAtom
	tokenQuoted  // a quoted string, without quotes
	tokenLiteral // an address literal, with brackets
	tokenSpecial // one of <>:;,@.
)

type token struct {
	kind tokenKind
	text string
	end  int // where it ends
}

func (t token) is(special string) bool { return t.kind == tokenSpecial && t.text == special }

func (t token) isAt() bool { return t.is("@") }

type addressParser struct {
	in    string
	at    int
	start int // of the current element, for messages
	group bool
	list  []addr.Mailbox
	bare  []int // where addresses without a domain end
}

func (p *addressParser) end() bool { return p.at >= len(p.in) }

// element reads up to the next comma, or the end of a group; the result is null
// where there is no address.
func (p *addressParser) element() (addr.Mailbox, error) {
	p.start = p.at
	var words []token // of an address, or of a name
	var angle *addr.Mailbox
	for {
		t, err := p.next()
		switch {
		case err != nil:
			return addr.Mailbox{}, err
		case t.is(":") && angle == nil && !p.group && !slices.ContainsFunc(words, token.isAt):
			p.group, words = true, nil
		case t.is("<") && angle == nil:
			m, err := p.angle()
			if err != nil {
				return addr.Mailbox{}, err
			}
			angle = &m
		case t.kind == tokenEnd, t.is(","), t.is(";"):
			// A semicolon outside a group separates for some mail programs.
			if t.is(";") {
				p.group = false
			}
			if angle != nil {
				return *angle, nil
			}
			return p.mailbox(words)
		case t.is("<"), t.is(">"), t.is(":"), angle != nil:
			return addr.Mailbox{}, fmt.Errorf("unexpected %q", t.text)
		default:
			words = append(words, t)
		}
	}
}

// angle reads what is in angle brackets: an address, maybe with a source route.
func (p *addressParser) angle() (addr.Mailbox, error) {
	var words []token
	route := false
	for {
		t, err := p.next()
		switch {
		case err != nil:
			return addr.Mailbox{}, err
		case t.kind == tokenEnd:
			return addr.Mailbox{}, errors.New("no closing angle bracket")
		case t.is(">") && route:
			return addr.Mailbox{}, errors.New("source route without end")
		case t.is(">"):
			return p.mailbox(words)
		case t.is("@") && len(words) == 0:
			route = true
		case route && t.is(":"):
			route = false
		case route && t.kind == tokenQuoted, t.is("<"), t.is(":"), t.is(";"), t.is(",") && !route:
			return addr.Mailbox{}, fmt.Errorf("unexpected %q", t.text)
		case !route:
			words = append(words, t)
		}
	}
}

// mailbox makes an address of its words; none give the null address.
func (p *addressParser) mailbox(words []token) (addr.Mailbox, error) {
	if len(words) == 0 {
		return addr.Mailbox{}, nil
	}
	var local, domain strings.Builder
	part, parts := &local, 1
	dot := true // the next word may follow without a dot
	for _, t := range words {
		switch {
		case t.is("@"):
			part, dot = &domain, true
			parts++
			continue
		case t.is("."):
			dot = true
		case !dot:
			return addr.Mailbox{}, fmt.Errorf("unexpected %q", t.text)
		case parts == 2 && t.kind == tokenQuoted:
			return addr.Mailbox{}, errors.New("quoted domain")
		case parts == 1 && t.kind == tokenLiteral:
			return addr.Mailbox{}, fmt.Errorf("unexpected %q", t.text)
		default:
			dot = false
		}
		part.WriteString(t.text)
	}
	if parts > 2 || parts == 2 && domain.Len() == 0 {
		return addr.Mailbox{}, errors.New("malformed address")
	}
	m, err := addr.New(local.String(), strings.TrimSuffix(domain.String(), "."))
	if err == nil && parts == 1 {
		p.bare = append(p.bare, words[len(words)-1].end)
	}
	return m, err
}

// next returns the next token. White space and comments are skipped.
func (p *addressParser) next() (token, error) {
	t, err := p.scan()
	t.end = p.at
	return t, err
}

func (p *addressParser) scan() (token, error) {
	for !p.end() {
		c := p.in[p.at]
		switch {
		case c == ' ', c == '\t', c == '\r', c == '\n':
			p.at++
		case c == '(':
			if err := p.comment(); err != nil {
				return token{}, err
			}
		case c == '"':
			text, err := p.quoted()
			return token{kind: tokenQuoted, text: text}, err
		case c == '[':
			n := strings.IndexByte(p.in[p.at:], ']') + 1
			if n == 0 {
				return token{}, errors.New("address literal without end")
			}
			p.at += n
			return token{kind: tokenLiteral, text: p.in[p.at-n : p.at]}, nil
		case strings.IndexByte("<>:;,@.", c) >= 0:
			p.at++
			return token{kind: tokenSpecial, text: p.in[p.at-1 : p.at]}, nil
		case !isAtom(c):
			return token{}, fmt.Errorf("unexpected %q", c)
		default:
			start := p.at
			for !p.end() && isAtom(p.in[p.at]) {
				p.at++
			}
			return token{kind: tokenAtom, text: p.in[start:p.at]}, nil
		}
	}
	return token{}, nil
}

// isAtom accepts the octets of UTF-8, too (RFC 6532).
func isAtom(c byte) bool {
	return c > ' ' && c != 0x7f && strings.IndexByte(`()<>[]:;@\,."`, c) < 0
}

// comment skips one comment.
func (p *addressParser) comment() error {
	depth := 0
	for ; !p.end(); p.at++ {
		switch p.in[p.at] {
		case '(':
			if depth++; depth > MaxComments {
				return fmt.Errorf("comments nested deeper than %d", MaxComments)
			}
		case ')':
			if depth--; depth == 0 {
				p.at++
				return nil
			}
		case '\\':
			p.at++
		}
	}
	return errors.New("comment without end")
}

// quoted reads a quoted string, unfolds it and drops its quotes.
func (p *addressParser) quoted() (string, error) {
	var b strings.Builder
	for p.at++; !p.end(); p.at++ {
		switch c := p.in[p.at]; c {
		case '"':
			p.at++
			return b.String(), nil
		case '\r', '\n':
		case '\\':
			if p.at++; p.end() {
				return "", errors.New("quoted string without end")
			}
			b.WriteByte(p.in[p.at])
		default:
			b.WriteByte(c)
		}
	}
	return "", errors.New("quoted string without end")
}
