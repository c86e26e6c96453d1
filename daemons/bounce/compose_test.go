package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/protocol/bounce"
)

// FuzzCompose: whatever the protocol lets through of what hosts and senders have
// said, the notification has its own header and three parts, the report its own
// fields, each once, and the message is given back as it is.
func FuzzCompose(f *testing.F) {
	base, _ := request(f, bounce.Failure, "")
	f.Add("host said: 550 no", "550 no", "mx.example", "id", "alias@example.org", "Subject: x\n\nbody\n", uint8(1), uint8(2))
	f.Add("x"+strings.Repeat("é", 1000), "\ufb01: a", "müller.example", "é", "é@example.org", "\n\n--X\n", uint8(2), uint8(0))
	f.Add(strings.Repeat("x", 2048), "  Status: 2.0.0", "", " ", "", "Content-Type: text/plain\n", uint8(3), uint8(1))
	f.Fuzz(func(t *testing.T, text, diagnostic, host, id, orcpt, content string, kind, class uint8) {
		content = strings.ReplaceAll(strings.ReplaceAll(content, "\r", ""), "\n", "\r\n") // as in a queue file
		spoilt, rcpt := *base, base.Recipients[0]
		spoilt.Kind, spoilt.Length, spoilt.Offset, spoilt.Envelope.EnvID = bounce.Kind(kind), int64(len(content)), 0, id
		rcpt.Status, rcpt.Text, rcpt.Diagnostic, rcpt.RemoteMTA = dsn.Status{}.With(dsn.Class(class%3)), text, diagnostic, host
		if rcpt.ORCPT.Address = orcpt; orcpt == "" {
			rcpt.ORCPT.Type = ""
		}
		spoilt.Recipients = []bounce.Recipient{rcpt, rcpt}
		r, err := bounce.DecodeRequest(ipctest.Encode(spoilt.Encode))
		if err != nil {
			return
		}
		rep := &report{Request: r, to: r.Envelope.Sender, hostname: "mail.example.org", origin: "example.org", limit: 50000,
			content: strings.NewReader(content), now: testTime}
		out, err := rep.compose()
		if err != nil {
			t.Fatal(err)
		}
		checkNotification(t, rep, out, content)
	})
}

func checkNotification(t *testing.T, rep *report, out []byte, content string) {
	t.Helper()
	header, body, _ := strings.Cut(string(out), "\r\n\r\n")
	checkFields(t, header, "Date", "From", "Subject", "To", "Auto-Submitted", "Message-Id", "MIME-Version", "Content-Type", "Content-Transfer-Encoding")
	_, boundary, _ := strings.Cut(header, `boundary="`)
	boundary, _, _ = strings.Cut(boundary, `"`)
	if len(boundary) == 0 || len(boundary) > 70 {
		t.Fatalf("boundary %q", boundary)
	}
	parts := strings.Split("\r\n"+body, "\r\n--"+boundary)
	if len(parts) != 5 || parts[4] != "--\r\n" {
		t.Fatalf("%d parts in\n%s", len(parts)-2, out)
	}
	for i, part := range parts[1:4] {
		head, text, _ := strings.Cut(strings.TrimPrefix(part, "\r\n"), "\r\n\r\n")
		checkFields(t, head, "Content-Description", "Content-Type", "Content-Transfer-Encoding")
		if !isASCII([]byte(text)) && !strings.HasSuffix(head, "\r\nContent-Transfer-Encoding: 8bit") {
			t.Fatalf("8-bit text under\n%s", head)
		}
		if i == 2 {
			if _, full, _ := rep.original(); full && !strings.Contains(text, "\r\n"+content) {
				t.Fatalf("the message is not in\n%s", text)
			}
			continue
		}
		checkLines(t, text)
		if i == 1 {
			checkReport(t, text, rep)
		}
	}
}

// checkReport: the fields of the message, and those of each recipient.
func checkReport(t *testing.T, text string, rep *report) {
	t.Helper()
	if !rep.isUTF8() && !isASCII([]byte(text)) {
		t.Fatalf("a report in ASCII has %q", text)
	}
	blocks := strings.Split(text, "\r\n\r\n")
	if len(blocks) != 1+len(rep.Recipients) {
		t.Fatalf("%d blocks for %d recipients:\n%s", len(blocks), len(rep.Recipients), text)
	}
	checkFields(t, blocks[0], "Reporting-MTA", "Original-Envelope-Id", "X-Posthouse-Queue-ID", "X-Posthouse-Sender", "Arrival-Date")
	for _, b := range blocks[1:] {
		checkFields(t, strings.TrimSuffix(b, "\r\n"), "Final-Recipient", "Original-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code", "Will-Retry-Until")
	}
}

// checkFields: fields have these names, in this order, each at most once.
func checkFields(t *testing.T, header string, names ...string) {
	t.Helper()
	next := 0
	for i, line := range strings.Split(header, "\r\n") {
		if i > 0 && (strings.HasPrefix(line, "    ") || strings.HasPrefix(line, "\t")) {
			continue
		}
		name, _, ok := strings.Cut(line, ":")
		k := slices.Index(names[next:], name)
		if !ok || k < 0 {
			t.Fatalf("%q in\n%s", line, header)
		}
		next += k + 1
	}
}

func checkLines(t *testing.T, text string) {
	t.Helper()
	for line := range strings.SplitSeq(text, "\r\n") {
		if len(line) > 998 || strings.ContainsAny(line, "\r\n") || !utf8.ValidString(line) {
			t.Fatalf("line %q", line)
		}
	}
}

// TestEightBit: a part with an address in UTF-8 says that it has 8 bits (RFC 2045,
// section 6.1).
func TestEightBit(t *testing.T) {
	for _, limit := range []int64{50000, -1} {
		r, f := request(t, bounce.Failure, message)
		r.Envelope.Sender, r.Recipients[0].Address = mailbox(t, "dörte@example.org"), mailbox(t, "jürgen@example.net")
		rep := &report{Request: r, to: r.Envelope.Sender, hostname: "mail.example.org", origin: "example.org", limit: limit, content: f, now: testTime}
		out, err := rep.compose()
		if err != nil {
			t.Fatal(err)
		}
		checkNotification(t, rep, out, message)
	}
}

// TestLongHostname: a boundary has 70 characters at most (RFC 2046, section
// 5.1.1), whatever the host is called.
func TestLongHostname(t *testing.T) {
	r, f := request(t, bounce.Failure, message)
	long := strings.Repeat("long-label.", 20) + "müller.example"
	rep := &report{Request: r, to: r.Envelope.Sender, hostname: long, origin: long, limit: 50000, content: f, now: testTime}
	out, err := rep.compose()
	if err != nil {
		t.Fatal(err)
	}
	_, boundary, _ := bytes.Cut(out, []byte(`boundary="`))
	boundary, _, _ = bytes.Cut(boundary, []byte(`"`))
	if len(boundary) == 0 || len(boundary) > 70 || !isASCII(boundary) {
		t.Errorf("boundary %q", boundary)
	}
}
