package main

import (
	"strconv"
	"strings"

	"posthouse/pkg/addr"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
)

// arguments expands the command for all recipients that it can be run for, which
// become r.recipients. refused says why it cannot be run for others, by their
// place in the request. No macro is looked for in what a macro stands for.
func (r *request) arguments() (args []string, refused []error, err error) {
	command := make([][]config.Part, len(r.pipe.Command))
	for i, text := range r.pipe.Command {
		if command[i], err = config.ParseArgument(text); err != nil {
			return nil, nil, err // not reached: the configuration has been checked
		}
	}
	refused = make([]error, len(r.Job.Recipients))
	for i := range r.Job.Recipients {
		rcpt := &r.Job.Recipients[i]
		for _, parts := range command {
			if s := r.expand(parts, rcpt); hyphen(parts, s) {
				status := "5.1.3"
				if parts[0].Macro == "sender" {
					status = "5.1.7"
				}
				refused[i] = dsn.Errorf(status, "the command could take %q for an option", s)
			}
		}
		if refused[i] == nil {
			r.recipients = append(r.recipients, rcpt)
		}
	}
	for _, parts := range command {
		switch {
		case !config.ByRecipient(parts):
			args = append(args, r.expand(parts, nil))
		default:
			for _, rcpt := range r.recipients {
				args = append(args, r.expand(parts, rcpt))
			}
		}
	}
	return args, refused, nil
}

// hyphen reports whether what a message says has made s, the expansion of parts,
// begin with a hyphen: a program may take it for an option. The next hop is the
// administrator's, or a domain.
func hyphen(parts []config.Part, s string) bool {
	return strings.HasPrefix(s, "-") && parts[0].Macro != "" && parts[0].Macro != "nexthop"
}

// expand returns an argument, for a recipient if it has a macro that is about one.
func (r *request) expand(parts []config.Part, rcpt *envelope.Recipient) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.Text)
		switch p.Macro {
		case "":
		case "sender":
			b.WriteString(r.sender())
		case "nexthop":
			b.WriteString(r.foldHost(r.Nexthop))
		case "queue_id":
			b.WriteString(r.QueueID.String())
		case "size":
			b.WriteString(strconv.FormatInt(r.Content.Size(), 10))
		default:
			b.WriteString(r.recipient(p.Macro, rcpt))
		}
	}
	return b.String()
}

// recipient is what a macro about a recipient stands for.
func (r *request) recipient(macro string, rcpt *envelope.Recipient) string {
	base, extension := rcpt.Address.SplitExtension(r.delimiters)
	switch macro {
	case "recipient":
		return r.address(rcpt.Address)
	case "original_recipient":
		return r.address(rcpt.Original)
	case "user":
		return r.foldUser(base.Local())
	case "extension":
		return r.foldUser(extension)
	case "mailbox":
		return r.foldUser(rcpt.Address.Local())
	case "domain":
		return r.foldHost(rcpt.Address.Domain())
	}
	return ""
}

func (r *request) sender() string {
	if r.Sender.IsNull() {
		return r.pipe.NullSender
	}
	return r.quoted(r.Sender)
}

// address is a whole address: q has it quoted, and h and u fold its parts.
func (r *request) address(m addr.Mailbox) string {
	s := r.quoted(m)
	at := strings.LastIndexByte(s, '@')
	if at < 0 {
		return r.foldUser(s)
	}
	return r.foldUser(s[:at]) + "@" + r.foldHost(s[at+1:])
}

func (r *request) quoted(m addr.Mailbox) string {
	switch {
	case r.has("q"):
		return m.String()
	case m.Domain() == "":
		return m.Local()
	}
	return m.Local() + "@" + m.Domain()
}

func (r *request) foldUser(s string) string {
	if r.has("u") {
		return strings.ToLower(s)
	}
	return s
}

func (r *request) foldHost(s string) string {
	if r.has("h") {
		return strings.ToLower(s)
	}
	return s
}
