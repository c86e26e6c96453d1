// Package dnstest is a DNS server on loopback that says what a test has it say,
// lies included.
package dnstest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// Behaviour is how the server answers questions about a name.
type Behaviour int

// The behaviours. The zero value is to answer.
const (
	Answer Behaviour = iota
	ServFail
	Refused
	Silent   // no answer
	Truncate // by UDP; by TCP the answer comes
	WrongID
	WrongQuestion
	Garbage
	NoEDNS         // a question with EDNS is not understood, and not repeated
	NotImplemented // likewise, in other words
	HalfFails      // of the addresses: there is no answer about A
	Lame           // a server that does not look further, and refers to others
	DropEDNS       // a question with EDNS has no answer
)

// Server is a server.
type Server struct {
	udp net.PacketConn
	tcp net.Listener

	mu        sync.Mutex
	records   map[string][]dnsmessage.Resource // by lower-case name with the final dot
	behaviour map[string]Behaviour
}

// Start starts a server at address, such as "127.0.0.1:0".
func Start(address string) (*Server, error) {
	udp, tcp, err := listen(address)
	// A port that is free for UDP may be any connection's for TCP: another one.
	for i := 0; err != nil && i < 20 && strings.HasSuffix(address, ":0"); i++ {
		udp, tcp, err = listen(address)
	}
	if err != nil {
		return nil, err
	}
	s := &Server{udp: udp, tcp: tcp, records: make(map[string][]dnsmessage.Resource), behaviour: make(map[string]Behaviour)}
	go s.serveUDP()
	go s.serveTCP()
	return s, nil
}

func listen(address string) (net.PacketConn, net.Listener, error) {
	udp, err := net.ListenPacket("udp", address)
	if err != nil {
		return nil, nil, err
	}
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		udp.Close()
		return nil, nil, err
	}
	return udp, tcp, nil
}

// Addr is where the server is.
func (s *Server) Addr() netip.AddrPort { return netip.MustParseAddrPort(s.udp.LocalAddr().String()) }

// Close ends the server.
func (s *Server) Close() {
	s.udp.Close()
	s.tcp.Close()
}

func key(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) + "." }

// Behave sets the behaviour for a name.
func (s *Server) Behave(name string, b Behaviour) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behaviour[key(name)] = b
}

// Add adds a record: the type is A, AAAA, CNAME, PTR or MX, whose data is
// "PREFERENCE HOST". A type of "" makes the name exist without any.
func (s *Server) Add(name, typ, data string) error {
	body, err := parse(typ, data)
	if err != nil {
		return err
	}
	n, err := dnsmessage.NewName(key(name))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.records[key(name)]
	if body != nil {
		list = append(list, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET, TTL: 60}, Body: body})
	}
	s.records[key(name)] = list
	return nil
}

func parse(typ, data string) (dnsmessage.ResourceBody, error) {
	name := func(s string) (dnsmessage.Name, error) { return dnsmessage.NewName(key(s)) }
	switch typ {
	case "":
		return nil, nil
	case "A":
		ip, err := netip.ParseAddr(data)
		if err != nil {
			return nil, err
		}
		return &dnsmessage.AResource{A: ip.As4()}, nil
	case "AAAA":
		ip, err := netip.ParseAddr(data)
		return &dnsmessage.AAAAResource{AAAA: ip.As16()}, err
	case "CNAME":
		n, err := name(data)
		return &dnsmessage.CNAMEResource{CNAME: n}, err
	case "PTR":
		n, err := name(data)
		return &dnsmessage.PTRResource{PTR: n}, err
	case "MX":
		var pref uint16
		var host string
		if _, err := fmt.Sscan(data, &pref, &host); err != nil {
			return nil, err
		}
		n, err := name(host)
		return &dnsmessage.MXResource{Pref: pref, MX: n}, err
	}
	return nil, fmt.Errorf("type %q", typ)
}

func (s *Server) serveUDP() {
	buf := make([]byte, 4096)
	for {
		n, from, err := s.udp.ReadFrom(buf)
		if err != nil {
			return
		}
		if b := s.respond(buf[:n], false); b != nil {
			_, _ = s.udp.WriteTo(b, from)
		}
	}
}

func (s *Server) serveTCP() {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var size [2]byte
			if _, err := io.ReadFull(c, size[:]); err != nil {
				return
			}
			q := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(c, q); err != nil {
				return
			}
			if b := s.respond(q, true); b != nil {
				_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
			}
		}()
	}
}

func (s *Server) respond(query []byte, tcp bool) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := key(q.Name.String())
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true, RecursionAvailable: true}, Questions: []dnsmessage.Question{q}}
	switch s.behaviour[name] {
	case Answer:
	case ServFail:
		m.RCode = dnsmessage.RCodeServerFailure
	case Refused:
		m.RCode = dnsmessage.RCodeRefused
	case Silent:
		return nil
	case Truncate:
		m.Truncated = !tcp
	case WrongID:
		m.ID++
	case WrongQuestion:
		m.Questions[0].Name = dnsmessage.MustNewName("other.example.")
	case Garbage:
		return append(query[:2:2], "garbage"...)
	case HalfFails:
		if q.Type == dnsmessage.TypeA {
			m.RCode = dnsmessage.RCodeServerFailure
		}
	case Lame:
		m.RecursionAvailable = false
		b, _ := m.Pack()
		return b
	case NoEDNS, NotImplemented, DropEDNS:
		if p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
			return nil
		}
		_, err := p.AdditionalHeader()
		switch {
		case err != nil: // none
		case s.behaviour[name] == DropEDNS:
			return nil
		case s.behaviour[name] == NoEDNS:
			m.RCode, m.Questions = dnsmessage.RCodeFormatError, nil
		default:
			m.RCode = dnsmessage.RCodeNotImplemented
		}
	}
	if m.RCode == dnsmessage.RCodeSuccess && !m.Truncated {
		s.fill(&m, name, q.Type)
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// fill answers, along CNAMEs.
func (s *Server) fill(m *dnsmessage.Message, name string, t dnsmessage.Type) {
	for range 20 {
		list, ok := s.records[name]
		if !ok {
			m.RCode = dnsmessage.RCodeNameError
			return
		}
		next := ""
		for _, r := range list {
			switch body := r.Body.(type) {
			case *dnsmessage.CNAMEResource:
				next = key(body.CNAME.String())
				m.Answers = append(m.Answers, r)
			default:
				if typeOf(body) == t {
					m.Answers = append(m.Answers, r)
				}
			}
		}
		if next == "" {
			return
		}
		name = next
	}
}

func typeOf(b dnsmessage.ResourceBody) dnsmessage.Type {
	switch b.(type) {
	case *dnsmessage.AResource:
		return dnsmessage.TypeA
	case *dnsmessage.AAAAResource:
		return dnsmessage.TypeAAAA
	case *dnsmessage.PTRResource:
		return dnsmessage.TypePTR
	case *dnsmessage.MXResource:
		return dnsmessage.TypeMX
	}
	return 0
}
