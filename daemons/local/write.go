package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"posthouse/pkg/account"
	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/deliver"
	"posthouse/pkg/queueid"
)

// margin is for what deliver does beside running a command, waiting for the lock
// of a mailbox included.
const margin = 5 * time.Minute

func (w *walk) warning(format string, args ...any) {
	id := w.job.QueueID.String()
	w.log.Warn(maillog.Fields{"QUEUE_ID": id}, "%s: %s", id, maillog.Printable(fmt.Sprintf(format, args...)))
}

// mailbox delivers to the mailbox of an account, which n is, or to the command that
// there is instead.
func (w *walk) mailbox(a *account.Account, n name) outcome {
	if text := w.cfg.Local.MailboxCommand; text != "" && a.UID != 0 {
		return w.usersCommand(a, text, n)
	}
	return w.do(w.toMailbox(a))
}

// toMailbox is the delivery to the mailbox of an account. That of root belongs to the
// mail system, for nothing is done as root.
func (w *walk) toMailbox(a *account.Account) *deliver.Request {
	l := &w.cfg.Local
	r := &deliver.Request{Head: deliver.Head{Kind: deliver.Spool, User: a.Name}, Path: l.Spool, Limit: int64(l.MailboxSize)}
	if l.Mailbox != "" && a.UID != 0 {
		r.Kind, r.Path = deliver.Mailbox, l.Mailbox
	}
	return r
}

// readForward reads the first of the .forward files that is there. Where none is, it
// is the mailbox that counts, which is said along with it: to ask once more takes as
// long as to deliver; unless a command counts instead. With Else in the reply the outcome is that of the mailbox.
func (w *walk) readForward(a *account.Account, files []string) (deliver.Reply, outcome) {
	r := w.toMailbox(a)
	key := key(r)
	before, again := w.done[key]
	alone := again || w.cfg.Local.MailboxCommand != ""
	if alone {
		r = &deliver.Request{Head: r.Head}
	} else {
		r.Else = r.Kind
		w.message(r)
	}
	r.Kind, r.Files = deliver.Forward, files
	reply, o := w.ask(r)
	switch {
	case again && o.status.Class() == dsn.Success && !reply.Found:
		reply.Else, o = true, before
	case !alone && !reply.Found:
		// Where a file cannot be read, too, or nothing is known: all of it is tried again.
		w.done[key] = o
	}
	return reply, o
}

// file delivers to a file that somebody has named, maybe beneath his home directory.
func (w *walk) file(user, path string) outcome {
	if path == "/dev/null" {
		return success("discarded")
	}
	path = strings.TrimPrefix(path, "~/")
	return w.do(&deliver.Request{Head: deliver.Head{Kind: deliver.Mailbox, User: user}, Path: path, Limit: int64(w.cfg.Local.MailboxSize)})
}

// usersCommand runs a command of an account. It may deliver to the mailbox of the
// account, as procmail does, but could not make it. What goes wrong with that the
// command meets, if it needs the mailbox.
func (w *walk) usersCommand(a *account.Account, text string, n name) outcome {
	_, _ = w.ask(&deliver.Request{Head: deliver.Head{Kind: deliver.Make, User: a.Name}, Path: w.cfg.Local.Spool})
	return w.command(a.Name, text, n)
}

// command runs a command as user, for mail to n.
func (w *walk) command(user, text string, n name) outcome {
	return w.do(&deliver.Request{
		Head: deliver.Head{Kind: deliver.Command, User: user}, Command: text,
		Env: w.env(n.address), Timeout: time.Duration(w.cfg.Local.CommandTimeout),
	})
}

// key is the same for what has the same done with the message.
func key(r *deliver.Request) string {
	return strings.Join([]string{fmt.Sprint(r.Kind), r.User, r.Path, r.Command}, "\x00")
}

// do has r done with the message, if it has not been yet.
func (w *walk) do(r *deliver.Request) outcome {
	key := key(r)
	if o, ok := w.done[key]; ok {
		return o
	}
	w.message(r)
	_, o := w.ask(r)
	w.done[key] = o
	return o
}

// message has r be about the message.
func (w *walk) message(r *deliver.Request) {
	r.From = "MAILER-DAEMON"
	if !w.job.Sender.IsNull() {
		r.From = w.job.Sender.String()
	}
	r.Arrival, r.Prefix = w.job.Arrival, w.job.Head(w.rcpt)
	r.Offset, r.Length = w.job.Offset, w.job.Length
}

// ask has r done.
func (w *walk) ask(r *deliver.Request) (deliver.Reply, outcome) {
	if w.ctx.Err() != nil {
		return deliver.Reply{}, failed(dsn.Errorf("4.3.2", "the system is going down"))
	}
	ctx, cancel := context.WithTimeout(w.ctx, r.Timeout+margin)
	defer cancel()
	file := w.job.File
	if r.Kind == deliver.Forward && r.Else == 0 || r.Kind == deliver.Make {
		file = nil
	}
	reply, err := w.deliver.Do(ctx, r, file)
	if err != nil {
		return deliver.Reply{}, failed(err)
	}
	return reply, outcome{reply.Status, reply.Text, false, true}
}

// env is the environment of a command for mail to an address, beside what deliver adds of
// the account. It is that which the last alias has led to, as with Postfix: its extension
// is what .forward+extension was found by, in lower case, and none where it has a slash,
// for scripts make paths of it.
func (w *walk) env(to addr.Mailbox) []string {
	name := to.Fold()
	base, extension := name.SplitExtension(w.cfg.RecipientDelimiter)
	if strings.Contains(extension, "/") {
		name, extension = base, ""
	}
	var env []string
	for _, v := range [][2]string{
		{"LOCAL", name.Local()}, {"DOMAIN", name.Domain()}, {"EXTENSION", extension}, {"RECIPIENT", to.String()},
		{"ORIGINAL_RECIPIENT", w.rcpt.Original.String()}, {"SENDER", w.job.Sender.String()}, {"ENVID", w.job.EnvID},
	} {
		if v[1] != "" || v[0] == "SENDER" {
			env = append(env, v[0]+"="+strings.Map(safe, v[1]))
		}
	}
	return env
}

// safe replaces characters that a shell could take for more than text (Postfix's
// command_expansion_filter).
func safe(c rune) rune {
	if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("!@%-_=+:,./", c) {
		return c
	}
	return '_'
}

// outgoing is a new message.
type outgoing struct {
	owner addr.Mailbox // the sender of a list; zero: the sender stays
	to    []addr.Mailbox
}

// forward has m get the message as a new one.
func (w *walk) forward(m, owner addr.Mailbox) outcome {
	if w.job.Sender.IsNull() {
		owner = addr.Mailbox{} // to a notification nobody is to answer
	}
	var out *outgoing
	for i := range w.out {
		if w.out[i].owner == owner {
			out = &w.out[i]
		}
	}
	if out == nil {
		w.out = append(w.out, outgoing{owner: owner})
		out = &w.out[len(w.out)-1]
	}
	on := outcome{dsn.MustParse("2.0.0"), "", owner.IsNull(), true} // send says the rest
	for _, other := range out.to {
		if other.Fold() == m.Fold() {
			return on
		}
	}
	if w.count++; w.count > w.cfg.Limits.Expansion {
		return failed(dsn.Errorf("4.6.0", "%s stands for more than %d addresses", w.rcpt.Address, w.cfg.Limits.Expansion))
	}
	out.to = append(out.to, m)
	return on
}

// send submits a new message. Where cleanup refuses it because of one of its
// recipients, the others are not to suffer.
func (w *walk) send(out *outgoing) outcome {
	id, err := w.submit(out.owner, out.to)
	if err == nil {
		return outcome{dsn.MustParse("2.0.0"), "forwarded as " + id.String(), out.owner.IsNull(), true}
	}
	if len(out.to) == 1 || dsn.Of(err).Status.Class() != dsn.Permanent {
		return failed(err)
	}
	var o outcome
	for _, m := range out.to {
		o.add(w.send(&outgoing{out.owner, []addr.Mailbox{m}}))
	}
	return o
}

func (w *walk) submit(owner addr.Mailbox, to []addr.Mailbox) (queueid.ID, error) {
	if w.ctx.Err() != nil {
		return queueid.ID{}, dsn.Errorf("4.3.2", "the system is going down")
	}
	j := w.job
	e := &envelope.Envelope{
		Arrival: j.Arrival, Sender: j.Sender, Return: j.Return, EnvID: j.EnvID, Body: j.Body, SMTPUTF8: j.SMTPUTF8,
		Trace: envelope.Trace{Origin: envelope.FromSystem},
	}
	rcpt := *w.rcpt
	if !owner.IsNull() {
		// It is a message of the list now, and its owner asks for nothing (RFC 3461,
		// section 5.2.7.3).
		e.Sender, e.Return, e.EnvID = owner, dsn.ReturnUnset, ""
		rcpt.Notify, rcpt.ORCPT = 0, dsn.OriginalRecipient{}
	}
	for _, m := range to {
		rcpt.Address = m
		if !owner.IsNull() {
			rcpt.Original = m
		}
		e.Recipients = append(e.Recipients, rcpt)
	}
	mark := "Delivered-To: " + w.rcpt.Address.String() + "\r\n"
	content := io.MultiReader(strings.NewReader(mark), io.NewSectionReader(j.Content, 0, j.Content.Size()))
	return w.queue.submit(w.ctx, e, content)
}
