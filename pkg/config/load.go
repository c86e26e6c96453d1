package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"posthouse/pkg/addr"
)

const (
	mainFile = "posthouse.yaml"
	dropIns  = "conf.d"
	maxFile  = 1 << 20
	mailname = "/etc/mailname"
)

// TablesDir returns the directory of the tables, beneath the configuration's.
func TablesDir(dir string) string { return filepath.Join(dir, "tables") }

// Load reads the configuration in dir: posthouse.yaml, and conf.d/*.yaml in the
// order of their names, of which later ones override. No file is needed. All
// errors are reported together, each with file and line.
func Load(dir string) (*Config, error) {
	files, err := Files(dir)
	if err != nil {
		return nil, err
	}
	c := &Config{sources: make(map[string]string)}
	l := &loader{config: c}
	l.defaults(reflect.ValueOf(c).Elem())
	for _, file := range files {
		l.file(file)
	}
	l.complete()
	if err := errors.Join(l.errs...); err != nil {
		return nil, err
	}
	return c, nil
}

// Files returns the names of the files that there are, in the order in which Load reads them.
func Files(dir string) ([]string, error) {
	var files []string
	main := filepath.Join(dir, mainFile)
	// Not os.Stat, which takes a link that leads nowhere for a missing file: a daemon sees
	// nothing but this directory, and without what is behind a link out of it this would
	// be another mail system.
	if _, err := os.Lstat(main); err == nil {
		files = append(files, main)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	// Not filepath.Glob, which takes a directory that cannot be read for an empty one.
	drops := filepath.Join(dir, dropIns)
	more, err := os.ReadDir(drops) // sorted
	if _, there := os.Lstat(drops); err != nil && (there == nil || !errors.Is(err, fs.ErrNotExist)) {
		return nil, fmt.Errorf("configuration: %w", withTarget(drops, err))
	}
	for _, entry := range more {
		// Hidden ones are editors': .#x.yaml is a lock of Emacs, and a link that leads nowhere.
		if strings.HasSuffix(entry.Name(), ".yaml") && !strings.HasPrefix(entry.Name(), ".") {
			files = append(files, filepath.Join(dir, dropIns, entry.Name()))
		}
	}
	return files, nil
}

type loader struct {
	config *Config
	file_  string // being read
	errs   []error
}

func (l *loader) fail(n *yaml.Node, format string, args ...any) {
	text := strings.TrimPrefix(fmt.Sprintf(format, args...), ": ") // the whole file has no name
	l.errs = append(l.errs, fmt.Errorf("%s:%d: %s", l.file_, n.Line, text))
}

// file applies one file.
func (l *loader) file(name string) {
	l.file_ = name
	b, err := readFile(name)
	if err != nil {
		l.errs = append(l.errs, err)
		return
	}
	var doc, more yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(b))
	if err = d.Decode(&doc); err == nil {
		if err = d.Decode(&more); err == nil {
			l.fail(&more, "a second document: settings behind --- do not count")
			return
		}
	}
	if !errors.Is(err, io.EOF) {
		l.errs = append(l.errs, syntaxError(name, b, err))
		return
	}
	if len(doc.Content) == 0 {
		return // empty, or comments only
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return
	}
	l.decode(root, reflect.ValueOf(l.config).Elem(), setting{})
}

// syntaxError puts the line where our other errors have it. The parser leaves it
// out where it is the first one, and with characters that it does not read.
func syntaxError(name string, text []byte, err error) error {
	what, line := strings.TrimPrefix(err.Error(), "yaml: "), 1
	if _, serr := fmt.Sscanf(what, "line %d:", &line); serr == nil {
		_, what, _ = strings.Cut(what, ": ")
	} else if i := bytes.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) && !unicode.IsSpace(r) || r == utf8.RuneError }); i >= 0 {
		line += bytes.Count(text[:i], []byte("\n"))
	}
	return fmt.Errorf("%s:%d: %s", name, line, what)
}

func readFile(name string) ([]byte, error) {
	if info, err := os.Stat(name); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
		return nil, fmt.Errorf("%s: is a FIFO", name) // to open it would wait for a writer
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", withTarget(name, err))
	}
	defer f.Close() // opened for reading
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("larger than %d octets", maxFile)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// withTarget says of an error about a link where it leads.
func withTarget(name string, err error) error {
	if target, no := os.Readlink(name); no == nil {
		return fmt.Errorf("%w (a link to %s: daemons see nothing outside of the configuration's directory)", err, target)
	}
	return err
}

// setting is where a value belongs: its path, such as queue.retry.min, and its tags.
type setting struct {
	path string
	tag  reflect.StructTag
}

func (s setting) sub(name string, tag reflect.StructTag) setting {
	return setting{strings.TrimPrefix(s.path+"."+name, "."), tag}
}

// decode reads n into v.
func (l *loader) decode(n *yaml.Node, v reflect.Value, s setting) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		l.fail(n, "%s: anchors and aliases are not supported", s.path)
		return
	}
	null := n.Kind == yaml.ScalarNode && n.Tag == "!!null"
	switch {
	case v.Kind() == reflect.Struct:
		if !null {
			l.decodeStruct(n, v, s)
		}
	case v.Kind() == reflect.Map:
		if !null {
			l.decodeMap(n, v, s)
		}
	case v.Kind() == reflect.Slice:
		l.decodeList(n, v, s)
	case n.Kind != yaml.ScalarNode:
		l.fail(n, "%s: one value is expected", s.path)
	default:
		if err := setScalar(v, n.Value, s.tag); err != nil {
			l.fail(n, "%s: %v", s.path, err)
			return
		}
		l.source(n, s)
	}
}

func (l *loader) source(n *yaml.Node, s setting) {
	l.config.sources[s.path] = l.file_ + ":" + strconv.Itoa(n.Line)
}

// pairs returns the keys and values of a mapping; no key stands twice.
func (l *loader) pairs(n *yaml.Node, s setting) [][2]*yaml.Node {
	if n.Kind != yaml.MappingNode {
		l.fail(n, "%s: settings of the form KEY: VALUE are expected", s.path)
		return nil
	}
	seen := make(map[string]bool)
	var pairs [][2]*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || seen[key.Value] {
			l.fail(key, "%s: key %q is there twice, or is none", s.path, key.Value)
			continue
		}
		seen[key.Value] = true
		pairs = append(pairs, [2]*yaml.Node{key, value})
	}
	return pairs
}

func (l *loader) decodeStruct(n *yaml.Node, v reflect.Value, s setting) {
	for _, p := range l.pairs(n, s) {
		key := p[0].Value
		i, known := fieldByName(v.Type(), key)
		if i < 0 {
			l.fail(p[0], "unknown setting %q%s", s.sub(key, "").path, hint(key, known))
			continue
		}
		l.decode(p[1], v.Field(i), s.sub(key, v.Type().Field(i).Tag))
	}
}

// fieldByName returns the index of the field called name, or -1 and all names.
func fieldByName(t reflect.Type, name string) (int, []string) {
	var known []string
	for i := range t.NumField() {
		if n := t.Field(i).Tag.Get("yaml"); n != "" {
			if n == name {
				return i, nil
			}
			known = append(known, n)
		}
	}
	return -1, known
}

func (l *loader) decodeMap(n *yaml.Node, v reflect.Value, s setting) {
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	for _, p := range l.pairs(n, s) {
		key := p[0].Value
		kind := s.tag.Get("kind")
		if kind == "domain" {
			key = strings.ToLower(key)
		}
		if err := checkKind(kind, key); err != nil {
			l.fail(p[0], "%s: %v", s.path, err)
			continue
		}
		item := reflect.New(v.Type().Elem()).Elem()
		if old := v.MapIndex(reflect.ValueOf(key)); old.IsValid() {
			item.Set(old)
		} else {
			l.itemDefaults(item, key)
		}
		l.source(p[0], s.sub(key, ""))
		l.decode(p[1], item, s.sub(key, ""))
		v.SetMapIndex(reflect.ValueOf(key), item)
	}
}

// itemDefaults fills in the defaults of a new entry of a map.
func (l *loader) itemDefaults(item reflect.Value, key string) {
	switch item.Interface().(type) {
	case DaemonLimits:
		item.Set(reflect.ValueOf(daemonDefaults(key)))
	case Transport:
		item.Set(reflect.ValueOf(transportDefaults(key)))
	default:
		l.defaults(item)
	}
}

func (l *loader) decodeList(n *yaml.Node, v reflect.Value, s setting) {
	if n.Kind != yaml.SequenceNode {
		l.fail(n, "%s: a list is expected", s.path)
		return
	}
	list := reflect.MakeSlice(v.Type(), 0, len(n.Content))
	for _, item := range n.Content {
		e := reflect.New(v.Type().Elem()).Elem()
		if item.Kind != yaml.ScalarNode {
			l.fail(item, "%s: a list of single values is expected", s.path)
			continue
		}
		if err := setScalar(e, item.Value, s.tag); err != nil {
			l.fail(item, "%s: %v", s.path, err)
			continue
		}
		list = reflect.Append(list, e)
	}
	v.Set(list)
	l.source(n, s)
}

// setScalar parses text for v and checks the bounds in tag.
func setScalar(v reflect.Value, text string, tag reflect.StructTag) error {
	n, err := parseScalar(v.Interface(), text)
	if err != nil {
		return err
	}
	for _, bound := range []string{"min", "max"} {
		limit := tag.Get(bound)
		if limit == "" {
			continue
		}
		b, err := parseScalar(v.Interface(), limit)
		if err != nil {
			return err
		}
		if x, y := reflect.ValueOf(n).Int(), reflect.ValueOf(b).Int(); bound == "min" && x < y || bound == "max" && x > y {
			return fmt.Errorf("%s is out of bounds: %s is %s", text, bound, limit)
		}
	}
	if choice := tag.Get("choice"); choice != "" && !slices.Contains(strings.Fields(choice), text) {
		return fmt.Errorf("%q is none of: %s", text, choice)
	}
	if err := checkKind(tag.Get("kind"), text); err != nil {
		return err
	}
	v.Set(reflect.ValueOf(n))
	return nil
}

func parseScalar(like any, text string) (any, error) {
	switch like.(type) {
	case string:
		return text, nil
	case bool:
		switch text {
		case "true", "yes", "on":
			return true, nil
		case "false", "no", "off":
			return false, nil
		}
		return nil, fmt.Errorf("%q is neither true nor false", text)
	case int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a number", text)
		}
		return n, nil
	case Size:
		return ParseSize(text)
	case Duration:
		return ParseDuration(text)
	}
	return nil, fmt.Errorf("setting of type %T", like)
}

// checkKind checks what kind of text a setting takes.
func checkKind(kind, text string) error {
	switch kind {
	case "domain":
		return addr.CheckDomain(text)
	case "network":
		if _, err := parseNetwork(text); err != nil {
			return fmt.Errorf("%q is not a network such as 192.0.2.0/24", text)
		}
	case "route":
		_, err := ParseRoute(text)
		return err
	case "address":
		if text != "" {
			_, err := addr.Parse(text)
			return err
		}
	case "path":
		if !filepath.IsAbs(text) || filepath.Clean(text) != text {
			return fmt.Errorf("%q is not an absolute path", text)
		}
	case "mailbox":
		if path := strings.TrimSuffix(text, "/"); text != "" && (path == "" || strings.ContainsRune(text, 0) ||
			!filepath.IsAbs(text) && !filepath.IsLocal(path) || filepath.Clean(path) != path) {
			return fmt.Errorf("%q is not a path such as Maildir/", text)
		}
	case "argument":
		_, err := ParseArgument(text)
		return err
	case "flags":
		return checkPipeFlags(text)
	case "pipe":
		if !pipeName().MatchString(text) {
			return fmt.Errorf("%q is not a name of at most 27 small letters, digits and hyphens", text)
		}
	case "transport":
		if strings.Trim(text, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || text == "" {
			return fmt.Errorf("%q is not a transport such as smtp", text)
		}
	case "uid":
		if n, err := strconv.ParseUint(text, 10, 32); text != anyUser && (err != nil || strconv.FormatUint(n, 10) != text) {
			return fmt.Errorf("%q is not the number of a user, or *", text)
		}
	case "sender":
		return checkSender(text)
	case "daemon":
		if known := strings.Fields(daemonNames); !slices.Contains(known, text) {
			return fmt.Errorf("there is no daemon %q%s", text, hint(text, known))
		}
	case "delimiter":
		// What else a local-part may have without quotes (RFC 5321, Atom).
		if strings.Trim(text, "!#$%&'*+-/=?^_`{|}~") != "" {
			return fmt.Errorf("%q: only characters such as + and - separate an extension", text)
		}
	case "feedback":
		_, _, err := ParseFeedback(text)
		return err
	case "text":
		if strings.ContainsFunc(text, unicode.IsControl) || !utf8.ValidString(text) {
			return fmt.Errorf("%q is not printable", text)
		}
	case "file":
		if text == "" || strings.ContainsAny(text, "/\x00") || text[0] == '.' {
			return fmt.Errorf("%q is not the name of a file", text)
		}
	}
	return nil
}

// parseNetwork reads a network, or an address that stands for itself.
func parseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Prefix(a.BitLen())
	}
	p, err := netip.ParsePrefix(s)
	if err == nil && p.Masked() != p {
		err = fmt.Errorf("%s has bits behind its mask", s)
	}
	return p, err
}

// Networks returns a list of networks that Load has checked.
func Networks(list []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		if p, err := parseNetwork(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// defaults fills in the defaults of a struct. That they are within their own
// bounds is a matter for TestConfig.
func (l *loader) defaults(v reflect.Value) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		text, ok := field.Tag.Lookup("default")
		var err error
		switch {
		case !field.IsExported():
		case v.Field(i).Kind() == reflect.Struct:
			l.defaults(v.Field(i))
		case ok && v.Field(i).Kind() == reflect.Slice:
			v.Field(i).Set(reflect.ValueOf(strings.Fields(text)))
		case ok:
			err = setScalar(v.Field(i), text, field.Tag)
		}
		if err != nil {
			l.errs = append(l.errs, fmt.Errorf("default of %s: %w", field.Name, err))
		}
	}
}

func daemonDefaults(name string) DaemonLimits {
	if name == "smtpd" || name == "submission" {
		return smtpdLimits
	}
	var d DaemonLimits
	(&loader{}).defaults(reflect.ValueOf(&d).Elem())
	if name == "qmgr" {
		d.MaxUse = 0 // it would interrupt deliveries
	}
	return d
}

func transportDefaults(name string) Transport {
	var t Transport
	(&loader{}).defaults(reflect.ValueOf(&t).Elem())
	if _, pipe := PipeOf(name); pipe || name == "local" {
		t.Recipients = 1 // the others would wait for a command of the first one
	}
	if name == "local" {
		t.Concurrency = 2 // a destination is an account
	}
	return t
}

func (c *Config) handled(domain string) bool {
	domain = strings.ToLower(domain)
	_, virtual := c.Domains.Virtual[domain]
	_, relay := c.Domains.Relay[domain]
	return virtual || relay || slices.Contains(c.Domains.Alias, domain)
}

// checkDomains: a domain is handled in one way.
func (l *loader) checkDomains() {
	d := l.config.Domains
	seen := make(map[string]string)
	add := func(domain, list string) {
		domain = strings.ToLower(domain)
		if other := seen[domain]; other != "" && other != list {
			l.errs = append(l.errs, fmt.Errorf("%s: domains: %s is in both %s and %s",
				cmp.Or(l.config.sources["domains."+list+"."+domain], l.config.sources["domains."+list]), domain, other, list))
		}
		seen[domain] = list
	}
	for _, s := range d.Local {
		add(s, "local")
	}
	for _, s := range d.Alias {
		add(s, "alias")
	}
	for s := range d.Virtual {
		add(s, "virtual")
	}
	for s := range d.Relay {
		add(s, "relay")
	}
}

// machineName makes a usable name of whatever the machine is called.
func machineName() string {
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	name = strings.ToLower(strings.Trim(name, ".-"))
	if name == "" || name == "(none)" || addr.CheckDomain(name) != nil {
		return "localhost"
	}
	return name
}

// hint names the known name that s may have been meant to be.
func hint(s string, known []string) string {
	if near := nearest(s, known); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}

// nearest returns the known name that is most like s, or "".
func nearest(s string, known []string) string {
	best, least := "", len(s)/2+1
	for _, k := range known {
		if d := distance(s, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance is the number of edits between a and b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
