//go:build system

package system

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/mailtest"
)

// TestSwaks: swaks, and clients that say what it cannot, talk to both SMTP
// servers.
func TestSwaks(t *testing.T) {
	t.Parallel()
	m := mailHost(t, "bookworm", "")
	m.Run("posthouse", "user", "add", "--no-password", "bob@example.net")
	m.Script("ip address add 192.0.2.1/32 dev lo")
	swaksSends(t, m)
	swaksAttaches(t, m)
	swaksLeaves(t, m)
	chunks(t, m)
	notified(t, m)
	internationalized(t, m)
	smuggler(t, m)
	otherCommands(t, m)
	submission(t, m)
	atStdio(t, m)
	healthy(t, m)
}

// atStdio: sendmail -bs takes mail of its caller, whatever the recipients.
func atStdio(t *testing.T, m *mailtest.Machine) {
	m.Run("useradd", "--create-home", mallory)
	for _, options := range [][]string{{}, {"--protocol", "SMTP"}, {"--pipeline"}, {"--to", "alice@example.net,bob@example.net"}} {
		if !slices.Contains(options, "--to") {
			options = append(options, "--to", "alice@example.net")
		}
		out := m.Run(append([]string{"runuser", "-u", mallory, "--", "swaks", "--pipe", "/usr/sbin/sendmail -bs", "--from", "sender@example.org"}, options...)...)
		if !strings.Contains(out, "\n<-  250 2.0.0 Ok: queued as ") {
			t.Errorf("%q:\n%s", options, out)
		}
		got := takeAll(t, m, alice)
		toBob := strings.Contains(strings.Join(options, " "), "bob@")
		if b := takeAll(t, m, bob); len(got) != 1 || toBob != (len(b) == 1) {
			t.Errorf("%q: %d messages for alice, %d for bob", options, len(got), len(b))
		}
	}
	if !strings.Contains(m.Journal("-t", "posthouse/pickup"), ": uid="+strings.TrimSpace(m.Run("id", "-u", mallory))+" from=<sender@example.org>") {
		t.Error("the log does not say who has sent it")
	}
	if out := m.Run("sendmail", "-bv", "alice@example.net"); out != "alice@example.net: deliverable: transport virtual, nexthop example.net\n" {
		t.Errorf("-bv: %s", out)
	}
	if r, err := m.Try("sendmail", "-bv", "nobody@example.net"); err != nil || r.Code != 67 || !strings.HasPrefix(r.Stdout, "nobody@example.net: 5.1.1 ") {
		t.Errorf("-bv: %+v, %v", r, err)
	}
	if r, err := m.Try("runuser", "-u", mallory, "--", "sendmail", "-bv", "alice@example.net"); err != nil || r.Code != 77 {
		t.Errorf("-bv of a user: %+v, %v", r, err)
	}
}

const bob = "/var/vmail/example.net/bob/Maildir/new"

// swaks runs swaks from sender@example.org against port 25, and returns what it
// has shown of the session, and its exit status.
func swaks(t *testing.T, m *mailtest.Machine, options ...string) (string, int) {
	t.Helper()
	r, err := m.Try(append([]string{"swaks", "--server", "127.0.0.1", "--from", "sender@example.org"}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	return r.Stdout + r.Stderr, r.Code
}

// talk holds the dialogue of a script with the server at address.
func talk(t *testing.T, m *mailtest.Machine, address, script string) {
	t.Helper()
	if r, err := m.TryInput([]byte(script), probePath, "talk", address); err != nil || r.Code != 0 {
		t.Errorf("%v %s", err, r.Stderr)
	}
}

// takeAll returns the messages of a Maildir, after all that is on its way has
// arrived, and removes them.
func takeAll(t *testing.T, m *mailtest.Machine, dir string) []string {
	t.Helper()
	emptyQueue(m, time.Minute)
	const end = "\x00end\x00"
	out := m.Script("for f in " + dir + `/*; do if [ -f "$f" ]; then cat "$f"; printf '\0end\0'; fi; done; rm -f ` + dir + "/*")
	return strings.Split(strings.TrimSuffix(out, end), end)[:strings.Count(out, end)]
}

// swaksSends: plain messages, to one and to several, as ESMTP, SMTP and in a
// pipeline.
func swaksSends(t *testing.T, m *mailtest.Machine) {
	for _, options := range [][]string{
		{}, {"--protocol", "SMTP"}, {"--pipeline"}, {"--to", "alice@example.net,bob@example.net"}, {"--to", "alice@example.net,bob@example.net", "--pipeline"},
		{"--to", "alice@example.net,nobody@example.net,bob@example.net", "--pipeline"},
		{"--to", "alice@example.net", "--from", "<>"}, {"--helo", "[192.0.2.7]"}, {"--body", `.dot\n..\n.\nümlaut`},
	} {
		if !slices.Contains(options, "--to") {
			options = append(options, "--to", "alice@example.net")
		}
		out, code := swaks(t, m, options...)
		if code != 0 || !strings.Contains(out, "\n<-  250 2.0.0 Ok: queued as ") || !strings.Contains(out, "\n<-  221 2.0.0 ") && !strings.Contains(out, "\n<-  221 ") {
			t.Errorf("%q: status %d\n%s", options, code, out)
		}
		if strings.Contains(out, "nobody@") && !strings.Contains(out, "\n<** 550 5.1.1 <nobody@example.net>: Recipient address rejected: ") {
			t.Errorf("%q\n%s", options, out)
		}
		toBob := strings.Contains(strings.Join(options, " "), "bob@")
		got := takeAll(t, m, alice)
		if b := takeAll(t, m, bob); len(got) != 1 || toBob != (len(b) == 1) {
			t.Errorf("%q: %d messages for alice, %d for bob", options, len(got), len(b))
		}
		if slices.Contains(options, "--body") && !strings.HasSuffix(strings.TrimRight(got[0], "\n"), "\n\n.dot\n..\n.\nümlaut") {
			t.Errorf("%q: %q", options, got)
		}
	}
}

// swaksAttaches: a large message arrives as it was sent.
func swaksAttaches(t *testing.T, m *mailtest.Machine) {
	const size = 10 << 20
	file := filepath.Join(t.TempDir(), "file")
	content := make([]byte, size)
	if _, err := rand.NewChaCha8([32]byte{}).Read(content); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	m.CopyTo(file, "/root/attachment")
	if out, code := swaks(t, m, "--to", "alice@example.net", "--attach", "@/root/attachment", "--hide-all"); code != 0 {
		t.Fatalf("status %d: %s", code, out)
	}
	emptyQueue(m, time.Minute)
	sum := m.Script("sed -n '/^Content-Transfer-Encoding: BASE64/,/^--/p' " + alice + "/* | sed '1,/^$/d; /^--/d' | base64 -d | sha256sum; rm " + alice + "/*")
	if want := fmt.Sprintf("%x", sha256.Sum256(content)); !strings.HasPrefix(sum, want) {
		t.Errorf("%d octets, attached: sum %s, not %s", size, sum, want)
	}
}

// swaksLeaves: a client that leaves early, with or without a word, leaves
// nothing behind; one that leaves after the message has sent it.
func swaksLeaves(t *testing.T, m *mailtest.Machine) {
	for _, option := range []string{"--quit-after", "--drop-after", "--drop-after-send"} {
		for _, point := range []string{"CONNECT", "HELO", "MAIL", "RCPT", "DATA", "DOT"} {
			if option == "--quit-after" && (point == "DATA" || point == "DOT") || option == "--drop-after-send" && point == "CONNECT" {
				continue // swaks does not know these
			}
			out, code := swaks(t, m, "--to", "alice@example.net", option, point)
			if code != 0 || strings.Contains(out, "\n<** ") {
				t.Errorf("%s %s: status %d\n%s", option, point, code, out)
			}
			if option == "--quit-after" && !strings.Contains(out, "\n -> QUIT\n<-  221 ") {
				t.Errorf("%s %s:\n%s", option, point, out)
			}
			want := 0
			if point == "DOT" {
				want = 1
			}
			if option != "--drop-after-send" || point != "DOT" { // there it may be one or none
				if got := takeAll(t, m, alice); len(got) != want {
					t.Errorf("%s %s: %d messages arrived", option, point, len(got))
				}
			}
		}
	}
	takeAll(t, m, alice)
	if out, code := swaks(t, m, "--to", "alice@example.net", "--protocol", "LMTP", "--port", "25"); code == 0 || !strings.Contains(out, "\n<** 500 5.5.2 ") {
		t.Errorf("LMTP: status %d\n%s", code, out)
	}
}

const (
	hello = "< 220 mail.example.org ESMTP\n> EHLO client.example\n< 250 CHUNKING\n"
	bye   = "> QUIT\n< 221\n.\n"
	// envelopeLines is the envelope of a message from sender@example.org to
	// alice@example.net.
	envelopeLines = "> MAIL FROM:<sender@example.org>\n< 250 2.1.0\n> RCPT TO:<alice@example.net>\n< 250 2.1.5\n"
)

// chunks: BDAT, also in a pipeline, is taken octet by octet; what belongs to a
// chunk is no command, what is refused is read all the same.
func chunks(t *testing.T, m *mailtest.Machine) {
	talk(t, m, "127.0.0.1:25", hello+envelopeLines+`
		>> "BDAT 16\r\nSubject: chunks\r"
		< 250 2.0.0 Ok: 16 bytes
		>> "BDAT 8\r\n\n\r\n.\r\nQUBDAT 6\r\nIT\r\n.\r"
		< 250 2.0.0 Ok: 8 bytes
		< 250 2.0.0 Ok: 6 bytes
		>> "BDAT 1 LAST\r\n\n"
		< 250 2.0.0 Ok: 31 bytes queued as
	`+envelopeLines+`
		>> "BDAT 23\r\nSubject: more\r\n\r\nno end"
		< 250 2.0.0 Ok: 23 bytes
		> BDAT 0 LAST
		< 250 2.0.0 Ok: 23 bytes queued as
		>> "BDAT 6\r\nQUIT\r\n"
		< 503 5.5.1
		> MAIL FROM:<sender@example.org>
		< 250 2.1.0
		> RCPT TO:<nobody@example.net>
		< 550 5.1.1
		>> "BDAT 6 LAST\r\nQUIT\r\n"
		< 554 5.5.1
		> RSET
		< 250 2.0.0
	`+envelopeLines+`
		>> "BDAT 6\r\nA: b\r\n"
		< 250
		> DATA
		< 503 5.5.1
		> RSET
		< 250
		> NOOP
		< 250
	`+bye)
	talk(t, m, "127.0.0.1:25", hello+envelopeLines+"> BDAT x LAST\n< 521 5.5.4\n.\n")
	got := takeAll(t, m, alice)
	slices.Sort(got)
	if len(got) != 2 || !slices.ContainsFunc(got, func(s string) bool { return afterTrace(s) == "Subject: chunks\n\n.\nQUIT\n.\n" }) ||
		!slices.ContainsFunc(got, func(s string) bool { return afterTrace(s) == "Subject: more\n\nno end\n" }) {
		t.Errorf("arrived: %q", got)
	}
}

// notified: who asks for it is told of success, in the words of RFC 3461, by us or
// by the next server, which is passed the wish if it knows of such.
func notified(t *testing.T, m *mailtest.Machine) {
	m.Run("install", "-d", "-o", "nobody", "/var/tmp/sunk")
	sink(m, "sink", "127.0.0.1:2600", "-d", "/var/tmp/sunk/")
	sink(m, "old-sink", "127.0.0.1:2601", "-e") // without ESMTP
	defer m.Stop("sink", "old-sink")
	talk(t, m, "127.0.0.1:25", hello+`
		> MAIL FROM:<alice@example.net> BODY=8BITMIME RET=HDRS ENVID=QQ+2B314159 SIZE=100
		< 250 2.1.0
		> RCPT TO:<bob@example.net> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Bob+2Btag@old.example
		< 250 2.1.5
		> RCPT TO:<x@sink.example> NOTIFY=SUCCESS
		< 250 2.1.5
		> RCPT TO:<x@dead.example> NOTIFY=SUCCESS
		< 250 2.1.5
		> RCPT TO:<y@dead.example>
		< 250 2.1.5
		> DATA
		< 354
		> Subject: tell me
		>
		> Größe
		> .
		< 250 2.0.0
	`+bye)
	notes := strings.Join(takeAll(t, m, alice), "\n") // one, or one for each delivery
	for _, want := range []string{
		"Original-Envelope-Id: QQ+314159\n", "Final-Recipient: rfc822; bob@example.net\nOriginal-Recipient: rfc822;Bob+tag@old.example\nAction: delivered\nStatus: 2.0.0\n",
		"Final-Recipient: rfc822; x@dead.example\nOriginal-Recipient: rfc822;x@dead.example\nAction: relayed\nStatus: 2.", "Content-Type: text/rfc822-headers", "\nSubject: tell me\n",
	} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notifications lack %q", want)
		}
	}
	if strings.Contains(notes, "y@dead.example") || strings.Contains(notes, "sink.example") || strings.Contains(notes, "Größe") {
		t.Error("the notifications say more than was asked for")
	}
	passed := m.Script("cat /var/tmp/sunk/*")
	if !strings.Contains(passed, "RET=HDRS ENVID=QQ+2B314159") || !strings.Contains(passed, "<x@sink.example> NOTIFY=SUCCESS ORCPT=rfc822;x@sink.example\n") {
		t.Errorf("passed on: %s", passed)
	}
	if t.Failed() {
		t.Log(notes)
	}
	if got := takeAll(t, m, bob); len(got) != 1 || !strings.HasSuffix(got[0], "\n\nGröße\n") {
		t.Errorf("arrived: %q", got)
	}
}

// internationalized: addresses beyond ASCII are taken with SMTPUTF8, which swaks
// does not say.
func internationalized(t *testing.T, m *mailtest.Machine) {
	if out, code := swaks(t, m, "--to", "alice@example.net", "--from", "sénder@example.org"); code == 0 || !strings.Contains(out, "\n<** 550 5.6.7 ") {
		t.Errorf("without SMTPUTF8: status %d\n%s", code, out)
	}
	talk(t, m, "127.0.0.1:25", hello+`
		> MAIL FROM:<sénder@exämple.org> SMTPUTF8 BODY=8BITMIME
		< 250 2.1.0
		> RCPT TO:<alice+täg@example.net>
		< 250 2.1.5
		> DATA
		< 354
		> Subject: Größe
		>
		> x
		> .
		< 250 2.0.0
	`+bye)
	got := takeAll(t, m, alice)
	if len(got) != 1 || !strings.HasPrefix(got[0], "Return-Path: <sénder@exämple.org>\n") || !strings.Contains(got[0], "Delivered-To: alice+täg@example.net\n") ||
		!strings.Contains(got[0], "with UTF8SMTP") || !strings.HasSuffix(got[0], "\nSubject: Größe\n\nx\n") {
		t.Errorf("arrived: %q", got)
	}
}

// smuggler: a line that does not end in CRLF ends the session, and nothing of
// what came with it is taken.
func smuggler(t *testing.T, m *mailtest.Machine) {
	const second = `MAIL FROM:<evil@example.org>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n`
	for _, end := range []string{`\n.\n`, `\n.\r\n`, `\r\n.\n`, `\r.\r`, `\r\n.\r`, `\r.\r\n`, `\r\n.\r\r\n`, `\n\n.\r\n`} {
		which := "LF"
		if strings.Contains(strings.ReplaceAll(end, `\r\n`, ""), `\r`) {
			which = "CR"
		}
		talk(t, m, "127.0.0.1:25", hello+envelopeLines+"> DATA\n< 354\n>> \"Subject: x\\r\\n\\r\\nx"+end+second+"\"\n< 521 5.5.2 mail.example.org Error: bare <"+which+">\n.\n")
	}
	talk(t, m, "127.0.0.1:25", "< 220\n>> \"EHLO x\\n\"\n< 521 5.5.2\n.\n")
	talk(t, m, "127.0.0.1:25", hello+envelopeLines+">> \"BDAT 4 LAST\\r\\nx\\ny\\n\"\n< 521 5.5.2\n.\n")
	if a, b := takeAll(t, m, alice), takeAll(t, m, bob); len(a)+len(b) > 0 {
		t.Errorf("arrived: %q %q", a, b)
	}
}

// otherCommands: whatever else a client may say, and too much of what is wrong.
func otherCommands(t *testing.T, m *mailtest.Machine) {
	talk(t, m, "127.0.0.1:25", hello+`
		> VRFY alice
		< 252 2.0.0
		> VRFY
		< 501 5.5.4
		> EXPN staff
		< 502 5.5.1
		> ETRN example.org
		< 502 5.5.1
		> STARTTLS
		< 502 5.5.1
		> AUTH PLAIN AGEAYg==
		< 502 5.5.1
		> HELP
		< 214 2.0.0
		> NOOP whatever
		< 250 2.0.0
		> FROBNICATE
		< 500 5.5.2
		> RCPT TO:<alice@example.net>
		< 503 5.5.1
		> DATA
		< 503 5.5.1
	`+envelopeLines+`
		> MAIL FROM:<again@example.org>
		< 503 5.5.1
		> RSET
		< 250 2.0.0
		> DATA
		< 503 5.5.1
	`+bye)
	talk(t, m, "127.0.0.1:25", hello+`
		> MAIL FROM:<sender@example.org> SIZE=99999999999
		< 552 5.3.4
		> MAIL FROM:<sender@example.org> BODY=BINARYMIME
		< 501 5.5.4
		> MAIL FROM:<sender@example.org> AUTH=<>
		< 555 5.5.4
		> MAIL FROM:<sender@example.org>
		< 250 2.1.0
		> RCPT TO:<alice@example.net> NOTIFY=NEVER,SUCCESS
		< 501 5.5.4
		> RCPT TO:<alice>
		< 501 5.1.3
	`+bye)
	talk(t, m, "127.0.0.1:25", "< 220\n> GET / HTTP/1.1\n< 221 2.7.0\n.\n")
	talk(t, m, "127.0.0.1:25", "< 220\n"+strings.Repeat("> FROBNICATE\n< 500 5.5.2\n", 19)+"> FROBNICATE\n< 421 4.7.0 mail.example.org Error: too many errors\n.\n")
	// The same, all at once.
	talk(t, m, "127.0.0.1:25", "< 220\n"+strings.Repeat("> FROBNICATE\n", 19)+strings.Repeat("< 500 5.5.2\n", 19)+"> FROBNICATE\n< 421 4.7.0\n.\n")
	if log := m.MailLog(); strings.Count(log, "too many errors after UNKNOWN from localhost[127.0.0.1]") != 2 {
		t.Error("the log does not say that there were too many errors")
	}
	if got := takeAll(t, m, alice); len(got) > 0 {
		t.Errorf("arrived: %q", got)
	}
}

// submission: port 587 takes mail of known clients alone, and completes it; port
// 25 takes mail for this machine from anywhere, and leaves it as it is.
func submission(t *testing.T, m *mailtest.Machine) {
	m.Run("systemctl", "enable", "--now", "posthouse-submission.socket")
	const bare = `To: alice@example.net\nSubject: bare\n\nx`
	send := func(port string, options ...string) (string, int) {
		return swaks(t, m, append([]string{"--port", port, "--data", bare, "--to", "alice@example.net"}, options...)...)
	}
	if out, code := send("587"); code != 0 {
		t.Errorf("known client: status %d\n%s", code, out)
	}
	got := takeAll(t, m, alice)
	if len(got) != 1 || !strings.Contains(got[0], "\nMessage-Id: <") || !strings.Contains(got[0], "\nDate: ") ||
		!strings.Contains(got[0], "\nReceived: from ") || !strings.Contains(got[0], " (localhost [127.0.0.1])\n") {
		t.Errorf("at port 587: %q", got)
	}
	if out, code := send("25"); code != 0 {
		t.Errorf("at port 25: status %d\n%s", code, out)
	}
	if got := takeAll(t, m, alice); len(got) != 1 || afterTrace(got[0]) != "To: alice@example.net\nSubject: bare\n\nx\n" {
		t.Errorf("at port 25: %q", got)
	}
	// A client that nobody knows.
	stranger := []string{"--server", "192.0.2.1", "--local-interface", "192.0.2.1"}
	if out, code := send("587", stranger...); code == 0 || !strings.Contains(out, "\n<** 530 5.7.0 ") {
		t.Errorf("stranger at port 587: status %d\n%s", code, out)
	}
	if out, code := send("25", stranger...); code != 0 {
		t.Errorf("stranger at port 25: status %d\n%s", code, out)
	}
	if out, code := send("25", append(stranger, "--to", "x@elsewhere.example")...); code == 0 || !strings.Contains(out, "\n<** 554 5.7.1 ") {
		t.Errorf("stranger, for others: status %d\n%s", code, out)
	}
	if got := takeAll(t, m, alice); len(got) != 1 {
		t.Errorf("%d messages of a stranger", len(got))
	}
	// Each server is a process and a user of its own, and either can be off.
	users := m.Script(`for u in smtpd submission; do ps -o user:20= -p "$(systemctl show -P MainPID posthouse-$u.service)"; done`)
	if strings.Join(strings.Fields(users), " ") != "_ph-smtpd _ph-submission" {
		t.Errorf("users: %q", users)
	}
	m.Run("systemctl", "disable", "--now", "posthouse-smtpd.socket")
	if out, code := send("587"); code != 0 {
		t.Errorf("with port 25 off: status %d\n%s", code, out)
	}
	if got := takeAll(t, m, alice); len(got) != 1 {
		t.Errorf("%d messages with port 25 off", len(got))
	}
}
