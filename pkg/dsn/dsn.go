// Package dsn holds the words of delivery status: enhanced status codes (RFC
// 3463), what a sender asked to be told (RFC 3461), and the actions of a
// delivery status notification (RFC 3464).
package dsn

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Class is the first number of a status code.
type Class uint8

// The zero Class is Transient: whatever forgets to say otherwise keeps the mail.
const (
	Transient Class = iota // 4: try again later
	Success                // 2
	Permanent              // 5: will never work
)

// Status is an enhanced status code such as 4.4.1 (RFC 3463, section 2).
//
// The fields are unexported so that no code can hold a class that disagrees
// with the rest. The zero Status is 4.0.0.
type Status struct {
	class           Class
	subject, detail uint16
}

// Class returns what kind of outcome s is.
func (s Status) Class() Class { return s.class }

// String returns the text form, such as "5.1.1".
func (s Status) String() string {
	c := "4"
	switch s.class {
	case Success:
		c = "2"
	case Permanent:
		c = "5"
	case Transient:
	}
	return c + "." + strconv.Itoa(int(s.subject)) + "." + strconv.Itoa(int(s.detail))
}

// With returns s with another class: 5.1.1 becomes 4.1.1.
func (s Status) With(c Class) Status { return Status{c, s.subject, s.detail} }

// Parse reads the text form of a status code. It accepts exactly what String
// produces: no spaces, no leading zeros (RFC 3463, section 2).
func Parse(s string) (Status, error) {
	class, rest, _ := strings.Cut(s, ".")
	subject, detail, _ := strings.Cut(rest, ".")
	var st Status
	switch class {
	case "2":
		st.class = Success
	case "4":
		st.class = Transient
	case "5":
		st.class = Permanent
	default:
		return Status{}, fmt.Errorf("malformed status code %.20q", s)
	}
	for _, f := range []struct {
		text string
		to   *uint16
	}{{subject, &st.subject}, {detail, &st.detail}} {
		n, err := strconv.ParseUint(f.text, 10, 16)
		if err != nil || n > 999 || strconv.Itoa(int(n)) != f.text {
			return Status{}, fmt.Errorf("malformed status code %.20q", s)
		}
		*f.to = uint16(n)
	}
	return st, nil
}

// Cut reads the status of an error from the beginning of a text, such as "5.1.6 has
// moved", and returns it with the rest. Where there is none it returns otherwise
// and the whole text.
func Cut(text string, otherwise Status) (status Status, rest string) {
	text = strings.TrimSpace(text)
	code, rest, _ := strings.Cut(text, " ")
	if s, err := Parse(code); err == nil && s.Class() != Success {
		return s, strings.TrimSpace(rest)
	}
	return otherwise, text
}

// MustParse is Parse for constants.
func MustParse(s string) Status {
	st, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return st
}

// Error is an error with a status: the verdict on a message, a recipient or a
// host. Text is one printable line without the code.
type Error struct {
	Status Status
	Text   string
}

func (e *Error) Error() string { return e.Status.String() + " " + e.Text }

// Errorf makes an *Error of a status code in text form.
func Errorf(status, format string, args ...any) *Error {
	return &Error{Status: MustParse(status), Text: fmt.Sprintf(format, args...)}
}

// Of returns the verdict in err. An error that carries no status is trouble of
// our own and not a verdict: 4.3.0. It never returns a success.
func Of(err error) *Error {
	var e *Error
	if errors.As(err, &e) && e.Status.Class() != Success {
		return e
	}
	return &Error{Status: MustParse("4.3.0"), Text: err.Error()}
}

// Notify says when the sender wants to hear of a recipient (RFC 3461, section
// 4.1). The zero value means that the sender did not say.
type Notify uint8

// The bits of Notify.
const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

var notifyWords = []struct {
	bit  Notify
	word string
}{{NotifyNever, "NEVER"}, {NotifySuccess, "SUCCESS"}, {NotifyFailure, "FAILURE"}, {NotifyDelay, "DELAY"}}

// String returns the value of the NOTIFY parameter; "" for the zero value.
func (n Notify) String() string {
	var words []string
	for _, w := range notifyWords {
		if n&w.bit != 0 {
			words = append(words, w.word)
		}
	}
	return strings.Join(words, ",")
}

// Valid reports whether n is a value that ParseNotify can give, or zero.
func (n Notify) Valid() bool {
	return n < 16 && (n&NotifyNever == 0 || n == NotifyNever)
}

// Wants reports whether the sender is to be told of an event, given as one
// bit. A sender that said nothing hears of failures and delays only.
func (n Notify) Wants(event Notify) bool {
	if n == 0 {
		n = NotifyFailure | NotifyDelay
	}
	return n&event != 0
}

// ParseNotify reads the value of the NOTIFY parameter.
func ParseNotify(s string) (Notify, error) {
	var n Notify
next:
	for word := range strings.SplitSeq(s, ",") {
		for _, w := range notifyWords {
			if strings.EqualFold(word, w.word) {
				if n&w.bit != 0 {
					return 0, fmt.Errorf("NOTIFY: %s twice", w.word)
				}
				n |= w.bit
				continue next
			}
		}
		return 0, fmt.Errorf("NOTIFY: unknown word %.20q", word)
	}
	if !n.Valid() {
		return 0, errors.New("NOTIFY: NEVER together with another word")
	}
	return n, nil
}

// Return says how much of the message a notification gives back (RFC 3461,
// section 4.3). The zero value means that the sender did not say.
type Return uint8

// The values of Return.
const (
	ReturnUnset Return = iota
	ReturnFull
	ReturnHeaders
)

// String returns the value of the RET parameter; "" where unset.
func (r Return) String() string {
	switch r {
	case ReturnFull:
		return "FULL"
	case ReturnHeaders:
		return "HDRS"
	case ReturnUnset:
	}
	return ""
}

// ParseReturn reads the value of the RET parameter.
func ParseReturn(s string) (Return, error) {
	switch strings.ToUpper(s) {
	case "FULL":
		return ReturnFull, nil
	case "HDRS":
		return ReturnHeaders, nil
	}
	return ReturnUnset, fmt.Errorf("RET: unknown value %.20q", s)
}

// MaxEnvID is the longest envelope ID (RFC 3461, section 5.4), in octets
// before decoding; an original recipient may have 500.
const (
	MaxEnvID     = 100
	MaxRecipient = 500
)

// OriginalRecipient is the ORCPT parameter (RFC 3461, section 4.2), decoded.
// The zero value means that there was none.
type OriginalRecipient struct {
	Type    string // address type, such as rfc822 or utf-8
	Address string // printable, one line
}

// String returns the form type;address in which RFC 3464 fields show it, not
// encoded as xtext.
func (o OriginalRecipient) String() string {
	if o == (OriginalRecipient{}) {
		return ""
	}
	return o.Type + ";" + o.Address
}

// utf8Type is the address type of RFC 6533.
const utf8Type = "utf-8"

// ParseOriginalRecipient reads the value of the ORCPT parameter, in which the
// address is xtext, or for the type utf-8 one of the forms of RFC 6533, section
// 3. Without SMTPUTF8 it has to be ASCII, which is for the caller to check.
func ParseOriginalRecipient(s string) (OriginalRecipient, error) {
	if len(s) > MaxRecipient {
		return OriginalRecipient{}, fmt.Errorf("ORCPT: %d octets, limit %d", len(s), MaxRecipient)
	}
	typ, enc, ok := strings.Cut(s, ";")
	typ = strings.ToLower(typ)
	if !ok || !IsAddressType(typ) {
		return OriginalRecipient{}, errors.New("ORCPT: no address type")
	}
	decode := DecodeXtext
	if typ == utf8Type {
		decode = decodeUnitext
	}
	address, err := decode(enc)
	if err == nil && address == "" {
		err = errors.New("empty address")
	}
	if err != nil {
		return OriginalRecipient{}, fmt.Errorf("ORCPT: %w", err)
	}
	return OriginalRecipient{typ, address}, nil
}

// IsAddressType reports whether typ can be the type of an original recipient: a word
// in lower case, which needs no encoding in a command.
func IsAddressType(typ string) bool {
	return typ != "" && strings.Trim(typ, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// Encode returns the value of the ORCPT parameter, in a form that needs no
// SMTPUTF8; "" where there is none, or where it would be too long to be sent.
func (o OriginalRecipient) Encode() string {
	encode := EncodeXtext
	switch o.Type {
	case "":
		return ""
	case utf8Type:
		encode = encodeUnitext
	}
	s := o.Type + ";" + encode(o.Address)
	if len(s) > MaxRecipient {
		return ""
	}
	return s
}

// CheckText reports whether s can be part of a status report: printable, one
// line, valid UTF-8.
func CheckText(s string) error {
	for i, r := range s {
		if r < 0x20 || 0x7f <= r && r < 0xa0 || r == 0x2028 || r == 0x2029 || r == 0xfffd && !strings.HasPrefix(s[i:], "\ufffd") {
			return fmt.Errorf("control character or bad UTF-8 at offset %d", i)
		}
	}
	return nil
}

// EncodeXtext encodes s as xtext (RFC 3461, section 4).
func EncodeXtext(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < '!' || c > '~' || c == '+' || c == '=' {
			b.WriteByte('+')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// DecodeXtext decodes xtext. The result is printable: encoded line breaks and
// NULs are how text has been turned into structure elsewhere.
func DecodeXtext(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '+':
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return "", fmt.Errorf("malformed xtext at offset %d", i)
			}
			n, _ := strconv.ParseUint(s[i+1:i+3], 16, 8)
			c = byte(n)
			i += 2
		case c < '!' || c > '~' || c == '=':
			return "", fmt.Errorf("malformed xtext at offset %d", i)
		}
		b.WriteByte(c)
	}
	out := b.String()
	if err := CheckText(out); err != nil {
		return "", err
	}
	return out, nil
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'A' <= c && c <= 'F' }

// encodeUnitext encodes s as utf-8-addr-xtext (RFC 6533, section 3).
func encodeUnitext(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r <= ' ' || r > '~' || r == '+' || r == '=' || r == '\\' {
			fmt.Fprintf(&b, `\x{%02X}`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// decodeUnitext decodes the address of an ORCPT parameter with the type utf-8.
// Plus signs, which should have been encoded, stand for themselves: addresses
// have them.
func decodeUnitext(s string) (string, error) {
	var b strings.Builder
	for s != "" {
		plain, rest, encoded := strings.Cut(s, `\`)
		b.WriteString(plain)
		if !encoded {
			break
		}
		hex, after, ok := strings.Cut(rest, "}")
		hex, x := strings.CutPrefix(hex, "x{")
		if !ok || !x || len(hex) < 2 || len(hex) > 6 || strings.Trim(hex, "0123456789ABCDEF") != "" {
			return "", errors.New("malformed character of RFC 6533")
		}
		n, _ := strconv.ParseUint(hex, 16, 32)
		if !utf8.ValidRune(rune(n)) {
			return "", fmt.Errorf("%s is no character", hex)
		}
		b.WriteRune(rune(n))
		s = after
	}
	out := b.String()
	if err := CheckText(out); err != nil {
		return "", err
	}
	return out, nil
}
