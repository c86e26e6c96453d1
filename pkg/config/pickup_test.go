package config

import (
	"testing"

	"posthouse/pkg/addr"
)

// TestMaySend: who may send as whom.
func TestMaySend(t *testing.T) {
	const text = "origin: example.org\npickup:\n  users:\n    33: {senders: [www, 'Shop@Example.net', '@lists.example.org']}\n" +
		"    34: {senders: ['*']}\n    35: {senders: ['<>']}\n    36: {}\n"
	for _, tt := range []struct {
		more   string
		uid    uint32
		sender string
		want   bool
	}{
		{"", 33, "www", true},
		{"", 33, "WWW@EXAMPLE.ORG", true},
		{"", 33, "www+x@example.org", true},
		{"", 33, "www@example.net", false},
		{"", 33, "www-x@example.org", false},
		{"", 33, "shop+x@example.net", true},
		{"", 33, "shop", false},
		{"", 33, "any@Lists.example.org", true},
		{"", 33, "any@sub.lists.example.org", false},
		{"", 33, "lists.example.org", false},
		{"", 33, "root", false},
		{"", 33, "", false},
		{"", 34, "", true},
		{"", 34, "root@example.com", true},
		{"", 35, "", true},
		{"", 35, "x@example.com", false},
		{"", 36, "x@example.com", true},
		{"", 1000, "x@example.com", true},
		{"    '*': {senders: []}\n", 33, "www", true},
		{"    '*': {senders: []}\n", 36, "x@example.com", true},
		{"    '*': {senders: []}\n", 1000, "x@example.com", false},
		{"    '*': {senders: []}\n", 1000, "", false},
		{"    '*': {senders: []}\n    0: {senders: []}\n", 0, "x@example.com", true},
	} {
		c, err := Load(write(t, map[string]string{"posthouse.yaml": text + tt.more}))
		if err != nil {
			t.Fatal(err)
		}
		var sender addr.Mailbox
		if tt.sender != "" {
			if sender, err = addr.Parse(tt.sender); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.MaySend(tt.uid, sender); got != tt.want {
			t.Errorf("%q: %d as %q: %v", tt.more, tt.uid, tt.sender, got)
		}
	}
	var none Config
	if !none.MaySend(1000, addr.Mailbox{}) {
		t.Error("without settings a user may not send")
	}
}
