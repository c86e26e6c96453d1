package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"posthouse/pkg/addr"
	"posthouse/pkg/agent"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
)

func parse(t testing.TB, s string) addr.Mailbox {
	t.Helper()
	m, err := addr.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

type fakeStore struct {
	mu   sync.Mutex
	got  map[string]string
	fail map[string]error
}

func (s *fakeStore) Deliver(path []string, head string, content io.Reader) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := strings.Join(path, "/")
	if err := s.fail[key]; err != nil {
		return err
	}
	b, err := io.ReadAll(content)
	s.got[key] = head + string(b)
	return err
}

func job(t testing.TB, content string, recipients ...string) *agent.Job {
	r := &delivery.Request{Sender: parse(t, "s@example.org")}
	for _, to := range recipients {
		r.Recipients = append(r.Recipients, envelope.Recipient{Address: parse(t, to), Original: parse(t, "orig@example.org")})
	}
	return &agent.Job{Request: r, Content: io.NewSectionReader(strings.NewReader(content), 0, int64(len(content)))}
}

func TestDeliver(t *testing.T) {
	store := &fakeStore{got: map[string]string{}, fail: map[string]error{
		"example.net/full/Maildir":   dsn.Errorf("5.2.2", "quota"),
		"example.net/broken/Maildir": errors.New("disk"),
	}}
	s := &service{config: func() *config.Config { return &config.Config{RecipientDelimiter: "+"} }, store: store}
	v := s.deliver(t.Context(), job(t, "X: y\r\nDelivered-To: Loop@example.net\r\n\r\nDelivered-To: plain@example.net\r\n",
		"User+ext@Example.NET", "full@example.net", "broken@example.net", "loop@example.net", `"../../etc"@example.net`, "plain@example.net"))
	for i, want := range []string{"2.0.0", "4.2.2", "4.3.0", "5.4.6", "5.1.3", "2.0.0"} {
		if got := v.Outcomes[i].Status.String(); got != want {
			t.Errorf("recipient %d: %s (%s), want %s", i, got, v.Outcomes[i].Text, want)
		}
	}
	want := "Return-Path: <s@example.org>\nX-Original-To: orig@example.org\nDelivered-To: User+ext@Example.NET\nX: y\r\n"
	if got := store.got["example.net/user/Maildir"]; !strings.HasPrefix(got, want) {
		t.Errorf("got %q", got)
	}
	if len(store.got) != 2 {
		t.Errorf("delivered to %d mailboxes", len(store.got))
	}
}

func TestStopping(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	store := &fakeStore{got: map[string]string{}}
	s := &service{config: func() *config.Config { return &config.Config{} }, store: store}
	if v := s.deliver(ctx, job(t, "x\r\n", "u@example.net")); v.Outcomes[0].Status.Class() != dsn.Transient || len(store.got) != 0 {
		t.Errorf("%+v", v.Outcomes)
	}
}
