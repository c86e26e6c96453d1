package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/protocol/recipient"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/table"
)

func mailbox(t testing.TB, s string) addr.Mailbox {
	t.Helper()
	m, err := addr.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// fakeTable is a table in memory; the value "!" cannot be looked up.
type fakeTable map[string]string

func (f fakeTable) Lookup(key string) (string, bool, error) {
	v, ok := f[key]
	if v == "!" {
		return "", false, errors.New("disk on fire")
	}
	return v, ok, nil
}

func (f fakeTable) Targets(key string) ([]table.Target, bool, error) {
	v, ok, err := f.Lookup(key)
	if !ok || err != nil {
		return nil, false, err
	}
	var list []table.Target
	for s := range strings.SplitSeq(v, " ") {
		t, err := table.ParseTarget(s)
		if err != nil {
			return nil, false, err
		}
		list = append(list, t)
	}
	return list, true, nil
}

func (f fakeTable) Has(m addr.Mailbox) (bool, error) {
	_, ok, err := f.Lookup(m.String())
	return ok, err
}

// fakePeople are the local names; others are nobody's, but for "broken", of whom
// nothing is known.
type fakePeople map[string]recipient.Outcome

func (f fakePeople) Lookup(local string) (recipient.Outcome, error) {
	if local == "broken" {
		return recipient.Unknown, errors.New("local is away")
	}
	if o, ok := f[local]; ok {
		return o, nil
	}
	return recipient.None, nil
}

func testRules() *rules {
	return &rules{
		hostname: "mail.example.org", origin: "example.org", delimiters: "+",
		local:   map[string]bool{"mail.example.org": true, "example.org": true},
		virtual: map[string]bool{"virtual.example": true},
		alias:   map[string]bool{"alias.example": true, "old.example": true},
		relay: map[string]relayDomain{
			"relay.example": {to: route{"smtp", "[192.0.2.7]:25"}, recipients: fakeTable{"known@relay.example": "", "broken@relay.example": "!"}},
			"open.example":  {},
		},
		defaultRoute: route{"smtp", ""}, virtualRoute: route{"virtual", ""}, localRoute: route{"local", ""},
		users: fakeTable{"user@virtual.example": "", "broken@virtual.example": "!"},
		aliases: fakeTable{
			"a@alias.example": "b@alias.example c@elsewhere.example", "b@alias.example": "user@virtual.example",
			"self@alias.example": "self@alias.example user@virtual.example", "loop1@alias.example": "loop2@alias.example", "loop2@alias.example": "loop1@alias.example",
			"ext@alias.example": "user@virtual.example", "ext+special@alias.example": "other@virtual.example",
			"identity@virtual.example": "identity@virtual.example", "identity@alias.example": "identity@alias.example",
			"broken@alias.example": "!", "root": "admin", "@catch.example": "user@virtual.example",
			"@old.example": "@virtual.example", "one@old.example": "c@elsewhere.example", "@older.example": "@old.example", "@far.example": "@elsewhere.example",
			"@here.example": "@there.example", "@there.example": "@here.example",
		},
		transports: fakeTable{"special.example": "lmtp:unix:/run/x", ".sub.example": "error:5.7.1 not here", "hop.example": ":[192.0.2.9]", "user@who.example": "virtual:",
			"gone@open.example": "error:5.7.1 gone", "moved@open.example": "error:", "later@open.example": "error:4.2.1 later", "unsure@open.example": "!"},
		people: fakePeople{"postmaster": recipient.Alias, "bob": recipient.Account, "x": recipient.Account},
		lost:   func(string) error { return nil }, maxExpansion: 100, maxNesting: 20,
	}
}

func TestVerify(t *testing.T) {
	for in, want := range map[string]string{
		"user@virtual.example":           "virtual ok",
		"USER@Virtual.Example":           "virtual ok",
		"user+ext@virtual.example":       "virtual ok",
		"nobody@virtual.example":         "virtual 5.1.1",
		"broken@virtual.example":         "virtual 4.3.0",
		"a@alias.example":                "alias ok",
		"x@alias.example":                "alias 5.1.1",
		"broken@alias.example":           "alias 4.3.0",
		"known@relay.example":            "relay ok",
		"unknown@relay.example":          "relay 5.1.1",
		"broken@relay.example":           "relay 4.3.0",
		"any@open.example":               "relay ok",
		"postmaster":                     "local ok",
		"x@[127.0.0.1]":                  "local ok",
		"x@[192.0.2.1]":                  "default ok",
		"someone@elsewhere.example":      "default ok",
		"-x@virtual.example":             "default 5.1.3",
		"user%elsewhere@virtual.example": "default ok", // and so nobody relays it
		"elsewhere!user@virtual.example": "default ok",
		`"u@elsewhere"@virtual.example`:  "default ok",
		"user@x.virtual.example":         "default ok",
		"loop1@alias.example":            "alias 5.4.6",
		"identity@virtual.example":       "virtual 5.1.1",
		"identity@alias.example":         "alias 5.1.1",
		"gone@open.example":              "relay 5.7.1",
		"moved@open.example":             "relay 5.0.0",
		"later@open.example":             "relay ok",
		"x@a.sub.example":                "default 5.7.1",
		"unsure@open.example":            "relay 4.3.0",
		"user+ext@old.example":           "alias ok",
		"nobody@old.example":             "alias 5.1.1",
		"nobody@older.example":           "default 5.1.1",
		"one@old.example":                "alias ok",
		"nobody@far.example":             "default ok",
		"x@here.example":                 "default 5.4.6",
		"postmaster@virtual.example":     "virtual 5.1.1", // there is no entry for it
	} {
		a := testRules().verify(mailbox(t, in))
		got := a.Class.String() + " ok"
		if a.Err != nil {
			got = a.Class.String() + " " + a.Err.Status.String()
		}
		if got != want {
			t.Errorf("verify %s: %s, want %s", in, got, want)
		}
	}
}

// TestPostmaster: a domain of ours that has no postmaster has that of all.
func TestPostmaster(t *testing.T) {
	r := testRules()
	r.aliases.(fakeTable)["postmaster"] = "chief"
	for in, want := range map[string]string{
		"postmaster@virtual.example": "[chief@example.org]",
		"PostMaster@Alias.Example":   "[chief@example.org]",
		"postmaster@example.org":     "[chief@example.org]",
		"postmaster@relay.example":   "[postmaster@relay.example]",
		"postmaster@else.example":    "[postmaster@else.example]",
		"x@alias.example":            "[x@alias.example]",
	} {
		if a := r.expand(mailbox(t, in)); a.Err != nil || fmt.Sprint(a.Addresses) != want {
			t.Errorf("%s: %+v, want %s", in, a, want)
		}
	}
	for _, in := range []string{"postmaster@virtual.example", "postmaster@alias.example"} {
		if a := r.verify(mailbox(t, in)); a.Err != nil {
			t.Errorf("%s: %+v", in, a)
		}
	}
	users := r.users.(fakeTable)
	users["postmaster@virtual.example"] = ""
	if a := r.expand(mailbox(t, "postmaster@virtual.example")); fmt.Sprint(a.Addresses) != "[postmaster@virtual.example]" {
		t.Errorf("the domain's own: %+v", a)
	}
	users["postmaster@virtual.example"] = "!"
	if a := r.expand(mailbox(t, "postmaster@virtual.example")); a.Err == nil || a.Err.Status.Class() != dsn.Transient {
		t.Errorf("unknown whether there is one: %+v", a)
	}
}

// TestVerifyDoubleBounce: what we send from can be written to, whatever the class
// of its domain (Postfix's address-verify sender).
func TestVerifyDoubleBounce(t *testing.T) {
	r := testRules()
	r.origin = "virtual.example"
	if a := r.verify(mailbox(t, "Double-Bounce@Virtual.Example")); a.Err != nil || a.Class != rewrite.ClassLocal {
		t.Errorf("%+v", a)
	}
	if a := r.verify(mailbox(t, "double-bounce@elsewhere.example")); a.Class != rewrite.ClassDefault {
		t.Errorf("somebody else's: %+v", a)
	}
}

func TestExpand(t *testing.T) {
	for in, want := range map[string]string{
		"a@alias.example":           "user@virtual.example c@elsewhere.example",
		"self@alias.example":        "self@alias.example user@virtual.example",
		"loop1@alias.example":       "5.4.6",
		"ext+x@alias.example":       "user+x@virtual.example",
		"ext+special@alias.example": "other@virtual.example",
		"plain@elsewhere.example":   "plain@elsewhere.example",
		"Root@Mail.Example.Org":     "admin@example.org",
		"bob":                       "bob@example.org",
		"any@catch.example":         "user@virtual.example",
		"broken@alias.example":      "4.3.0",
		"User+x@older.example":      "User+x@virtual.example",
		"one@old.example":           "c@elsewhere.example",
		"x@here.example":            "5.4.6",
	} {
		a := testRules().expand(mailbox(t, in))
		var list []string
		for _, m := range a.Addresses {
			list = append(list, m.String())
		}
		got := strings.Join(list, " ")
		if a.Err != nil {
			got = a.Err.Status.String()
		}
		if got != want {
			t.Errorf("expand %s: %s, want %s", in, got, want)
		}
	}
}

// TestExpandDoubleBounce: who gets the mail of all names does not get what comes back to
// the sender of reports: here a loop ends.
func TestExpandDoubleBounce(t *testing.T) {
	r := testRules()
	r.aliases = fakeTable{"@example.org": "user@virtual.example"}
	for in, want := range map[string]string{"double-bounce@example.org": "double-bounce@example.org", "x@example.org": "user@virtual.example"} {
		if a := r.expand(mailbox(t, in)); a.Err != nil || len(a.Addresses) != 1 || a.Addresses[0].String() != want {
			t.Errorf("expand %s: %+v", in, a)
		}
	}
}

func TestExpandLimits(t *testing.T) {
	r := testRules()
	table := fakeTable{}
	for i := range 200 {
		name := strings.Repeat("x", i+1)
		table[name+"@deep.example"] = name + "x@deep.example"
		table["wide@deep.example"] += "y" + name + "@elsewhere.example "
	}
	table["wide@deep.example"] = strings.TrimSpace(table["wide@deep.example"])
	r.aliases = table
	for _, in := range []string{"x@deep.example", "wide@deep.example"} {
		if a := r.expand(mailbox(t, in)); a.Err == nil || len(a.Addresses) != 0 {
			t.Errorf("expand %s: %d addresses", in, len(a.Addresses))
		}
	}
}

func TestResolve(t *testing.T) {
	for in, want := range map[string]string{
		"x@elsewhere.example":        "smtp elsewhere.example",
		"x@ELSEWHERE.example":        "smtp elsewhere.example",
		"x@[192.0.2.1]":              "smtp [192.0.2.1]",
		"user@virtual.example":       "virtual virtual.example",
		"gone@virtual.example":       "5.1.1",
		"broken@virtual.example":     "4.3.0",
		"x@relay.example":            "smtp [192.0.2.7]:25",
		"x@open.example":             "smtp open.example",
		"x@example.org":              "local mail.example.org",
		"x@alias.example":            "5.1.1",
		"x@special.example":          "lmtp unix:/run/x",
		"x@a.sub.example":            "error 5.7.1 not here",
		"x@hop.example":              "smtp [192.0.2.9]",
		"user+ext@who.example":       "virtual who.example",
		"double-bounce@example.org":  "discard undeliverable report to the postmaster",
		"double-bounce@else.example": "smtp else.example",
	} {
		a := testRules().resolve(mailbox(t, in))
		got := a.Transport + " " + a.Nexthop
		if a.Err != nil {
			got = a.Err.Status.String()
		}
		if got != want {
			t.Errorf("resolve %s: %s, want %s", in, got, want)
		}
		if a.Err == nil && (len(a.Addresses) != 1 || a.Addresses[0].Local() != mailbox(t, in).Local()) {
			t.Errorf("resolve %s: addresses %v", in, a.Addresses)
		}
	}
	r := testRules()
	r.defaultRoute = route{"smtp", "[relay.example]:587"}
	if a := r.resolve(mailbox(t, "x@elsewhere.example")); a.Nexthop != "[relay.example]:587" {
		t.Errorf("smarthost: %+v", a)
	}
}

func TestKeysOfClass(t *testing.T) {
	if c := testRules().class(mailbox(t, "x@mail.EXAMPLE.org")); c != rewrite.ClassLocal {
		t.Errorf("class %s", c)
	}
}
