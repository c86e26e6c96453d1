package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/table"
)

// TestService asks with real tables and a real configuration, which changes.
func TestService(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("posthouse.yaml", "hostname: mail.example.org\norigin: example.org\ndomains: {virtual: {virtual.example: {}}, alias: [alias.example], relay: {relay.example: {recipients: relays, to: 'smtp:[h]:26'}}}\n")
	write("tables/users", "user@virtual.example:{PLAIN}x:1:1::/h::\n")
	write("tables/virtual_aliases", "info@virtual.example: user@virtual.example\nA..b@alias.example: user@virtual.example\n")
	write("tables/transport", "special.example discard:\nc.@hop.example discard:\n")
	load := func() *config.Config {
		c, err := config.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	cfg := load()
	s := newService(func() *config.Config { return cfg }, config.TablesDir(dir), func(err error) { t.Log(err) })
	ask := func(op rewrite.Op, address string) rewrite.Answer {
		return s.answer(rewrite.Request{Op: op, Addresses: []addr.Mailbox{mailbox(t, address)}})[0]
	}
	if a := ask(rewrite.Verify, "user@virtual.example"); a.Err != nil || a.Class != rewrite.ClassVirtual {
		t.Errorf("%+v", a)
	}
	if a := ask(rewrite.Verify, "nobody@virtual.example"); a.Err == nil || a.Err.Status.String() != "5.1.1" {
		t.Errorf("%+v", a)
	}
	for table, address := range map[string]string{"users": "nobody@virtual.example", "virtual_aliases": "nobody@alias.example"} {
		for _, op := range []rewrite.Op{rewrite.Verify, rewrite.Resolve} {
			if a := ask(op, address); a.Err == nil || a.Err.Status.String() != "5.1.1" {
				t.Errorf("%s: %+v", address, a)
			}
			path := filepath.Join(config.TablesDir(dir), table)
			if err := os.Rename(path, path+".away"); err != nil {
				t.Fatal(err)
			}
			if a := ask(op, address); a.Err == nil || a.Err.Status.String() != "4.3.0" {
				t.Errorf("%s while there is no %s: %+v", address, table, a)
			}
			if err := os.Rename(path+".away", path); err != nil {
				t.Fatal(err)
			}
		}
	}
	if a := ask(rewrite.Expand, "info@virtual.example"); len(a.Addresses) != 1 || a.Addresses[0].String() != "user@virtual.example" {
		t.Errorf("%+v", a)
	}
	if a := ask(rewrite.Resolve, "x@special.example"); a.Transport != "discard" {
		t.Errorf("%+v", a)
	}
	// Dots stand where RFC 5321 has them in quotes only; tables and clients leave those out.
	if a := ask(rewrite.Verify, "a..B@alias.example"); a.Err != nil {
		t.Errorf("%+v", a)
	}
	if a := ask(rewrite.Resolve, "c.@hop.example"); a.Transport != "discard" {
		t.Errorf("%+v", a)
	}
	if a := ask(rewrite.Complete, "bob"); a.Addresses[0].String() != "bob@example.org" {
		t.Errorf("%+v", a)
	}
	// A table that was named and is missing: nothing is known.
	if a := ask(rewrite.Verify, "x@relay.example"); a.Err == nil || a.Err.Status.String() != "4.3.0" {
		t.Errorf("%+v", a)
	}
	write("tables/relays", "x@relay.example ok\n")
	if a := ask(rewrite.Verify, "x@relay.example"); a.Err != nil {
		t.Errorf("%+v", a)
	}
	write("posthouse.yaml", "hostname: mail.example.org\norigin: other.example\n")
	cfg = load()
	if a := ask(rewrite.Complete, "bob"); a.Addresses[0].String() != "bob@other.example" {
		t.Errorf("a new configuration is not noticed: %+v", a)
	}
}

// listTable has everybody in a list of n addresses.
type listTable struct{ n int }

func (t listTable) Targets(key string) ([]table.Target, bool, error) {
	if !strings.HasPrefix(key, "all") {
		return nil, false, nil
	}
	var list []table.Target
	for i := range t.n {
		m, err := addr.New(fmt.Sprint("user", i), "example.net")
		if err != nil {
			return nil, false, err
		}
		list = append(list, table.Target{Address: m})
	}
	return list, true, nil
}

// TestManyLists: a client names the same list as often as it may have recipients, or
// several; no memory is filled with what they stand for.
func TestManyLists(t *testing.T) {
	cfg := &config.Config{Origin: "example.org"}
	cfg.Limits.Expansion = rewrite.MaxExpansion
	s := newService(func() *config.Config { return cfg }, t.TempDir(), func(err error) { t.Error(err) })
	s.aliases = listTable{30000}
	req := rewrite.Request{Op: rewrite.Expand}
	for range 20 {
		req.Addresses = append(req.Addresses, mailbox(t, "all@alias.example"))
	}
	total, refused := 0, 0
	for _, a := range s.answer(req) {
		total += len(a.Addresses)
		if a.Err != nil && a.Err.Status.String() == "4.5.3" {
			refused++
		}
	}
	if total < rewrite.MaxExpansion || total > 2*rewrite.MaxExpansion || refused == 0 {
		t.Errorf("%d addresses in answers, %d refused", total, refused)
	}
}

// TestLongTexts: what a table has at length, or cannot be printed, spoils the answer
// for that recipient alone.
func TestLongTexts(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("gone ü ", 1000)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("transport", "long.example error:5.1.6 "+long+"\nodd.example error:5.1.6 a\u0081b\nlonger.example "+strings.Repeat("x", 100)+":\n")
	cfg := &config.Config{Origin: "example.org"}
	cfg.Routes.Default, cfg.Limits.Expansion = "smtp:", 10
	s := newService(func() *config.Config { return cfg }, dir, func(error) {})
	ask := func(op rewrite.Op) []rewrite.Answer {
		t.Helper()
		req := rewrite.Request{Op: op}
		for _, domain := range []string{"long.example", "odd.example", "longer.example", "good.example"} {
			req.Addresses = append(req.Addresses, mailbox(t, "x@"+domain))
		}
		m := ipc.NewMessage()
		rewrite.EncodeAnswers(m, s.answer(req))
		answers, err := rewrite.DecodeAnswers(m.Data()[1:])
		if err != nil {
			t.Fatal(err)
		}
		return answers
	}
	for i, a := range ask(rewrite.Resolve) {
		if good := i == 3; good != (a.Err == nil) || !good && a.Err.Status.Class() != dsn.Transient {
			t.Errorf("%+v", a)
		}
	}
	for i, a := range ask(rewrite.Verify) {
		if want := i < 2; want != (a.Err != nil && a.Err.Status.String() == "5.1.6") {
			t.Errorf("%+v", a)
		}
	}
	write("virtual_aliases", "a@b: c@d "+long+"\n") // the error of which has much in it
	s = newService(s.config, dir, s.warn)
	ask(rewrite.Expand)
}
