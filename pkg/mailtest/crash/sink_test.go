//go:build system

package crash

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"strings"
	"sync"
)

// sink is the rest of the world: a host that takes mail by SMTP, and one by LMTP.
// "later" is not at home at first, and "no" is nobody there before the restart.
type sink struct {
	w    *world
	kept func(rcpt string, content []byte) // may be nil

	mu     sync.Mutex
	later  bool
	no     bool
	copies map[string][][]byte // by recipient
}

func newSink(w *world) (*sink, error) {
	s := &sink{w: w}
	for network, address := range map[string]string{"tcp": smtpAddr, "unix": lmtpPath} {
		l, err := net.Listen(network, address)
		if err != nil {
			return nil, err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					w.fail("sink: %v", err)
					return
				}
				go s.session(c, network == "unix")
			}
		}()
	}
	return s, nil
}

func (s *sink) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.later, s.no, s.copies = false, false, make(map[string][][]byte)
}

func (s *sink) atHome(no bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.later, s.no = true, no
}

func (s *sink) of(rcpt string) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([][]byte{}, s.copies[rcpt]...)
}

// session serves one client, whose errors are nobody's.
func (s *sink) session(c net.Conn, lmtp bool) {
	defer c.Close()
	r := bufio.NewReader(c)
	fmt.Fprint(c, "220 sink.example\r\n")
	var rcpts []string
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		word := strings.ToUpper(strings.TrimSpace(line))
		switch {
		case strings.HasPrefix(word, "RCPT TO:<"):
			rcpt := strings.ToLower(word[len("RCPT TO:<"):strings.IndexByte(word, '>')])
			reply := s.asked(rcpt)
			if reply == "" {
				rcpts = append(rcpts, rcpt)
				reply = "250 2.1.5 yes"
			}
			fmt.Fprint(c, reply+"\r\n")
		case word == "DATA" && len(rcpts) == 0:
			fmt.Fprint(c, "554 5.5.1 nobody\r\n")
		case word == "DATA":
			fmt.Fprint(c, "354 go on\r\n")
			content, err := data(r)
			if err != nil {
				return
			}
			n := 1
			if lmtp {
				n = len(rcpts)
			}
			said := s.keep(rcpts, content, n)
			fmt.Fprint(c, strings.Repeat("250 2.0.0 kept\r\n", said))
			if said < n {
				return
			}
			rcpts = nil
		case word == "QUIT":
			fmt.Fprint(c, "221 2.0.0 bye\r\n")
			return
		case word == "RSET":
			rcpts = nil
			fallthrough
		default:
			fmt.Fprint(c, "250 2.0.0 yes\r\n")
		}
	}
}

func (s *sink) asked(rcpt string) (refusal string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case strings.HasPrefix(rcpt, "no@") && !s.no:
		return "550 5.1.1 nobody"
	case strings.HasPrefix(rcpt, "later@") && !s.later:
		return "450 4.2.1 come back"
	}
	return ""
}

// The faults of a remote host: it takes a message and ends before it says so, or
// when it has said so, by LMTP, of all recipients but one.
const (
	dies     = "dies"
	diesLate = "dies late"
)

// keep takes a message, of which it can speak in some replies. It returns how many
// the host sends before it ends; all of them where it does not.
func (s *sink) keep(rcpts []string, content []byte, replies int) int {
	s.mu.Lock()
	for _, rcpt := range rcpts {
		s.copies[rcpt] = append(s.copies[rcpt], content)
		if s.kept != nil {
			s.kept(rcpt, content)
		}
	}
	s.mu.Unlock()
	w := s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.point.N == 0 && w.counts != nil {
		w.counts[remote+" "+dies]++
		if replies > 1 {
			w.counts[remote+" "+diesLate]++
		}
	}
	if w.point.Unit != remote || w.point.N <= 0 || w.struck != nil || w.point.Fault == diesLate && replies == 1 {
		return replies
	}
	if w.point.N--; w.point.N > 0 {
		return replies
	}
	w.point.N = -1
	w.struck = &call{name: "reply", class: socket}
	if w.point.Fault == diesLate {
		return replies - 1
	}
	return 0
}

// data reads a message, with LF for CRLF.
func data(r *bufio.Reader) ([]byte, error) {
	var b bytes.Buffer
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		if bytes.Equal(line, []byte(".\r\n")) {
			return b.Bytes(), nil
		}
		b.Write(bytes.TrimSuffix(bytes.TrimPrefix(line, []byte(".")), []byte("\r\n")))
		b.WriteByte('\n')
	}
}
