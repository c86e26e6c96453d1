package smtpserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/dsn"
)

// recorder accepts what its fields do not forbid, and keeps what came.
type recorder struct {
	stored  []string
	aborted int
	open    int
	broken  bool // writes fail
	refused []string
}

func (*recorder) Connect(*Session) *Reply { return nil }
func (*recorder) Helo(_ *Session, name string) *Reply {
	if name == "a(b" {
		return &Reply{550, "5.7.1", "not as it came"}
	}
	return nil
}
func (*recorder) Mail(_ *Session, m *Mail) *Reply {
	if m.From.Local() == "bad" {
		return &Reply{550, "5.7.1", "no\r\n250 injected"}
	}
	return nil
}
func (*recorder) Rcpt(_ *Session, _ *Mail, r *Rcpt) *Reply {
	if r.To.Local() == "nobody" {
		return &Reply{550, "5.1.1", "User unknown"}
	}
	return nil
}

func (p *recorder) Data(_ *Session, m *Mail, rcpts []Rcpt) (Sink, *Reply) {
	if m.From.Local() == "full" {
		return nil, &Reply{452, "4.3.1", "Insufficient system storage"}
	}
	var to []string
	for _, r := range rcpts {
		to = append(to, r.To.String())
	}
	p.open++
	return &record{p: p, head: m.From.Path() + " " + strings.Join(to, ",") + "\n"}, nil
}

type record struct {
	p    *recorder
	head string
	bytes.Buffer
}

func (r *record) Write(b []byte) (int, error) {
	if r.p.broken {
		return 0, errors.New("no space")
	}
	return r.Buffer.Write(b)
}

func (r *record) Commit() Reply {
	r.p.open--
	if r.p.broken {
		return Reply{451, "4.3.0", "Error: queue file write error"}
	}
	r.p.stored = append(r.p.stored, r.head+r.String())
	return Reply{250, "2.0.0", "Ok: queued as X"}
}

func (p *recorder) Refused(_ *Session, r Refusal) {
	p.refused = append(p.refused, fmt.Sprintf("%s %d", r.Verb, r.Reply.Code))
}

func (r *record) Abort() { r.p.open--; r.p.aborted++ }

var testConfig = Config{Hostname: "mx.example", MessageSize: 1000, Recipients: 3, SoftErrors: 50, HardErrors: 60, CommandTimeout: time.Minute}

// talk feeds script to a session, in pieces of the given size, waiting for
// replies where the script has a "|". It returns all that the server said.
func talk(t testing.TB, cfg Config, p Policy, script string, piece int) (string, Stats) {
	t.Helper()
	client, server := pair(t)
	done := make(chan Stats, 1)
	go func() {
		s := Serve(server, cfg, p)
		server.Close()
		done <- s
	}()
	replies := make(chan []byte, 1000)
	go func() {
		defer close(replies)
		for {
			b := make([]byte, 4096)
			n, err := client.Read(b)
			if err != nil {
				return
			}
			replies <- b[:n]
		}
	}()
	var said bytes.Buffer
	wait := func(n int) { // for n replies in all
		for n > len(strings.Fields(codes(said.String()))) || !bytes.HasSuffix(said.Bytes(), []byte("\r\n")) {
			b, ok := <-replies
			if !ok {
				return
			}
			said.Write(b)
		}
	}
	wait(1)
	for i, part := range strings.Split(script, "|") {
		if i > 0 {
			wait(i + 1)
		}
		for b := []byte(part); len(b) > 0; {
			n := min(piece, len(b))
			if _, err := client.Write(b[:n]); err != nil {
				break // the server has ended the session
			}
			b = b[n:]
		}
	}
	_ = client.(*net.TCPConn).CloseWrite()
	for b := range replies {
		said.Write(b)
	}
	return said.String(), <-done
}

func pair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// readGreeting waits for the greeting, as clients must, or for another reply.
func readGreeting(t testing.TB, client net.Conn) string {
	t.Helper()
	b := make([]byte, 512)
	n, err := client.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// codes reduces a transcript to its codes; continuation lines are left out.
func codes(said string) string {
	var out []string
	for line := range strings.SplitSeq(strings.TrimSuffix(said, "\r\n"), "\r\n") {
		if len(line) > 3 && line[3] == '-' {
			continue
		}
		out = append(out, line[:min(3, len(line))])
	}
	return strings.Join(out, " ")
}

const (
	begin = "EHLO c\r\n|MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
	open  = begin + "DATA\r\n|||"
)

func TestDialogues(t *testing.T) {
	for _, tt := range []struct{ name, script, codes, stored string }{
		{"plain", open + "x\r\n..y\r\n.\r\n|QUIT\r\n", "220 250 250 250 354 250 221", "<a@b> c@d\nx\r\n.y\r\n"},
		{"empty", open + ".\r\n|QUIT\r\n", "220 250 250 250 354 250 221", "<a@b> c@d\n"},
		{"two", open + "1\r\n.\r\n|MAIL FROM:<>\r\nRCPT TO:<postmaster>\r\nDATA\r\n|||2\r\n.\r\nQUIT\r\n", "220 250 250 250 354 250 250 250 354 250 221",
			"<a@b> c@d\n1\r\n|<> postmaster\n2\r\n"},
		{"bare LF ends nothing", open + "x\n.\r\nMAIL FROM:<evil@x>\r\n.\r\n", "220 250 250 250 354 521", ""},
		{"bare CR", open + "x\r.\r\n.\r\n", "220 250 250 250 354 521", ""},
		{"fault 6: CR CR LF", open + "x\r\r\n.\r\n", "220 250 250 250 354 521", ""},
		{"fault 7: dot CR text", open + ".\rabc\r\n.\r\n", "220 250 250 250 354 521", ""},
		{"fault 8: a long line", open + strings.Repeat("x", 900) + "\r\n.\r\nQUIT\r\n", "220 250 250 250 354 250 221", "<a@b> c@d\n" + strings.Repeat("x", 900) + "\r\n"},
		{"fault 4: a second MAIL", "EHLO c\r\n|MAIL FROM:<a@b>\r\n|MAIL FROM:<c@d>\r\n", "220 250 250 503", ""},
		{"fault 1: cut BDAT", begin + "BDAT 1000 LAST\r\nonly this", "220 250 250 250", ""},
		{"a refused message is read to its end", open + "x\ny\r\n.\nz\n.\r\n..\r\n\r.\r\n.\r\nMAIL FROM:<evil@x>\r\n", "220 250 250 250 354 521", ""},
		{"lost in DATA", open + "x\r\n", "220 250 250 250 354", ""},
		{"too big", open + strings.Repeat("12345678\r\n", 101) + ".\r\n|QUIT\r\n", "220 250 250 250 354 552 221", ""},
		{"announced too big", "EHLO c\r\n|MAIL FROM:<a@b> SIZE=1001\r\n", "220 250 552", ""},
		{"announced far too big", "EHLO c\r\n|MAIL FROM:<a@b> SIZE=99999999999999999999\r\nMAIL FROM:<a@b> SIZE=100000000000000000000\r\n", "220 250 552 501", ""},
		{"BDAT", begin + "BDAT 3\r\nx\r\nBDAT 4 LAST\r\n.y\r\nQUIT\r\n", "220 250 250 250 250 250 221", "<a@b> c@d\nx\r\n.y\r\n"},
		{"BDAT without newline at the end", begin + "BDAT 2 LAST\r\nxyQUIT\r\n", "220 250 250 250 250 221", "<a@b> c@d\nxy\r\n"},
		{"BDAT cut between CR and LF", begin + "BDAT 2\r\nx\rBDAT 1 LAST\r\n\nQUIT\r\n", "220 250 250 250 250 250 221", "<a@b> c@d\nx\r\n"},
		{"BDAT 0 LAST", begin + "BDAT 3\r\nx\r\nBDAT 0 LAST\r\n", "220 250 250 250 250 250", "<a@b> c@d\nx\r\n"},
		{"BDAT without RCPT eats its octets", "EHLO c\r\n|BDAT 6\r\nNOOP\r\nQUIT\r\n", "220 250 503 221", ""},
		{"BDAT malformed", begin + "BDAT x\r\nNOOP\r\n", "220 250 250 250 521", ""},
		{"BDAT bare LF", begin + "BDAT 2 LAST\r\nx\nQUIT\r\n", "220 250 250 250 521", ""},
		{"BDAT too big", begin + "BDAT 1001\r\n" + strings.Repeat("x", 1001) + "BDAT 1 LAST\r\nxRSET\r\nQUIT\r\n", "220 250 250 250 552 552 250 221", ""},
		{"BDAT refused ends with LAST", "EHLO c\r\n|MAIL FROM:<full@b>\r\nRCPT TO:<c@d>\r\nBDAT 1\r\nxBDAT 1 LAST\r\nxBDAT 1 LAST\r\nxMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 1 LAST\r\nx",
			"220 250 250 250 452 452 503 250 250 250", "<a@b> c@d\nx\r\n"},
		{"DATA within BDAT", begin + "BDAT 1\r\nxDATA\r\n", "220 250 250 250 250 503", ""},
		{"RCPT within BDAT", begin + "BDAT 1\r\nxRCPT TO:<e@f>\r\n", "220 250 250 250 250 503", ""},
		{"MAIL within BDAT", begin + "BDAT 1\r\nxMAIL FROM:<e@f>\r\n", "220 250 250 250 250 503", ""},
		{"EHLO resets", begin + "EHLO c\r\n|||DATA\r\n", "220 250 250 250 250 503", ""},
		{"RSET resets", begin + "RSET\r\nDATA\r\n", "220 250 250 250 250 503", ""},
		{"order", "RCPT TO:<a@b>\r\nDATA\r\nNOOP\r\n", "220 503 503 250", ""},
		{"no valid recipient", "EHLO c\r\n|MAIL FROM:<a@b>\r\nRCPT TO:<nobody@d>\r\nDATA\r\n", "220 250 250 550 554", ""},
		{"some valid recipients", "EHLO c\r\n|MAIL FROM:<a@b>\r\nRCPT TO:<nobody@d>\r\nRCPT TO:<c@d>\r\nDATA\r\n||||x\r\n.\r\n", "220 250 250 550 250 354 250", "<a@b> c@d\nx\r\n"},
		{"too many recipients", begin + "RCPT TO:<2@d>\r\nRCPT TO:<3@d>\r\nRCPT TO:<4@d>\r\n", "220 250 250 250 250 250 452", ""},
		{"pipelined behind DATA", begin + "DATA\r\nx\r\n.\r\nMAIL FROM:<a@b>\r\n", "220 250 250 250 554", ""},
		{"pipelined behind EHLO", "EHLO c\r\nMAIL FROM:<a@b>\r\n", "220 554", ""},
		{"refusal at DATA", "EHLO c\r\n|MAIL FROM:<full@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n|||QUIT\r\n", "220 250 250 250 452 221", ""},
		{"injection by a policy's text", "EHLO c\r\n|MAIL FROM:<bad@b>\r\n", "220 250 550", ""},
		{"unknown", "XYZZY\r\n\r\nEXPN x\r\nETRN x\r\nSTARTTLS\r\nAUTH PLAIN\r\n", "220 500 500 502 502 502 502", ""},
		{"HTTP", "GET / HTTP/1.1\r\nMAIL FROM:<a@b>\r\n", "220 221", ""},
		{"header", "EHLO c\r\n|MAIL FROM:<a@b>\r\nSubject: x\r\nNOOP\r\n", "220 250 250 221", ""},
		{"TLS", "\x16\x03\x01\x02\r\nNOOP\r\n", "220 221", ""},
		{"harmless", "NOOP\r\nHELP\r\nVRFY x\r\nVRFY\r\nRSET x\r\nQUIT x\r\n", "220 250 214 252 501 501 501", ""},
		{"a comment for a name", "EHLO a(b\r\n|MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n|||x\r\n.\r\n", "220 250 250 250 354 250", "<a@b> c@d\nx\r\n"},
		{"HELO syntax", "HELO\r\nHELO a b\r\nEHLO a\x00b\r\n", "220 501 501 501", ""},
		{"bare LF command", "NOOP\n", "220 521", ""},
		{"long command", "NOOP " + strings.Repeat("x", 20000) + "\r\nNOOP\r\n", "220 500 250", ""},
		{"long command, its end in two pieces", "NOOP " + strings.Repeat("x", readBuffer-len("NOOP \r")) + "\r\nNOOP\r\n", "220 500 250", ""},
		{"bare LF long command", "NOOP " + strings.Repeat("x", maxCommand) + "\nNOOP\r\n", "220 521", ""},
		{"bare LF very long command", "NOOP " + strings.Repeat("x", 20000) + "\nNOOP\r\n", "220 521", ""},
		{"parameters", "EHLO c\r\n|MAIL FROM:<a@b> SIZE=5 SIZE=6\r\nMAIL FROM:<a@b> X=1\r\nMAIL FROM:<a@b> SIZE\r\nMAIL FROM:<a@b> BODY=9BIT\r\nMAIL FROM:<a@b>SIZE=1\r\n" +
			"MAIL FROM:<a@b> SMTPUTF8=x\r\nMAIL FROM:<a@b> RET=ALL\r\nMAIL FROM:<a@b> ENVID=+0A\r\nMAIL FROM:\r\nMAIL FROM:<a@b> BODY=8BITMIME RET=HDRS ENVID=q+2B SIZE=9\r\n",
			"220 250 501 555 501 501 501 501 501 501 501 250", ""},
		{"no brackets", "EHLO c\r\n|MAIL FROM:a@b SIZE=9\r\nRCPT TO: c@d NOTIFY=DELAY\r\nRCPT TO:c@d>\r\nRCPT TO:c\r\nRCPT TO:x y\r\nDATA\r\n||||||x\r\n.\r\n",
			"220 250 250 250 501 501 501 354 250", "<a@b> c@d\nx\r\n"},
		{"recipient parameters", "EHLO c\r\n|MAIL FROM:<a@b>\r\nRCPT TO:<c@d> NOTIFY=NEVER,DELAY\r\nRCPT TO:<c@d> ORCPT=x\r\nRCPT TO:<c@d> SIZE=1\r\nRCPT TO:<>\r\nRCPT TO:<c>\r\nRCPT TO:<c@d> NOTIFY=DELAY ORCPT=rfc822;c@d\r\n",
			"220 250 250 501 501 555 501 501 250", ""},
		{"nobody's postmaster", "EHLO c\r\n|MAIL FROM:<a@b> SMTPUTF8\r\nRCPT TO:<po\u017ftmaster>\r\nRCPT TO:<PostMaster>\r\n", "220 250 250 501 250", ""},
		{"UTF-8", "EHLO c\r\n|MAIL FROM:<ü@b>\r\nMAIL FROM:<ü@b> SMTPUTF8\r\nRCPT TO:<é@d>\r\nRCPT TO:<\xff@d>\r\n", "220 250 550 250 250 501", ""},
	} {
		for _, piece := range []int{1 << 20, 1} {
			if piece == 1 && strings.Contains(tt.name, "pipelined") {
				continue // what has not arrived cannot be noticed
			}
			p := &recorder{}
			said, _ := talk(t, testConfig, p, tt.script, piece)
			if got := codes(said); got != tt.codes {
				t.Errorf("%s, pieces of %d: codes %s\n                                 want %s\n%s", tt.name, piece, got, tt.codes, said)
			}
			if got := strings.Join(p.stored, "|"); got != tt.stored {
				t.Errorf("%s, pieces of %d: stored %q, want %q", tt.name, piece, got, tt.stored)
			}
			if p.open != 0 {
				t.Errorf("%s, pieces of %d: %d messages neither committed nor aborted", tt.name, piece, p.open)
			}
		}
	}
}

// weighing notes how much memory is in use when all recipients are there.
type weighing struct {
	recorder
	heap uint64
}

func (p *weighing) Data(s *Session, m *Mail, rcpts []Rcpt) (Sink, *Reply) {
	var stats runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&stats)
	p.heap = stats.HeapAlloc
	return p.recorder.Data(s, m, rcpts)
}

// TestPaddedRecipients: a recipient keeps no more than what it says.
func TestPaddedRecipients(t *testing.T) {
	const n = 1000
	cfg := testConfig
	cfg.Recipients = n
	weigh := func(padding string) int64 {
		p := &weighing{}
		script := "EHLO c\r\n|MAIL FROM:<a@b>\r\n|" + strings.Repeat("RCPT TO:<c@d>"+padding+"\r\n|", n) + "DATA\r\n|x\r\n.\r\n"
		if said, _ := talk(t, cfg, p, script, 1<<20); p.heap == 0 {
			t.Fatalf("%.200s", said)
		}
		return int64(p.heap) - int64(len(script))
	}
	if plain, padded := weigh(""), weigh(strings.Repeat(" ", 2000)); padded-plain > n*1000 {
		t.Errorf("%d octets more for each recipient", (padded-plain)/n)
	}
}

// TestReplies holds the texts that other programs know.
func TestReplies(t *testing.T) {
	said, stats := talk(t, testConfig, &recorder{}, open+".\r\n|QUIT\r\n", 1<<20)
	want := "220 mx.example ESMTP Posthouse\r\n" +
		"250-mx.example\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-DSN\r\n250-SMTPUTF8\r\n250 CHUNKING\r\n" +
		"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n250 2.0.0 Ok: queued as X\r\n221 2.0.0 Bye\r\n"
	if said != want {
		t.Errorf("got %s", said)
	}
	if s := stats.Summary(); s != "ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5" || stats.Cause != "" {
		t.Errorf("%s, %q", s, stats.Cause)
	}
}

// session is a session with a client that waits for each reply.
type session struct {
	client net.Conn
	said   string
	stats  chan Stats
}

func newSession(t testing.TB, cfg Config, p Policy) *session {
	t.Helper()
	client, server := pair(t)
	return beginSession(t, cfg, p, client, server)
}

func beginSession(t testing.TB, cfg Config, p Policy, client, server net.Conn) *session {
	t.Helper()
	s := &session{client: client, stats: make(chan Stats, 1)}
	go func() {
		stats := Serve(server, cfg, p)
		server.Close()
		s.stats <- stats
	}()
	s.said = readGreeting(t, client)
	for _, line := range []string{"HELO c\r\n", "MAIL FROM:<a@b>\r\n", "RCPT TO:<c@d>\r\n"} {
		if _, err := io.WriteString(client, line); err != nil {
			t.Fatal(err)
		}
		s.said += readGreeting(t, client)
	}
	return s
}

// TestReadOn: a client in the middle of a large message that is refused gets to
// the reply, although it does not look for it before it has sent everything.
func TestReadOn(t *testing.T) {
	rest := strings.Repeat(strings.Repeat("x", 78)+"\r\n", 100000) // more than sockets hold, and more than end reads
	cfg := testConfig
	cfg.MessageSize = 100 << 20
	cfg.CommandTimeout = time.Minute
	for _, bare := range []string{"x\n", "x\ry\r\n"} {
		for _, chunks := range []bool{false, true} {
			p := &recorder{}
			s := newSession(t, cfg, p)
			script := bare + rest + ".\r\n"
			if chunks {
				script = fmt.Sprintf("BDAT %d LAST\r\n", len(script)) + script
			} else {
				io.WriteString(s.client, "DATA\r\n")
				s.said += readGreeting(t, s.client)
			}
			_, err := io.WriteString(s.client, script)
			reply, _ := io.ReadAll(s.client)
			s.client.Close()
			stats := <-s.stats
			if err != nil || !strings.HasPrefix(string(reply), "521 5.5.2 mx.example Error: bare <") || len(p.stored) > 0 || p.open != 0 {
				t.Errorf("%.9q, BDAT %v: %v, %s, %+v", bare, chunks, err, reply, stats)
			}
			if got := strings.Join(p.refused, " "); got != "END-OF-MESSAGE 521" {
				t.Errorf("%.9q, BDAT %v: the log has %s", bare, chunks, got)
			}
		}
	}
}

// TestReadOnEnd: what is read on is the message, up to its end and no further.
func TestReadOnEnd(t *testing.T) {
	for _, tt := range []struct{ piece, rest, left string }{
		{"x\n", ".\r\nx\r\n.\r\nEND", "END"},
		{"x\ry\r\n", ".\r\nEND", "END"},
		{"x\ry\r", "\n.\r\nEND", "END"},
		{"x\ry", "\r\n.\r\nEND", "END"},
		{"x\n", "\n.\n\r\n.\n\n.\r\n\r\n..\r\n\r.\r\n\r\n.\r\r\n.\r\nEND", "END"},
		{"x\n", "x", ""},
		{"x\n", strings.Repeat("x", 1001), "x"},
	} {
		e := &engine{in: &input{}, r: bufio.NewReader(strings.NewReader(tt.rest)), cfg: testConfig}
		e.readOn(bareIn([]byte(tt.piece), "LF").state)
		if left, err := io.ReadAll(e.r); err != nil || string(left) != tt.left {
			t.Errorf("%q, %.50q: left %q", tt.piece, tt.rest, left)
		}
	}
}

// TestReadOnBounds: who sends no end, or no end of it, gets the reply as well.
func TestReadOnBounds(t *testing.T) {
	cfg := testConfig
	cfg.CommandTimeout = 200 * time.Millisecond
	for name, last := range map[string]string{"an end of its own": "x\n.\n", "too much": strings.Repeat("x\n", 1000)} {
		synctest.Test(t, func(t *testing.T) { // however slow the machine is
			p := &recorder{}
			client, server := net.Pipe()
			s := beginSession(t, cfg, p, client, server)
			io.WriteString(s.client, "DATA\r\n")
			s.said += readGreeting(t, s.client)
			go io.WriteString(s.client, last) // and then it waits
			rest, _ := io.ReadAll(s.client)
			s.client.Close()
			stats := <-s.stats
			if got := codes(s.said + string(rest)); got != "220 250 250 250 354 521" || stats.Cause != "bare LF" || p.aborted != 1 {
				t.Errorf("%s: %s, %+v", name, got, stats)
			}
		})
	}
}

// TestChunkReplies: the replies to BDAT tell how much has come.
func TestChunkReplies(t *testing.T) {
	said, _ := talk(t, testConfig, &recorder{}, begin+"BDAT 3\r\nx\r\nBDAT 4 LAST\r\n.y\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 2 LAST\r\nxyQUIT\r\n", 1<<20)
	want := "\r\n250 2.0.0 Ok: 3 bytes\r\n250 2.0.0 Ok: 7 bytes queued as X\r\n250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n250 2.0.0 Ok: 2 bytes queued as X\r\n221 2.0.0 Bye\r\n"
	if !strings.HasSuffix(said, want) {
		t.Errorf("got %s", said)
	}
}

func TestBareNewlineAllowed(t *testing.T) {
	cfg := testConfig
	cfg.BareNewline = true
	p := &recorder{}
	said, _ := talk(t, cfg, p, "HELO c\n|MAIL FROM:<a@b>\n|RCPT TO:<c@d>\n|DATA\n|x\r\ny\nz\rz\n..\n.\n|QUIT\n", 1<<20)
	if codes(said) != "220 250 250 250 354 250 221" || len(p.stored) != 1 || p.stored[0] != "<a@b> c@d\nx\r\ny\r\nz\rz\r\n.\r\n" {
		t.Errorf("%s\n%q", said, p.stored)
	}
}

func TestErrorLimits(t *testing.T) {
	cfg := testConfig
	cfg.HardErrors = 3
	said, stats := talk(t, cfg, &recorder{}, "X\r\nX\r\nX\r\nX\r\n", 1<<20)
	if codes(said) != "220 500 500 421" || stats.Cause != "too many errors" {
		t.Errorf("%s, %q", said, stats.Cause)
	}
	cfg.HardErrors = 5
	said, _ = talk(t, cfg, &recorder{}, strings.Repeat("NOOP\r\n", maxJunk+6), 1<<20)
	if !strings.HasSuffix(said, "421 4.7.0 mx.example Error: too many errors\r\n") {
		t.Error("no end of NOOPs")
	}
}

func TestWriteError(t *testing.T) {
	p := &recorder{broken: true}
	said, _ := talk(t, testConfig, p, open+"x\r\n.\r\n|QUIT\r\n", 1<<20)
	if codes(said) != "220 250 250 250 354 451 221" || p.open != 0 {
		t.Error(said)
	}
}

// readable waits until something has come, and does not read it.
func readable(c net.Conn) error {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0
	})
}

// TestEarlyTalker: who does not wait for the greeting gets none.
func TestEarlyTalker(t *testing.T) {
	client, server := pair(t)
	io.WriteString(client, "EHLO c\r\n")
	stats := make(chan Stats, 1)
	go func() {
		if err := readable(server); err != nil {
			t.Error(err)
		}
		stats <- Serve(server, testConfig, &recorder{})
		server.Close()
	}()
	said, _ := io.ReadAll(client)
	if s := <-stats; string(said) != "554 5.5.0 Error: SMTP protocol synchronization\r\n" || s.Cause != "improper command pipelining" || s.After != "CONNECT" {
		t.Errorf("%q, %q after %q", said, s.Cause, s.After)
	}
}

// refusing refuses clients at once.
type refusing struct{ recorder }

func (*refusing) Connect(*Session) *Reply { return &Reply{421, "4.7.0", "too many connections"} }

// halfPipe has a sending side of its own, as TCP has.
type halfPipe struct{ net.Conn }

func (halfPipe) CloseWrite() error { return nil }

// TestRefusedAtOnce: who is refused at once keeps no place by not going away, nor by
// talking early.
func TestRefusedAtOnce(t *testing.T) {
	client, server := pair(t)
	io.WriteString(client, "x")
	if err := readable(server); err != nil {
		t.Fatal(err)
	}
	s := Serve(server, testConfig, &refusing{})
	client.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	// The end of what the server sends is what it would wait after.
	if said, err := io.ReadAll(client); s.Cause != "improper command pipelining" || codes(string(said)) != "554" || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("early: %q, %q, %v", s.Cause, said, err)
	}
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		begun := time.Now()
		stats := make(chan Stats, 1)
		go func() { stats <- Serve(halfPipe{server}, testConfig, &refusing{}) }()
		said := readGreeting(t, client)
		s := <-stats
		if took := time.Since(begun); said != "421 4.7.0 too many connections\r\n" || s.Cause != "refused" || took > 0 {
			t.Errorf("%q, %q after %v", said, s.Cause, took)
		}
	})
}

// TestSmuggling: nothing ends a message but CRLF.CRLF. What looks like it is
// refused, or a part of the message.
func TestSmuggling(t *testing.T) {
	ends := []string{"", "\n", "\r", "\r\n", "\r\r\n", "\n\r", "\n\n", "\x00", "\r\x00\n", "\r\n\x00", "\x00\r\n", "\u0085", "\u2028", "\v", "\f"}
	for _, before := range ends {
		for _, after := range ends {
			if strings.HasSuffix(before, "\r\n") && before != "\r\r\n" && strings.HasPrefix(after, "\r\n") {
				continue // this is the end
			}
			for _, piece := range []int{1 << 20, 1} {
				p := &recorder{}
				said, _ := talk(t, testConfig, p, open+"x"+before+"."+after+"MAIL FROM:<evil@b>\r\nRCPT TO:<evil@d>\r\nDATA\r\ny\r\n.\r\n", piece)
				got := codes(said)
				refused := got == "220 250 250 250 354 521" && len(p.stored) == 0
				content := got == "220 250 250 250 354 250" && len(p.stored) == 1 && strings.Contains(p.stored[0], "evil@d")
				if !refused && !content {
					t.Errorf("%q.%q, pieces of %d: %s, stored %q", before, after, piece, got, p.stored)
				}
			}
		}
	}
}

// TestLongLines: a line of a message has no limit (fault 8), and where a buffer
// ends within it changes nothing.
func TestLongLines(t *testing.T) {
	cfg := testConfig
	cfg.MessageSize = 1 << 20
	for _, n := range []int{998, 2500, readBuffer - 2, readBuffer - 1, readBuffer, readBuffer + 1, 2*readBuffer - 1, 64 << 10} {
		for _, start := range []string{"", ".", "\r\n"} {
			line := strings.Repeat("x", n)
			p := &recorder{}
			said, _ := talk(t, cfg, p, open+start+"."+line+"\r\n."+line+".\r\n..\r\n.\r\nQUIT\r\n", 1<<20)
			want := "<a@b> c@d\n" + strings.TrimSuffix(start, ".") + line + "\r\n" + line + ".\r\n.\r\n"
			if start == "." {
				want = "<a@b> c@d\n." + line + "\r\n" + line + ".\r\n.\r\n"
			}
			if codes(said) != "220 250 250 250 354 250 221" || len(p.stored) != 1 || p.stored[0] != want {
				t.Errorf("%d octets after %q: %s", n, start, codes(said))
			}
		}
	}
}

// TestStop: an idle session ends at once, one in a transaction after it.
func TestStop(t *testing.T) {
	for _, transaction := range []bool{false, true} {
		ctx, stop := context.WithCancel(t.Context())
		cfg := testConfig
		cfg.Stop = ctx
		client, server := pair(t)
		go func() { Serve(server, cfg, &recorder{}); server.Close() }()
		read := func(want string) {
			b := make([]byte, 4096)
			n, _ := client.Read(b)
			if !strings.HasPrefix(string(b[:n]), want) {
				t.Errorf("got %q, want %s", b[:n], want)
			}
		}
		read("220")
		if transaction {
			io.WriteString(client, "MAIL FROM:<a@b>\r\n")
			read("250")
		}
		stop()
		if transaction {
			io.WriteString(client, "RCPT TO:<a@b>\r\n")
			read("250")
			io.WriteString(client, "RSET\r\n")
			said, _ := io.ReadAll(client)
			if codes(string(said)) != "250 421" {
				t.Errorf("after RSET: %s", said)
			}
			continue
		}
		read("421 4.3.2")
	}
}

func TestPrintable(t *testing.T) {
	for _, s := range []string{"a\r\nb", "\x00", "\xff", strings.Repeat("é", 500)} {
		if p := Printable(s); dsn.CheckText(p) != nil || len(p) > maxReplyText {
			t.Errorf("%q: %q", s, p)
		}
	}
}

// FuzzSession: whatever a client says, every message is committed or aborted,
// stored lines end in CRLF, and every reply is a well-formed line.
func FuzzSession(f *testing.F) {
	f.Add([]byte("EHLO c\r\nMAIL FROM:<a@b> SIZE=5\r\nRCPT TO:<c@d> NOTIFY=NEVER\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"), false)
	f.Add([]byte("HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 3\r\nx\r\nBDAT 0 LAST\r\n"), true)
	f.Fuzz(func(t *testing.T, in []byte, bare bool) {
		cfg := testConfig
		cfg.BareNewline = bare
		cfg.SoftErrors = 0
		p := &recorder{}
		conn := &script{in: bytes.NewReader(in)}
		Serve(conn, cfg, p)
		if p.open != 0 {
			t.Fatal("a message was neither committed nor aborted")
		}
		for _, m := range p.stored {
			_, body, _ := strings.Cut(m, "\n")
			if body != "" && !strings.HasSuffix(body, "\r\n") {
				t.Fatalf("stored %q", body)
			}
			if !bare && strings.Count(body, "\r") != strings.Count(body, "\n") {
				t.Fatalf("stored %q", body)
			}
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(conn.out.String(), "\r\n"), "\r\n") {
			if len(line) < 4 || line[0] < '2' || line[0] > '5' || dsn.CheckText(line) != nil {
				t.Fatalf("reply %q", line)
			}
		}
	})
}

// script is a connection whose other end has said everything beforehand.
type script struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)     { return s.in.Read(p[:min(len(p), 7)]) }
func (s *script) Write(p []byte) (int, error)    { return s.out.Write(p) }
func (*script) SetReadDeadline(time.Time) error  { return nil }
func (*script) SetWriteDeadline(time.Time) error { return nil }
