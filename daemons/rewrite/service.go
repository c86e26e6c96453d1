package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/table"
	"posthouse/pkg/users"
	"posthouse/pkg/wire"
)

// Tables that decide whether there is a recipient.
const (
	usersTable   = "users"
	aliasesTable = "virtual_aliases"
)

// service answers with the rules of the configuration that is in force.
type service struct {
	config func() *config.Config
	dir    string // of the tables
	warn   func(error)

	users      userTable
	aliases    aliasTable
	transports lookupTable
	people     peopleTable

	mu     sync.Mutex
	from   *config.Config // what rules was made of
	rules  *rules
	others map[string]lookupTable // recipients of relay domains, by file
}

func newService(cfg func() *config.Config, dir string, warn func(error)) *service {
	return &service{
		config: cfg, dir: dir, warn: warn,
		users:      users.NewTable(filepath.Join(dir, usersTable), warn),
		aliases:    table.NewAliases(filepath.Join(dir, aliasesTable), warn),
		transports: table.NewText(filepath.Join(dir, "transport"), warn),
		people:     newPeople(warn),
		others:     make(map[string]lookupTable),
	}
}

// current returns the rules in force.
func (s *service) current() *rules {
	cfg := s.config()
	s.mu.Lock()
	defer s.mu.Unlock()
	if cfg != s.from {
		s.from, s.rules = cfg, s.compile(cfg)
	}
	return s.rules
}

func (s *service) compile(c *config.Config) *rules {
	r := &rules{
		hostname: c.Hostname, origin: c.Origin, delimiters: c.RecipientDelimiter,
		local: set(c.Domains.Local), alias: set(c.Domains.Alias), virtual: make(map[string]bool), relay: make(map[string]relayDomain),
		defaultRoute: parseRoute(c.Routes.Default), virtualRoute: parseRoute(c.Routes.Virtual), localRoute: parseRoute(c.Routes.Local),
		luser: c.Local.LuserRelay != "",
		users: s.users, aliases: s.aliases, transports: s.transports, people: s.people, lost: s.lost,
		maxExpansion: c.Limits.Expansion, maxNesting: maxNesting,
	}
	if c.Local.MailboxTransport != "" {
		r.mailboxRoute = parseRoute(c.Local.MailboxTransport)
	}
	if c.Local.FallbackTransport != "" {
		r.fallbackRoute = parseRoute(c.Local.FallbackTransport)
	}
	for domain := range c.Domains.Virtual {
		r.virtual[strings.ToLower(domain)] = true
	}
	for domain, d := range c.Domains.Relay {
		relay := relayDomain{}
		if d.To != "" {
			relay.to = parseRoute(d.To)
		}
		if d.Recipients != "" {
			relay.recipients = s.other(d.Recipients)
		}
		r.relay[strings.ToLower(domain)] = relay
	}
	return r
}

// maxNesting is how deep aliases may stand for aliases.
const maxNesting = 100

func (s *service) other(name string) lookupTable {
	t, ok := s.others[name]
	if !ok {
		t = relayRecipients{table.NewText(filepath.Join(s.dir, name), s.warn), filepath.Join(s.dir, name)}
		s.others[name] = t
	}
	return t
}

// relayRecipients is a table that was asked for by name: where it is missing,
// nothing is known, and no recipient is unknown.
type relayRecipients struct {
	lookupTable
	path string
}

func (t relayRecipients) Lookup(key string) (string, bool, error) {
	if _, err := os.Stat(t.path); err != nil {
		return "", false, err
	}
	return t.lookupTable.Lookup(key)
}

func (s *service) lost(name string) error {
	_, err := os.Stat(filepath.Join(s.dir, name))
	return err
}

func set(list []string) map[string]bool {
	m := make(map[string]bool)
	for _, s := range list {
		m[strings.ToLower(s)] = true
	}
	return m
}

// parseRoute reads a route that the configuration has checked.
func parseRoute(s string) route {
	r, err := config.ParseRoute(s)
	if err != nil {
		// Not reached; mail waits rather than goes astray.
		return route{"error", "4.3.5 malformed route"}
	}
	return route{r.Transport, r.Nexthop}
}

// handle answers one request.
func (s *service) handle(_ context.Context, c *ipc.Conn, msg []byte, file *os.File) error {
	if file != nil {
		_ = file.Close() // not asked for
	}
	req, err := rewrite.DecodeRequest(msg)
	if err != nil {
		return err
	}
	m := ipc.NewMessage()
	rewrite.EncodeAnswers(m, s.answer(req))
	return c.Send(m)
}

func (s *service) answer(req rewrite.Request) []rewrite.Answer {
	r := s.current()
	answers := make([]rewrite.Answer, len(req.Addresses))
	expanded := 0
	for i, m := range req.Addresses {
		switch req.Op {
		case rewrite.Complete:
			full, err := r.complete(m)
			if err != nil {
				answers[i].Err = dsn.Errorf("5.1.3", "%v", err)
			}
			answers[i].Addresses = []addr.Mailbox{full}
		case rewrite.Verify:
			answers[i] = r.verify(m)
		case rewrite.Expand:
			// A thousand times the same list is too much for a message, and for the memory.
			if expanded > rewrite.MaxExpansion {
				answers[i].Err = dsn.Errorf("4.5.3", "more than %d recipients after alias expansion", rewrite.MaxExpansion)
				continue
			}
			answers[i] = r.expand(m)
			expanded += len(answers[i].Addresses)
		case rewrite.Resolve:
			answers[i] = r.resolve(m)
		}
	}
	for i := range answers {
		fit(&answers[i])
	}
	return answers
}

// fit makes an answer one that clients can read. Tables have texts of any length, and
// one that is too long would be no answer for all other recipients of the message.
func fit(a *rewrite.Answer) {
	if len(a.Transport) > rewrite.MaxTransport || len(a.Nexthop) > rewrite.MaxNexthop || dsn.CheckText(a.Transport+a.Nexthop) != nil {
		*a = rewrite.Answer{Class: a.Class, Err: dsn.Errorf("4.3.5", "the route is too long, or not printable: %.100s", a.Transport+":"+a.Nexthop)}
	}
	if a.Err == nil {
		return
	}
	text := a.Err.Text
	if len(text) > wire.MaxText {
		text = text[:wire.MaxText]
	}
	a.Err = &dsn.Error{Status: a.Err.Status, Text: maillog.Printable(strings.ToValidUTF8(text, ""))}
}
