package smtpclient

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/smtpserver"
	"posthouse/pkg/wire"
)

// dialogue is a connection whose other end has said everything beforehand.
type dialogue struct {
	net.Conn
	in io.Reader
}

func (d dialogue) Read(p []byte) (int, error)     { return d.in.Read(p) }
func (dialogue) Write(p []byte) (int, error)      { return len(p), nil }
func (dialogue) SetReadDeadline(time.Time) error  { return nil }
func (dialogue) SetWriteDeadline(time.Time) error { return nil }

// accepted is what a server has accepted.
type accepted struct {
	mail *smtpserver.Mail
	rcpt *smtpserver.Rcpt
}

func (*accepted) Connect(*smtpserver.Session) *smtpserver.Reply      { return nil }
func (*accepted) Helo(*smtpserver.Session, string) *smtpserver.Reply { return nil }
func (*accepted) Refused(*smtpserver.Session, smtpserver.Refusal)    {}

func (a *accepted) Mail(_ *smtpserver.Session, m *smtpserver.Mail) *smtpserver.Reply {
	a.mail = m
	return nil
}

func (a *accepted) Rcpt(_ *smtpserver.Session, _ *smtpserver.Mail, r *smtpserver.Rcpt) *smtpserver.Reply {
	a.rcpt = &smtpserver.Rcpt{To: r.To, Notify: r.Notify, ORCPT: r.ORCPT}
	return nil
}

func (*accepted) Data(*smtpserver.Session, *smtpserver.Mail, []smtpserver.Rcpt) (smtpserver.Sink, *smtpserver.Reply) {
	return nil, &smtpserver.Reply{Code: 451}
}

// serve has a server listen to two commands.
func serve(mail, rcpt string) *accepted {
	a := &accepted{}
	in := strings.NewReader(mail + "\r\n" + rcpt + "\r\nQUIT\r\n")
	smtpserver.Serve(dialogue{in: in}, smtpserver.Config{Hostname: "mx.example", HardErrors: 20}, a)
	return a
}

// FuzzEnvelope: what our server takes for an envelope the other daemons
// understand, and our client says so that it is understood the same; a command
// that is refused leaves nothing.
func FuzzEnvelope(f *testing.F) {
	f.Add("FROM:<a@b> SIZE=5 BODY=8BITMIME RET=HDRS ENVID=a+20b SMTPUTF8", "TO:<c@d> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;c+2Bx@d")
	f.Add("FROM:<> RET=FULL", "TO:<\"a b\\\"\"@[IPv6:::1]> NOTIFY=NEVER")
	f.Add("FROM:<é@ü> SMTPUTF8 BODY=7BIT", `TO:<@x,@y:postmaster> ORCPT=utf-8;\x{E9}é\x{5C}@b`)
	f.Add("FROM: <a@b> ENVID="+strings.Repeat("+20", 33), "to:<postmaster> ORCPT=utf-8;"+strings.Repeat("é", 240))
	f.Fuzz(func(t *testing.T, mailArgs, rcptArgs string) {
		if strings.ContainsAny(mailArgs+rcptArgs, "\r\n") {
			return // other commands; FuzzSession says those
		}
		a := serve("MAIL "+mailArgs, "RCPT "+rcptArgs)
		if a.mail == nil || a.rcpt == nil {
			return
		}
		e := envelope.Envelope{
			Sender: a.mail.From, Return: a.mail.Return, EnvID: a.mail.EnvID, Body: a.mail.Body, SMTPUTF8: a.mail.SMTPUTF8,
			Recipients: []envelope.Recipient{{Address: a.rcpt.To, Original: a.rcpt.To, Notify: a.rcpt.Notify, ORCPT: a.rcpt.ORCPT}},
		}
		var enc wire.Encoder
		e.Encode(&enc)
		d := wire.NewDecoder(enc.Data())
		envelope.Decode(d)
		if err := d.End(); err != nil {
			t.Fatalf("%q, %q: %v", mailArgs, rcptArgs, err)
		}
		m := &Message{
			Sender: e.Sender, Return: e.Return, EnvID: e.EnvID, Body: e.Body, SMTPUTF8: e.SMTPUTF8, Recipients: e.Recipients,
			Content: io.NewSectionReader(bytes.NewReader(nil), 0, 0),
		}
		all := Extensions{EightBitMIME: true, SMTPUTF8: true, DSN: true, Size: true}
		mail, rcpt := m.mailCommand(all), rcptCommand(&m.Recipients[0], all)
		b := serve(mail, rcpt)
		if b.mail == nil || b.rcpt == nil {
			t.Fatalf("%q, %q are refused", mail, rcpt)
		}
		want := *a.mail
		want.Size = 0
		if want.Body == envelope.Body7Bit {
			want.Body = envelope.BodyUnset // the default; nobody has to be told
		}
		want.SMTPUTF8 = m.wantsUTF8()
		if *b.mail != want {
			t.Fatalf("%q is understood as %+v, want %+v", mail, *b.mail, want)
		}
		orcpt := a.rcpt.ORCPT
		if orcpt == (dsn.OriginalRecipient{}) {
			orcpt = b.rcpt.ORCPT // where it comes from
		}
		if b.rcpt.To != a.rcpt.To || b.rcpt.Notify != a.rcpt.Notify || b.rcpt.ORCPT != orcpt && orcpt.Encode() != "" {
			t.Fatalf("%q is understood as %+v, want %+v", rcpt, *b.rcpt, *a.rcpt)
		}
	})
}
