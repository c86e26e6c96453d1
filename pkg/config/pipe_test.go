package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestParseArgument(t *testing.T) {
	for s, want := range map[string]string{
		"":                           "[]",
		"-f":                         "[{-f }]",
		"${sender}":                  "[{ sender}]",
		"$sender":                    "[{ sender}]",
		"$(sender)":                  "[{ sender}]",
		"-f${sender}x":               "[{-f } { sender} {x }]",
		"$user@$domain":              "[{ user} {@ } { domain}]",
		"a$$b":                       "[{a$b }]",
		"$$sender":                   "[{$sender }]",
		"$$$sender":                  "[{$ } { sender}]",
		"${user}${extension}":        "[{ user} { extension}]",
		"`id`; $(size) | ${nexthop}": "[{`id`;  } { size} { |  } { nexthop}]",
		"$":                          "error", "$-": "error", "x$": "error", "${": "error", "${sender": "error", "$(sender}": "error", "${}": "error",
		"$Sender": "error", "${sender }": "error", "${client_address}": "error", "${sender:-x}": "error", "$senders": "error", "a\x00": "error",
	} {
		parts, err := ParseArgument(s)
		got := fmt.Sprint(parts)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
	for s, want := range map[string]bool{"x": false, "${sender}${nexthop}${queue_id}${size}": false, "-d${user}": true, "${domain}": true, "$original_recipient": true} {
		if parts, err := ParseArgument(s); err != nil || ByRecipient(parts) != want {
			t.Errorf("%q: by recipient %t, %v", s, !want, err)
		}
	}
}

// FuzzParseArgument: what is read says what was written, and nothing but known
// macros is anything but text.
func FuzzParseArgument(f *testing.F) {
	for _, s := range []string{"", "-f", "${sender}", "$$", "a$(size)b$user", "${${sender}}", "$"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		parts, err := ParseArgument(s)
		if err != nil {
			return
		}
		again := ""
		for _, p := range parts {
			switch _, known := macros[p.Macro]; {
			case p.Macro == "":
				again += strings.ReplaceAll(p.Text, "$", "$$")
			case known && p.Text == "":
				again += "${" + p.Macro + "}"
			default:
				t.Fatalf("%q: %+v", s, p)
			}
		}
		twice, err := ParseArgument(again)
		if err != nil || !slices.Equal(parts, twice) {
			t.Fatalf("%q: %+v, and %q: %+v, %v", s, parts, again, twice, err)
		}
	})
}

func TestPipes(t *testing.T) {
	c, err := Load(write(t, map[string]string{"posthouse.yaml": `
pipes:
  mailman: {command: [/usr/lib/mailman, "${user}", ""], flags: DRO}
  bsmtp-2: {command: [/usr/bin/bsmtp, -f, "$sender"], flags: "Fhqu.>BX", null_sender: "", eol: crlf, size: 1MiB, directory: /srv, timeout: 5m}
transports: {pipe-bsmtp-2: {recipients: 100}}
routes: {default: "pipe-bsmtp-2:", local: "pipe-mailman:x"}
`}))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprintf("%+v", c.Pipes["mailman"]), "{Command:[/usr/lib/mailman ${user} ] Flags:DRO NullSender:MAILER-DAEMON Size:0 Directory:/ EOL:lf Timeout:16m40s}"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := fmt.Sprintf("%+v", c.Pipes["bsmtp-2"]), "{Command:[/usr/bin/bsmtp -f $sender] Flags:Fhqu.>BX NullSender: Size:1MiB Directory:/srv EOL:crlf Timeout:5m}"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := [2]int{c.Transport("pipe-mailman").Recipients, c.Transport("pipe-bsmtp-2").Recipients}; got != [2]int{1, 100} {
		t.Errorf("recipients of one delivery %v", got)
	}
	const fine = `command: [/bin/cat]`
	for text, want := range map[string]string{
		"\npipes: {x: }":                                                              "posthouse.yaml:2: pipes.x: there is no command",
		"pipes: {x: {command: []}}":                                                   "there is no command",
		"pipes: {x: {command: /bin/cat}}":                                             "a list is expected",
		"pipes:\n x:\n  command: [cat]":                                               `posthouse.yaml:3: pipes.x.command: "cat" is not the absolute path`,
		"pipes: {x: {command: [\"/bin/$user\"]}}":                                     "is not the absolute path",
		"pipes:\n x:\n  command: [/bin/cat, \"$client_helo\"]":                        `posthouse.yaml:3: pipes.x.command: "$client_helo": unknown macro "client_helo"`,
		"pipes: {x: {" + fine + ", flags: DZ}}":                                       `flag 'Z' is not one of`,
		"pipes: {x: {" + fine + ", flags: DRD}}":                                      `flag 'D' is not one of`,
		"pipes: {x: {" + fine + ", eol: cr}}":                                         "is none of: lf crlf",
		"pipes: {x: {" + fine + ", null_sender: \"a\\nb\"}}":                          "is not printable",
		"pipes: {x: {" + fine + ", directory: srv}}":                                  "is not an absolute path",
		"pipes: {x: {" + fine + ", timeout: 2h}}":                                     "out of bounds",
		"pipes: {x: {" + fine + ", user: root}}":                                      `unknown setting "pipes.x.user"`,
		"pipes: {X: {" + fine + "}}":                                                  "is not a name of at most 27",
		"pipes: {../x: {" + fine + "}}":                                               "is not a name",
		"pipes: {x@y: {" + fine + "}}":                                                "is not a name",
		"pipes: {\"\": {" + fine + "}}":                                               "is not a name",
		"pipes: {-x: {" + fine + "}}":                                                 "is not a name",
		"pipes: {" + strings.Repeat("x", 28) + ": {" + fine + "}}":                    "is not a name",
		"\nroutes: {default: \"pipe-x:\"}":                                            `posthouse.yaml:2: routes.default: transport pipe-x: there is no entry "x" in pipes`,
		"routes: {virtual: \"pipe:x\"}":                                               "a command is the transport pipe-NAME:",
		"domains: {relay: {a.example: {to: \"pipe-x:\"}}}":                            "domains.relay.a.example.to: transport pipe-x",
		"local: {mailbox_transport: \"pipe-x:\"}":                                     "local.mailbox_transport: transport pipe-x",
		"local: {fallback_transport: \"pipe-x:\"}":                                    "local.fallback_transport: transport pipe-x",
		"transports: {pipe-x: {deliveries: 1}}":                                       "transports.pipe-x: transport pipe-x",
		"pipes: {x: {" + fine + ", flags: D}}\ntransports: {pipe-x: {recipients: 2}}": "posthouse.yaml:1: pipes.x.flags: D and O are about one recipient, and transports.pipe-x.recipients is 2",
		"pipes: {x: {" + fine + ", flags: O}}\ntransports: {pipe-x: {recipients: 2}}": "D and O are about one recipient",
	} {
		c, err := Load(write(t, map[string]string{"posthouse.yaml": text}))
		if err == nil || c != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
