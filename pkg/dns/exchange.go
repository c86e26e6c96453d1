package dns

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// udpSize is what we take in one datagram (RFC 9715): less than what is cut
// into fragments, which can be forged.
const udpSize = 1232

// ask puts q to the servers, one after the other; the second time without EDNS, which there
// are firewalls that let no question with pass.
func (r *Resolver) ask(ctx context.Context, q dnsmessage.Question) (answer, error) {
	s := r.settings()
	last := errors.New("no server")
	for round := range s.rounds {
		for _, server := range s.servers {
			try, cancel := context.WithTimeout(ctx, s.timeout)
			a, err := exchange(try, server, inquiry{q, round > 0})
			cancel()
			if err == nil || errors.Is(err, ErrNoName) {
				return a, err
			}
			last = err
			if ctx.Err() != nil {
				return answer{}, last
			}
		}
	}
	return answer{}, last
}

// inquiry is a question, and how it is put.
type inquiry struct {
	dnsmessage.Question
	plain bool // without EDNS
}

// exchange asks one server, by TCP where the answer does not fit into a datagram, and
// without EDNS where the server does not know it (RFC 6891, section 7).
func exchange(ctx context.Context, server netip.AddrPort, q inquiry) (answer, error) {
	a, truncated, err := roundTrip(ctx, "udp", server, q)
	if errors.Is(err, errFormat) && !q.plain {
		q.plain = true
		a, truncated, err = roundTrip(ctx, "udp", server, q)
	}
	if err == nil && truncated {
		a, truncated, err = roundTrip(ctx, "tcp", server, q)
		if err == nil && truncated {
			err = errors.New("truncated answer by TCP")
		}
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		err = errors.New("no answer")
	}
	return a, err
}

// roundTrip sends q from a socket of its own, whose port is random, with a
// random ID: both have to be guessed to forge an answer.
func roundTrip(ctx context.Context, network string, server netip.AddrPort, q inquiry) (answer, bool, error) {
	var random [2]byte
	if _, err := rand.Read(random[:]); err != nil {
		return answer{}, false, err
	}
	id := binary.BigEndian.Uint16(random[:])
	query, err := build(id, q)
	if err != nil {
		return answer{}, false, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, server.String())
	if err != nil {
		return answer{}, false, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if network == "tcp" {
		return stream(conn, query, id, q.Question)
	}
	if _, err := conn.Write(query); err != nil {
		return answer{}, false, err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return answer{}, false, err
		}
		a, truncated, err := parse(buf[:n], id, q.Question)
		// What is not an answer may be forged; the answer may still come.
		if err == nil || errors.Is(err, ErrNoName) || errors.Is(err, errRefused) {
			return a, truncated, err
		}
	}
}

func stream(conn net.Conn, query []byte, id uint16, q dnsmessage.Question) (answer, bool, error) {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
		return answer{}, false, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return answer{}, false, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, b); err != nil {
		return answer{}, false, err
	}
	return parse(b, id, q)
}

func build(id uint16, q inquiry) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	err := errors.Join(b.StartQuestions(), b.Question(q.Question))
	if !q.plain {
		var h dnsmessage.ResourceHeader
		err = errors.Join(err, b.StartAdditionals(), h.SetEDNS0(udpSize, dnsmessage.RCodeSuccess, false), b.OPTResource(h, dnsmessage.OPTResource{}))
	}
	if err != nil {
		return nil, fmt.Errorf("question: %w", err)
	}
	return b.Finish()
}

// resolvConf is a file in the form of resolv.conf(5).
type resolvConf struct {
	path string

	mu      sync.Mutex
	checked time.Time
	stamp   time.Time
	size    int64
	now     settings
}

// checkTime is how often the file is looked at.
const checkTime = time.Second

func (f *resolvConf) current() settings {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.checked) >= checkTime {
		f.checked = now
		info, err := os.Stat(f.path)
		if err == nil && info.ModTime().Equal(f.stamp) && info.Size() == f.size && len(f.now.servers) > 0 {
			return f.now
		}
		text, err := os.ReadFile(f.path)
		switch {
		case err == nil && info != nil:
			f.stamp, f.size = info.ModTime(), info.Size()
		case !errors.Is(err, fs.ErrNotExist) && len(f.now.servers) > 0:
			return f.now // what could not be read may not have changed
		}
		f.now = parseConf(text)
	}
	return f.now
}

// Bounds of resolv.conf(5).
const (
	maxServers = 3
	maxTimeout = 30
	maxRounds  = 5
)

func parseConf(text []byte) settings {
	s := settings{timeout: defaultTimeout, rounds: defaultRounds}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) < 2:
		case words[0] == "nameserver":
			if ip, err := netip.ParseAddr(words[1]); err == nil && len(s.servers) < maxServers {
				s.servers = append(s.servers, netip.AddrPortFrom(ip, 53))
			}
		case words[0] == "options":
			for _, w := range words[1:] {
				key, value, _ := strings.Cut(w, ":")
				n, err := strconv.Atoi(value)
				if err != nil || n < 1 {
					continue
				}
				switch key {
				case "timeout":
					s.timeout = time.Duration(min(n, maxTimeout)) * time.Second
				case "attempts":
					s.rounds = min(n, maxRounds)
				}
			}
		}
	}
	if len(s.servers) == 0 {
		s.servers = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}
	}
	return s
}
