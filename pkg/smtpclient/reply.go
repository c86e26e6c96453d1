package smtpclient

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"posthouse/pkg/dsn"
	"posthouse/pkg/maillog"
)

// Limits of one reply. RFC 5321, section 4.5.3.1.5 allows lines of 512 octets;
// real servers send longer ones.
const (
	maxReplyLine  = 2048
	maxReplyLines = 100
	maxReplySize  = 64 << 10

	maxText = 1000 // what is kept of it, for each recipient
)

// Reply is a server's reply (RFC 5321, section 4.2).
type Reply struct {
	Code  int      // 200 to 599
	Lines []string // the texts without the code; printable; at least one, which may be empty
}

// errReply is a reply that is none, or that is too large.
type errReply struct{ why string }

func (e *errReply) Error() string { return e.why }

// readReply reads one reply. All lines must have the same code: a client that
// looked at one of them only could be told two things at once. Lines may end in
// a bare LF, as some servers have it. After an error there is no telling where
// the next reply starts.
func readReply(r *bufio.Reader) (*Reply, error) {
	reply := &Reply{}
	for size := 0; ; {
		line, err := readLine(r)
		if err != nil {
			return nil, err
		}
		if size += len(line); size > maxReplySize || len(reply.Lines) == maxReplyLines {
			return nil, &errReply{"reply that is too long"}
		}
		code, more, text, ok := parseLine(line)
		if !ok {
			return nil, &errReply{fmt.Sprintf("malformed reply %q", maillog.Printable(clip(line)))}
		}
		if len(reply.Lines) > 0 && code != reply.Code {
			return nil, &errReply{fmt.Sprintf("reply with two codes, %d and %d", reply.Code, code)}
		}
		reply.Code = code
		reply.Lines = append(reply.Lines, maillog.Printable(text))
		if !more {
			return reply, nil
		}
	}
}

// readLine returns a line without its end.
func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	for {
		b, err := r.ReadByte()
		switch {
		case err != nil && len(line) > 0 && errors.Is(err, io.EOF):
			return "", io.ErrUnexpectedEOF
		case err != nil:
			return "", err
		case b == '\n':
			return strings.TrimSuffix(string(line), "\r"), nil
		case len(line) == maxReplyLine:
			return "", &errReply{"reply with a line that is too long"}
		}
		line = append(line, b)
	}
}

func parseLine(s string) (code int, more bool, text string, ok bool) {
	if len(s) < 3 || s[0] < '2' || s[0] > '5' || s[1] < '0' || s[1] > '9' || s[2] < '0' || s[2] > '9' {
		return 0, false, "", false
	}
	code = int(s[0]-'0')*100 + int(s[1]-'0')*10 + int(s[2]-'0')
	if len(s) == 3 {
		return code, false, "", true
	}
	if s[3] != ' ' && s[3] != '-' {
		return 0, false, "", false
	}
	return code, s[3] == '-', s[4:], true
}

func clip(s string) string { return s[:min(len(s), 100)] }

// enhanced returns the status code at the start of a line, and what follows it.
// One whose class is not that of the reply does not count.
func (r *Reply) enhanced(line string) (dsn.Status, string, bool) {
	word, rest, _ := strings.Cut(line, " ")
	s, err := dsn.Parse(word)
	if err != nil || word[0] != byte('0'+r.Code/100) {
		return dsn.Status{}, line, false
	}
	return s, rest, true
}

// Status returns the enhanced status code (RFC 2034), or X.0.0 for a reply
// without one. A reply that is neither success nor failure, such as 354 out of
// place, defers: 4.5.0.
func (r *Reply) Status() dsn.Status {
	if s, _, ok := r.enhanced(r.Lines[0]); ok {
		return s
	}
	switch r.Code / 100 {
	case 2:
		return dsn.MustParse("2.0.0")
	case 4:
		return dsn.MustParse("4.0.0")
	case 5:
		return dsn.MustParse("5.0.0")
	}
	return dsn.MustParse("4.5.0")
}

// String returns the reply as one line, cut where it is very long. An enhanced status
// code that every line repeats is shown once.
func (r *Reply) String() string {
	parts := make([]string, 0, len(r.Lines)+1)
	parts = append(parts, fmt.Sprintf("%03d", r.Code), r.Lines[0])
	first, _, has := r.enhanced(r.Lines[0])
	for _, line := range r.Lines[1:] {
		if s, rest, ok := r.enhanced(line); has && ok && s == first {
			line = rest
		}
		parts = append(parts, line)
	}
	s := strings.Join(parts, " ")
	if len(s) > maxText {
		s = strings.ToValidUTF8(strings.Clone(s[:maxText]), "")
	}
	return strings.TrimRight(s, " ")
}

func (r *Reply) positive() bool { return r.Code/100 == 2 }

// refusal reports whether r is a failure in the sense of the protocol.
func (r *Reply) refusal() bool { return r.Code/100 == 4 || r.Code/100 == 5 }
