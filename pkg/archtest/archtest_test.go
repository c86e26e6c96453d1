package archtest

import (
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestPosthouse(t *testing.T) {
	faults, err := check(os.DirFS("../.."), posthouse)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Error(f)
	}
}

// small is a table for the tree below.
var small = architecture{
	layers: []layer{{"values", "low", "time.Now"}, {"protocols", "protocol/talk", ""}, {"system", "mid other", ""}, {"tests", "help", ""}},
	rules: []rule{
		{"os.Exit", "main", "daemons/a", false}, {"unsafe", "memory", "", true}, {"init", "main", "", false},
		{"golang.org/x/sys/unix", "descriptors", "pkg/mid", false},
	},
	sockets:  map[string]socket{"private/b": {"daemons/b", "talk"}},
	programs: map[string]program{"daemons/a": {"a second", "talk", false}, "daemons/b": {"b", "", true}, "daemons/commands/c": {}},
	network:  "net.Dial* posthouse/pkg/mid",
	excused:  map[string]string{"pkg/other.long": "has to be"},
}

var tree = map[string]string{
	"pkg/low/low.go":              `package low; func f(a, b, c, d int) {}`,
	"pkg/low/low_test.go":         `package low; import _ "os"; import _ "posthouse/pkg/help"; func f(a, b, c, d, e int) { panic(0) }`,
	"pkg/low/testdata/x.go":       `not Go`,
	"pkg/protocol/talk/talk.go":   `package talk; import _ "posthouse/pkg/low"`,
	"pkg/mid/mid.go":              `package mid; import _ "golang.org/x/sys/unix"`,
	"pkg/other/other.go":          `package other; func (x) init() {}; func (x) long(a, b, c, d, e int) {}`,
	"pkg/help/help.go":            `package help`,
	"daemons/a/main.go":           `package main; import ("os"; "posthouse/pkg/protocol/talk"); func main() { os.Exit(len(talk.Path)) }`,
	"daemons/b/main.go":           `package main; import ("posthouse/daemons/b/internal/x"; "posthouse/pkg/protocol/talk"); var _ = talk.Protocol`,
	"daemons/b/internal/x/x.go":   `package x; import _ "posthouse/pkg/mid"`,
	"daemons/commands/c/main.go":  `package main`,
	"units/posthouse-a.service":   "ExecStart=/libexec/a\nSupplementaryGroups=_ph-queue _ph-to-b\n",
	"units/posthouse-b.service":   "ExecStart=/libexec/b\nRestrictAddressFamilies=AF_INET AF_INET6\n",
	"units/posthouse-b.socket":    "ListenSequentialPacket=/run/posthouse/private/b\n",
	"units/posthouse-net.socket":  "ListenStream=25\nService=posthouse-a.service\n",
	"units/posthouse-wake.socket": "ListenFIFO=/run/posthouse/public/b\nService=posthouse-b.service\n",

	"units/posthouse-second.service":     "ExecStart=/libexec/a\nSupplementaryGroups=_ph-to-b\n",
	"units/posthouse-.service.d/10.conf": "RestrictAddressFamilies=AF_UNIX\n",
}

// Each row changes one file of the tree, or removes it, and has the faults, without the place.
func TestFaultsAreFound(t *testing.T) {
	long := strings.Repeat("\n", 70)
	for _, c := range []struct{ file, text, want string }{
		{"README.md", "nothing is wrong", ""},
		// Layers.
		{"pkg/new/new.go", `package new; import _ "posthouse/pkg/help"`, "not: pkg/new exists"},
		{"pkg/help/help.go", "", "only: pkg/help exists"},
		{"pkg/low/x.go", `package low; import _ "posthouse/pkg/mid"`, "not: pkg/low imports pkg/mid"},
		{"pkg/low/x.go", "//go:build never\n\npackage low; import _ \"posthouse/pkg/mid\"", "not: pkg/low imports pkg/mid"},
		{"pkg/other/x.go", `package other; import _ "posthouse/pkg/mid"`, "not: pkg/other imports pkg/mid"},
		{"pkg/low/x.go", `package low; import "time"; var now = time.Now`, "not: pkg/low uses time.Now, not for values"},
		{"pkg/mid/x.go", `package mid; import _ "posthouse/daemons/b/internal/x"`, "not: pkg/mid imports daemons/b/internal/x"},
		{"pkg/mid/x_test.go", `package mid; import _ "posthouse/units"`, "not: pkg/mid imports units"},
		{"daemons/a/x.go", `package main; import _ "posthouse/daemons/b/internal/x"`, "not: daemons/a imports daemons/b/internal/x"},
		{"daemons/a/x_test.go", `package main; import _ "posthouse/daemons/b"`, "not: daemons/a imports daemons/b"},
		{"daemons/a/x.go", `package main; import _ "posthouse/pkg/help"`, "not: daemons/a imports pkg/help"},
		// Rules.
		{"daemons/b/x.go", `package main; import "os"; func f() { defer os.Exit(1) }`, "not: daemons/b uses os.Exit"},
		{"daemons/b/x.go", `package main; import s "os"; var f = s.Exit`, "not: daemons/b uses os.Exit"},
		{"daemons/b/x_test.go", `package main; import "os"; var f = os.Exit`, ""},
		{"daemons/b/x_test.go", `package main; import _ "unsafe"`, "not: daemons/b uses unsafe"},
		{"pkg/mid/mid.go", `package mid`, "only: pkg/mid uses golang.org/x/sys/unix"},
		{"pkg/mid/x_test.go", `package mid; import _ "example.org/new"`, "not: example.org/new, a module"},
		// Protocols and units.
		{"daemons/d/main.go", `package main`, "not: daemons/d exists"},
		{"daemons/commands/c/main.go", "", "only: daemons/commands/c exists"},
		{"daemons/b/x.go", `package main; import "posthouse/pkg/protocol/talk"; var p = talk.Path`, "not: daemons/b asks talk"},
		{"daemons/b/x.go", `package main; import t "posthouse/pkg/protocol/talk"; var p = t.FIFOPath("x")`, "not: daemons/b asks talk"},
		{"daemons/b/x_test.go", `package main; import "posthouse/pkg/protocol/talk"; var p = talk.Path`, ""},
		{"pkg/mid/x.go", `package mid; import "posthouse/pkg/protocol/talk"; var p = talk.Path`, "not: pkg/mid asks talk"},
		{"daemons/commands/c/x.go", `package main; import _ "posthouse/pkg/protocol/talk"`, "not: daemons/commands/c speaks talk"},
		{"daemons/b/main.go", `package main`, "only: daemons/b speaks talk"},
		{"units/posthouse-second.service", "ExecStart=/libexec/a\n", "only: posthouse-second.service has the group _ph-to-b"},
		{"units/posthouse-.service.d/20.conf", "SupplementaryGroups=_ph-to-b\n", "not: posthouse-b.service has the group _ph-to-b"},
		{"units/posthouse-third.service", "ExecStart=/libexec/a\n", "not: posthouse-third.service runs daemons/a"},
		{"units/posthouse-b.socket", "", "only: daemons/b serves private/b"},
		{"units/posthouse-x.socket", "ListenSequentialPacket=/run/posthouse/public/x\nService=posthouse-a.service\n", "not: daemons/a serves public/x"},
		{"units/posthouse-b.service", "ExecStart=/libexec/b\n", "only: posthouse-b.service has a network"},
		{"units/posthouse-.service.d/20.conf", "RestrictAddressFamilies=AF_INET6\n", "not: posthouse-a.service has a network, not: posthouse-second.service has a network"},
		{"daemons/a/x.go", `package main; import "net"; var d net.Dialer`, "not: daemons/a takes part in the network"},
		{"daemons/b/internal/x/x.go", `package x`, "only: daemons/b takes part in the network"},
		// Budgets.
		{"pkg/mid/x.go", "package mid" + strings.Repeat("\n", 601), "not: pkg/mid/x.go is over budget"},
		{"pkg/mid/x.go", "package mid; func f() {" + long + "}", "not: pkg/mid.f is over budget"},
		{"pkg/mid/x.go", "package mid; var f = func() {" + long + "}", "not: pkg/mid.func is over budget"},
		{"pkg/mid/x.go", "package mid; func f(a, b, c int, d, e string) {}", "not: pkg/mid.f is over budget"},
		{"pkg/other/other.go", "package other", "only: pkg/other.long is over budget"},
	} {
		files := fstest.MapFS{}
		for name, text := range tree {
			files[name] = &fstest.MapFile{Data: []byte(text)}
		}
		if files[c.file] = (&fstest.MapFile{Data: []byte(c.text)}); c.text == "" {
			delete(files, c.file)
		}
		faults, err := check(files, small)
		for i, f := range faults {
			fact, _, _ := strings.Cut(f, " (")
			faults[i] = strings.Replace(fact, " in the table", "", 1)
		}
		if got := strings.Join(faults, ", "); err != nil || got != c.want {
			t.Errorf("%s: %s\n got %s, %v\nwant %s", c.file, c.text, got, err, c.want)
		}
	}
}

func TestLayersAreDisjoint(t *testing.T) {
	a := architecture{layers: []layer{{"one", "low", ""}, {"two", "low", ""}}}
	if faults, err := check(fstest.MapFS{"pkg/low/low.go": {Data: []byte("package low")}}, a); err != nil || len(faults) != 1 || !strings.Contains(faults[0], "pkg/low is in two layers (one, two)") {
		t.Errorf("%q, %v", faults, err)
	}
}

// Every pattern of the real table finds what it is for, in a daemon that may not.
func TestRulesBite(t *testing.T) {
	words := map[string]string{
		"dot": `import . "os"`, "init": "func init() {}", "panic": `func f() { panic("x") }`,
		"socket": `const p = "/run/posthouse/private/x"`,
	}
	for _, r := range posthouse.rules {
		for _, pattern := range strings.Fields(r.uses) {
			use := strings.NewReplacer("[A-Z]", "T", "*", "x").Replace(pattern)
			dir, base := path.Split(use)
			text := `import _ "` + use + `"`
			if pkg, name, ok := strings.Cut(base, "."); ok && name[0] < 'a' {
				text = `import "` + dir + pkg + `"; var _ = ` + pkg + `.` + name
			} else if words[use] != "" {
				text = words[use]
			}
			for file, judged := range map[string]bool{"daemons/stranger/main.go": true, "daemons/stranger/main_test.go": r.tests} {
				all, err := read(fstest.MapFS{file: {Data: []byte("package main; " + text)}})
				if err != nil {
					t.Fatal(err)
				}
				got := facts{}
				posthouse.reserved(got, all[0])
				if _, found := got["daemons/stranger uses "+r.uses]; found != judged {
					t.Errorf("%s with %s: reported: %t, want %t (%s)", file, text, found, judged, slices.Collect(maps.Keys(got)))
				}
			}
		}
	}
}
