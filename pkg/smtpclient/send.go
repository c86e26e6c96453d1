package smtpclient

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"posthouse/pkg/dsn"
)

// Result is what became of one recipient.
type Result struct {
	Status     dsn.Status // the zero Status defers
	Text       string     // for people
	Diagnostic string     // the server's reply; "" where it was not the server that decided
	// Uncertain is set where all of the message was sent and no reply came: it
	// may have been delivered, and sending it at once to another host may make
	// two of it.
	Uncertain bool
}

// sending is one message on its way.
type sending struct {
	*Client
	ctx     context.Context
	m       *Message
	results []Result
	decided []bool

	answered bool  // a reply to a command of this message has come
	refusedM bool  // MAIL has been refused
	accepted []int // recipients, in the order of their replies
	goAhead  bool  // the server waits for data
}

// Send sends a message and returns one result for each of its recipients, in
// their order. After an error the connection is of no more use: an *Error that
// says why, or trouble in reading the content. The results hold in any case.
func (c *Client) Send(ctx context.Context, m *Message) ([]Result, error) {
	s := &sending{Client: c, ctx: ctx, m: m, results: make([]Result, len(m.Recipients)), decided: make([]bool, len(m.Recipients))}
	if c.broken {
		err := &Error{Verdict: dsn.Errorf("4.4.2", "connection with %s is closed", c.o.Peer), Unanswered: true}
		s.giveUp(err, false)
		return s.results, err
	}
	if err := s.check(); err != nil {
		s.giveUp(err, false)
		return s.results, nil
	}
	if err := s.talk(); err != nil {
		err.Unanswered = !s.answered
		s.giveUp(err, false)
		return s.results, err
	}
	if !s.goAhead {
		return s.results, nil
	}
	return s.results, s.transfer()
}

// check finds what cannot be sent to this server at all.
func (s *sending) check() error {
	if limit := s.ext.MaxSize; limit > 0 && s.m.Content.Size() > limit {
		return dsn.Errorf("5.3.4", "message size %d exceeds size limit %d of server %s", s.m.Content.Size(), limit, s.o.Peer)
	}
	if s.ext.SMTPUTF8 {
		return nil
	}
	refuse := dsn.Errorf("5.6.7", "SMTPUTF8 is required, but was not offered by host %s", s.o.Peer)
	if s.unsure {
		refuse.Status = refuse.Status.With(dsn.Transient)
	}
	if !s.m.Sender.IsASCII() {
		return refuse
	}
	if s.m.SMTPUTF8 {
		ascii, err := headerIsASCII(s.m.Content)
		switch {
		case err != nil:
			return fmt.Errorf("read the message: %w", err)
		case !ascii:
			return refuse
		}
	}
	for i := range s.m.Recipients {
		if !s.m.Recipients[i].Address.IsASCII() {
			s.decide(i, Result{Status: refuse.Status, Text: refuse.Text})
		}
	}
	return nil
}

func (s *sending) decide(i int, r Result) {
	if !s.decided[i] {
		s.decided[i], s.results[i] = true, r
	}
}

// giveUp decides all recipients that are not decided yet.
func (s *sending) giveUp(err error, uncertain bool) {
	e := dsn.Of(err)
	r := Result{Status: e.Status, Text: e.Text, Uncertain: uncertain}
	if ce, ok := err.(*Error); ok && ce.Reply != nil {
		r.Diagnostic, r.Uncertain = ce.Reply.String(), false
	}
	for i := range s.results {
		s.decide(i, r)
	}
}

// step is one command of the envelope.
type step struct {
	stage stage
	text  string
	rcpt  int // which recipient, for RCPT
}

func (s *sending) steps() []step {
	list := make([]step, 0, len(s.m.Recipients)+3)
	if s.open {
		list = append(list, step{stage: rset, text: "RSET"})
	}
	list = append(list, step{stage: mail, text: s.m.mailCommand(s.ext)})
	for i := range s.m.Recipients {
		if !s.decided[i] {
			list = append(list, step{rcpt, rcptCommand(&s.m.Recipients[i], s.ext), i})
		}
	}
	return append(list, step{stage: data, text: "DATA"})
}

// window is how many octets of commands are sent ahead of their replies where
// the server allows it. It fits the buffers of any connection, so that no server
// can be stuck with its replies while we are stuck with our commands.
const window = 16 << 10

// talk says who the message is from and for.
func (s *sending) talk() *Error {
	list := s.steps()
	if list[len(list)-2].stage != rcpt {
		return nil // nobody left to send to
	}
	s.open = true
	sent, ahead := 0, 0
	for answered := 0; ; answered++ {
		for sent < len(list) && (sent == answered || s.ext.Pipelining && ahead < window) {
			if s.pointless(list[sent].stage, sent == answered) {
				list = list[:sent]
				break
			}
			_, _ = s.w.WriteString(list[sent].text + "\r\n") // the error comes up at Flush
			ahead += len(list[sent].text) + 2
			sent++
		}
		if answered == len(list) {
			return nil
		}
		at := &list[answered]
		reply, err := s.read(s.ctx, at.stage)
		if err != nil {
			return err
		}
		ahead -= len(at.text) + 2
		if err := s.answer(at, reply); err != nil {
			return err
		}
	}
}

// pointless reports whether the next command would be refused for certain. all
// says that every command before it has been answered.
func (s *sending) pointless(next stage, all bool) bool {
	return s.refusedM || next == data && all && len(s.accepted) == 0
}

// unavailable is the code with which a server says, in reply to anything, that
// it closes the connection (RFC 5321, section 3.8).
const unavailable = 421

// answer takes the reply to one command.
func (s *sending) answer(at *step, reply *Reply) *Error {
	if reply.Code == unavailable {
		return s.refused(at.stage, reply)
	}
	switch at.stage {
	case rset:
		if !reply.positive() {
			return s.refused(rset, reply)
		}
		return nil
	case data:
		s.goAhead = reply.Code/100 == 3
		if !s.goAhead && !reply.refusal() {
			s.answered = true
			return s.refused(data, reply)
		}
		if !s.goAhead {
			s.refuseAll(data, reply)
		}
		return nil
	}
	s.answered = true
	switch {
	case !reply.positive() && !reply.refusal():
		return s.refused(at.stage, reply)
	case at.stage == mail && !reply.positive():
		s.refusedM = true
		s.refuseAll(mail, reply)
	case at.stage == rcpt && reply.positive():
		s.accepted = append(s.accepted, at.rcpt)
	case at.stage == rcpt:
		s.refuse(at.rcpt, rcpt, reply)
	}
	return nil
}

// tooMany is the code that old servers give for too many recipients; it is
// temporary at RCPT (RFC 5321, section 4.5.3.1.10).
const tooMany = 552

func (s *sending) refuse(i int, at stage, reply *Reply) {
	e := s.verdict(at, reply)
	if at == rcpt && reply.Code == tooMany {
		e.Status = e.Status.With(dsn.Transient)
	}
	s.decide(i, Result{Status: e.Status, Text: e.Text, Diagnostic: reply.String()})
}

func (s *sending) refuseAll(at stage, reply *Reply) {
	for i := range s.results {
		s.refuse(i, at, reply)
	}
}

// transfer sends the content and takes the last replies: one, or with LMTP one
// for each recipient that was accepted.
func (s *sending) transfer() error {
	if s.refusedM || len(s.accepted) == 0 {
		return s.transferNothing()
	}
	if err := s.content(); err != nil {
		s.broken = true
		s.giveUp(err, false)
		return err
	}
	ctx, done := later(s.ctx, endGrace) // for all replies together
	defer done()
	if !s.o.LMTP {
		reply, err := s.read(ctx, endOfData)
		return s.end(s.accepted, reply, err)
	}
	for n, i := range s.accepted {
		reply, err := s.read(ctx, endOfData)
		last := n == len(s.accepted)-1
		if err != nil || last || reply.Code == unavailable {
			return s.end(s.accepted[n:], reply, err)
		}
		if err := s.end([]int{i}, reply, nil); err != nil {
			return err
		}
	}
	return nil
}

// end takes the reply to the data for some recipients.
func (s *sending) end(recipients []int, reply *Reply, lost *Error) error {
	if lost != nil {
		s.giveUp(lost, true)
		return lost
	}
	if !reply.positive() && !reply.refusal() || reply.Code == unavailable {
		err := s.refused(endOfData, reply)
		s.giveUp(err, false)
		return err
	}
	// There are servers that keep the envelope of what they refuse.
	s.open = !reply.positive()
	for _, i := range recipients {
		if reply.positive() {
			s.decide(i, Result{Status: reply.Status(), Text: reply.String(), Diagnostic: reply.String()})
		} else {
			s.refuse(i, endOfData, reply)
		}
	}
	return nil
}

// transferNothing gets out of the data that a server asked for without having
// accepted a recipient (RFC 2920, section 3.1). What it replies changes nothing.
func (s *sending) transferNothing() error {
	if s.o.LMTP {
		// It is anybody's guess whether there is a reply.
		s.broken = true
		return &Error{Verdict: dsn.Errorf("4.5.0", "host %s wants data for no recipient", s.o.Peer)}
	}
	reply, err := s.ask(s.ctx, endOfData, ".")
	if err != nil {
		return err
	}
	s.open = !reply.positive() // as in end
	return nil
}

// minRate bounds how long a server may take for a message, in octets per
// second, besides the time for one block. It is Postfix's smtp_min_data_rate.
const minRate = 500

// blockSize is how much of a message is read at once, in octets.
const blockSize = 32 << 10

var blocks = sync.Pool{New: func() any { return new([blockSize]byte) }}

// content sends the content and buffers the end of data. After an error the end
// has not been sent.
func (s *sending) content() error {
	last := time.Now().Add(stages[body].timeout + time.Duration(s.m.Content.Size()/minRate)*time.Second)
	defer s.hurry(s.ctx)()
	r := io.NewSectionReader(s.m.Content, 0, s.m.Content.Size())
	d := dataWriter{w: s.w, limit: s.o.LineLength}
	block := blocks.Get().(*[blockSize]byte)
	defer blocks.Put(block)
	for {
		n, err := r.Read(block[:])
		s.setDeadline(earlier(last, time.Now().Add(stages[body].timeout)))
		if s.ctx.Err() != nil {
			s.setDeadline(time.Now())
		}
		d.write(block[:n])
		if _, werr := s.w.Write(nil); werr != nil {
			return s.cut(werr)
		}
		switch {
		case err == io.EOF:
			d.finish()
			if _, werr := s.w.Write(nil); werr != nil {
				return s.cut(werr) // the end itself is shorter than what has to go out before it
			}
			return nil
		case err != nil:
			return fmt.Errorf("read the message: %w", err)
		}
	}
}

// cut makes an error of a connection that ended within the content.
func (s *sending) cut(err error) *Error {
	if reply := s.lastWord(s.ctx, err); reply != nil {
		return s.refused(body, reply)
	}
	return s.lost(s.ctx, body, err)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
