package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/rewrite"
)

// asker answers questions about addresses.
type asker interface {
	Ask(ctx context.Context, r rewrite.Request) ([]rewrite.Answer, error)
}

// askTimeout bounds all questions about one message; the clients wait longer.
const askTimeout = 20 * time.Second

// addresses fills in what the addresses of e stand for. On an error e is of no
// use; a *dsn.Error is a verdict on an address.
func addresses(ctx context.Context, a asker, e *envelope.Envelope) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for i := range e.Recipients {
		e.Recipients[i].Original = given(&e.Recipients[i])
	}
	if err := complete(ctx, a, e); err != nil {
		return err
	}
	for i := range e.Recipients {
		original(&e.Recipients[i])
	}
	return expand(ctx, a, e)
}

// given is the recipient as it was given.
func given(r *envelope.Recipient) addr.Mailbox {
	if r.Original.IsNull() {
		return r.Address
	}
	return r.Original
}

// original records which recipient was given, with its domain, as notifications
// go to where it would be another's. All of them carry it, whether the sender asked
// for that or not.
func original(r *envelope.Recipient) {
	if r.ORCPT != (dsn.OriginalRecipient{}) {
		return
	}
	given := dsn.OriginalRecipient{Type: "rfc822", Address: r.Address.String()}
	if !r.Address.IsASCII() {
		given.Type = "utf-8" // RFC 6533, section 3
	}
	// What is too long for the parameter is left out: the recipient is what counts.
	if len(given.Address) <= dsn.MaxRecipient && dsn.CheckText(given.Address) == nil {
		r.ORCPT = given
	}
}

// complete gives every address a domain. Local users write addresses without
// one; so does the network, but only for the postmaster.
func complete(ctx context.Context, a asker, e *envelope.Envelope) error {
	var fill []*addr.Mailbox
	add := func(m *addr.Mailbox) {
		if m.Domain() == "" && !m.IsNull() {
			fill = append(fill, m)
		}
	}
	add(&e.Sender)
	for i := range e.Recipients {
		add(&e.Recipients[i].Address)
	}
	ask := make([]addr.Mailbox, len(fill))
	for i, m := range fill {
		ask[i] = *m
	}
	return each(ctx, a, rewrite.Request{Op: rewrite.Complete, Addresses: ask}, func(i int, answer []addr.Mailbox) error {
		if len(answer) != 1 {
			return fmt.Errorf("rewrite completes %s to %d addresses", ask[i], len(answer))
		}
		*fill[i] = answer[0]
		return nil
	})
}

// recipientKey is what makes two recipients the same. Recipients that were
// given differently are told apart, since each has notifications of its own.
type recipientKey struct {
	address, original addr.Mailbox
	notify            dsn.Notify
	orcpt             dsn.OriginalRecipient
}

type recipientSet map[recipientKey]struct{}

// add reports whether r is not there yet.
func (s recipientSet) add(r *envelope.Recipient) bool {
	key := recipientKey{foldDomain(r.Address), r.Original, r.Notify, r.ORCPT}
	_, there := s[key]
	s[key] = struct{}{}
	return !there
}

// expand replaces recipients by what virtual aliases make of them, and drops
// duplicates.
func expand(ctx context.Context, a asker, e *envelope.Envelope) error {
	// The same list a thousand times is not expanded a thousand times.
	asked := make(recipientSet, len(e.Recipients))
	e.Recipients = slices.DeleteFunc(e.Recipients, func(r envelope.Recipient) bool { return !asked.add(&r) })
	ask := make([]addr.Mailbox, len(e.Recipients))
	for i := range e.Recipients {
		ask[i] = e.Recipients[i].Address
	}
	list := make([]envelope.Recipient, 0, len(ask))
	seen := make(recipientSet, len(ask))
	err := each(ctx, a, rewrite.Request{Op: rewrite.Expand, Addresses: ask}, func(i int, answer []addr.Mailbox) error {
		for _, m := range answer {
			r := e.Recipients[i]
			r.Address = m
			if !seen.add(&r) {
				continue
			}
			if len(list) == envelope.MaxRecipients {
				return dsn.Errorf("4.5.3", "more than %d recipients after alias expansion", envelope.MaxRecipients)
			}
			list = append(list, r)
		}
		return nil
	})
	if err != nil {
		return err
	}
	e.Recipients = list
	return nil
}

// foldDomain leaves the local-part alone: to the cases of that only its own
// system can tell whether they differ.
func foldDomain(m addr.Mailbox) addr.Mailbox {
	if lower := strings.ToLower(m.Domain()); lower != m.Domain() {
		if folded, err := m.WithDomain(lower); err == nil {
			return folded
		}
	}
	return m
}

// each asks r in pieces that the protocol can carry, and has take called with
// the answer for every address.
func each(ctx context.Context, a asker, r rewrite.Request, take func(i int, answer []addr.Mailbox) error) error {
	for start := 0; start < len(r.Addresses); start += rewrite.MaxAddresses {
		piece := r
		piece.Addresses = r.Addresses[start:min(start+rewrite.MaxAddresses, len(r.Addresses))]
		answers, err := a.Ask(ctx, piece)
		if err != nil {
			return fmt.Errorf("rewrite: %w", err)
		}
		if len(answers) != len(piece.Addresses) {
			return fmt.Errorf("rewrite: %d answers for %d addresses", len(answers), len(piece.Addresses))
		}
		for i := range answers {
			if e := answers[i].Err; e != nil && r.Op == rewrite.Expand && e.Status.String() == "5.1.3" {
				// No address: qmgr hears the same, and tells the sender. The others get their mail.
				answers[i] = rewrite.Answer{Addresses: piece.Addresses[i : i+1]}
			}
			if err := check(&answers[i], piece.Addresses[i]); err != nil {
				return err
			}
			if err := take(start+i, answers[i].Addresses); err != nil {
				return err
			}
		}
	}
	return nil
}

// check says whether an answer can be used.
func check(a *rewrite.Answer, of addr.Mailbox) error {
	if a.Err != nil {
		return &dsn.Error{Status: a.Err.Status, Text: fmt.Sprintf("%s: %s", of.Path(), a.Err.Text)}
	}
	if len(a.Addresses) == 0 {
		return fmt.Errorf("rewrite: nothing for %s", of)
	}
	for _, m := range a.Addresses {
		if m.Domain() == "" {
			return fmt.Errorf("rewrite: %s for %s has no domain", m.Path(), of)
		}
	}
	return nil
}
