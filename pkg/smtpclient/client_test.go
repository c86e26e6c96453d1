package smtpclient

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
)

// server plays a script: "C: line" expects a line, "S: line" sends one, "R: "
// sends the text as it is, "D" reads data up to the end, "B: n" reads n octets,
// "X" closes the connection. At the end of the script the client must be gone, or
// say QUIT.
type server struct {
	conn net.Conn
	r    *bufio.Reader
	data []string
	errs []string
}

func (s *server) failf(format string, args ...any) {
	s.errs = append(s.errs, fmt.Sprintf(format, args...))
}

func (s *server) play(script []string) {
	defer s.conn.Close()
	for _, step := range script {
		kind, text, _ := strings.Cut(step, ": ")
		switch kind {
		case "C":
			if line, err := s.r.ReadString('\n'); line != text+"\r\n" {
				s.failf("got %q, %v, want %q", line, err, text)
				return
			}
		case "S":
			_, _ = io.WriteString(s.conn, text+"\r\n")
		case "R":
			_, _ = io.WriteString(s.conn, text)
		case "D":
			s.readData()
		case "B":
			_, _ = io.CopyN(io.Discard, s.r, 10)
		case "X":
			return
		}
	}
	if rest, _ := io.ReadAll(s.r); string(rest) != "QUIT\r\n" && len(rest) > 0 {
		s.failf("%q after the script", rest)
	}
}

func (s *server) readData() {
	var b strings.Builder
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			s.failf("data: %q, %v", b.String(), err)
			return
		}
		if line == ".\r\n" {
			s.data = append(s.data, b.String())
			return
		}
		b.WriteString(strings.TrimPrefix(line, "."))
	}
}

// dial connects a client to a server on the loopback interface; what it returns
// waits for the server.
func dial(t *testing.T, o Options, script ...string) (*Client, func() *server) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	s := &server{}
	wg.Go(func() {
		defer ln.Close()
		conn, err := ln.Accept()
		if err != nil {
			s.failf("%v", err)
			return
		}
		s.conn, s.r = conn, bufio.NewReader(conn)
		s.play(script)
	})
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	o.Peer, o.Helo = "mx[192.0.2.1]", "us.example"
	c := New(conn, o)
	t.Cleanup(c.Quit)
	return c, func() *server {
		t.Helper()
		c.Quit()
		wg.Wait()
		for _, e := range s.errs {
			t.Error(e)
		}
		return s
	}
}

func mailbox(t testing.TB, s string) addr.Mailbox {
	t.Helper()
	if s == "" {
		return addr.Mailbox{}
	}
	m, err := addr.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func message(t testing.TB, content string, recipients ...string) *Message {
	m := &Message{Sender: mailbox(t, "s@a.example"), Content: io.NewSectionReader(strings.NewReader(content), 0, int64(len(content)))}
	for _, r := range recipients {
		m.Recipients = append(m.Recipients, envelope.Recipient{Address: mailbox(t, r)})
	}
	return m
}

func hello(t *testing.T, c *Client) {
	t.Helper()
	if err := c.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
}

var (
	plain     = []string{"S: 220 mx ESMTP", "C: EHLO us.example", "S: 250 mx"}
	pipelined = []string{"S: 220 mx ESMTP", "C: EHLO us.example", "S: 250-mx at your service", "S: 250-Pipelining", "S: 250 size"}
	lmtp      = []string{"S: 220 mx LMTP", "C: LHLO us.example", "S: 250-mx", "S: 250 PIPELINING"}
)

func script(start []string, more ...string) []string {
	return append(append([]string(nil), start...), more...)
}

func show(results []Result, err error) string {
	var b strings.Builder
	for _, r := range results {
		fmt.Fprintf(&b, "%s %s", r.Status, r.Text)
		if r.Uncertain {
			b.WriteString(" (uncertain)")
		}
		b.WriteString("\n")
	}
	if err != nil {
		fmt.Fprintf(&b, "error: %v\n", err)
	}
	return b.String()
}

func TestSend(t *testing.T) {
	const content = "Subject: x\r\n\r\n.dot\r\n"
	for name, c := range map[string]struct {
		script []string
		lmtp   bool
		want   string
		data   int // how many messages the server has got
	}{
		"step by step": {script: script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok",
			"C: RCPT TO:<v@b.example>", "S: 550 5.1.1 who?", "C: DATA", "S: 354 go", "D", "S: 250 2.0.0 queued as 1"),
			want: "2.0.0 250 2.0.0 queued as 1\n5.1.1 host mx[192.0.2.1] said: 550 5.1.1 who? (in reply to RCPT TO command)\n", data: 1},
		"pipelined": {script: script(pipelined, "C: MAIL FROM:<s@a.example> SIZE=20", "C: RCPT TO:<u@b.example>", "C: RCPT TO:<v@b.example>", "C: DATA",
			"S: 250 ok", "S: 452 4.5.3 full", "S: 250 ok", "S: 354 go", "D", "S: 250 ok"),
			want: "4.5.3 host mx[192.0.2.1] said: 452 4.5.3 full (in reply to RCPT TO command)\n2.0.0 250 ok\n", data: 1},
		"dribbled": {script: script(pipelined, "C: MAIL FROM:<s@a.example> SIZE=20", "C: RCPT TO:<u@b.example>", "C: RCPT TO:<v@b.example>", "C: DATA",
			"R: 2", "R: 50 o", "R: k\r", "R: \n250-a", "R: \r\n250 b\r\n250 ok\r\n35", "R: 4 go\r\n", "D", "R: 25", "R: 0 ok\r\n"),
			want: "2.0.0 250 ok\n2.0.0 250 ok\n", data: 1},
		"mail refused": {script: script(plain, "C: MAIL FROM:<s@a.example>", "S: 550 5.7.1 no"),
			want: strings.Repeat("5.7.1 host mx[192.0.2.1] said: 550 5.7.1 no (in reply to MAIL FROM command)\n", 2)},
		"mail refused, data wanted": {script: script(pipelined, "C: MAIL FROM:<s@a.example> SIZE=20", "C: RCPT TO:<u@b.example>", "C: RCPT TO:<v@b.example>", "C: DATA",
			"S: 450 no", "S: 250 ok", "S: 503 no", "S: 354 go", "C: .", "S: 250 thanks"),
			want: strings.Repeat("4.0.0 host mx[192.0.2.1] said: 450 no (in reply to MAIL FROM command)\n", 2)},
		"nobody, data wanted": {script: script(pipelined, "C: MAIL FROM:<s@a.example> SIZE=20", "C: RCPT TO:<u@b.example>", "C: RCPT TO:<v@b.example>", "C: DATA",
			"S: 250 ok", "S: 552 full", "S: 550 no", "S: 354 go", "C: .", "S: 554 no recipients"),
			want: "4.0.0 host mx[192.0.2.1] said: 552 full (in reply to RCPT TO command)\n5.0.0 host mx[192.0.2.1] said: 550 no (in reply to RCPT TO command)\n"},
		"nobody": {script: script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 550 no", "C: RCPT TO:<v@b.example>", "S: 550 no"),
			want: strings.Repeat("5.0.0 host mx[192.0.2.1] said: 550 no (in reply to RCPT TO command)\n", 2)},
		"data refused": {script: script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 550 no", "C: RCPT TO:<v@b.example>", "S: 250 ok",
			"C: DATA", "S: 451 4.7.1 later"),
			want: "5.0.0 host mx[192.0.2.1] said: 550 no (in reply to RCPT TO command)\n4.7.1 host mx[192.0.2.1] said: 451 4.7.1 later (in reply to DATA command)\n"},
		"data done already": {script: script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: RCPT TO:<v@b.example>", "S: 250 ok",
			"C: DATA", "S: 250 2.0.0 done", "X"),
			want: strings.Repeat("4.5.0 host mx[192.0.2.1] said: 250 2.0.0 done (in reply to DATA command)\n", 2) +
				"error: 4.5.0 host mx[192.0.2.1] said: 250 2.0.0 done (in reply to DATA command)\n"},
		"content refused": {script: script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: RCPT TO:<v@b.example>", "S: 250 ok",
			"C: DATA", "S: 354 go", "D", "S: 554-5.6.0 spam", "S: 554 5.6.0 really"),
			want: strings.Repeat("5.6.0 host mx[192.0.2.1] said: 554 5.6.0 spam really (in reply to end of DATA command)\n", 2), data: 1},
		"354 at the end": {script: script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: RCPT TO:<v@b.example>", "S: 250 ok",
			"C: DATA", "S: 354 go", "D", "S: 354 go on", "X"),
			want: strings.Repeat("4.5.0 host mx[192.0.2.1] said: 354 go on (in reply to end of DATA command)\n", 2) +
				"error: 4.5.0 host mx[192.0.2.1] said: 354 go on (in reply to end of DATA command)\n", data: 1},
		"421 at RCPT": {script: script(pipelined, "C: MAIL FROM:<s@a.example> SIZE=20", "C: RCPT TO:<u@b.example>", "C: RCPT TO:<v@b.example>", "C: DATA", "S: 250 ok", "S: 550 no", "S: 421 4.3.2 bye", "X"),
			want: "5.0.0 host mx[192.0.2.1] said: 550 no (in reply to RCPT TO command)\n4.3.2 host mx[192.0.2.1] said: 421 4.3.2 bye (in reply to RCPT TO command)\n" +
				"error: 4.3.2 host mx[192.0.2.1] said: 421 4.3.2 bye (in reply to RCPT TO command)\n"},
		"cut at MAIL": {script: script(plain, "C: MAIL FROM:<s@a.example>", "X"),
			want: strings.Repeat("4.4.2 lost connection with mx[192.0.2.1] while sending MAIL FROM\n", 2) + "error: 4.4.2 lost connection with mx[192.0.2.1] while sending MAIL FROM\n"},
		"cut at RCPT": {script: script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 550 no", "C: RCPT TO:<v@b.example>", "R: 250 o", "X"),
			want: "5.0.0 host mx[192.0.2.1] said: 550 no (in reply to RCPT TO command)\n4.4.2 lost connection with mx[192.0.2.1] while sending RCPT TO\n" +
				"error: 4.4.2 lost connection with mx[192.0.2.1] while sending RCPT TO\n"},
		"cut at DATA": {script: script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: RCPT TO:<v@b.example>", "S: 250 ok", "C: DATA", "X"),
			want: strings.Repeat("4.4.2 lost connection with mx[192.0.2.1] while sending DATA command\n", 2) + "error: 4.4.2 lost connection with mx[192.0.2.1] while sending DATA command\n"},
		"cut at the end": {script: script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: RCPT TO:<v@b.example>", "S: 550 no", "C: DATA", "S: 354 go", "D", "X"),
			want: "4.4.2 lost connection with mx[192.0.2.1] while sending end of data -- message may be sent more than once (uncertain)\n" +
				"5.0.0 host mx[192.0.2.1] said: 550 no (in reply to RCPT TO command)\n" +
				"error: 4.4.2 lost connection with mx[192.0.2.1] while sending end of data -- message may be sent more than once\n", data: 1},
		"garbage": {script: script(plain, "C: MAIL FROM:<s@a.example>", "S: hello?"),
			want: strings.Repeat("4.5.0 host mx[192.0.2.1] sent a malformed reply \"hello?\" while sending MAIL FROM\n", 2) +
				"error: 4.5.0 host mx[192.0.2.1] sent a malformed reply \"hello?\" while sending MAIL FROM\n"},
		"huge reply": {script: script(plain, "C: MAIL FROM:<s@a.example>", "R: "+strings.Repeat("250-"+strings.Repeat("x", 1000)+"\r\n", 90)),
			want: strings.Repeat("4.5.0 host mx[192.0.2.1] sent a reply that is too long while sending MAIL FROM\n", 2) + "error: 4.5.0 host mx[192.0.2.1] sent a reply that is too long while sending MAIL FROM\n"},
		"lmtp": {lmtp: true, script: script(lmtp, "C: MAIL FROM:<s@a.example>", "C: RCPT TO:<u@b.example>", "C: RCPT TO:<v@b.example>", "C: DATA",
			"S: 250 ok", "S: 250 ok", "S: 250 ok", "S: 354 go", "D", "S: 250 2.0.0 <u> saved", "S: 452 4.2.2 <v> quota"),
			want: "2.0.0 250 2.0.0 <u> saved\n4.2.2 host mx[192.0.2.1] said: 452 4.2.2 <v> quota (in reply to end of DATA command)\n", data: 1},
		"lmtp one refused": {lmtp: true, script: script(lmtp, "C: MAIL FROM:<s@a.example>", "C: RCPT TO:<u@b.example>", "C: RCPT TO:<v@b.example>", "C: DATA",
			"S: 250 ok", "S: 550 no", "S: 250 ok", "S: 354 go", "D", "S: 250 saved"),
			want: "5.0.0 host mx[192.0.2.1] said: 550 no (in reply to RCPT TO command)\n2.0.0 250 saved\n", data: 1},
		"lmtp cut between": {lmtp: true, script: script(lmtp, "C: MAIL FROM:<s@a.example>", "C: RCPT TO:<u@b.example>", "C: RCPT TO:<v@b.example>", "C: DATA",
			"S: 250 ok", "S: 250 ok", "S: 250 ok", "S: 354 go", "D", "S: 250 saved", "X"),
			want: "2.0.0 250 saved\n4.4.2 lost connection with mx[192.0.2.1] while sending end of data -- message may be sent more than once (uncertain)\n" +
				"error: 4.4.2 lost connection with mx[192.0.2.1] while sending end of data -- message may be sent more than once\n", data: 1},
		"lmtp nobody, data wanted": {lmtp: true, script: script(lmtp, "C: MAIL FROM:<s@a.example>", "C: RCPT TO:<u@b.example>", "C: RCPT TO:<v@b.example>", "C: DATA",
			"S: 250 ok", "S: 550 no", "S: 550 no", "S: 354 go"),
			want: strings.Repeat("5.0.0 host mx[192.0.2.1] said: 550 no (in reply to RCPT TO command)\n", 2) + "error: 4.5.0 host mx[192.0.2.1] wants data for no recipient\n"},
	} {
		t.Run(name, func(t *testing.T) {
			client, wait := dial(t, Options{LMTP: c.lmtp}, c.script...)
			hello(t, client)
			got := show(client.Send(t.Context(), message(t, content, "u@b.example", "v@b.example")))
			if got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
			s := wait()
			if len(s.data) != c.data || c.data > 0 && s.data[0] != content {
				t.Errorf("data %q", s.data)
			}
		})
	}
}

// TestEveryPattern plays every pattern of replies to a message for two. What the
// server has taken and what we report must agree, and a refusal that was not
// given must not be reported.
func TestEveryPattern(t *testing.T) {
	replies := []string{"250 ok", "354 go", "451 later", "550 no", "421 bye", "cut"}
	for n := range len(replies) * len(replies) * len(replies) * len(replies) * len(replies) * 2 {
		pipelining, n := n%2 == 0, n/2
		var plan [5]string // MAIL, RCPT, RCPT, DATA, end of data
		for i := range plan {
			plan[i] = replies[n%len(replies)]
			n /= len(replies)
		}
		m := &model{plan: plan, pipelining: pipelining}
		here, there := net.Pipe()
		done := make(chan struct{})
		go func() { m.run(there); close(done) }()
		c := New(here, Options{Peer: "mx", Helo: "us"})
		hello(t, c)
		results, err := c.Send(t.Context(), message(t, "x\r\n", "0@b.example", "1@b.example"))
		c.Quit()
		<-done
		for i, r := range results {
			if (r.Status.Class() == dsn.Success) != m.taken[i] {
				t.Fatalf("%v, pipelining %v: taken %v, results %v, %v", plan, pipelining, m.taken, results, err)
			}
			if r.Status.Class() == dsn.Permanent && !strings.HasPrefix(r.Diagnostic, "550") {
				t.Fatalf("%v: %v", plan, r)
			}
			refused := plan[0] == "550 no" || plan[0] == "250 ok" && i == 0 && plan[1] == "550 no"
			if refused && r.Status.Class() != dsn.Permanent {
				t.Fatalf("%v: a refusal is lost: %v", plan, r)
			}
		}
	}
}

// model is a server that replies by plan, to one message.
type model struct {
	plan       [5]string
	pipelining bool
	taken      [2]bool
}

func (m *model) run(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	say := func(s string) { _, _ = io.WriteString(conn, s+"\r\n") }
	say("220 mx")
	_, _ = r.ReadString('\n')
	if m.pipelining {
		say("250-mx\r\n250 PIPELINING")
	} else {
		say("250 mx")
	}
	var ok [2]bool
	for rcpts := 0; ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		at := 4
		switch (line + " ")[:4] {
		case "MAIL":
			at = 0
		case "RCPT":
			at = 1 + rcpts
			ok[rcpts] = m.plan[0][0] == '2' && m.plan[at][0] == '2'
			rcpts++
		case "DATA":
			at = 3
		case "QUIT":
			return
		default:
			for line != ".\r\n" {
				if line, err = r.ReadString('\n'); err != nil {
					return
				}
			}
		}
		if m.plan[at] == "cut" {
			return
		}
		if at == 4 && m.plan[4] == "250 ok" {
			m.taken = ok
		}
		say(m.plan[at])
		if m.plan[at] == "421 bye" {
			return
		}
	}
}

func TestHello(t *testing.T) {
	for name, c := range map[string]struct {
		script []string
		want   string
	}{
		"helo":         {[]string{"S: 220 mx", "C: EHLO us.example", "S: 502 what?", "C: HELO us.example", "S: 250 mx hi"}, ""},
		"late":         {[]string{"S: 450 4.7.1 later"}, "4.7.1 host mx[192.0.2.1] refused to talk to me: 450 4.7.1 later"},
		"unwelcome":    {[]string{"S: 554 5.7.1 no"}, "4.7.1 host mx[192.0.2.1] refused to talk to me: 554 5.7.1 no"},
		"ehlo later":   {[]string{"S: 220 mx", "C: EHLO us.example", "S: 421 full"}, "4.0.0 host mx[192.0.2.1] refused to talk to me: 421 full"},
		"both refused": {[]string{"S: 220 mx", "C: EHLO us.example", "S: 550 no", "C: HELO us.example", "S: 550 5.7.1 no"}, "5.7.1 host mx[192.0.2.1] refused to talk to me: 550 5.7.1 no"},
		"354":          {[]string{"S: 354 mx"}, "4.5.0 host mx[192.0.2.1] refused to talk to me: 354 mx"},
		"cut":          {[]string{"X"}, "4.4.2 lost connection with mx[192.0.2.1] while receiving the initial server greeting"},
		"cut in ehlo":  {[]string{"S: 220 mx", "C: EHLO us.example", "R: 250-mx\r\n", "X"}, "4.4.2 lost connection with mx[192.0.2.1] while performing the EHLO handshake"},
		"not a mail server": {[]string{"S: HTTP/1.1 400 Bad Request"},
			`4.5.0 host mx[192.0.2.1] sent a malformed reply "HTTP/1.1 400 Bad Request" while receiving the initial server greeting`},
	} {
		t.Run(name, func(t *testing.T) {
			client, wait := dial(t, Options{}, c.script...)
			got := ""
			if err := client.Hello(t.Context()); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			wait()
		})
	}
}

func TestExtensions(t *testing.T) {
	all := Extensions{Pipelining: true, EightBitMIME: true, SMTPUTF8: true, DSN: true, Size: true, MaxSize: 1000}
	if x := parseExtensions([]string{"pipelining", "8BITMIME", "SmtpUtf8", "DSN x", "SIZE 1000", "", "STARTTLS"}); x != all {
		t.Errorf("%+v", x)
	}
	for _, s := range []string{"SIZE", "SIZE 0", "SIZE -1", "SIZE x", "SIZE 99999999999999999999"} {
		if x := parseExtensions([]string{s}); x != (Extensions{Size: true}) {
			t.Errorf("%s: %+v", s, x)
		}
	}
}

func TestParameters(t *testing.T) {
	m := message(t, "x\r\n", "u@b.example", "w@b.example", "é@b.example", `"a> SIZE=5 <x"@b.example`)
	m.Return, m.EnvID, m.Body = dsn.ReturnHeaders, "id 1", envelope.Body8BitMIME
	m.Recipients[0].Notify = dsn.NotifySuccess | dsn.NotifyDelay
	m.Recipients[0].ORCPT = dsn.OriginalRecipient{Type: "rfc822", Address: "o+x@b.example"}
	m.Recipients[1].Original = mailbox(t, "alias@b.example")
	m.Recipients[2].ORCPT = dsn.OriginalRecipient{Type: "utf-8", Address: "é@b.example"}
	client, wait := dial(t, Options{}, "S: 220 mx", "C: EHLO us.example", "S: 250-mx", "S: 250-DSN", "S: 250-SMTPUTF8", "S: 250-8BITMIME", "S: 250-PIPELINING", "S: 250 SIZE 100",
		"C: MAIL FROM:<s@a.example> SIZE=3 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=id+201",
		"C: RCPT TO:<u@b.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;o+2Bx@b.example",
		"C: RCPT TO:<w@b.example> ORCPT=rfc822;alias@b.example",
		`C: RCPT TO:<é@b.example> ORCPT=utf-8;\x{E9}@b.example`,
		`C: RCPT TO:<"a> SIZE=5 <x"@b.example>`, "C: DATA", "S: 250 ok", "S: 250 ok", "S: 250 ok", "S: 250 ok", "S: 250 ok", "S: 354 go", "D", "S: 250 ok")
	hello(t, client)
	if got, want := show(client.Send(t.Context(), m)), strings.Repeat("2.0.0 250 ok\n", 4); got != want {
		t.Error(got)
	}
	wait()
}

// TestPutOff: what a server offers that has put EHLO off is not known for good.
func TestPutOff(t *testing.T) {
	for code, status := range map[string]string{"450": "4.6.7", "502": "5.6.7"} {
		client, wait := dial(t, Options{}, script(plain[:2], "S: "+code+" no", "C: HELO us.example", "S: 250 mx",
			"C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: DATA", "S: 354 go", "D", "S: 250 ok")...)
		hello(t, client)
		m := message(t, "Subject: é\r\n\r\n", "u@b.example")
		m.SMTPUTF8 = true
		if got := show(client.Send(t.Context(), m)); got != status+" SMTPUTF8 is required, but was not offered by host mx[192.0.2.1]\n" {
			t.Errorf("%s: %s", code, got)
		}
		if got := show(client.Send(t.Context(), message(t, "x\r\n", "u@b.example"))); got != "2.0.0 250 ok\n" {
			t.Errorf("%s: %s", code, got)
		}
		wait()
	}
}

func TestCannotBeSent(t *testing.T) {
	const refused = "5.6.7 SMTPUTF8 is required, but was not offered by host mx[192.0.2.1]\n"
	ascii, utf8 := message(t, "Subject: x\r\n\r\né\r\n", "u@b.example"), message(t, "Subject: é\r\n\r\n", "u@b.example")
	ascii.SMTPUTF8, utf8.SMTPUTF8 = true, true
	sender := message(t, "x\r\n", "u@b.example")
	sender.Sender = mailbox(t, "é@a.example")
	client, wait := dial(t, Options{}, script(plain[:2], "S: 250-mx", "S: 250 SIZE 1000",
		"C: MAIL FROM:<s@a.example> SIZE=18", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: DATA", "S: 354 go", "D", "S: 250 ok",
		"C: MAIL FROM:<s@a.example> SIZE=3", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: DATA", "S: 354 go", "D", "S: 250 ok")...)
	hello(t, client)
	for i, c := range []struct {
		m    *Message
		want string
	}{
		{utf8, refused},
		{sender, refused},
		{ascii, "2.0.0 250 ok\n"},
		{message(t, "x\r\n", "é@b.example"), refused},
		{message(t, "x\r\n", "é@b.example", "u@b.example"), refused + "2.0.0 250 ok\n"},
		{message(t, strings.Repeat("x", 1001), "u@b.example"), "5.3.4 message size 1001 exceeds size limit 1000 of server mx[192.0.2.1]\n"},
	} {
		if got := show(client.Send(t.Context(), c.m)); got != c.want {
			t.Errorf("%d: got %q, want %q", i, got, c.want)
		}
	}
	wait()
}

func TestReuse(t *testing.T) {
	client, wait := dial(t, Options{}, script(pipelined,
		"C: MAIL FROM:<s@a.example> SIZE=3", "C: RCPT TO:<u@b.example>", "C: DATA", "S: 250 ok", "S: 250 ok", "S: 354 go", "D", "S: 250 one",
		"C: MAIL FROM:<s@a.example> SIZE=3", "C: RCPT TO:<u@b.example>", "C: DATA", "S: 250 ok", "S: 550 no", "S: 554 no",
		"C: RSET", "C: MAIL FROM:<s@a.example> SIZE=3", "C: RCPT TO:<u@b.example>", "C: DATA", "S: 250 ok", "S: 250 ok", "S: 250 ok", "S: 354 go", "D", "S: 250 two",
		"C: MAIL FROM:<s@a.example> SIZE=3", "C: RCPT TO:<u@b.example>", "C: DATA", "S: 250 ok", "S: 250 ok", "S: 354 go", "D", "S: 554 spam", // and it keeps the envelope
		"C: RSET", "C: MAIL FROM:<s@a.example> SIZE=3", "C: RCPT TO:<u@b.example>", "C: DATA", "S: 250 ok", "S: 250 ok", "S: 250 ok", "S: 354 go", "D", "S: 250 three")...)
	hello(t, client)
	for _, want := range []string{
		"2.0.0 250 one\n", "5.0.0 host mx[192.0.2.1] said: 550 no (in reply to RCPT TO command)\n", "2.0.0 250 two\n",
		"5.0.0 host mx[192.0.2.1] said: 554 spam (in reply to end of DATA command)\n", "2.0.0 250 three\n",
	} {
		if !client.Quiet() {
			t.Error("not quiet")
		}
		if got := show(client.Send(t.Context(), message(t, "x\r\n", "u@b.example"))); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	wait()
}

func TestNotQuiet(t *testing.T) {
	for _, last := range [][]string{{"X"}, {"S: 421 idle", "X"}} {
		client, wait := dial(t, Options{}, script(plain, last...)...)
		hello(t, client)
		for client.Quiet() { // until what the server did arrives
			time.Sleep(time.Millisecond)
		}
		results, err := client.Send(t.Context(), message(t, "x\r\n", "u@b.example"))
		e, ok := err.(*Error)
		if !ok || !e.Unanswered || results[0].Status.Class() != dsn.Transient {
			t.Errorf("%v, %v", results, err)
		}
		wait()
	}
}

// TestRefusedWithin: a server that refuses in the middle of the content and
// closes the connection is heard.
func TestRefusedWithin(t *testing.T) {
	here, there := net.Pipe()
	go func() {
		s := &server{conn: there, r: bufio.NewReader(there)}
		s.play(script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: DATA", "S: 354 go", "B: 10", "X"))
	}()
	c := New(closing{here, "552 5.3.4 too big\r\n"}, Options{Peer: "mx", Helo: "us.example"})
	hello(t, c)
	got := show(c.Send(t.Context(), message(t, strings.Repeat("x", 1<<20), "u@b.example")))
	want := "5.3.4 host mx said: 552 5.3.4 too big (while sending message body)\nerror: 5.3.4 host mx said: 552 5.3.4 too big (while sending message body)\n"
	if got != want {
		t.Error(got)
	}
}

// closing is a connection on which the other side left something to read
// before it closed it.
type closing struct {
	net.Conn
	left string
}

func (c closing) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF {
		return copy(p, c.left), nil
	}
	return n, err
}

// TestUnreadable: content that cannot be read to its end is not ended.
func TestUnreadable(t *testing.T) {
	client, wait := dial(t, Options{}, script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: DATA", "S: 354 go")...)
	hello(t, client)
	m := message(t, "", "u@b.example")
	m.Content = io.NewSectionReader(broken{}, 0, 100000)
	got := show(client.Send(t.Context(), m))
	if want := "4.3.0 read the message: disk\nerror: read the message: disk\n"; got != want {
		t.Error(got)
	}
	wait() // nothing has come, not even QUIT
}

type broken struct{}

func (broken) ReadAt(p []byte, off int64) (int, error) {
	return 0, fmt.Errorf("disk")
}

func TestTimeouts(t *testing.T) {
	for name, c := range map[string]struct {
		script []string
		after  time.Duration
		want   string
	}{
		"greeting": {nil, 300 * time.Second, "4.4.2 conversation with mx timed out while receiving the initial server greeting"},
		"ehlo":     {plain[:2], 300 * time.Second, "4.4.2 conversation with mx timed out while performing the EHLO handshake"},
		"mail":     {script(plain, "C: MAIL FROM:<s@a.example>", "R: 25"), 300 * time.Second, "4.4.2 conversation with mx timed out while sending MAIL FROM"},
		"data":     {script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: DATA"), 120 * time.Second, "4.4.2 conversation with mx timed out while sending DATA command"},
		"body":     {script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: DATA", "S: 354 go", "B: 10"), 180 * time.Second, "4.4.2 conversation with mx timed out while sending message body"},
		"end": {script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: DATA", "S: 354 go", "D"), 600 * time.Second,
			"4.4.2 conversation with mx timed out while sending end of data -- message may be sent more than once"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got, took := hang(t.Context(), t, c.script)
				if got != c.want || took != c.after {
					t.Errorf("%v after %v, want %v after %v", got, took, c.want, c.after)
				}
			})
		})
	}
}

// hang plays a script and then nothing, and returns what the client makes of it.
func hang(ctx context.Context, t *testing.T, steps []string) (string, time.Duration) {
	here, there := net.Pipe()
	release := make(chan struct{})
	gone := make(chan struct{})
	go func() {
		s := &server{conn: keep{there}, r: bufio.NewReader(there)}
		s.play(append(steps[:len(steps):len(steps)], "X"))
		<-release
		_ = there.Close()
		close(gone)
	}()
	c := New(here, Options{Peer: "mx", Helo: "us.example"})
	start := time.Now()
	err := c.Hello(ctx)
	if err == nil {
		_, err = c.Send(ctx, message(t, strings.Repeat("x\r\n", 50000), "u@b.example"))
	}
	took := time.Since(start)
	c.Quit()
	close(release)
	<-gone
	return fmt.Sprint(err), took
}

// keep is a connection that the script does not close.
type keep struct{ net.Conn }

func (keep) Close() error { return nil }

func TestInterrupted(t *testing.T) {
	for name, c := range map[string]struct {
		script []string
		after  time.Duration
		want   string
	}{
		"greeting": {nil, time.Second, "4.3.2 delivery to mx was interrupted while receiving the initial server greeting"},
		"body":     {script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: DATA", "S: 354 go", "B: 10"), time.Second, "4.3.2 delivery to mx was interrupted while sending message body"},
		"end": {script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: DATA", "S: 354 go", "D"), 31 * time.Second,
			"4.3.2 delivery to mx was interrupted while sending end of data -- message may be sent more than once"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				got, took := hang(ctx, t, c.script)
				if got != c.want || took != c.after {
					t.Errorf("%v after %v, want %v after %v", got, took, c.want, c.after)
				}
			})
		})
	}
}

// playThen has a server play lines and go on with then, and ends the connection. The
// result is closed when it has gone.
func playThen(conn net.Conn, lines []string, then func()) (gone chan struct{}) {
	gone = make(chan struct{})
	go func() {
		defer close(gone)
		s := &server{conn: keep{conn}, r: bufio.NewReader(conn)}
		s.play(lines)
		then()
		_ = conn.Close()
	}()
	return gone
}

// TestGrace: who is interrupted waits for the replies to a message, but for all
// together so long: who asked does not wait longer, and would not hear of those that
// came.
func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		gone := playThen(there, script(lmtp, "C: MAIL FROM:<s@a.example>", "C: RCPT TO:<u@b.example>", "C: RCPT TO:<v@b.example>", "C: RCPT TO:<w@b.example>", "C: DATA",
			"S: 250 ok", "S: 250 ok", "S: 250 ok", "S: 250 ok", "S: 354 go", "D", "X"), func() {
			cancel()
			for range 3 {
				time.Sleep(20 * time.Second)
				_, _ = io.WriteString(there, "250 saved\r\n")
			}
		})
		c := New(here, Options{Peer: "mx", Helo: "us.example", LMTP: true})
		hello(t, c)
		start := time.Now()
		got := show(c.Send(ctx, message(t, "x\r\n", "u@b.example", "v@b.example", "w@b.example")))
		const lost = "4.3.2 delivery to mx was interrupted while sending end of data -- message may be sent more than once"
		if want := "2.0.0 250 saved\n" + strings.Repeat(lost+" (uncertain)\n", 2) + "error: " + lost + "\n"; got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
		if took := time.Since(start); took != endGrace {
			t.Error(took)
		}
		c.Quit()
		_ = here.Close()
		<-gone
	})
}

// TestManyRecipients: more commands than any buffer holds, to a server that
// reads nothing while it cannot write.
func TestManyRecipients(t *testing.T) {
	const n = 5000
	m := message(t, "x\r\n")
	steps := script(pipelined, "C: MAIL FROM:<s@a.example> SIZE=3", "S: 250 ok")
	for i := range n {
		address := fmt.Sprintf("user%d@%s.example", i, strings.Repeat("x", 60))
		m.Recipients = append(m.Recipients, envelope.Recipient{Address: mailbox(t, address)})
		steps = append(steps, "C: RCPT TO:<"+address+">", "S: 250 "+strings.Repeat("y", 400))
	}
	client, wait := dial(t, Options{}, append(steps, "C: DATA", "S: 354 go", "D", "S: 250 ok")...)
	hello(t, client)
	results, err := client.Send(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	for i := range results {
		if results[i].Text != "250 ok" {
			t.Fatalf("%d: %v", i, results[i])
		}
	}
	wait()
}

func TestLongContent(t *testing.T) {
	content := strings.Repeat(".line of text, with a dot\r\n", 40000)
	client, wait := dial(t, Options{LineLength: 998}, script(plain, "C: MAIL FROM:<s@a.example>", "S: 250 ok", "C: RCPT TO:<u@b.example>", "S: 250 ok", "C: DATA", "S: 354 go", "D", "S: 250 ok")...)
	hello(t, client)
	if got := show(client.Send(t.Context(), message(t, content, "u@b.example"))); got != "2.0.0 250 ok\n" {
		t.Error(got)
	}
	if s := wait(); len(s.data) != 1 || s.data[0] != content {
		t.Error("the content differs")
	}
}
