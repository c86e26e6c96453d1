package config

import (
	"strconv"
	"strings"

	"posthouse/pkg/addr"
)

// What stands for all users, and for senders, in pickup.users.
const (
	anyUser    = "*"
	anySender  = "*"
	nullSender = "<>"
)

func checkSender(s string) error {
	if s == anySender || s == nullSender {
		return nil
	}
	if domain, ok := strings.CutPrefix(s, "@"); ok {
		return addr.CheckDomain(domain)
	}
	_, err := addr.Parse(s)
	return err
}

// MaySend reports whether a local user may send as sender.
func (c *Config) MaySend(uid uint32, sender addr.Mailbox) bool {
	user, ok := c.Pickup.Users[strconv.FormatUint(uint64(uid), 10)]
	if !ok {
		user, ok = c.Pickup.Users[anyUser]
	}
	if uid == 0 || !ok {
		return true
	}
	full := c.foldSender(sender)
	base, _ := full.SplitExtension(c.RecipientDelimiter)
	for _, s := range user.Senders {
		switch domain, whole := strings.CutPrefix(s, "@"); {
		case s == anySender, s == nullSender && sender.IsNull():
			return true
		case s == nullSender, sender.IsNull():
		case whole && strings.EqualFold(full.Domain(), domain):
			return true
		case whole:
		default:
			m, err := addr.Parse(s)
			if m = c.foldSender(m); err == nil && (m == full || m == base) {
				return true
			}
		}
	}
	return false
}

// foldSender is m with a domain, in small letters.
func (c *Config) foldSender(m addr.Mailbox) addr.Mailbox {
	if m.Domain() == "" && !m.IsNull() {
		if with, err := m.WithDomain(c.Origin); err == nil {
			m = with
		}
	}
	return m.Fold()
}
