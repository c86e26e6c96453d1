package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"posthouse/pkg/dns/dnstest"
)

// world starts a server with records, each "NAME TYPE DATA".
func world(t testing.TB, records ...[3]string) (*Resolver, *dnstest.Server) {
	t.Helper()
	s, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for _, r := range records {
		if err := s.Add(r[0], r[1], r[2]); err != nil {
			t.Fatal(err)
		}
	}
	return asking(time.Minute, s), s
}

// asking returns a resolver that asks servers once, each for that long.
func asking(timeout time.Duration, servers ...*dnstest.Server) *Resolver {
	var list []netip.AddrPort
	for _, s := range servers {
		list = append(list, s.Addr())
	}
	return &Resolver{func() settings { return settings{list, timeout, 1} }}
}

// kind sorts errors by what they mean for mail.
func kind(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, ErrNoName):
		return "no name"
	case errors.Is(err, ErrNoData):
		return "no data"
	}
	return "temporary"
}

func TestMX(t *testing.T) {
	r, s := world(t,
		[3]string{"two.example", "MX", "10 A.two.example"}, [3]string{"two.example", "MX", "5 b.two.example"},
		[3]string{"null.example", "MX", "0 ."}, [3]string{"alias.example", "CNAME", "two.example"},
		[3]string{"loop.example", "CNAME", "loop2.example"}, [3]string{"loop2.example", "CNAME", "loop.example"},
		[3]string{"none.example", "A", "192.0.2.1"}, [3]string{"dangling.example", "CNAME", "nowhere.example"},
		[3]string{"xn--bcher-kva.example", "MX", "1 mx.example"},
	)
	for _, b := range []dnstest.Behaviour{dnstest.ServFail, dnstest.Refused, dnstest.Silent, dnstest.WrongID, dnstest.WrongQuestion, dnstest.Garbage,
		dnstest.Truncate, dnstest.NoEDNS, dnstest.NotImplemented} {
		name := fmt.Sprintf("b%d.example", b)
		if err := s.Add(name, "MX", "1 mx.example"); err != nil {
			t.Fatal(err)
		}
		s.Behave(name, b)
	}
	for _, tt := range []struct {
		domain string
		want   []MX
		err    string
	}{
		{"two.example", []MX{{10, "a.two.example"}, {5, "b.two.example"}}, ""},
		{"TWO.example.", []MX{{10, "a.two.example"}, {5, "b.two.example"}}, ""},
		{"null.example", []MX{{0, ""}}, ""},
		{"alias.example", []MX{{10, "a.two.example"}, {5, "b.two.example"}}, ""},
		{"loop.example", nil, "temporary"},
		{"none.example", nil, "no data"},
		{"dangling.example", nil, "no name"},
		{"missing.example", nil, "no name"},
		{"bücher.example", []MX{{1, "mx.example"}}, ""},
		{"b1.example", nil, "temporary"}, {"b2.example", nil, "temporary"}, {"b3.example", nil, "temporary"},
		{"b5.example", nil, "temporary"}, {"b6.example", nil, "temporary"}, {"b7.example", nil, "temporary"},
		{"b4.example", []MX{{1, "mx.example"}}, ""}, {"b8.example", []MX{{1, "mx.example"}}, ""}, {"b9.example", []MX{{1, "mx.example"}}, ""},
	} {
		asked := r
		if slices.Contains([]string{"b3.example", "b5.example", "b6.example", "b7.example"}, tt.domain) {
			asked = asking(100*time.Millisecond, s) // no answer comes
		}
		got, err := asked.MX(t.Context(), tt.domain)
		if !slices.Equal(got, tt.want) || kind(err) != tt.err {
			t.Errorf("%s: %v, %v; want %v, %q", tt.domain, got, err, tt.want, tt.err)
		}
	}
}

func TestAddresses(t *testing.T) {
	r, s := world(t,
		[3]string{"both.example", "A", "192.0.2.1"}, [3]string{"both.example", "AAAA", "2001:db8::1"},
		[3]string{"four.example", "A", "192.0.2.2"}, [3]string{"www.example", "CNAME", "four.example"}, [3]string{"none.example", "", ""},
		[3]string{"dead.example", "A", "192.0.2.2"}, [3]string{"half.example", "AAAA", "2001:db8::2"}, [3]string{"half2.example", "A", "192.0.2.3"},
	)
	s.Behave("dead.example", dnstest.ServFail)
	s.Behave("half.example", dnstest.HalfFails)
	s.Behave("half2.example", dnstest.HalfFails)
	for name, want := range map[string]string{
		"half.example": "[2001:db8::2] temporary", "half2.example": "[] temporary",
		"both.example": "[2001:db8::1 192.0.2.1] ", "four.example": "[192.0.2.2] ", "www.example": "[192.0.2.2] ",
		"none.example": "[] no data", "missing.example": "[] no name", "dead.example": "[] temporary",
	} {
		got, err := r.Addresses(t.Context(), name)
		if s := fmt.Sprint(got, " ", kind(err)); s != want && s != want+" " {
			t.Errorf("%s: %s, want %s", name, s, want)
		}
	}
}

func TestName(t *testing.T) {
	r, s := world(t,
		[3]string{"1.2.0.192.in-addr.arpa", "PTR", "good.example"}, [3]string{"good.example", "A", "192.0.2.1"},
		[3]string{"2.2.0.192.in-addr.arpa", "PTR", "liar.example"}, [3]string{"liar.example", "A", "192.0.2.99"},
		[3]string{"3.2.0.192.in-addr.arpa", "PTR", "dead.example"}, [3]string{"dead.example", "A", "192.0.2.3"},
		[3]string{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", "PTR", "six.example"}, [3]string{"six.example", "AAAA", "2001:db8::1"},
	)
	s.Behave("dead.example", dnstest.ServFail)
	for _, r := range [][3]string{ // not what is looked up for it: the name of another spelling
		{"5.2.0.192.in-addr.arpa", "PTR", "bücher.example"}, {"xn--bcher-kva.example", "A", "192.0.2.5"},
	} {
		if err := s.Add(r[0], r[1], r[2]); err != nil {
			t.Fatal(err)
		}
	}
	for ip, want := range map[string]string{
		"192.0.2.1": "good.example ", "192.0.2.2": " no name", "192.0.2.3": " temporary", "192.0.2.4": " no name", "192.0.2.5": " no name",
		"2001:db8::1": "six.example ", "::ffff:192.0.2.1": "good.example ",
	} {
		name, err := r.Name(t.Context(), netip.MustParseAddr(ip))
		if got := name + " " + kind(err); got != want {
			t.Errorf("%s: %q, want %q (%v)", ip, got, want, err)
		}
	}
}

func TestNextServer(t *testing.T) {
	for _, b := range []dnstest.Behaviour{dnstest.ServFail, dnstest.Lame} {
		alone, bad := world(t)
		bad.Behave("a.example", b)
		_, good := world(t, [3]string{"a.example", "A", "192.0.2.1"})
		r := asking(time.Minute, bad, good)
		if got, err := r.Addresses(t.Context(), "a.example"); err != nil || len(got) != 1 {
			t.Errorf("%d: %v, %v", b, got, err)
		}
		if got, err := alone.Addresses(t.Context(), "a.example"); kind(err) != "temporary" {
			t.Errorf("%d alone: %v, %v", b, got, err)
		}
	}
}

// TestDroppedEDNS: where a firewall swallows what it does not know, the second round comes through.
func TestDroppedEDNS(t *testing.T) {
	_, s := world(t, [3]string{"a.example", "A", "192.0.2.1"})
	s.Behave("a.example", dnstest.DropEDNS)
	for timeout := 50 * time.Millisecond; ; timeout *= 2 { // an answer may take as long on a slow machine
		r := &Resolver{func() settings { return settings{[]netip.AddrPort{s.Addr()}, timeout, defaultRounds} }}
		got, err := r.Addresses(t.Context(), "a.example")
		if err == nil && len(got) == 1 {
			return
		}
		if timeout > 10*time.Second {
			t.Fatalf("%v, %v", got, err)
		}
	}
}

func TestResolvConf(t *testing.T) {
	s := parseConf([]byte("# x\nnameserver 192.0.2.53\nnameserver bad\nnameserver 2001:db8::53\noptions timeout:2 attempts:99 edns0\n"))
	if fmt.Sprint(s.servers, s.timeout, s.rounds) != "[192.0.2.53:53 [2001:db8::53]:53] 2s 5" {
		t.Error(s)
	}
	if s := parseConf(nil); fmt.Sprint(s.servers) != "[127.0.0.1:53]" {
		t.Error(s)
	}
}

// TestNoDescriptors: a resolv.conf that cannot be read now names the servers that
// it did, and is read again.
func TestNoDescriptors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("nameserver 192.0.2.1\n")
	f := &resolvConf{path: path}
	servers := func() string {
		f.checked = time.Time{}
		return fmt.Sprint(f.current().servers)
	}
	again := noFiles(t)
	first := servers()
	again()
	if second := servers(); first != "[127.0.0.1:53]" || second != "[192.0.2.1:53]" {
		t.Errorf("%s, then %s", first, second)
	}
	write("nameserver 192.0.2.22\n")
	again = noFiles(t)
	first = servers()
	again()
	if second := servers(); first != "[192.0.2.1:53]" || second != "[192.0.2.22:53]" {
		t.Errorf("changed: %s, then %s", first, second)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := servers(); got != "[127.0.0.1:53]" {
		t.Errorf("removed: %s", got)
	}
}

// noFiles has every open(2) of this process fail until the result is called.
func noFiles(t *testing.T) (again func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	set := func(l syscall.Rlimit) {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
			t.Fatal(err)
		}
	}
	set(syscall.Rlimit{Cur: 0, Max: old.Max})
	return func() { set(old) }
}

// FuzzParse: whatever a server sends, records are only taken for the question
// that was asked.
func FuzzParse(f *testing.F) {
	q := dnsmessage.Question{Name: dnsmessage.MustNewName("a.example."), Type: dnsmessage.TypeMX, Class: dnsmessage.ClassINET}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, Response: true}, Questions: []dnsmessage.Question{q}, Answers: []dnsmessage.Resource{
		{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: &dnsmessage.MXResource{Pref: 1, MX: q.Name}}}}
	b, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		a, truncated, err := parse(b, 7, q)
		if (err != nil || truncated) && (len(a.records) > 0 || a.next != "") {
			t.Fatalf("%v, %v with an error", a, truncated)
		}
		for _, r := range a.records {
			if _, ok := r.(*dnsmessage.MXResource); !ok {
				t.Fatalf("a %T for MX", r)
			}
		}
	})
}
