package main

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/config"
	"posthouse/pkg/dns"
)

// script is a server that gives one reply to each command, by its verb, which is
// "" for the greeting; other commands get 250. Message content gets the reply to ".".
type script map[string]string

func (s script) talk(c net.Conn) {
	defer c.Close()
	reply := func(verb string) {
		text := s[verb]
		if text == "" {
			text = map[string]string{"": "220 there", "DATA": "354 go"}[verb]
		}
		if text == "" {
			text = "250 ok"
		}
		c.Write([]byte(text + "\r\n"))
	}
	reply("")
	in, data := bufio.NewScanner(c), false
	for in.Scan() {
		line := in.Text()
		switch {
		case line == ".":
			data = false
			reply(".")
		case !data:
			verb, _, _ := strings.Cut(line, " ")
			data = verb == "DATA" && s["DATA"] == ""
			reply(verb)
		}
	}
}

// network is a service whose connections lead to scripts, by address; others are
// refused.
func network(t *testing.T, z zone, hosts map[string]script) *service {
	s := newService(t)
	s.resolver = z
	s.dial = func(_ context.Context, _, address string) (net.Conn, error) {
		host, ok := hosts[address]
		if !ok {
			return nil, errors.New("connection refused")
		}
		here, there := net.Pipe()
		go host.talk(there)
		return here, nil
	}
	return s
}

// TestServers: what one server of a domain says about itself is no verdict while
// there is another; what is wrong with a next hop that the administrator chose is
// none at all.
func TestServers(t *testing.T) {
	z := zone{
		mx: map[string][]dns.MX{"two.example": {{Preference: 10, Host: "a.example"}, {Preference: 20, Host: "b.example"}}, "null.example": {{}}},
		addrs: map[string][]netip.Addr{
			"a.example": ips("192.0.2.1"), "b.example": ips("192.0.2.2"), "mine.example": ips("127.0.0.1"),
		},
	}
	refuses := script{"EHLO": "550 5.7.1 no", "HELO": "554 5.7.1 no, really"}
	us := script{"EHLO": "250 US.example"}
	for _, tt := range []struct {
		name, hop, to string
		a, b          script // nil: does not answer
		want          string
	}{
		{"the first refuses to talk", "two.example", "x@two.example", refuses, script{}, "2.0.0"},
		{"both refuse to talk", "two.example", "x@two.example", refuses, refuses, "5.7.1"},
		{"the first does not answer", "two.example", "x@two.example", nil, refuses, "5.7.1"},
		{"the first is us", "two.example", "x@two.example", us, script{}, "2.0.0"},
		{"we are the last resort", "two.example", "x@two.example", nil, us, "4.4.6"},
		{"we are all there is", "a.example", "x@a.example", us, nil, "5.4.6"},
		{"EHLO later, HELO now", "a.example", "x@a.example", script{"EHLO": "450 4.3.2 not now"}, nil, "2.0.0"},
		{"EHLO 421", "a.example", "x@a.example", script{"EHLO": "421 4.3.2 not now"}, nil, "4.3.2"},
		{"recipient refused", "two.example", "x@two.example", script{"RCPT": "550 5.1.1 nobody"}, script{}, "5.1.1"},
		{"recipient put off, then taken", "two.example", "x@two.example", script{"RCPT": "450 4.2.0 later"}, script{}, "2.0.0"},
		{"no such domain", "missing.example", "x@missing.example", nil, nil, "5.4.4"},
		{"no such smarthost", "missing.example", "x@y.example", nil, nil, "4.3.5"},
		{"no such host", "[missing.example]:587", "x@y.example", nil, nil, "4.3.5"},
		{"smarthost without mail", "null.example", "x@y.example", nil, nil, "4.3.5"},
		{"domain without mail", "null.example", "x@null.example", nil, nil, "5.1.10"},
		{"smarthost is us", "[mine.example]", "x@y.example", nil, nil, "4.3.5"},
		{"smarthost refuses to talk", "[a.example]", "x@y.example", refuses, nil, "4.3.5"},
		{"smarthost refuses the recipient", "[a.example]", "x@y.example", script{"RCPT": "550 5.1.1 nobody"}, nil, "5.1.1"},
	} {
		hosts := make(map[string]script)
		if tt.a != nil {
			hosts["192.0.2.1:25"] = tt.a
		}
		if tt.b != nil {
			hosts["192.0.2.2:25"] = tt.b
		}
		v := network(t, z, hosts).deliver(t.Context(), job(t, tt.hop, "x\r\n", tt.to))
		if got := statuses(v); got != tt.want {
			t.Errorf("%s: %s, want %s: %+v", tt.name, got, tt.want, v.Outcomes)
		}
		if tt.name == "smarthost refuses to talk" && v.Outcomes[0].Diagnostic != "554 5.7.1 no, really" {
			t.Errorf("%s: %+v", tt.name, v.Outcomes[0])
		}
	}
}

func TestOwnAddress(t *testing.T) {
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var own []net.Addr
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 { // nobody gets there
			continue
		}
		if more, err := i.Addrs(); err == nil { // or it has just gone
			own = append(own, more...)
		}
	}
	for _, a := range append(own, &net.IPNet{IP: net.IPv4(127, 0, 0, 2)}, &net.IPNet{IP: net.IPv4zero}, &net.IPNet{IP: net.IPv6zero}) {
		ip, ok := netip.AddrFromSlice(a.(*net.IPNet).IP)
		if ip = ip.Unmap(); !ok || ip.IsLinkLocalUnicast() { // which need an interface
			continue
		}
		if !ownAddress(ip) {
			t.Errorf("%v is ours", ip)
		}
	}
	for _, ip := range ips("198.51.100.7", "2001:db8:ffff::7") {
		if ownAddress(ip) {
			t.Errorf("%v is not ours", ip)
		}
	}
}

// TestHelo: no server knows UTF-8 in EHLO, for which it would refuse all mail for good.
func TestHelo(t *testing.T) {
	for helo, want := range map[string]string{
		"bücher.example": "EHLO xn--bcher-kva.example\r\n", "US_1.example": "EHLO US_1.example\r\n", "[192.0.2.1]": "EHLO [192.0.2.1]\r\n",
	} {
		s, got := newService(t), make(chan string, 1)
		cfg := testConfig(t, "smtp: {helo: '"+helo+"'}\n")
		s.config = func() *config.Config { return cfg }
		s.dial = func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				defer there.Close()
				there.Write([]byte("220 there\r\n"))
				line, _ := bufio.NewReader(there).ReadString('\n')
				got <- line
			}()
			return here, nil
		}
		s.deliver(t.Context(), job(t, "[192.0.2.1]", "x\r\n", "x@y.example"))
		if line := <-got; line != want {
			t.Errorf("%s: %q, want %q", helo, line, want)
		}
	}
}

// TestLMTPIsConfigured: nobody finds an LMTP server but by the configuration, also where
// it is called as the domain is.
func TestLMTPIsConfigured(t *testing.T) {
	z := zone{addrs: map[string][]netip.Addr{"a.example": ips("192.0.2.1")}}
	for _, tt := range []struct{ hop, to, lhlo, rcpt, want string }{
		{"a.example", "x@a.example", "500 5.5.1 what?", "", "4.3.5"}, {"missing.example", "x@missing.example", "", "", "4.3.5"},
		{"a.example", "x@a.example", "", "550 5.1.1 nobody", "5.1.1"},
	} {
		j := job(t, tt.hop, "x\r\n", tt.to)
		j.Transport = "lmtp"
		v := network(t, z, map[string]script{"192.0.2.1:24": {"LHLO": tt.lhlo, "RCPT": tt.rcpt}}).deliver(t.Context(), j)
		if got := statuses(v); got != tt.want {
			t.Errorf("%s: %s, want %s: %+v", tt.hop, got, tt.want, v.Outcomes)
		}
	}
}

// TestFullBacklog: who listens on a UNIX socket and is busy is waited for, as long as a
// connection may take.
func TestFullBacklog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lmtp")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	first, err := dial(t.Context(), "unix", path) // and there is no more room
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if c, err := dial(ctx, "unix", path); err == nil {
		c.Close()
		t.Error("there was room")
	}
	time.AfterFunc(20*time.Millisecond, func() {
		if accepted, _, err := unix.Accept(fd); err == nil {
			unix.Close(accepted)
		}
	})
	second, err := dial(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

// TestRelayed: a host without DSN sends no notification of success; that is left
// to us, by LMTP, too.
func TestRelayed(t *testing.T) {
	for _, tt := range []struct {
		transport, verb, reply string
		want                   bool
	}{{"smtp", "EHLO", "250 x", true}, {"smtp", "EHLO", "250-x\r\n250 DSN", false}, {"lmtp", "LHLO", "250 x", true}, {"lmtp", "LHLO", "250-x\r\n250 DSN", false}} {
		s := network(t, zone{}, map[string]script{"192.0.2.1:2525": {tt.verb: tt.reply}})
		j := job(t, "[192.0.2.1]:2525", "x\r\n", "x@y.example")
		j.Transport = tt.transport
		v := s.deliver(t.Context(), j)
		if statuses(v) != "2.0.0" || v.Outcomes[0].Relayed != tt.want {
			t.Errorf("%s, %q: %+v", tt.transport, tt.reply, v.Outcomes)
		}
	}
}
