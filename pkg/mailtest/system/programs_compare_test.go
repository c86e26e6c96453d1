//go:build system

package system

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// rule turns a part of a message into another.
type rule struct {
	pattern, to string
	why         string
}

// volatile is what differs each time, with Postfix and with Posthouse.
var volatile = []rule{
	{`\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun), [ \d]?\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d`, "DATE", "dates"},
	{`\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun) (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d \d\d:\d\d:\d\d \d{4}\b`, "DATE", "dates"},
	{`(?m)^((?:Resent-)?Message-I[dD]|References|In-Reply-To): <[^@>%]*[@%]`, "$1: <ID@", "message IDs"},
	{`(\s)id [0-9A-Za-z]{10,}\b`, "${1}id ID", "queue IDs"},
	{`(?m)^(X-Post[a-z]*-Queue-ID): \S+$`, "$1: ID", "queue IDs"},
	{`(?m)^\tid \S+$`, "\tid ID", "session IDs of Dovecot"},
	{`(?m)^X-IMAPbase: \d+`, "X-IMAPbase: N", "the time at which Dovecot has seen a mailbox first"},
}

// meant is what Postfix does and Posthouse does not, or the other way. What
// Postfix has delivered is turned into what Posthouse is to deliver; where form
// is all that differs, it is taken away from both.
var meant = []rule{
	{`\(Postfix\b`, "(Posthouse", "Received says which mail system it was"},
	{`(Received: by mail\.example\.org \(Posthouse, from userid \d+\)\n\tid .*\n)Received: from me\.example\.org .*\n\tby .*\n\tDATE.*\n`, "$1",
		"sendmail -bs is no server: a message has one way in, which is that of sendmail"},
	{`(?m)^(LANG=C|MAIL_CONFIG=/etc/postfix)\n`, "", "commands are told nothing of Postfix's configuration, and speak C without being told"},
	{`(?m)^PATH=/usr/bin:/bin$`, "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin", "commands find sendmail, and what the administrator has installed"},
	{`(?m)^PWD=/var/spool/postfix$`, "PWD=/home/fred", "commands run in the home directory, for the queue is none of theirs"},
	{`\bX-Postfix\b`, "X-Posthouse", "notifications say which mail system it was"},
}

// meantStatus are exit statuses of Postfix's sendmail, and ours.
var meantStatus = map[[2]int]string{
	{75, 64}: "a mistake in the command line is none that goes away, as status 75 says (Postfix means 64, too, and loses it)",
}

// meantModes are modes and owners of mailboxes that are others here: nobody's
// command has the group mail.
var meantModes = map[string]string{
	"/var/mail/proc 660 proc:mail":          "/var/mail/proc 600 proc:mail",
	"/home/drop/mail/default 600 drop:mail": "/home/drop/mail/default 600 drop:drop",
	"/home/drop/mail/box 600 drop:mail":     "/home/drop/mail/box 600 drop:drop",
	"/home/drop/Maildir 600 drop:mail":      "/home/drop/Maildir 600 drop:drop",
}

func (r rule) apply(s string) string { return regexp.MustCompile(r.pattern).ReplaceAllString(s, r.to) }

// normal are messages without what may differ.
func normal(messages []string, postfix bool) []string {
	var out []string
	for _, s := range messages {
		for _, r := range volatile {
			s = r.apply(s)
		}
		if postfix {
			for _, r := range meant {
				s = r.apply(s)
			}
		}
		if b := boundary.FindStringSubmatch(s); b != nil {
			s = strings.ReplaceAll(s, b[1], "BOUNDARY")
		}
		if strings.Contains(s, "\nContent-Type: multipart/report;") {
			s = notification(s)
		} else {
			s = canonical(s)
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

var boundary = regexp.MustCompile(`\bboundary="([^"]+)"`)

// notification leaves of a notification what programs read: the text for people
// is in words of ours, 8bit is said where there is such, the name of the
// message is that of the one that it is about, and no LMTP server is asked about a
// user whom this system does not know.
func notification(s string) string {
	head, body, _ := strings.Cut(s, "\n\n")
	parts := strings.Split(body, "--BOUNDARY")
	if len(parts) != 5 {
		return s
	}
	drop := rule{pattern: `(?m)^(Message-Id: |Content-Transfer-Encoding: 8bit|Content-Length: |Remote-MTA: |Diagnostic-Code: |Content-Description: |    ).*\n`}
	_, message, _ := strings.Cut(parts[3], "\n\n")
	return drop.apply(head+"\n") + drop.apply(parts[2]) + canonical(message)
}

// canonical is a message in which it does not matter how white space is put in
// fields with addresses: Postfix writes them anew where it adds a domain, we put
// that in. Nor does the place of From: ours is added by sendmail, at the top.
func canonical(s string) string {
	head, body, _ := strings.Cut(s, "\n\n")
	var kept, from []string
	for _, f := range splitFields(head) {
		if addressField.MatchString(f) {
			name, value, _ := strings.Cut(f, ":")
			value = strings.Join(strings.Fields(value), " ")
			f = strings.TrimSpace(name) + ": " + comma.ReplaceAllString(value, ", ")
		}
		if strings.HasPrefix(f, "From: ") || strings.HasPrefix(f, "Resent-From: ") {
			from = append(from, f)
			continue
		}
		kept = append(kept, f)
	}
	slices.Sort(from)
	return strings.Join(append(kept, from...), "\n") + "\n\n" + body
}

var (
	addressField = regexp.MustCompile(`(?i)^(resent-)?(from|sender|reply-to|to|cc)[ \t]*:`)
	comma        = regexp.MustCompile(` ?, ?`)
)

// splitFields returns the fields of a header, with the lines that continue them.
func splitFields(head string) []string {
	var fields []string
	for _, line := range strings.Split(head, "\n") {
		if len(fields) > 0 && line != "" && (line[0] == ' ' || line[0] == '\t') {
			fields[len(fields)-1] += "\n" + line
			continue
		}
		fields = append(fields, line)
	}
	return fields
}

// compare reports where two arrivals differ that should not.
func compare(t *testing.T, postfix, posthouse arrival) {
	t.Helper()
	switch _, ok := meantStatus[[2]int{postfix.status, posthouse.status}]; {
	case ok:
	case postfix.status != 0 || posthouse.status != 0:
		t.Errorf("status %d, with Postfix %d", posthouse.status, postfix.status)
	case len(postfix.boxes) == 0:
		t.Error("nothing has arrived, with Postfix either")
	}
	boxes := make(map[string][]string)
	for box, messages := range postfix.boxes {
		if to, ok := meantModes[box]; ok {
			box = to
		}
		boxes[box] = messages
	}
	for box, want := range boxes {
		want, got := normal(want, true), normal(posthouse.boxes[box], false)
		for i := range max(len(want), len(got)) {
			switch {
			case i >= len(got):
				t.Errorf("%s lacks\n%s", box, want[i])
			case i >= len(want):
				t.Errorf("%s: Postfix does not have\n%s", box, got[i])
			case got[i] != want[i]:
				t.Errorf("%s:\n%s", box, difference(want[i], got[i]))
			}
		}
	}
	for box, got := range posthouse.boxes {
		if _, ok := boxes[box]; !ok {
			t.Errorf("Postfix has nothing in %s:\n%s", box, strings.Join(got, "====\n"))
		}
	}
}

// difference shows two texts line by line.
func difference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	var out strings.Builder
	out.WriteString("- Postfix, + Posthouse\n")
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(a) > 0 && len(b) > 0 && a[0] == b[0]:
			out.WriteString("  " + a[0] + "\n")
			a, b = a[1:], b[1:]
		case len(b) == 0 || len(a) > 0 && !slices.Contains(b, a[0]):
			out.WriteString("- " + a[0] + "\n")
			a = a[1:]
		default:
			out.WriteString("+ " + b[0] + "\n")
			b = b[1:]
		}
	}
	return out.String()
}
