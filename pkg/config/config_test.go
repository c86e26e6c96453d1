package config

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// write makes a configuration directory of file names and contents.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestDeclarations: every setting has a comment, and a default within its bounds.
func TestDeclarations(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", Source, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	settings := 0
	ast.Inspect(file, func(n ast.Node) bool {
		f, ok := n.(*ast.Field)
		if ok && f.Tag != nil && strings.Contains(f.Tag.Value, "yaml:") {
			settings++
			if f.Doc.Text() == "" {
				t.Errorf("%s has no comment", f.Names[0])
			}
		}
		return true
	})
	if settings < 40 {
		t.Errorf("found %d settings only", settings)
	}
	c, err := Load(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if c.Hostname == "" || c.Origin == "" || len(c.Domains.Local) == 0 || c.Limits.MessageSize != 50<<20 || c.Queue.Lifetime != Duration(5*24*time.Hour) {
		t.Errorf("defaults %+v", c)
	}
	if l := c.Daemon("smtpd"); l.MaxClients != 500 || l.MaxIdle != time.Minute {
		t.Errorf("limits of smtpd %+v", l)
	}
	if l := c.Daemon("submission"); l != c.Daemon("smtpd") {
		t.Errorf("limits of submission %+v", l)
	}
	if !reflect.DeepEqual(c.Submission.Clients, c.Trusted) || len(c.Trusted) == 0 {
		t.Errorf("clients of submission %q", c.Submission.Clients)
	}
	if got := [2]int{c.Transport("local").Recipients, c.Transport("smtp").Recipients}; got != [2]int{1, 50} {
		t.Errorf("recipients of one delivery %v", got)
	}
	if l := c.Daemon("qmgr"); l.MaxUse != 0 || l.MaxClients == 0 {
		t.Errorf("limits of qmgr %+v", l)
	}
	if l := c.Daemon("other"); l.MaxClients == 0 || l.MaxIdle == 0 {
		t.Errorf("limits of others %+v", l)
	}
}

func TestLoad(t *testing.T) {
	dir := write(t, map[string]string{
		"posthouse.yaml": "hostname: mail.example.org\norigin: example.org\nrecipient_delimiter: '+-_'\ntrusted: [10.0.0.0/8]\ndomains:\n  virtual:\n    Example.NET: {}\n  relay:\n    example.com: {to: \"smtp:[10.0.0.5]:25\"}\n" +
			"limits: {message_size: 1MiB}\nqueue: {retry: {min: 10s}}\ndaemons: {smtpd: {max_clients: 7}}\n",
		"conf.d/10-a.yaml": "# only a comment\n",
		"conf.d/20-b.yaml": "limits: {recipients: 5}\ntrusted: [\"::1\"]\ndomains: {virtual: {example.edu: }}\n",
		"conf.d/ignored":   "nonsense: [",
		"conf.d/.x.yaml":   "nonsense: [",
	})
	if err := os.Symlink("root@mail.example.org.4711:1700000000", filepath.Join(dir, "conf.d/.#20-b.yaml")); err != nil {
		t.Fatal(err)
	}
	c, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, lower := c.Domains.Virtual["example.net"]
	_, second := c.Domains.Virtual["example.edu"]
	if !lower || !second || c.Limits.MessageSize != 1<<20 || c.Limits.Recipients != 5 || c.Queue.Retry.Min != Duration(10*time.Second) ||
		!reflect.DeepEqual(c.Trusted, []string{"::1"}) || c.Domains.Relay["example.com"].To != "smtp:[10.0.0.5]:25" {
		t.Errorf("%+v", c)
	}
	if l := c.Daemon("smtpd"); l.MaxClients != 7 || l.MaxUse != 10000 {
		t.Errorf("an entry does not keep the defaults of the rest: %+v", l)
	}
	if !reflect.DeepEqual(c.Domains.Local, []string{"mail.example.org", "localhost", "example.org"}) {
		t.Errorf("local domains %q", c.Domains.Local)
	}
	if s := c.sources["limits.recipients"]; !strings.HasSuffix(s, "20-b.yaml:1") {
		t.Errorf("source %q", s)
	}
}

// TestClients: whoever fills smtpd does not fill cleanup, and each delivery finds room,
// unless the administrator has said how many there may be.
func TestClients(t *testing.T) {
	for text, want := range map[string]string{
		"": "cleanup 1200, smtp 300, virtual 200, local 200, deliver 200, pipe 200",
		"daemons: {smtpd: {max_clients: 3}, cleanup: {max_use: 5}}\n" +
			"transports: {relay: {deliveries: 7}, local: {deliveries: 300}, pipe-x: {deliveries: 400}}\npipes: {x: {command: [/bin/x]}}\n": "cleanup 703, smtp 207, virtual 200, local 300, deliver 300, pipe 400",
		"daemons: {smtpd: {max_clients: 3}, cleanup: {max_clients: 7}, smtp: {max_clients: 8}}": "cleanup 7, smtp 8, virtual 200, local 200, deliver 200, pipe 200",
	} {
		c, err := Load(write(t, map[string]string{"posthouse.yaml": text}))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, name := range []string{"cleanup", "smtp", "virtual", "local", "deliver", "pipe"} {
			got = append(got, fmt.Sprint(name, " ", c.Daemon(name).MaxClients))
		}
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("%q: %s, want %s", text, s, want)
		}
	}
}

// TestSubmission: port 587 has settings of its own, and whoever waits for messages
// waits for those of either port.
func TestSubmission(t *testing.T) {
	for text, want := range map[string]string{
		"trusted: [10.0.0.0/8]": "[10.0.0.0/8] 1h 1h 1h0m0s 500",
		"submission: {clients: [192.0.2.0/24], session_timeout: 2h}\ndaemons: {submission: {max_clients: 3}}": "[192.0.2.0/24] 1h 2h 2h0m0s 3",
		"smtpd: {session_timeout: 3h}\nsubmission: {clients: []}\ndaemons: {smtpd: {max_clients: 3}}":         "[] 3h 1h 3h0m0s 500",
	} {
		c, err := Load(write(t, map[string]string{"posthouse.yaml": text}))
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(c.Submission.Clients, " ", c.Smtpd.SessionTimeout, " ", c.Submission.SessionTimeout, " ", c.LongestSession(), " ", c.Daemon("submission").MaxClients)
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// TestDaemonNames: each service may have its limits.
func TestDaemonNames(t *testing.T) {
	units, err := filepath.Glob("../../units/posthouse-*.service")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, unit := range units {
		names = append(names, strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(unit), "posthouse-"), ".service"), "@"))
	}
	slices.Sort(names)
	if got := strings.Join(slices.Compact(names), " "); got != daemonNames {
		t.Errorf("services are %s", got)
	}
}

func TestLocal(t *testing.T) {
	for _, mailbox := range []string{"", "Maildir/", "mail/mbox", "/srv/mail/x"} {
		c, err := Load(write(t, map[string]string{"posthouse.yaml": "transports: {local: {concurrency: 3}}\nlocal: {mailbox: '" + mailbox + "', mailbox_size: 50MiB}"}))
		if err != nil || c.Local.Mailbox != mailbox || c.Local.Spool != "/var/mail" || !c.Local.Forward {
			t.Errorf("%q: %+v, %v", mailbox, c, err)
		} else if got := c.Transport("local"); got.Concurrency != 3 || got.Recipients != 1 {
			t.Errorf("an entry does not keep the defaults of the rest: %+v", got)
		}
	}
}

// TestDocuments: a file is one document, and what stands behind it is not dropped
// without a word.
func TestDocuments(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "",
		"\n# comment\n":            "",
		"---\n":                    "",
		"---\n# comment\n":         "",
		"---\norigin: a\n":         "",
		"# x\n---\norigin: a\n":    "",
		"origin: a\n...\n":         "",
		"origin: a\n...\n# x\n":    "",
		"origin: a\n---\ntrust: x": "posthouse.yaml:2: a second document",
		"origin: a\n\n---\n":       "posthouse.yaml:3: a second document",
		"---\n---\norigin: a\n":    "posthouse.yaml:2: a second document",
		"origin: a\n---\n{":        "posthouse.yaml:3: did not find",
		"origin: a\n...\nb: c":     "posthouse.yaml:2: did not find",
	} {
		_, err := Load(write(t, map[string]string{"posthouse.yaml": text}))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestErrors(t *testing.T) {
	for text, want := range map[string]string{
		"hostnme: x":                                              `posthouse.yaml:1: unknown setting "hostnme"; did you mean "hostname"?`,
		"\nqueue:\n  retry: {mn: 5m}":                             `posthouse.yaml:3: unknown setting "queue.retry.mn"; did you mean "min"?`,
		"local: {mailbox: ../x}":                                  "is not a path such as Maildir/",
		"local: {mailbox: /}":                                     "is not a path such as Maildir/",
		"local: {mailbox: a//}":                                   "is not a path such as Maildir/",
		"\nlocal: {mailbox_size: 1MiB}":                           "posthouse.yaml:2: local.mailbox_size 1MiB is less than limits.message_size 50MiB",
		"limits: {recipients: many}":                              "is not a number",
		"\nrecipient_delimiter: '+a'":                             `posthouse.yaml:2: recipient_delimiter: "+a": only characters such as + and -`,
		"recipient_delimiter: '+.'":                               "only characters such as + and -",
		"recipient_delimiter: '+ '":                               "only characters such as + and -",
		"recipient_delimiter: '@'":                                "only characters such as + and -",
		"recipient_delimiter: '\\'":                               "only characters such as + and -",
		"recipient_delimiter: 'é'":                                "only characters such as + and -",
		"limits: {recipients: 0}":                                 "out of bounds: min is 1",
		"limits: {message_size: 5 apples}":                        "is not a size",
		"limits: 7":                                               "KEY: VALUE",
		"origin: a.example\norigin: b.example":                    `posthouse.yaml:2: key "origin" is there twice`,
		"[]":                                                      "posthouse.yaml:1: settings of the form",
		"queue: {lifetime: tomorrow}":                             "is not a time span",
		"queue: {sync: never}":                                    "is none of: auto fsync syncfs",
		"transports: {smtp: {positive_feedback: 1.5}}":            "is neither a number from 0 to 1 nor",
		"transports: {smtp: {negative_feedback: NaN}}":            "is neither a number from 0 to 1 nor",
		"transports: {smtp: {negative_feedback: 1/x}}":            "is neither a number from 0 to 1 nor",
		"\ndaemons: {stmp: {max_clients: 5}}":                     `posthouse.yaml:2: daemons: there is no daemon "stmp"; did you mean "smtp"?`,
		"daemons: {pipe-list: {}}":                                `there is no daemon "pipe-list"`,
		"queue: {defer_transports: ['smtp:']}":                    "is not a transport such as smtp",
		"trusted: [all]":                                          "is not a network",
		"trusted: [10.0.0.1/8]":                                   "is not a network",
		"trusted: 10.0.0.0/8":                                     "a list is expected",
		"routes: {default: relay}":                                "is not a route",
		"hostname: [a]":                                           "one value is expected",
		"hostname: 'a b'":                                         "malformed domain",
		"hostname: a\nhostname: b":                                "is there twice",
		"a: &x 1\nb: *x":                                          "unknown setting",
		"hostname: &x mail.example.org":                           "anchors",
		"queue: {retry: {min: 5h, max: 4h}}":                      "posthouse.yaml:1: queue.retry: min 5h is more than max 4h",
		"domains: {local: [a.example], alias: [A.example]}":       "posthouse.yaml:1: domains: a.example is in both local and alias",
		"virtual: {base: ../x}":                                   "is not an absolute path",
		"\ndomains: {alias: [a.example], relay: {A.example: {}}}": "posthouse.yaml:2: domains: a.example is in both alias and relay",
		"pickup: {users: {alice: {}}}":                            `posthouse.yaml:1: pickup.users: "alice" is not the number of a user`,
		"pickup: {users: {033: {}}}":                              `"033" is not the number of a user`,
		"pickup: {users: {-1: {}}}":                               `"-1" is not the number of a user`,
		"pickup: {users: {4294967296: {}}}":                       `"4294967296" is not the number of a user`,
		"pickup: {users: {1: {senders: ['@']}}}":                  "empty domain",
		"pickup: {users: {1: {senders: [a b]}}}":                  "posthouse.yaml:1: pickup.users.1.senders: ",
		"a: b: c":                                                 "posthouse.yaml:1: mapping values",
		"queue:\n\tx: 1":                                          "posthouse.yaml:2: found character",
		"queue:\n\n  - x\n x: 1":                                  "posthouse.yaml:3: did not find",
		"hostname: a\n\x01":                                       "posthouse.yaml:2: control characters",
		"# \xff":                                                  "posthouse.yaml:1: ",
		"{":                                                       "posthouse.yaml",
		strings.Repeat("#", maxFile+1):                            "larger than",
	} {
		c, err := Load(write(t, map[string]string{"posthouse.yaml": text}))
		if err == nil || c != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
	// All errors at once.
	_, err := Load(write(t, map[string]string{"posthouse.yaml": "x1: 1\nx2: 2\n"}))
	if err == nil || strings.Count(err.Error(), "unknown setting") != 2 {
		t.Errorf("%v", err)
	}
}

// later has w look at its files as if they had been quiet for long enough.
func later(w *Watcher) {
	now := time.Now()
	w.check(now)
	w.check(now.Add(settle))
}

func TestWatcher(t *testing.T) {
	dir := write(t, map[string]string{"posthouse.yaml": "hostname: one.example\n"})
	var failures []error
	w, err := NewWatcher(dir, func(err error) { failures = append(failures, err) })
	if err != nil {
		t.Fatal(err)
	}
	change := func(text string) string {
		if err := os.WriteFile(filepath.Join(dir, "posthouse.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		later(w)
		return w.Current().Hostname
	}
	if got := change("hostname: longer-name.example\n"); got != "longer-name.example" || len(failures) != 0 {
		t.Errorf("%s, %v", got, failures)
	}
	if got := change("hostname: [broken\n"); got != "longer-name.example" || len(failures) != 1 {
		t.Errorf("broken: %s, %v", got, failures)
	}
	later(w)
	if len(failures) != 1 {
		t.Errorf("a broken configuration is reported %d times", len(failures))
	}
	if got := change("hostname: three.example\n"); got != "three.example" {
		t.Errorf("mended: %s", got)
	}
}

// TestEdit: what editors and scripts do on the way to a new configuration is not
// seen, but by daemons that start meanwhile.
func TestEdit(t *testing.T) {
	dir := write(t, map[string]string{"posthouse.yaml": "hostname: a.example\norigin: b.example\n", "conf.d/x.yaml": "origin: c.example\n"})
	main, drop := filepath.Join(dir, "posthouse.yaml"), filepath.Join(dir, "conf.d/x.yaml")
	w, err := NewWatcher(dir, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	clock := time.Now()
	w.now = func() time.Time { return clock }
	touch := func(errs ...error) {
		t.Helper()
		for _, path := range []string{main, dir, filepath.Dir(drop), drop} {
			if _, err := os.Stat(path); err == nil {
				errs = append(errs, os.Chtimes(path, clock, clock))
			}
		}
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	write := func(text string) { t.Helper(); touch(os.WriteFile(main, []byte(text), 0o600)) }
	step := func(after time.Duration, want string) {
		t.Helper()
		clock = clock.Add(after)
		if c := w.Current(); c.Hostname+" "+c.Origin != want {
			t.Errorf("%s %s, want %s", c.Hostname, c.Origin, want)
		}
	}
	const old = "a.example c.example"
	step(time.Hour, old)
	write("")
	step(checkEvery, old)
	write("hostname: d.example\norigin: o.example\n")
	step(settle-1, old)
	touch(os.WriteFile(drop, []byte("origin: e.example\n"), 0o600))
	step(settle-1, old)
	if fresh, err := NewWatcher(dir, nil); err != nil || fresh.Current().Origin != "e.example" {
		t.Errorf("at the start: %v, %v", fresh, err)
	}
	step(checkEvery, "d.example e.example")

	// A file that has gone for a moment, and one that stays away.
	touch(os.Rename(main, main+"~"))
	step(checkEvery, "d.example e.example")
	touch(os.Rename(main+"~", main), os.Remove(drop))
	step(settle-1, "d.example e.example")
	step(checkEvery, "d.example o.example")
	// Nobody looks for long.
	write("hostname: f.example\norigin: o.example\n")
	step(settle, "f.example o.example")

	// The clock was ahead when the files were looked at.
	clock = clock.Add(-30 * time.Minute)
	write("hostname: g.example\norigin: o.example\n")
	step(0, "f.example o.example")
	step(settle, "g.example o.example")
}

// TestNoFile: what is in the place of a file and is none is an error, and nothing
// to wait for.
func TestNoFile(t *testing.T) {
	dir := write(t, map[string]string{"conf.d/a.yaml/x": ""})
	if err := syscall.Mkfifo(filepath.Join(dir, "posthouse.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(dir)
	for _, want := range []string{"posthouse.yaml: is a FIFO", "a.yaml: is a directory"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestLinks: a link that leads nowhere is no missing file, whose settings would be
// the defaults; one that leads to a file is that file.
func TestLinks(t *testing.T) {
	for _, name := range []string{"posthouse.yaml", "conf.d", "conf.d/a.yaml"} {
		dir := write(t, map[string]string{"main": "hostname: one.example\n"})
		link := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o700), os.Symlink("/nonexistent/x", link)); err != nil {
			t.Fatal(err)
		}
		if c, err := Load(dir); err == nil || !strings.Contains(err.Error(), link+": no such file or directory (a link to /nonexistent/x: ") {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
	dir := write(t, map[string]string{"main": "hostname: one.example\n"})
	main := filepath.Join(dir, "posthouse.yaml")
	if err := os.Symlink("main", main); err != nil {
		t.Fatal(err)
	}
	var failures []error
	w, err := NewWatcher(dir, func(err error) { failures = append(failures, err) })
	if err != nil {
		t.Fatal(err)
	}
	// One that runs keeps what it has.
	if err := errors.Join(os.Remove(main), os.Symlink("/nonexistent/x", main)); err != nil {
		t.Fatal(err)
	}
	later(w)
	later(w)
	if w.Current().Hostname != "one.example" || len(failures) != 1 {
		t.Errorf("%s, %v", w.Current().Hostname, failures)
	}
}

// TestNoDescriptors: what cannot be read now is neither empty nor broken.
func TestNoDescriptors(t *testing.T) {
	dir := write(t, map[string]string{"posthouse.yaml": "hostname: one.example\n", "conf.d/a.yaml": "origin: a.example\n"})
	var failures []error
	w, err := NewWatcher(dir, func(err error) { failures = append(failures, err) })
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "conf.d/a.yaml"), []byte("origin: other.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := noFiles(t)
	later(w)
	later(w)
	again()
	if w.Current().Origin != "a.example" || len(failures) != 1 {
		t.Errorf("without descriptors: %s, %v", w.Current().Origin, failures)
	}
	later(w)
	if w.Current().Origin != "other.example" || len(failures) != 1 {
		t.Errorf("with descriptors: %s, %v", w.Current().Origin, failures)
	}
	// Drop-ins that cannot be listed are not missing.
	if c, err := Load(write(t, map[string]string{"conf.d": "a file\n"})); err == nil {
		t.Errorf("conf.d is a file: %s", c.Origin)
	}
}

// noFiles has every open(2) of this process fail until the result is called.
func noFiles(t *testing.T) (again func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	set := func(l syscall.Rlimit) {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
			t.Fatal(err)
		}
	}
	set(syscall.Rlimit{Cur: 0, Max: old.Max})
	return func() { set(old) }
}

func TestValues(t *testing.T) {
	for text, want := range map[string]string{"50MiB": "50MiB", "1024": "1KiB", "10KB": "10000", "0": "0", "1500": "1500"} {
		if s, err := ParseSize(text); err != nil || s.String() != want {
			t.Errorf("size %s: %s, %v", text, s, err)
		}
	}
	for text, want := range map[string]string{"5d": "5d", "1w": "7d", "4h": "4h", "90m": "1h30m", "5m": "5m", "30s": "30s", "100ms": "100ms", "0s": "0s", "48h": "2d"} {
		if d, err := ParseDuration(text); err != nil || d.String() != want {
			t.Errorf("time span %s: %s, %v", text, d, err)
		}
	}
	for _, text := range []string{"", "x", "-1", "9999999999PiB", "1.5MiB"} {
		if s, err := ParseSize(text); err == nil {
			t.Errorf("size %q: %s", text, s)
		}
	}
	for _, text := range []string{"", "5", "-5m", "99999999999999w", "d"} {
		if d, err := ParseDuration(text); err == nil {
			t.Errorf("time span %q: %s", text, d)
		}
	}
}

// FuzzLoad: any file gives a configuration or an error, never both or neither.
func FuzzLoad(f *testing.F) {
	f.Add("hostname: a\nqueue: {retry: {min: 1s}}\n")
	f.Add("domains: {virtual: {a: {}}}")
	f.Add("a: &a [*a]")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Load(write(t, map[string]string{"posthouse.yaml": text}))
		if (c == nil) == (err == nil) {
			t.Fatalf("%v, %v", c, err)
		}
	})
}

func TestSettings(t *testing.T) {
	c, err := Load(write(t, map[string]string{"posthouse.yaml": "hostname: h.example\ndomains: {virtual: {v.example: {}}, relay: {r.example: {to: 'smtp:x'}}}\n"}))
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]Setting)
	for _, s := range c.Settings() {
		got[s.Key] = s
	}
	if s := got["hostname"]; s.Value != "h.example" || !strings.HasSuffix(s.Source, "posthouse.yaml:1") {
		t.Errorf("%+v", s)
	}
	if s := got["queue.lifetime"]; s.Value != "5d" || s.Source != "default" {
		t.Errorf("%+v", s)
	}
	if s := got["domains.relay.r.example.to"]; s.Value != "smtp:x" {
		t.Errorf("%+v", s)
	}
	if _, ok := got["domains.virtual.v.example"]; !ok {
		t.Error("a virtual domain is not shown")
	}
}
