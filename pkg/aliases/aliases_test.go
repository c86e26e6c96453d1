package aliases

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// show is a list of targets as text: the kind, and the rest.
func show(list []Target) string {
	var parts []string
	for _, t := range list {
		s := [...]string{"?", "", "command ", "file ", "include "}[t.Kind] + t.Text
		if t.Exact {
			s += "exactly "
		}
		if t.Kind == Address {
			s += t.Address.String()
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, "|")
}

func TestTargets(t *testing.T) {
	for in, want := range map[string]string{
		"bob":                                  "bob",
		"bob, alice@example.org ,":             "bob|alice@example.org",
		`\bob`:                                 `exactly bob`,
		`"john doe"`:                           `"john doe"`,
		`"john doe"@example.org`:               `"john doe"@example.org`,
		"Bob <bob@example.org>":                "bob@example.org",
		"<bob>":                                "bob",
		`|/usr/bin/procmail`:                   "command /usr/bin/procmail",
		`|/usr/bin/procmail -d x`:              "command /usr/bin/procmail -d x",
		`"|/usr/bin/vacation a, b"`:            "command /usr/bin/vacation a, b",
		`|"/usr/bin/vacation a, b"`:            "command /usr/bin/vacation a, b",
		`"|echo \"a  b\" \\n"`:                 `command echo "a  b" \n`,
		`"|IFS=' ' && exec procmail -f- #b"`:   "command IFS=' ' && exec procmail -f- #b",
		"/var/log/mail.archive":                "file /var/log/mail.archive",
		`"/var/with space/"`:                   "file /var/with space/",
		`~/mail/new/`:                          "file ~/mail/new/",
		`"~/with space"`:                       "file ~/with space",
		`~bob`:                                 "~bob",
		`:include:~/list`:                      "error 1",
		":include:/etc/mail/list":              "include /etc/mail/list",
		`":Include: /etc/mail/list"`:           "include /etc/mail/list",
		`"|x"@example.org`:                     `|x@example.org`,
		"# comment\na,\n\n b,\n\tc\n# \nd\r\n": "a|b|c|d",
		"a\n b":                                "a|b",
		"  a\n":                                "a",
		"":                                     "",

		"bob alice":                             "error 1",
		"\ufeffa\n# \xff\nbob\n \\alice":        "a|bob|exactly alice",
		`"unclosed`:                             "error 1",
		`|echo "a" b`:                           "error 1",
		`"|"`:                                   "error 1",
		`""`:                                    "error 1",
		":include:list":                         "error 1",
		":fail: gone":                           "error 1",
		"<|prog>":                               "error 1",
		`\/file`:                                "error 1",
		"-x@example.org":                        "error 1",
		"bob@":                                  "error 1",
		"bob@a@b":                               "error 1",
		"bob # comment":                         "error 1",
		"<>":                                    "error 1",
		"a\n\x00":                               "error 2",
		"a\n\xff":                               "error 2",
		"|" + strings.Repeat("x", maxCommand+1): "error 1",
		"/" + strings.Repeat("x", maxPath):      "error 1",
	} {
		list, err := ParseList("f", []byte(in))
		got := show(list)
		if err != nil {
			line, ok := strings.CutPrefix(err.Error(), "f:")
			number, _, _ := strings.Cut(line, ":")
			if got = "error " + number; !ok || list != nil {
				t.Errorf("%.60q: %v with %v", in, err, list)
			}
		}
		if got != want {
			t.Errorf("%.60q: %s (%v), want %s", in, got, err, want)
		}
	}
}

func TestTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "aliases")
	if err := os.WriteFile(path, []byte(`# Debian's, and more
mailer-daemon: postmaster
Postmaster:root
root : admin,
	\root
"John Doe": john
list: :include:/etc/mail/list
owner-list: admin
noreply: /dev/null
user+ext: "|cat >/tmp/x: y"
`), 0o600); err != nil {
		t.Fatal(err)
	}
	table := New(path, func(err error) { t.Error(err) })
	for name, want := range map[string]string{
		"MAILER-DAEMON": "postmaster", "postmaster": "root", "root": `admin|exactly root`, "john doe": "john",
		"list": "include /etc/mail/list", "owner-list": "admin", "noreply": "file /dev/null", "user+ext": "command cat >/tmp/x: y",
		"user": "none",
	} {
		list, found, err := table.Lookup(name)
		got := show(list)
		if !found {
			got = "none"
		}
		if err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", name, got, err, want)
		}
	}
	for _, text := range []string{"a", "a:", "a: ,", "a: b\nA: c", "a@example.org: b", ": b", "a b: c", `"a: b`} {
		if entries, err := parseTable("f", []byte(text)); err == nil || entries != nil || !strings.HasPrefix(err.Error(), "f:") {
			t.Errorf("%q: %v, %v", text, entries, err)
		}
	}
	var said error
	if _, found, err := New(t.TempDir(), func(err error) { said = err }).Lookup("a"); err == nil || found || said == nil {
		t.Errorf("a directory is a table: %v", err)
	}
	if _, found, err := New(filepath.Join(t.TempDir(), "none"), nil).Lookup("a"); err != nil || found {
		t.Errorf("a table that is not there: %v, %v", found, err)
	}
	said = nil
	if _, found, err := New(filepath.Join(t.TempDir(), "none", "aliases"), func(err error) { said = err }).Lookup("a"); err == nil || found || said == nil {
		t.Errorf("a table where nothing is seen: %v, %v", found, err)
	}
}

// FuzzTable: what is accepted reads the same when it is written again; what is
// refused leaves nothing.
func FuzzTable(f *testing.F) {
	for _, s := range []string{"a: b", "a: \\b, \"|c d\", /f, :include:/g\n h@i\n", `"x y": "|p"@d, <q>`, "a: |\"b\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if list, err := ParseList("f", []byte(text)); err != nil && list != nil {
			t.Fatal("an error with a list")
		}
		entries, err := parseTable("f", []byte(text))
		if err != nil {
			if entries != nil {
				t.Fatal("an error with entries")
			}
			return
		}
		for _, name := range slices.Sorted(maps.Keys(entries)) {
			var parts []string
			for _, target := range entries[name] {
				parts = append(parts, target.String())
			}
			again, err := ParseList("f", []byte(strings.Join(parts, ",")))
			if err != nil || !reflect.DeepEqual(again, entries[name]) {
				t.Fatalf("%q: %#v reads as %#v, %v", name, entries[name], again, err)
			}
		}
	})
}
