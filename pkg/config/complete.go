package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"posthouse/pkg/addr"
)

// complete fills in what depends on the machine and on other settings.
func (l *loader) complete() {
	c := l.config
	if c.Hostname == "" {
		c.Hostname = machineName()
		c.sources["hostname"] = "the machine's name"
	}
	if c.Origin == "" {
		c.Origin = c.Hostname
		c.sources["origin"] = "hostname"
		b, err := readFile(mailname)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.errs = append(l.errs, err)
		}
		if err == nil {
			line, _, _ := strings.Cut(string(b), "\n")
			if line = strings.TrimSpace(line); addr.CheckDomain(line) == nil {
				c.Origin = line
				c.sources["origin"] = mailname
			}
		}
	}
	if c.Domains.Local == nil {
		c.Domains.Local = []string{c.Hostname, "localhost"}
		if !slices.Contains(c.Domains.Local, c.Origin) && !c.handled(c.Origin) {
			c.Domains.Local = append(c.Domains.Local, c.Origin)
		}
	}
	if c.Smtp.Helo == "" {
		c.Smtp.Helo = c.Hostname
	}
	if c.Submission.Clients == nil {
		c.Submission.Clients = c.Trusted
		c.sources["submission.clients"] = "trusted"
	}
	l.clients()
	if c.Queue.Retry.Min > c.Queue.Retry.Max {
		l.errs = append(l.errs, fmt.Errorf("%s: queue.retry: min %s is more than max %s",
			cmp.Or(c.sources["queue.retry.min"], c.sources["queue.retry.max"]), c.Queue.Retry.Min, c.Queue.Retry.Max))
	}
	if size := c.Local.MailboxSize; size != 0 && size < c.Limits.MessageSize {
		// A message that never fits would be tried for days.
		l.errs = append(l.errs, fmt.Errorf("%s: local.mailbox_size %s is less than limits.message_size %s",
			cmp.Or(c.sources["local.mailbox_size"], c.sources["limits.message_size"]), size, c.Limits.MessageSize))
	}
	l.checkDomains()
	l.checkPipes()
}

// clients gives daemons room for as many clients as others may be at once, unless the
// administrator has said how many: who does not fit waits until it is given up.
func (l *loader) clients() {
	c := l.config
	deliveries := func(transport string) int { return c.Transport(transport).Deliveries }
	need := map[string]int{
		// smtpd is its client while a message comes in: who fills smtpd, and sends an octet a minute, must not keep out
		// what comes from elsewhere.
		"cleanup": daemonDefaults("cleanup").MaxClients + c.Daemon("smtpd").MaxClients + c.Daemon("submission").MaxClients,
		"smtp":    deliveries("smtp") + deliveries("lmtp") + deliveries("relay"),
		"virtual": deliveries("virtual"),
		"local":   deliveries("local"),
		"deliver": deliveries("local"),
	}
	for name := range c.Pipes {
		need["pipe"] = max(need["pipe"], deliveries("pipe-"+name))
	}
	for name, n := range need {
		path := "daemons." + name + ".max_clients"
		d, ok := c.Daemons[name]
		if !ok {
			d = daemonDefaults(name)
		}
		if c.sources[path] != "" || d.MaxClients >= n {
			continue
		}
		d.MaxClients = n
		if c.Daemons == nil {
			c.Daemons = make(map[string]DaemonLimits)
		}
		c.Daemons[name] = d
		c.sources[path] = "as many as its clients may be"
	}
}
