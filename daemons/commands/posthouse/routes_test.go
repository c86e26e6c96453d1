package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckRoutes: mail does not go where nobody is without a word.
func TestCheckRoutes(t *testing.T) {
	units := t.TempDir()
	defer func(old []string) { unitDirs = old }(unitDirs)
	unitDirs = []string{filepath.Join(units, "none"), units}
	if err := os.WriteFile(filepath.Join(units, "posthouse-fax.socket"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"": "",
		"routes: {default: 'smtp:[a.example]:587'}":                                                             "",
		"routes: {default: 'stmp:'}":                                                                            "1: routes.default: transport stmp is none of smtp, relay, ",
		"routes: {virtual: 'fax:123', local: 'lmtp:unix:/run/99999:99999'}":                                     "",
		"routes: {local: 'locl:'}":                                                                              "1: routes.local: transport locl ",
		"local: {mailbox_transport: 'x:'}":                                                                      "1: local.mailbox_transport: transport x ",
		"local: {fallback_transport: 'error:5.1.1 [x]:99999'}":                                                  "",
		"local: {fallback_transport: 'x:'}":                                                                     "1: local.fallback_transport: transport x ",
		"domains:\n  relay:\n    a.example: {}\n    b.example: {to: 'relays:'}":                                 "4: domains.relay.b.example.to: transport relays ",
		"transports:\n  lmtp: {}\n  smpt: {deliveries: 1}":                                                      "3: transports.smpt: transport smpt ",
		"queue: {defer_transports: [smtp, fax, stmp]}":                                                          "1: queue.defer_transports: transport stmp ",
		"queue: {defer_transports: [pipe-none]}":                                                                "1: queue.defer_transports: transport pipe-none: there is no entry",
		"pipes: {a: {command: [/bin/cat]}}\nroutes: {default: 'pipe-a:', virtual: 'retry:', local: 'discard:'}": "",
		"routes: {default: 'smtp:[a.example]:99999'}":                                                           `1: routes.default: "99999" is not a port`,
		"routes: {default: 'relay:a.example:0'}":                                                                `1: routes.default: "0" is not a port`,
		"routes: {default: 'relay:a.example:submission'}":                                                       "",
		"routes: {virtual: 'lmtp:inet:a.example:x'}":                                                            `1: routes.virtual: "x" is not a port`,
		"routes: {default: 'smtp://a.example'}":                                                                 `1: routes.default: "//a.example" is not a host`,
		"routes: {default: 'smtp:[a.example/b]'}":                                                               `1: routes.default: "a.example/b" is not a host`,
		"routes: {virtual: 'lmtp:unix:run/lmtp'}":                                                               `1: routes.virtual: "run/lmtp" is not the path of a socket`,
		"domains: {relay: {a.example: {recipients: none}}}":                                                     "posthouse.yaml:1: domains.relay.a.example.recipients: stat ",
		"routes: {default: 'smtp:[a.example'}":                                                                  "is not of the form [host]:port",
	} {
		dir := t.TempDir()
		err := errors.Join(os.Mkdir(filepath.Join(dir, "conf.d"), 0o755),
			os.WriteFile(filepath.Join(dir, "conf.d", "a.yaml"), []byte("local: {aliases: ["+dir+"/aliases]}\n"), 0o644),
			os.WriteFile(filepath.Join(dir, "posthouse.yaml"), []byte(text+"\n"), 0o644))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(check(dir)...); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
