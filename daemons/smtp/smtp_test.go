package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/addr"
	"posthouse/pkg/agent"
	"posthouse/pkg/config"
	"posthouse/pkg/dns"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queueid"
	"posthouse/pkg/smtpserver"
)

// zone is a resolver that has its answers in a table; an unknown name does not
// exist, and one that begins with "dead" is not known now.
type zone struct {
	mx    map[string][]dns.MX
	addrs map[string][]netip.Addr
}

func (z zone) MX(_ context.Context, domain string) ([]dns.MX, error) {
	if strings.HasPrefix(domain, "dead") {
		return nil, fmt.Errorf("record of a name: %w", errors.New("no answer"))
	}
	if list, ok := z.mx[domain]; ok {
		return list, nil
	}
	if _, ok := z.addrs[domain]; ok && !strings.HasPrefix(domain, "denied") {
		return nil, dns.ErrNoData
	}
	return nil, fmt.Errorf("x: %w", dns.ErrNoName)
}

func (z zone) Addresses(_ context.Context, host string) ([]netip.Addr, error) {
	if strings.HasPrefix(host, "dead") {
		return nil, fmt.Errorf("record of a name: %w", errors.New("no answer"))
	}
	if list, ok := z.addrs[host]; ok && strings.HasPrefix(host, "half") {
		return list, errors.New("no answer about the rest")
	} else if ok {
		return list, nil
	}
	return nil, dns.ErrNoName
}

func ips(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func testConfig(t testing.TB, settings string) *config.Config {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "posthouse.yaml"), []byte("hostname: us.example\n"+settings), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestRoute(t *testing.T) {
	z := zone{
		mx: map[string][]dns.MX{
			"d.example": {{Preference: 20, Host: "b.example"}, {Preference: 10, Host: "a.example"}}, "null.example": {{}},
			"self.example": {{Preference: 10, Host: "us.example"}}, "backup.example": {{Preference: 5, Host: "a.example"}, {Preference: 10, Host: "US.example"}, {Preference: 20, Host: "b.example"}},
			"deadmx.example": nil, "gone.example": {{Preference: 1, Host: "missing.example"}}, "half.example": {{Preference: 1, Host: "missing.example"}, {Preference: 2, Host: "dead.example"}},
			"waiting.example": {{Preference: 5, Host: "missing.example"}, {Preference: 10, Host: "us.example"}},
			"any.example":     {{Preference: 5, Host: "zero.example"}, {Preference: 6, Host: "a.example"}},
			"alias.example":   {{Preference: 5, Host: "a.example"}, {Preference: 10, Host: "mine.example"}, {Preference: 10, Host: "b.example"}, {Preference: 20, Host: "host.example"}},
			"mine-mx.example": {{Preference: 5, Host: "mine.example"}, {Preference: 5, Host: "a.example"}},
			"lost.example":    {{Preference: 5, Host: "missing.example"}, {Preference: 10, Host: "mine.example"}},
		},
		addrs: map[string][]netip.Addr{
			"a.example": ips("192.0.2.1", "192.0.2.2", "2001:db8::1"), "b.example": ips("192.0.2.3"), "host.example": ips("192.0.2.4"), "zero.example": ips("0.0.0.0"),
			"denied.example": ips("192.0.2.4"), "half6.example": ips("2001:db8::2"), "half0.example": ips("0.0.0.0"),
			"mine.example": ips("192.0.2.99", "127.0.0.1"),
		},
	}
	for _, tt := range []struct{ transport, hop, want string }{
		{"smtp", "d.example", "a.example[2001:db8::1]:25 a.example[192.0.2.1]:25 a.example[192.0.2.2]:25 b.example[192.0.2.3]:25"},
		{"smtp", "host.example", "host.example[192.0.2.4]:25"},
		{"smtp", "[host.example]:2525", "host.example[192.0.2.4]:2525"},
		{"smtp", "[192.0.2.9]", "192.0.2.9[192.0.2.9]:25"},
		{"smtp", "[IPv6:2001:db8::9]:26", "2001:db8::9[2001:db8::9]:26"},
		{"smtp", "null.example", "5.1.10 Domain null.example does not accept mail (nullMX)"},
		{"smtp", "self.example", "5.4.6 mail for self.example loops back to myself"},
		{"smtp", "backup.example", "a.example[2001:db8::1]:25 a.example[192.0.2.1]:25 a.example[192.0.2.2]:25"},
		{"smtp", "waiting.example", "4.4.4 unable to find primary relay for waiting.example"},
		{"smtp", "missing.example", "5.4.4 Host or domain name not found. Name service error for name=missing.example type=A: Host not found"},
		{"smtp", "dead.example", "4.4.3 Host or domain name not found. Name service error for name=dead.example type=MX: Host not found, try again (no answer)"},
		{"smtp", "gone.example", "5.4.4 Host or domain name not found. Name service error for name=missing.example type=A: Host not found"},
		{"smtp", "half.example", "4.4.3 Host or domain name not found. Name service error for name=dead.example type=A: Host not found, try again (no answer)"},
		{"smtp", "denied.example", "denied.example[192.0.2.4]:25"},
		{"smtp", "half6.example", "half6.example[2001:db8::2]:25"},
		{"smtp", "half0.example", "4.4.3 Host or domain name not found. Name service error for name=half0.example type=A: Host not found, try again (no answer about the rest)"},
		{"ipv4", "half6.example", "4.4.3 Host or domain name not found. Name service error for name=half6.example type=A: Host not found, try again (no answer about the rest)"},
		{"smtp", "any.example", "a.example[2001:db8::1]:25 a.example[192.0.2.1]:25 a.example[192.0.2.2]:25"},
		{"smtp", "alias.example", "a.example[2001:db8::1]:25 a.example[192.0.2.1]:25 a.example[192.0.2.2]:25"},
		{"smtp", "mine-mx.example", "5.4.6 mail for mine-mx.example loops back to myself"},
		{"smtp", "lost.example", "4.4.4 unable to find primary relay for lost.example"},
		{"smtp", "mine.example", "5.4.6 mail for mine.example loops back to myself"},
		{"smtp", "[127.0.0.1]", "5.4.6 mail for 127.0.0.1 loops back to myself"},
		{"smtp", "[mine.example]:26", "mine.example[192.0.2.99]:26 mine.example[127.0.0.1]:26"},
		{"lmtp", "mine.example:25", "mine.example[192.0.2.99]:25 mine.example[127.0.0.1]:25"},
		{"smtp", "localhost:26", "localhost[::1]:26 localhost[127.0.0.1]:26"},
		{"lmtp", "unix:/run/x", "us.example[/run/x]"},
		{"lmtp", "host.example", "host.example[192.0.2.4]:24"},
	} {
		settings, transport := "", tt.transport
		if transport == "ipv4" {
			settings, transport = "smtp: {protocols: ipv4}\n", "smtp"
		}
		hop, err := parseNexthop(transport, tt.hop)
		if err != nil {
			t.Errorf("%s: %v", tt.hop, err)
			continue
		}
		list, err := (&router{t.Context(), testConfig(t, settings), z, netip.Addr.IsLoopback, hop}).route()
		var got []string
		for _, target := range list {
			got = append(got, target.relay())
		}
		if err != nil {
			got = []string{err.Error()}
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%s %s: %s\nwant %s", tt.transport, tt.hop, s, tt.want)
		}
	}
	for _, hop := range []string{"", "[", "[]", "a..b", "host.example:0", "host.example:99999", "unix:relative", "[192.0.2.1", "unix:"} {
		if _, err := parseNexthop("smtp", hop); err == nil {
			t.Errorf("next hop %q is taken", hop)
		}
	}
}

// server is our own server engine as the other host; what it does is up to the
// local-part of the recipient.
type server struct {
	mu       sync.Mutex
	sessions int
	got      []string
	cut      bool // the connection ends after the message, without a reply
}

func (s *server) Connect(*smtpserver.Session) *smtpserver.Reply    { return nil }
func (*server) Refused(*smtpserver.Session, smtpserver.Refusal)    {}
func (*server) Helo(*smtpserver.Session, string) *smtpserver.Reply { return nil }
func (*server) Mail(*smtpserver.Session, *smtpserver.Mail) *smtpserver.Reply {
	return nil
}
func (*server) Rcpt(_ *smtpserver.Session, _ *smtpserver.Mail, r *smtpserver.Rcpt) *smtpserver.Reply {
	switch r.To.Local() {
	case "unknown":
		return &smtpserver.Reply{Code: 550, Status: "5.1.1", Text: "no such user"}
	case "busy":
		return &smtpserver.Reply{Code: 450, Status: "4.2.0", Text: "later"}
	}
	return nil
}

func (s *server) Data(*smtpserver.Session, *smtpserver.Mail, []smtpserver.Rcpt) (smtpserver.Sink, *smtpserver.Reply) {
	return &sink{s: s}, nil
}

type sink struct {
	s *server
	strings.Builder
}

func (k *sink) Commit() smtpserver.Reply {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	k.s.got = append(k.s.got, k.String())
	if k.s.cut {
		return smtpserver.Reply{Code: 421, Status: "4.3.2", Text: "going down"}
	}
	return smtpserver.Reply{Code: 250, Status: "2.0.0", Text: "Ok: queued as THERE"}
}
func (*sink) Abort() {}

// serve starts s and returns its port.
func (s *server) serve(t testing.TB) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.sessions++
			s.mu.Unlock()
			go func() {
				smtpserver.Serve(c, smtpserver.Config{Hostname: "there.example", CommandTimeout: time.Minute}, s)
				c.Close()
			}()
		}
	}()
	return netip.MustParseAddrPort(ln.Addr().String()).Port()
}

func newService(t testing.TB) *service {
	t.Helper()
	cfg := testConfig(t, "smtp: {keep_time: 5m}\n") // however slow the machine is
	s := &service{config: func() *config.Config { return cfg }, resolver: zone{}, own: netip.Addr.IsLoopback, dial: dial, note: func(string, string) {}}
	t.Cleanup(s.cache.close)
	return s
}

func job(t testing.TB, hop, content string, to ...string) *agent.Job {
	t.Helper()
	r := &delivery.Request{QueueID: queueid.New(time.Now(), 1), Transport: "smtp", Nexthop: hop, Arrival: time.Now(), Active: time.Now()}
	var err error
	if r.Sender, err = addr.Parse("me@us.example"); err != nil {
		t.Fatal(err)
	}
	for _, a := range to {
		m, err := addr.Parse(a)
		if err != nil {
			t.Fatal(err)
		}
		r.Recipients = append(r.Recipients, envelope.Recipient{Address: m})
	}
	return &agent.Job{Request: r, Content: io.NewSectionReader(strings.NewReader(content), 0, int64(len(content)))}
}

func statuses(v agent.Verdict) string {
	var out []string
	for _, o := range v.Outcomes {
		out = append(out, o.Status.String())
	}
	return strings.Join(out, " ")
}

func TestDeliver(t *testing.T) {
	far := &server{}
	s, hop := newService(t), fmt.Sprintf("[127.0.0.1]:%d", far.serve(t))
	v := s.deliver(t.Context(), job(t, hop, "Subject: x\r\n\r\n.dot\r\n", "a@x.example", "unknown@x.example", "busy@x.example"))
	if got := statuses(v); got != "2.0.0 5.1.1 4.2.0" || v.Hop != nil {
		t.Fatalf("%s, %v: %+v", got, v.Hop, v.Outcomes)
	}
	o := v.Outcomes
	if o[0].Text != "250 2.0.0 Ok: queued as THERE" || o[0].Relayed || !strings.HasPrefix(o[0].Relay, "127.0.0.1[127.0.0.1]:") {
		t.Errorf("%+v", o[0])
	}
	if o[1].RemoteMTA != "127.0.0.1" || !strings.HasPrefix(o[1].Diagnostic, "550 5.1.1 ") || !strings.Contains(o[1].Text, "(in reply to RCPT TO command)") {
		t.Errorf("%+v", o[1])
	}
	// The connection is used again.
	v = s.deliver(t.Context(), job(t, hop, "second\r\n", "a@x.example"))
	if statuses(v) != "2.0.0" || far.sessions != 1 || v.Outcomes[0].ConnUse != 2 {
		t.Errorf("%d sessions, %+v", far.sessions, v.Outcomes)
	}
	if want := []string{"Subject: x\r\n\r\n.dot\r\n", "second\r\n"}; !slices.Equal(far.got, want) {
		t.Errorf("the server got %q", far.got)
	}
}

// TestTrouble: whatever a host does, nobody fails for good who was not refused.
func TestTrouble(t *testing.T) {
	refused := func() string { // by a port that is bound: nobody else gets it meanwhile
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
		at, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("[127.0.0.1]:%d", at.(*unix.SockaddrInet4).Port)
	}()
	script := func(lines ...string) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				for _, l := range lines {
					io.WriteString(c, l)
					c.SetReadDeadline(time.Now().Add(time.Minute))
					c.Read(make([]byte, 4096))
				}
				c.Close()
			}
		}()
		return fmt.Sprintf("[127.0.0.1]:%d", netip.MustParseAddrPort(ln.Addr().String()).Port())
	}
	cut := &server{cut: true}
	for _, tt := range []struct {
		name, hop, want string
		trouble         bool
	}{
		{"refused", refused, "4.4.1", true},
		{"closed at once", script(), "4.4.2", true},
		{"greeting 554", script("554 no\r\n", "221 bye\r\n"), "4.0.0", true},
		{"greeting 421", script("421 4.3.2 later\r\n"), "4.3.2", true},
		{"garbage", script("HTTP/1.1 400 Bad Request\r\n\r\n"), "4.5.0", true},
		{"cut after EHLO", script("220 x\r\n", "250 x\r\n"), "4.4.2", true},
		{"cut after DATA", script("220 x\r\n", "250 x\r\n", "250 ok\r\n", "250 ok\r\n", "354 go\r\n"), "4.4.2", true},
		{"421 to the message", fmt.Sprintf("[127.0.0.1]:%d", cut.serve(t)), "4.3.2", true},
		{"endless reply", script("220-" + strings.Repeat("x", 100000)), "4.5.0", true},
		{"bad next hop", "a b", "4.3.5", false},
	} {
		v := newService(t).deliver(t.Context(), job(t, tt.hop, "x\r\n", "a@x.example"))
		if got := statuses(v); got != tt.want || (v.Hop != nil) != tt.trouble {
			t.Errorf("%s: %s (want %s), hop %v: %+v", tt.name, got, tt.want, v.Hop, v.Outcomes)
		}
	}
}
