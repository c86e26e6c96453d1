package wiretest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/queueid"
)

// Time is a time with microseconds.
var Time = time.UnixMicro(1790000000123456)

// Mailbox is the address s.
func Mailbox(t testing.TB, s string) addr.Mailbox {
	t.Helper()
	m, err := addr.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Longest is the longest address there can be.
func Longest(t testing.TB) addr.Mailbox {
	t.Helper()
	label := strings.Repeat("d", 63)
	return Mailbox(t, strings.Repeat("l", addr.MaxLocal)+"@"+strings.Join([]string{label, label, label, label}, "."))
}

// Text is a text of n octets.
func Text(n int) string { return strings.Repeat("t", n) }

// IDs are n queue IDs.
func IDs(n int) []queueid.ID {
	var list []queueid.ID
	for i := range n {
		list = append(list, queueid.New(Time, uint32(i)))
	}
	return list
}

// Recipients are a recipient with everything, and one with an address alone.
func Recipients(t testing.TB) []envelope.Recipient {
	t.Helper()
	return []envelope.Recipient{
		{
			Address: Mailbox(t, "bob@example.net"), Original: Mailbox(t, "alias@example.org"), Notify: dsn.NotifyFailure | dsn.NotifyDelay,
			ORCPT: dsn.OriginalRecipient{Type: "rfc822", Address: "list@example.com"},
		},
		{Address: Mailbox(t, "dörte@müller.example")},
	}
}

// LongRecipients are n recipients as long as they can be.
func LongRecipients(t testing.TB, n int) []envelope.Recipient {
	t.Helper()
	r := envelope.Recipient{
		Address: Longest(t), Original: Longest(t), Notify: dsn.NotifyNever,
		ORCPT: dsn.OriginalRecipient{Type: Text(dsn.MaxRecipient), Address: Text(dsn.MaxRecipient)},
	}
	return slices.Repeat([]envelope.Recipient{r}, n)
}
