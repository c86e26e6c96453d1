package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"posthouse/pkg/cli"
)

// A transport table does not name commands that there are not.
func TestCheckTransports(t *testing.T) {
	dir := t.TempDir()
	conf := "hostname: mx.example\nlocal: {aliases: [" + dir + "/aliases]}\npipes: {list: {command: [/bin/cat]}}\n"
	err := errors.Join(os.Mkdir(filepath.Join(dir, "tables"), 0o755), os.WriteFile(filepath.Join(dir, "posthouse.yaml"), []byte(conf), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	for entry, want := range map[string]string{
		"a.example pipe-list:":      "",
		"a.example pipe-list":       "",
		"a.example :[192.0.2.1]":    "",
		"a.example smtp:pipe-other": "",
		"a.example pipe-other:x":    `transport: a.example: transport pipe-other: there is no entry "other" in pipes`,
		"a.example: smtp:x":         "transport: a.example:: no colon stands behind the key",
		"a.example stmp:x":          "transport: a.example: transport stmp is none of smtp, ",
		"a.example smtp:x:99999":    `transport: a.example: "99999" is not a port`,
		"a.example pipe:list":       "transport: a.example: a command is the transport pipe-NAME:",
	} {
		if err := os.WriteFile(filepath.Join(dir, "tables", "transport"), []byte(entry+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		switch errs := check(dir); {
		case want == "" && len(errs) != 0, want != "" && (len(errs) != 1 || !strings.Contains(errs[0].Error(), want)):
			t.Errorf("%s: %v, want %q", entry, errs, want)
		}
	}
}

// TestConfig: a setting that there is not is an error, and lists are in a column like all else.
func TestConfig(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "posthouse.yaml"), []byte("hostname: mx.example\ndomains: {local: [a.example, b.example]}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"hostname":               "hostname:                                mx.example                     # ",
		"domains":                "domains.local:                           [a.example b.example]          # ",
		"queue.retry.min":        "queue.retry.min:",
		"domains.relay.b.a.test": "",
		"transports":             "",
		"queue.retyr":            `there is no setting "queue.retyr"`,
		"queue.retry.min.x":      `there is no setting "queue.retry.min.x"`,
	} {
		var out bytes.Buffer
		status := configCommand(&dir).Main(t.Context(), cli.Streams{Out: &out, Err: &out}, []string{key})
		if bad := strings.HasPrefix(want, "there"); !strings.HasPrefix(out.String(), want) || (status == cli.Usage) != bad {
			t.Errorf("%s: status %d, %q", key, status, &out)
		}
	}
}
