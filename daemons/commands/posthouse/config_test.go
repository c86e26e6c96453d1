package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
