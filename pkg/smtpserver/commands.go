package smtpserver

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
)

// verbNames are the verbs in the order in which the log counts them, as Postfix
// does. AUTH and STARTTLS have their place here; a client gets 502 until they are
// offered. The last one stands for all that are not known.
var verbNames = [...]string{"helo", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "bdat",
	"rset", "noop", "vrfy", "etrn", "expn", "help", "quit", "unknown"}

var handlers = [...]func(*engine, string) (bool, error){
	(*engine).helo, (*engine).ehlo, (*engine).missing, (*engine).missing, (*engine).mailFrom, (*engine).rcptTo, (*engine).data, (*engine).bdatChunk,
	(*engine).rset, (*engine).noop, (*engine).vrfy, (*engine).missing, (*engine).missing, (*engine).help, (*engine).quit, (*engine).unknown}

// otherProtocols begin requests of programs that were tricked into talking to
// a mail server; the rest of their input would be tried as commands.
var otherProtocols = []string{"CONNECT", "GET", "POST", "PUT", "HEAD", "OPTIONS", "USER"}

// notSMTP reports whether a line is of another protocol, or of a message whose
// sender has missed a reply: a verb of the former, a header field, or something
// that does not begin with a letter, as a TLS handshake (Postfix's
// smtpd_forbidden_commands).
func notSMTP(line, verb string) bool {
	if line == "" {
		return false
	}
	if c := line[0] | 0x20; c < 'a' || c > 'z' || strings.Contains(verb, ":") {
		return true
	}
	return slices.ContainsFunc(otherProtocols, func(other string) bool { return strings.EqualFold(verb, other) })
}

// dispatch carries out one command. A handler says whether it accepted it.
func (e *engine) dispatch(line string) error {
	verb, args, _ := strings.Cut(strings.TrimRight(line, " \t"), " ")
	if notSMTP(line, verb) {
		e.stats.NotSMTP = line
		e.stats.verbs[len(verbNames)-1].all++
		e.write(Reply{221, "2.7.0", "Error: I can break rules, too. Goodbye."})
		return errClosing
	}
	i := len(verbNames) - 1
	for k, name := range verbNames[:i] {
		if strings.EqualFold(verb, name) {
			i = k
			break
		}
	}
	e.stats.After = strings.ToUpper(verbNames[i])
	ok, err := handlers[i](e, strings.TrimLeft(args, " \t"))
	e.stats.verbs[i].all++
	if ok {
		e.stats.verbs[i].good++
	}
	return err
}

// no and yes are the two ways for a handler to end.
func (e *engine) no(code int, status, text string) (bool, error) {
	return false, e.reply(Reply{code, status, text})
}

// refuse is no, and the log is told.
func (e *engine) refuse(r Refusal) (bool, error) {
	e.policy.Refused(&e.session, r)
	return false, e.reply(r.Reply)
}

// badPath refuses an address that is none. The log shows it, the reply does not.
func (e *engine) badPath(verb, args string, reply Reply) (bool, error) {
	const enough = 300
	if len(args) > enough {
		args = args[:enough] + "..."
	}
	logged := reply
	logged.Text += ": " + args
	e.policy.Refused(&e.session, Refusal{Verb: verb, Mail: e.mail, Reply: logged})
	return false, e.reply(reply)
}

func (e *engine) yes(status, text string) (bool, error) {
	return true, e.reply(Reply{250, status, text})
}

func (e *engine) unknown(string) (bool, error) {
	return e.no(500, "5.5.2", "Error: command not recognized")
}

func (e *engine) missing(string) (bool, error) {
	return e.no(502, "5.5.1", "Error: command not implemented")
}

func (e *engine) helo(args string) (bool, error) { return e.hello("HELO", args) }
func (e *engine) ehlo(args string) (bool, error) { return e.hello("EHLO", args) }

// maxHelo bounds the name that a client gives: a domain, or an address literal.
const maxHelo = 255

// harmless makes a question mark of what would have another meaning in a Received
// field: a comment, the end of one, another clause.
func harmless(r rune) rune {
	if strings.ContainsRune(`<>()\";@`, r) {
		return '?'
	}
	return r
}

func (e *engine) hello(verb, name string) (bool, error) {
	if name == "" || len(name) > maxHelo || dsn.CheckText(name) != nil || strings.ContainsAny(name, " \t") {
		return e.no(501, "", "Syntax: "+verb+" hostname")
	}
	name = strings.Map(harmless, name)
	if reply := e.policy.Helo(&e.session, name); reply != nil {
		return false, e.reply(*reply)
	}
	e.reset() // RFC 5321, section 4.1.4
	e.greeted = true
	e.session = Session{Helo: name, ESMTP: verb == "EHLO"}
	if err := e.synchronise(); err != nil {
		return false, err
	}
	e.nothing()
	if !e.session.ESMTP {
		return e.yes("", e.cfg.Hostname)
	}
	lines := []string{e.cfg.Hostname, "PIPELINING", "SIZE " + strconv.FormatInt(e.cfg.MessageSize, 10),
		"ENHANCEDSTATUSCODES", "8BITMIME", "DSN", "SMTPUTF8", "CHUNKING"}
	for _, line := range lines[:len(lines)-1] {
		_, _ = e.w.WriteString("250-" + line + "\r\n") // an error shows at the flush
	}
	return e.yes("", lines[len(lines)-1])
}

func (e *engine) rset(args string) (bool, error) {
	if args != "" {
		return e.no(501, "5.5.4", "Syntax: RSET")
	}
	e.reset()
	return true, e.harmless(Reply{250, "2.0.0", "Ok"})
}

func (e *engine) noop(string) (bool, error) {
	return true, e.harmless(Reply{250, "2.0.0", "Ok"})
}

// vrfy says neither yes nor no: who wants to know has to send mail (RFC 5321,
// section 7.3).
func (e *engine) vrfy(args string) (bool, error) {
	if args == "" {
		return e.no(501, "5.5.4", "Syntax: VRFY address")
	}
	return true, e.harmless(Reply{252, "2.0.0", "Cannot VRFY user; try RCPT to attempt delivery"})
}

func (e *engine) help(string) (bool, error) {
	return true, e.harmless(Reply{214, "2.0.0", "EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT"})
}

func (e *engine) quit(args string) (bool, error) {
	if args != "" {
		return e.no(501, "5.5.4", "Syntax: QUIT")
	}
	e.write(Reply{221, "2.0.0", "Bye"})
	return true, errors.Join(errQuit, e.w.Flush())
}

// path reads "FROM:<...>" or "TO:<...>" and the parameters behind it. Some devices
// leave the brackets out; Postfix takes that, too.
func path(args, word string) (m addr.Mailbox, params string, ok bool, err error) {
	if len(args) < len(word) || !strings.EqualFold(args[:len(word)], word) {
		return addr.Mailbox{}, "", false, nil
	}
	// RFC 5321 has no space here, but many clients do.
	rest := strings.TrimLeft(args[len(word):], " ")
	if strings.HasPrefix(rest, "<") {
		m, params, err = addr.ParsePath(rest)
	} else {
		n := strings.IndexByte(rest+" ", ' ')
		m, err = addr.Parse(rest[:n])
		params = rest[n:]
	}
	if err == nil && params != "" && params[0] != ' ' {
		err = errors.New("no space after the path")
	}
	return m, params, true, err
}

// parameters calls set for each parameter, with its keyword in upper case.
func parameters(list string, set func(key, value string) *Reply) *Reply {
	seen := make(map[string]bool)
	for p := range strings.FieldsSeq(list) {
		key, value, given := strings.Cut(p, "=")
		key = strings.ToUpper(key)
		if seen[key] {
			return &Reply{501, "5.5.4", "Error: " + key + " given twice"}
		}
		seen[key] = true
		if given != (value != "") {
			return &Reply{501, "5.5.4", "Bad " + key + " parameter syntax"}
		}
		if reply := set(key, value); reply != nil {
			return reply
		}
	}
	return nil
}

func badParameter(key string) *Reply {
	return &Reply{501, "5.5.4", "Bad " + key + " parameter syntax"}
}

func (e *engine) mailFrom(args string) (bool, error) {
	switch {
	case !e.greeted && e.cfg.HeloRequired:
		return e.no(503, "5.5.1", "Error: send HELO/EHLO first")
	case e.mail != nil:
		return e.no(503, "5.5.1", "Error: nested MAIL command")
	}
	from, params, ok, err := path(args, "FROM:")
	if !ok {
		return e.no(501, "5.5.4", "Syntax: MAIL FROM:<address>")
	}
	if err != nil {
		return e.badPath("MAIL", args, Reply{501, "5.1.7", "Bad sender address syntax"})
	}
	m := &Mail{From: from}
	if reply := parameters(params, m.set); reply != nil {
		return false, e.reply(*reply)
	}
	if !from.IsASCII() && !m.SMTPUTF8 {
		return e.refuse(Refusal{Verb: "MAIL", Mail: m, Reply: Reply{550, "5.6.7", "Address needs SMTPUTF8"}})
	}
	if e.cfg.MessageSize > 0 && m.Size > e.cfg.MessageSize {
		return e.refuse(Refusal{Verb: "MAIL", Mail: m, Reply: Reply{552, "5.3.4", "Message size exceeds fixed limit"}})
	}
	if reply := e.policy.Mail(&e.session, m); reply != nil {
		return false, e.reply(*reply)
	}
	e.mail = m
	return e.yes("2.1.0", "Ok")
}

// set takes one parameter of MAIL.
func (m *Mail) set(key, value string) *Reply {
	var err error
	switch key {
	case "SIZE":
		var n uint64
		n, err = strconv.ParseUint(value, 10, 63)
		m.Size = int64(n)
		if errors.Is(err, strconv.ErrRange) { // of 20 digits (RFC 1870, section 4); n is the largest number then
			err = nil
		}
		if err != nil || len(value) > 20 {
			return badParameter(key)
		}
	case "BODY":
		switch strings.ToUpper(value) {
		case "7BIT":
			m.Body = envelope.Body7Bit
		case "8BITMIME":
			m.Body = envelope.Body8BitMIME
		default:
			return badParameter(key)
		}
	case "SMTPUTF8":
		if value != "" {
			return badParameter(key)
		}
		m.SMTPUTF8 = true
	case "RET":
		m.Return, err = dsn.ParseReturn(value)
	case "ENVID":
		m.EnvID, err = dsn.DecodeXtext(value)
		if value == "" || len(value) > dsn.MaxEnvID {
			return badParameter(key)
		}
	default:
		return &Reply{555, "5.5.4", "Unsupported option: " + key}
	}
	if err != nil {
		return badParameter(key)
	}
	return nil
}

func (e *engine) rcptTo(args string) (bool, error) {
	switch {
	case e.mail == nil:
		return e.no(503, "5.5.1", "Error: need MAIL command")
	case e.bdat != nil:
		return e.no(503, "5.5.1", "Error: RCPT within BDAT")
	}
	to, params, ok, err := path(args, "TO:")
	if !ok {
		return e.no(501, "5.5.4", "Syntax: RCPT TO:<address>")
	}
	if err != nil || to.IsNull() || to.Domain() == "" && !e.cfg.Local && !isPostmaster(to) {
		return e.badPath("RCPT", args, Reply{501, "5.1.3", "Bad recipient address syntax"})
	}
	r := Rcpt{To: to.Clone()} // its command may be a hundred times as long
	if reply := parameters(params, func(key, value string) *Reply { return r.set(key, value, e.mail.SMTPUTF8) }); reply != nil {
		return false, e.reply(*reply)
	}
	if !to.IsASCII() && !e.mail.SMTPUTF8 {
		return e.refuse(Refusal{"RCPT", e.mail, &r, Reply{550, "5.6.7", "Address needs SMTPUTF8"}})
	}
	if e.cfg.Recipients > 0 && len(e.rcpts) >= e.cfg.Recipients {
		refusal := Reply{452, "4.5.3", "Error: too many recipients"}
		if e.excess++; e.excess == 1 { // once for a message: there may be very many
			e.policy.Refused(&e.session, Refusal{"RCPT", e.mail, &r, refusal})
		}
		if e.excess > overshoot {
			return false, e.reply(refusal)
		}
		e.write(refusal)
		return false, nil
	}
	if reply := e.policy.Rcpt(&e.session, e.mail, &r); reply != nil {
		return false, e.reply(*reply)
	}
	e.rcpts = append(e.rcpts, r)
	return e.yes("2.1.5", "Ok")
}

// isPostmaster reports whether m is who may do without a domain (RFC 5321, section
// 4.1.1.3). Unicode has a long s, which folds to an s.
func isPostmaster(m addr.Mailbox) bool {
	return m.IsASCII() && strings.EqualFold(m.Local(), "postmaster")
}

// set takes one parameter of RCPT.
func (r *Rcpt) set(key, value string, utf8 bool) *Reply {
	var err error
	switch key {
	case "NOTIFY":
		r.Notify, err = dsn.ParseNotify(value)
	case "ORCPT":
		r.ORCPT, err = dsn.ParseOriginalRecipient(strings.Clone(value))
		if err == nil && !utf8 && !isASCII(value) {
			return badParameter(key)
		}
	default:
		return &Reply{555, "5.5.4", "Unsupported option: " + key}
	}
	if err != nil {
		return badParameter(key)
	}
	return nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
