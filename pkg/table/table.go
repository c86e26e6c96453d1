package table

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strings"
	"unicode/utf8"

	"posthouse/pkg/addr"
)

// maxLine bounds an entry with its continuation lines, in octets.
const maxLine = 4 << 20 // as long as 50,000 addresses, which an alias may stand for, are in most cases

// Text is a table of lines "key value". Keys are looked up in lower case. A line
// that begins with white space continues the one before; # begins a comment line.
type Text struct{ file *File[map[string]string] }

// NewText returns the table in the file at path.
func NewText(path string, onError func(error)) *Text {
	return &Text{NewFile(path, parseText, onError)}
}

// Lookup returns the value of key. The error means that it could not look.
func (t *Text) Lookup(key string) (value string, found bool, err error) {
	entries, err := t.file.Get()
	if err != nil {
		return "", false, err
	}
	value, found = entries[strings.ToLower(key)]
	return value, found, nil
}

// Entries returns all values by key, for checks.
func (t *Text) Entries() (map[string]string, error) {
	entries, err := t.file.Get()
	return maps.Clone(entries), err
}

func parseText(path string, b []byte) (map[string]string, error) {
	entries := make(map[string]string)
	err := eachEntry(path, b, func(line int, text string) error {
		key, value, _ := strings.Cut(text, " ")
		return put(entries, canonical(key), strings.TrimSpace(value))
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

// canonical is the form in which a key is looked up. That of an address is its external
// one, with quotes around a..b, which nobody writes in a table.
func canonical(key string) string {
	if m, err := addr.Parse(key); err == nil && m.Domain() != "" {
		key = m.String()
	}
	return strings.ToLower(key)
}

func put[V any](entries map[string]V, key string, value V) error {
	if _, ok := entries[key]; ok {
		return fmt.Errorf("key %.100q is there twice", key)
	}
	entries[key] = value
	return nil
}

// Aliases is a table of lines "key: address, address...". The colon may be
// missing.
type Aliases struct {
	file *File[map[string][]Target]
}

// Target is one thing that an alias stands for.
type Target struct {
	Address addr.Mailbox
	Domain  string // where it is set, there is no address: the same user in this domain, "@example.net"
}

// For returns the address that mail to m is for.
func (t Target) For(m addr.Mailbox) (addr.Mailbox, error) {
	if t.Domain == "" {
		return t.Address, nil
	}
	return m.WithDomain(t.Domain)
}

// String returns t as it is in a table.
func (t Target) String() string {
	if t.Domain != "" {
		return "@" + t.Domain
	}
	return t.Address.String()
}

// ParseTarget reads a target. Programs and files are none, whatever they look like.
func ParseTarget(s string) (Target, error) {
	if domain, ok := strings.CutPrefix(s, "@"); ok {
		return Target{Domain: domain}, addr.CheckDomain(domain)
	}
	m, err := addr.Parse(s)
	if err == nil && strings.ContainsAny(s[:1], "/|:") {
		err = fmt.Errorf("%q: a file or program is no address", s)
	}
	return Target{Address: m}, err
}

// NewAliases returns the table in the file at path.
func NewAliases(path string, onError func(error)) *Aliases {
	return &Aliases{NewFile(path, parseAliases, onError)}
}

// Targets returns what key stands for. The error means that it could not look.
func (a *Aliases) Targets(key string) (targets []Target, found bool, err error) {
	entries, err := a.file.Get()
	if err != nil {
		return nil, false, err
	}
	targets, found = entries[strings.ToLower(key)]
	return targets, found, nil
}

func parseAliases(path string, b []byte) (map[string][]Target, error) {
	entries := make(map[string][]Target)
	err := eachEntry(path, b, func(line int, text string) error {
		key, value, _ := strings.Cut(text, " ")
		targets, err := parseTargets(value)
		if err != nil {
			return err
		}
		return put(entries, canonical(strings.TrimSuffix(key, ":")), targets)
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

// parseTargets reads targets between commas.
func parseTargets(s string) ([]Target, error) {
	var targets []Target
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		t, err := ParseTarget(part)
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	if len(targets) == 0 {
		return nil, errors.New("no address")
	}
	return targets, nil
}

// eachEntry joins continuation lines and calls each for every entry, with runs
// of white space made one space. Errors get file and line.
func eachEntry(path string, b []byte, each func(line int, text string) error) error {
	if i := bytes.IndexFunc(b, func(r rune) bool {
		return r < ' ' && r != '\n' && r != '\t' && r != '\r' || r == 0x7f || r == utf8.RuneError
	}); i >= 0 {
		return fmt.Errorf("%s:%d: control character or bad UTF-8", path, 1+bytes.Count(b[:i], []byte("\n")))
	}
	var entry strings.Builder
	start, number := 0, 0
	flush := func() error {
		if entry.Len() == 0 {
			return nil
		}
		err := each(start, strings.Join(strings.Fields(entry.String()), " "))
		entry.Reset()
		if err != nil {
			return fmt.Errorf("%s:%d: %w", path, start, err)
		}
		return nil
	}
	for line := range strings.Lines(string(b)) {
		number++
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || trimmed[0] == '#' {
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			if entry.Len() == 0 {
				return fmt.Errorf("%s:%d: continues nothing", path, number)
			}
			if entry.Len()+len(trimmed) > maxLine {
				return fmt.Errorf("%s:%d: entry over %d octets", path, start, maxLine)
			}
			entry.WriteByte(' ')
			entry.WriteString(trimmed)
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		entry.WriteString(trimmed)
		start = number
	}
	return flush()
}
