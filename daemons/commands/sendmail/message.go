package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/header"
)

// maxHeader bounds the header, in octets.
const maxHeader = 1 << 20

// maxMessage bounds what is read, in octets, whatever the mail system would take: what
// a program writes without end must not fill the disk.
var maxMessage int64 = 1 << 30

var errTooBig = dsn.Errorf("5.3.4", "the message is too large")

// input turns what a program writes into the lines of a message: LF or CRLF at
// the end of a line, mbox lines at the top, and a lone dot at the end unless
// dots mean nothing.
type input struct {
	r          *bufio.Reader
	ignoreDots bool
	started    bool
	start      bool // at the beginning of a line
	end        bool
	mbox       bool // in an mbox line at the top
	size       int64
}

func newInput(r io.Reader, ignoreDots bool) *input {
	return &input{r: bufio.NewReaderSize(r, 32<<10), ignoreDots: ignoreDots, start: true}
}

// next returns the next line, or a piece of a long one, ending in CRLF where the
// line ends; io.EOF at the end.
func (in *input) next() ([]byte, error) {
	for {
		if in.end {
			return nil, io.EOF
		}
		line, err := in.r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read the message: %w", err)
		}
		in.end = errors.Is(err, io.EOF)
		if len(line) == 0 {
			return nil, io.EOF
		}
		if last := len(line) - 1; errors.Is(err, bufio.ErrBufferFull) && line[last] == '\r' && in.r.UnreadByte() == nil {
			line = line[:last] // the line may end here
		}
		begins := in.start
		in.start = !errors.Is(err, bufio.ErrBufferFull)
		text := bytes.TrimSuffix(line, []byte("\n"))
		ended := in.start
		if ended {
			text = bytes.TrimRight(text, "\r")
		}
		if begins && ended && !in.ignoreDots && len(text) == 1 && text[0] == '.' {
			in.end = true
			return nil, io.EOF
		}
		if begins && !in.started {
			in.mbox = bytes.HasPrefix(bytes.TrimLeft(text, ">"), []byte("From "))
		}
		if in.mbox {
			in.mbox = !ended // the rest of a long one, too
			continue
		}
		in.started = true
		// A CR within a line would end it for somebody else.
		out := bytes.ReplaceAll(text, []byte("\r"), []byte(" "))
		if ended {
			out = append(bytes.Clone(out), '\r', '\n')
		}
		if in.size += int64(len(out)); in.size > maxMessage {
			return nil, errTooBig
		}
		return out, nil
	}
}

// head is the header of a message, as far as sendmail cares.
type head struct {
	raw           []byte // as it came, up to the empty line, that included if it is there
	recipients    []addr.Mailbox
	hasFrom       bool
	hasDate       bool
	resent        bool // the message is sent again: it has Resent- fields
	hasResentFrom bool
	added         string // fields that are put before it
}

// readHead reads the header. With extract it collects the recipients: those of
// Resent- fields only where there are any (RFC 5322, section 3.6.6).
func readHead(in *input, extract bool) (*head, error) {
	h := &head{}
	var plain, resent []addr.Mailbox
	anyResent := false
	s := header.NewSplitter(maxHeader)
	field := func(f header.Field) error {
		h.resent = h.resent || strings.HasPrefix(strings.ToLower(f.Name()), "resent-")
		switch {
		case f.Is("From"):
			h.hasFrom = true
		case f.Is("Resent-From"):
			h.hasResentFrom = true
		case f.Is("Date"):
			h.hasDate = true
		case extract && (f.Is("To") || f.Is("Cc") || f.Is("Bcc")):
			return collect(f, &plain)
		case extract && (f.Is("Resent-To") || f.Is("Resent-Cc") || f.Is("Resent-Bcc")):
			anyResent = true
			return collect(f, &resent)
		}
		return nil
	}
	for !s.Done() {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			_, err = s.Close(field)
			if err != nil {
				return nil, err
			}
			break
		}
		if err != nil {
			return nil, err
		}
		h.raw = append(h.raw, line...)
		if _, err := s.Feed(line, field); err != nil {
			return nil, err
		}
	}
	h.recipients = plain
	if anyResent {
		h.recipients = resent
	}
	return h, nil
}

// collect adds the addresses of a field to list.
func collect(f header.Field, list *[]addr.Mailbox) error {
	more, err := header.ParseAddressList(f.Value())
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	*list = append(*list, more...)
	return nil
}

// atext is what an atom consists of (RFC 5322, section 3.2.3).
const atext = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-/=?^_`{|}~"

// isPhrase reports whether a name needs no quotes (RFC 5322, section 3.2.5).
func isPhrase(name string) bool {
	for word := range strings.SplitSeq(name, " ") {
		if word == "" || strings.Trim(word, atext) != "" {
			return false
		}
	}
	return true
}

// fromField is the field, From or Resent-From, for a message that has none, where
// there is a name to go with the sender; otherwise cleanup adds the field. cleanup
// also completes a sender without a domain. The form is Postfix's.
func fromField(field, name string, sender addr.Mailbox) string {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, name)
	if clean == "" || sender.IsNull() {
		return ""
	}
	phrase := mime.QEncoding.Encode("utf-8", clean) // RFC 2047
	switch {
	case phrase != clean:
		phrase = strings.ReplaceAll(phrase, "=?utf-8?q?", "=?utf-8?Q?")
	case !isPhrase(clean):
		phrase = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(clean) + `"`
	}
	return field + ": " + phrase + " " + sender.Path() + "\r\n"
}
