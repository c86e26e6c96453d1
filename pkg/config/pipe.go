package config

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// pipePrefix is what the names of the transports begin with that are commands.
const pipePrefix = "pipe-"

// pipeName is what a pipe may be called: the name is a part of a transport, of a
// socket's path and of the names of units. It is compiled where there is a pipe:
// every daemon that starts has somebody wait for it.
var pipeName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,26}$`) })

// PipeTransport is the transport that the pipe called name is.
func PipeTransport(name string) string { return pipePrefix + name }

// PipeOf returns the name of the pipe that a transport is, if it is one.
func PipeOf(transport string) (name string, ok bool) { return strings.CutPrefix(transport, pipePrefix) }

// pipeFlags are the flags of Postfix's pipe(8).
const pipeFlags = "BDFORXhqu.>"

func checkPipeFlags(s string) error {
	for i, c := range s {
		if !strings.ContainsRune(pipeFlags, c) || strings.ContainsRune(s[:i], c) {
			return fmt.Errorf("flag %q is not one of %s, or is there twice", c, pipeFlags)
		}
	}
	return nil
}

// macros may stand in the arguments of a command. With true there is one argument
// for each recipient.
var macros = map[string]bool{
	"sender": false, "nexthop": false, "queue_id": false, "size": false,
	"recipient": true, "original_recipient": true, "user": true, "extension": true, "mailbox": true, "domain": true,
}

// Part is a part of an argument of a command: text, or a macro that stands for
// text.
type Part struct{ Text, Macro string }

// ByRecipient reports whether an argument stands for one for each recipient.
func ByRecipient(argument []Part) bool {
	return slices.ContainsFunc(argument, func(p Part) bool { return macros[p.Macro] })
}

// macro is $name, ${name} or $(name).
var macro = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:([A-Za-z0-9_]+)|\{([^{}]*)\}|\(([^()]*)\))`)
})

// ParseArgument reads an argument of a command, in which $name, ${name} and
// $(name) are macros, and $$ is a dollar sign.
func ParseArgument(s string) ([]Part, error) {
	if strings.ContainsRune(s, 0) {
		return nil, fmt.Errorf("%q: a NUL in an argument", s)
	}
	var parts []Part
	text := ""
	for rest := s; ; {
		before, after, found := strings.Cut(rest, "$")
		text += before
		if strings.HasPrefix(after, "$") {
			text, rest = text+"$", after[1:]
			continue
		}
		if text != "" {
			parts = append(parts, Part{Text: text})
			text = ""
		}
		if !found {
			return parts, nil
		}
		m := macro().FindStringSubmatch(after)
		if m == nil {
			return nil, fmt.Errorf("%q: a $ that is not followed by a macro; $$ stands for $", s)
		}
		name := cmp.Or(m[1], m[2], m[3])
		if _, ok := macros[name]; !ok {
			return nil, fmt.Errorf("%q: unknown macro %q", s, name)
		}
		parts = append(parts, Part{Macro: name})
		rest = after[len(m[0]):]
	}
}

// CheckTransport reports that a transport is a command that there is not.
func (c *Config) CheckTransport(transport string) error {
	if transport == "pipe" {
		return errors.New("a command is the transport pipe-NAME:, with its entry in pipes")
	}
	name, ok := PipeOf(transport)
	if _, there := c.Pipes[name]; ok && !there {
		return fmt.Errorf("transport %s: there is no entry %q in pipes", transport, name)
	}
	return nil
}

// AllRoutes returns every route by its setting, and the transports that have limits.
func (c *Config) AllRoutes() map[string]string {
	routes := map[string]string{
		"routes.default": c.Routes.Default, "routes.virtual": c.Routes.Virtual, "routes.local": c.Routes.Local,
		"local.mailbox_transport": c.Local.MailboxTransport, "local.fallback_transport": c.Local.FallbackTransport,
	}
	for domain, d := range c.Domains.Relay {
		routes["domains.relay."+domain+".to"] = d.To
	}
	for transport := range c.Transports {
		routes["transports."+transport] = transport
	}
	return routes
}

// checkPipes checks commands, and that there are those that are routed to.
func (l *loader) checkPipes() {
	c := l.config
	fail := func(path, format string, args ...any) {
		l.errs = append(l.errs, fmt.Errorf("%s: %s: %s", c.sources[path], path, fmt.Sprintf(format, args...)))
	}
	for name, p := range c.Pipes {
		path := "pipes." + name
		if at := path + ".command"; len(p.Command) == 0 {
			fail(path, "there is no command")
		} else if file := p.Command[0]; !filepath.IsAbs(file) || strings.Contains(file, "$") {
			fail(at, "%q is not the absolute path of a program", file)
		}
		if n := c.Transport(PipeTransport(name)).Recipients; n > 1 && strings.ContainsAny(p.Flags, "DO") {
			fail(path+".flags", "D and O are about one recipient, and transports.%s.recipients is %d", PipeTransport(name), n)
		}
	}
	for path, route := range c.AllRoutes() {
		transport, _, _ := strings.Cut(route, ":")
		if err := c.CheckTransport(transport); err != nil {
			fail(path, "%v", err)
		}
	}
}
