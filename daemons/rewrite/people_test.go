package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/recipient"
)

// TestLocalUsers: who has neither an alias nor an account is refused, if local says
// so and nothing else is to become of the mail; a transport of their own takes
// the mail of accounts, and of nobody.
func TestLocalUsers(t *testing.T) {
	const none, lmtp, smtp = "", "lmtp:unix:/x", "smtp:[y]"
	for _, tt := range []struct{ to, mailbox, fallback, verify, resolve string }{
		{"bob@example.org", none, none, "ok", "local:mail.example.org"},
		{"postmaster", none, none, "ok", "local:mail.example.org"},
		{"nosuch@example.org", none, none, "5.1.1", "local:mail.example.org"},
		{"nosuch@[127.0.0.1]", none, none, "5.1.1", "local:mail.example.org"},
		{"broken@example.org", none, none, "unverified", "local:mail.example.org"},
		{"root@example.org", none, none, "ok", "local:mail.example.org"}, // cleanup expands it
		{"double-bounce@example.org", lmtp, smtp, "ok", "discard:undeliverable report to the postmaster"},
		{"bob@example.org", lmtp, none, "ok", lmtp},
		{"postmaster", lmtp, none, "ok", "local:mail.example.org"},
		{"nosuch@example.org", lmtp, none, "5.1.1", "local:mail.example.org"},
		{"broken@example.org", lmtp, none, "unverified", "4.3.0"},
		{"bob@example.org", none, smtp, "ok", "local:mail.example.org"},
		{"nosuch@example.org", none, smtp, "ok", smtp},
		{"broken@example.org", none, smtp, "unverified", "4.3.0"},
		{"nosuch@example.org", none, "luser", "ok", "local:mail.example.org"},
		{"user@virtual.example", lmtp, smtp, "ok", "virtual:virtual.example"},
		{"nosuch@elsewhere.example", lmtp, smtp, "ok", "smtp:elsewhere.example"},
	} {
		r := testRules()
		r.mailboxRoute = map[string]route{lmtp: {"lmtp", "unix:/x"}}[tt.mailbox]
		r.fallbackRoute = map[string]route{smtp: {"smtp", "[y]"}}[tt.fallback]
		r.luser = tt.fallback == "luser"
		a, verify := r.verify(mailbox(t, tt.to)), "ok"
		if a.Err != nil {
			verify = a.Err.Status.String()
		} else if a.Unverified {
			verify = "unverified"
		}
		b := r.resolve(mailbox(t, tt.to))
		resolve := b.Transport + ":" + b.Nexthop
		if b.Err != nil {
			resolve = b.Err.Status.String()
		}
		if verify != tt.verify || resolve != tt.resolve {
			t.Errorf("%+v: %s, %s", tt, verify, resolve)
		}
	}
	// Where mail does not go to local, local is not asked.
	r := testRules()
	r.localRoute, r.mailboxRoute, r.people = route{"lmtp", "unix:/x"}, route{"smtp", ""}, nil
	if a, b := r.verify(mailbox(t, "nosuch@example.org")), r.resolve(mailbox(t, "nosuch@example.org")); a.Err != nil || a.Unverified || b.Transport != "lmtp" {
		t.Errorf("%+v, %+v", a, b)
	}
}

// TestSilentLocal: a message to many does not wait for local as many times, and local is
// asked again soon.
func TestSilentLocal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeople(func(error) {})
		asked := 0
		p.ask = func(ctx context.Context, _ []string) ([]recipient.Outcome, error) {
			asked++
			<-ctx.Done()
			return nil, ctx.Err()
		}
		begun := time.Now()
		for i := range 1000 {
			if o, err := p.Lookup(fmt.Sprint(i)); o != recipient.Unknown || err == nil {
				t.Fatalf("%v, %v", o, err)
			}
		}
		if took := time.Since(begun); asked != 1 || took != askTimeout {
			t.Errorf("asked %d times in %v", asked, took)
		}
		time.Sleep(silentTime)
		if _, err := p.Lookup("x"); err == nil || asked != 2 {
			t.Errorf("asked %d times; %v", asked, err)
		}
	})
}

// TestPeople: what local says is remembered, not for long, and not what it does
// not know.
func TestPeople(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	answer, trouble := recipient.Account, error(nil)
	var asked, warned int
	p := newPeople(func(error) { warned++ })
	p.now = func() time.Time { return now }
	p.ask = func(ctx context.Context, list []string) ([]recipient.Outcome, error) {
		if _, bounded := ctx.Deadline(); !bounded || !slices.Equal(list, []string{"Bob"}) {
			t.Errorf("asked for %q, bounded: %t", list, bounded)
		}
		asked++
		return []recipient.Outcome{answer}, trouble
	}
	step := func(what string, after time.Duration, want recipient.Outcome, wantAsked int) {
		t.Helper()
		now = now.Add(after)
		if o, err := p.Lookup("Bob"); o != want || (err != nil) != (want == recipient.Unknown) || asked != wantAsked {
			t.Errorf("%s: %v, %v, asked %d times, want %v, %d", what, o, err, asked, want, wantAsked)
		}
	}
	step("at first", 0, recipient.Account, 1)
	answer = recipient.None
	step("remembered", knownTime-1, recipient.Account, 1)
	step("gone", 1, recipient.None, 2)
	answer = recipient.Alias
	step("remembered", nobodyTime-1, recipient.None, 2)
	step("there again", 1, recipient.Alias, 3)
	answer = recipient.Unknown
	step("not known", knownTime, recipient.Unknown, 4)
	step("not remembered", 0, recipient.Unknown, 5)
	trouble = errors.New("timeout")
	step("silent", 0, recipient.Unknown, 6)
	if warned != 1 {
		t.Errorf("%d warnings", warned)
	}
	trouble = &ipc.UnavailableError{Path: recipient.Path, Err: errors.New("no socket")}
	step("off", 0, recipient.Unknown, 7)
	if warned != 1 {
		t.Errorf("%d warnings", warned)
	}
	p.ask = func(context.Context, []string) ([]recipient.Outcome, error) {
		return []recipient.Outcome{recipient.None}, nil
	}
	for i := range 2 * maxKnown {
		if _, err := p.Lookup(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(p.known); n > maxKnown {
		t.Errorf("%d names are remembered", n)
	}
}
