package smtpclient

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
)

// Message is a message to send.
type Message struct {
	Sender     addr.Mailbox
	Return     dsn.Return
	EnvID      string
	Body       envelope.Body
	SMTPUTF8   bool // as the sender declared it
	Recipients []envelope.Recipient
	Content    *io.SectionReader
}

// mailCommand returns the command MAIL with the parameters that the server
// knows. Where 8BITMIME is not among them the message is sent as it is.
func (m *Message) mailCommand(x Extensions) string {
	var b strings.Builder
	b.WriteString("MAIL FROM:" + m.Sender.Path())
	if x.Size {
		fmt.Fprintf(&b, " SIZE=%d", m.Content.Size())
	}
	if x.EightBitMIME && m.Body == envelope.Body8BitMIME {
		b.WriteString(" BODY=8BITMIME")
	}
	if x.SMTPUTF8 && m.wantsUTF8() {
		b.WriteString(" SMTPUTF8")
	}
	if x.DSN {
		if ret := m.Return.String(); ret != "" {
			b.WriteString(" RET=" + ret)
		}
		if id := dsn.EncodeXtext(m.EnvID); id != "" && len(id) <= dsn.MaxEnvID {
			b.WriteString(" ENVID=" + id)
		}
	}
	return b.String()
}

func (m *Message) wantsUTF8() bool {
	if m.SMTPUTF8 || !m.Sender.IsASCII() {
		return true
	}
	for i := range m.Recipients {
		if !m.Recipients[i].Address.IsASCII() {
			return true
		}
	}
	return false
}

// rcptCommand returns the command RCPT for one recipient. One that came without
// ORCPT gets the address that it had here at first, as RFC 3461, section
// 5.2.1, allows.
func rcptCommand(r *envelope.Recipient, x Extensions) string {
	command := "RCPT TO:" + r.Address.Path()
	if !x.DSN {
		return command
	}
	if notify := r.Notify.String(); notify != "" {
		command += " NOTIFY=" + notify
	}
	o := r.ORCPT
	if o.Type == "" && !r.Original.IsNull() {
		o = dsn.OriginalRecipient{Type: "rfc822", Address: r.Original.String()}
		if !r.Original.IsASCII() {
			o.Type = "utf-8"
		}
	}
	if value := o.Encode(); value != "" {
		command += " ORCPT=" + value
	}
	return command
}

// maxHeader bounds the look at a header, in octets. A longer one is taken to
// need SMTPUTF8 where that was declared.
const maxHeader = 1 << 20

// headerIsASCII reports whether the header of a message is plain ASCII.
func headerIsASCII(content *io.SectionReader) (bool, error) {
	r := bufio.NewReader(io.NewSectionReader(content, 0, content.Size()))
	blank := true // nothing but CR in this line
	for range maxHeader {
		b, err := r.ReadByte()
		switch {
		case err == io.EOF:
			return true, nil
		case err != nil:
			return false, err
		case b >= 0x80:
			return false, nil
		case b == '\n' && blank:
			return true, nil
		}
		blank = b == '\n' || b == '\r' && blank
	}
	return false, nil
}
