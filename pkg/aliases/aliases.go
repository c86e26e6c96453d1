// Package aliases reads what local users are to have their mail sent to: the
// aliases of the system, in the form of Sendmail and Postfix, and the targets
// in .forward and :include: files.
//
// A file is read strictly: what is not understood is an error with file and
// line, and never a guess about where somebody's mail goes.
package aliases

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"posthouse/pkg/addr"
	"posthouse/pkg/table"
)

// Kind is what a target is.
type Kind uint8

// The kinds.
const (
	Address Kind = 1 + iota
	Command      // |command: gets the message as its input
	File         // /file, or ~/file beneath a home directory: a mailbox, or with a slash at its end a Maildir
	Include      // :include:/file: a list of further targets
)

// Limits of a target, in octets: those of what carries it out.
const (
	maxCommand = 64 << 10
	maxPath    = 4096
)

// Target is one of the things that a name stands for.
type Target struct {
	Kind    Kind
	Address addr.Mailbox // of Address; without a domain where none was given
	Exact   bool         // of Address: \user, which is not expanded any further
	Text    string       // of the others: the command, or the path of the file
}

// String returns t as it may stand in a file.
func (t Target) String() string {
	quote := func(s string) string {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	switch t.Kind {
	case Command:
		return quote("|" + t.Text)
	case File:
		return quote(t.Text)
	case Include:
		return quote(include + t.Text)
	case Address:
	}
	s := t.Address.String()
	if strings.ContainsAny(s[:1], "|/#") { // else it would be something else
		s = strings.TrimSuffix(quote(t.Address.Local())+"@"+t.Address.Domain(), "@")
	}
	if t.Exact {
		return `\` + s
	}
	return s
}

// Table is a file of lines "name: target, target...".
type Table struct {
	file *table.File[map[string][]Target]
}

// New returns the table in the file at path.
func New(path string, onError func(error)) *Table {
	return &Table{table.NewFile(path, parseTable, onError)}
}

// Lookup returns what name, a local-part, stands for. The error means that it
// could not look.
func (t *Table) Lookup(name string) (targets []Target, found bool, err error) {
	entries, err := t.file.Get()
	if err != nil {
		return nil, false, err
	}
	targets, found = entries[strings.ToLower(name)]
	return targets, found, nil
}

func parseTable(path string, b []byte) (map[string][]Target, error) {
	// A file that is missing is an empty one. But where there is not even the directory,
	// this daemon most likely does not see it, and what the file has is not known.
	if len(b) == 0 {
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			return nil, fmt.Errorf("aliases in %s: %w (daemons see little of the system)", path, err)
		}
	}
	entries := make(map[string][]Target)
	err := eachLine(path, b, true, func(text string) error {
		name, rest, err := splitName(text)
		if err != nil {
			return err
		}
		targets, err := parseTargets(rest)
		switch _, twice := entries[name]; {
		case err != nil:
			return err
		case len(targets) == 0:
			return errors.New("no target")
		case twice:
			return fmt.Errorf("%.100q is there twice", name)
		}
		entries[name] = targets
		return nil
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

// splitName cuts "name: targets".
func splitName(s string) (name, rest string, err error) {
	end := indexOutside(s, ':')
	if end < 0 {
		return "", "", errors.New(`not of the form "name: target"`)
	}
	m, err := addr.Parse(strings.TrimSpace(s[:end]))
	if err == nil && m.Domain() != "" {
		err = fmt.Errorf("%s has a domain: such aliases belong into virtual_aliases", m)
	}
	if err != nil {
		return "", "", err
	}
	return m.Fold().Local(), s[end+1:], nil
}

// ParseList reads a file of targets, on as many lines as one likes, each by itself.
// path is for errors.
func ParseList(path string, b []byte) ([]Target, error) {
	var all []Target
	err := eachLine(path, b, false, func(text string) error {
		targets, err := parseTargets(text)
		all = append(all, targets...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// eachLine calls each for every line that is neither empty nor a comment, where
// they are continued together with the lines that do: those that begin with white
// space. Errors get file and line.
func eachLine(path string, b []byte, continued bool, each func(text string) error) error {
	bad := func(r rune) bool {
		return r < ' ' && r != '\n' && r != '\t' && r != '\r' || r == 0x7f || r == utf8.RuneError
	}
	var entry strings.Builder
	start, number := 0, 0
	flush := func() error {
		if entry.Len() == 0 {
			return nil
		}
		err := each(entry.String())
		entry.Reset()
		if err != nil {
			return fmt.Errorf("%s:%d: %w", path, start, err)
		}
		return nil
	}
	for line := range strings.Lines(strings.TrimPrefix(string(b), byteOrderMark)) {
		number++
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || trimmed[0] == '#' {
			continue
		}
		if strings.IndexFunc(line, bad) >= 0 {
			return fmt.Errorf("%s:%d: control character or bad UTF-8", path, number)
		}
		if continued && entry.Len() > 0 && (line[0] == ' ' || line[0] == '\t') {
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

// byteOrderMark is what some editors begin a file with.
const byteOrderMark = "\ufeff"

// indexOutside returns where c is first in s outside of quotes, or -1.
func indexOutside(s string, c byte) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == c && !quoted:
			return i
		}
	}
	return -1
}

// parseTargets reads targets between commas.
func parseTargets(s string) ([]Target, error) {
	var targets []Target
	for more := true; more; {
		item := s
		end := indexOutside(s, ',')
		if more = end >= 0; more {
			item, s = s[:end], s[end+1:]
		}
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		t, err := parseTarget(item)
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	return targets, nil
}

const include = ":include:"

// parseTarget reads one target. Quotes may enclose all of it, or what follows
// the mark: "|command", |"command".
func parseTarget(s string) (Target, error) {
	text, whole := unquote(s)
	if !whole {
		text = s
	}
	switch {
	case text == "":
		return Target{}, errors.New("an empty target")
	case text[0] == '|':
		return command(text[1:], whole)
	case text[0] == '/', strings.HasPrefix(text, "~/"):
		return file(File, text, whole)
	case len(text) > len(include) && strings.EqualFold(text[:len(include)], include):
		return file(Include, text[len(include):], whole)
	}
	t := Target{Kind: Address}
	rest := s
	if rest, t.Exact = strings.CutPrefix(s, `\`); t.Exact {
		rest = strings.TrimSpace(rest)
	}
	var err error
	if t.Address, err = address(rest); err != nil {
		return Target{}, err
	}
	return t, nil
}

// unquote reads s where it is one quoted string.
func unquote(s string) (text string, ok bool) {
	if len(s) < 2 || s[0] != '"' {
		return "", false
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), i == len(s)-1
		case '\\':
			if i++; i == len(s) {
				return "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", false
}

// rest reads what follows the mark of a target that is no address; done says
// that its quotes are off. A quote in the middle might mean anything.
func rest(s string, done bool) (string, error) {
	s = strings.TrimSpace(s)
	if done {
		return s, nil
	}
	if text, ok := unquote(s); ok {
		return strings.TrimSpace(text), nil
	}
	if strings.Contains(s, `"`) {
		return "", errors.New(`quotes have to enclose all of a command or file: "|command 'with' arguments"`)
	}
	return s, nil
}

func command(s string, done bool) (Target, error) {
	text, err := rest(s, done)
	switch {
	case err != nil:
		return Target{}, err
	case text == "":
		return Target{}, errors.New("an empty command")
	case len(text) > maxCommand:
		return Target{}, fmt.Errorf("a command of %d octets, the limit is %d", len(text), maxCommand)
	}
	return Target{Kind: Command, Text: text}, nil
}

func file(kind Kind, s string, done bool) (Target, error) {
	text, err := rest(s, done)
	switch {
	case err != nil:
		return Target{}, err
	case !filepath.IsAbs(text) && (kind != File || !strings.HasPrefix(text, "~/")):
		return Target{}, fmt.Errorf("%.100q is not an absolute path", text)
	case len(text) > maxPath:
		return Target{}, fmt.Errorf("a path of %d octets, the limit is %d", len(text), maxPath)
	}
	return Target{Kind: kind, Text: text}, nil
}

// address reads an address, with or without a domain and angle brackets.
func address(s string) (m addr.Mailbox, err error) {
	if i := strings.LastIndexByte(s, '<'); i >= 0 && strings.HasSuffix(s, ">") {
		s = s[i+1 : len(s)-1]
	}
	if m, err = addr.Parse(s); err != nil {
		return addr.Mailbox{}, err
	}
	switch local := m.Local(); {
	case m.Domain() == "" && strings.ContainsAny(local[:1], `|/`):
		return addr.Mailbox{}, fmt.Errorf("%.100q: a file or program is no address", s)
	case local[0] == '-': // it would be refused later, and all who are named beside it with it
		return addr.Mailbox{}, fmt.Errorf("%.100q begins with a hyphen", s)
	}
	return m, nil
}
