// Command sendmail is what programs send mail with. It is mailq and newaliases
// too, by the name that it is called by.
//
// # Interface
//
// The options of Sendmail that programs use; see sendmail(1). The message goes
// to pickup, over public/submit.
//
// # Security
//
// Has no privilege, and works for callers that have none. Everything that it
// says is checked again by pickup, which knows from the kernel who calls.
// Options that make other sendmails read or write files are refused.
//
// # Reliability
//
// Exit status 0 means that the message is in the queue, on disk; or, where the
// mail system is off and the administrator has opened the maildrop, that it is
// there, on disk. The message is read to its end before pickup hears of it: in
// memory, or in a file without a name where it is large.
//
// # Standards
//
// RFC 5322 (-t), RFC 3461 (-N, -R, -V), RFC 5321 (-bs), sysexits(3).
//
// # Files
//
// Below /run/posthouse: public/submit, public/showq, and the FIFO public/pickup;
// private/queue (-q) and private/rewrite (-bv).
// /var/spool/posthouse/maildrop/drop; /etc/passwd; $TMPDIR.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/cli"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/header"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maildrop"
	"posthouse/pkg/maillog"
	"posthouse/pkg/mailq"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/protocol/showq"
	"posthouse/pkg/queueid"
)

func main() {
	c := call{Streams: cli.Std(), program: filepath.Base(os.Args[0]), log: logError}
	os.Exit(c.run(os.Args[1:]))
}

// Timeouts of what is asked of the mail system. A caller may take all the time
// that it wants to write its message.
const (
	submitTimeout = time.Hour
	listTimeout   = 10 * time.Minute
)

// A mail system that is busy, as where a user has too many messages or connections at
// once, or that ends before it has answered, is asked again with longer and longer
// pauses, until patience ends: few callers of sendmail try again, although they are told
// to.
const (
	patience     = 2 * time.Minute
	firstPause   = 50 * time.Millisecond
	longestPause = 5 * time.Second
)

// call is one call of the command.
type call struct {
	cli.Streams
	program string
	log     func(text string)
}

func (c *call) run(args []string) int {
	o, err := parseOptions(c.program, args)
	if err != nil {
		return c.fail(cli.Usage, err)
	}
	switch o.mode {
	case queueMode:
		return c.list(showq.Path)
	case nothingMode:
		if c.program == "newaliases" {
			fmt.Fprintln(c.Out, "newaliases: there is nothing to do: aliases are read again when they have changed")
		}
		return cli.OK
	case flushMode:
		return c.flush(queuectl.Path, o.flush)
	case siteMode:
		return c.flushSite(queuectl.Path, o.site)
	case sessionMode:
		return c.session(newSubmission(o))
	case verifyMode:
		return c.verify(rewrite.Path, o.recipients)
	case submitMode:
	}
	s := newSubmission(o)
	if err := s.run(c.In); err != nil {
		return c.fail(statusOf(err), err)
	}
	if s.dropped != "" {
		maildrop.Wake(cleanup.SubmitFIFOPath) // it may have been on its way
		if o.verbose {
			c.Errorf(cli.OK, "%s: the mail system is off: the message waits in %s", c.program, s.dropped)
		}
	}
	return cli.OK
}

// fail tells the caller, and the mail log: many callers throw away what they are
// told.
func (c *call) fail(status int, err error) int {
	c.log(err.Error())
	return c.Errorf(status, "%s: %v", c.program, err)
}

// logError writes to the mail log, if there is one, in Postfix's form.
func logError(text string) {
	l, ok := maillog.Journal("sendmail")
	if !ok {
		return
	}
	l.Error(nil, "%s(%d): %s", loginName(), os.Getuid(), text)
	l.Flush() // which does not wait for long: the caller waits for something else
}

// usageError is an error of the caller's.
type usageError struct{ error }

// inputError is an error in the message.
type inputError struct{ error }

// statusOf is the exit status for an error. What is not known to be for good is
// temporary.
func statusOf(err error) int {
	var verdict *dsn.Error
	var usage usageError
	var input inputError
	switch {
	case errors.As(err, &usage):
		return cli.Usage
	case errors.As(err, &verdict) && verdict.Status.String() == "5.7.1":
		return cli.NoPerm
	case errors.As(err, &verdict) && verdict.Status.Class() == dsn.Permanent:
		return cli.Unavailable
	case errors.As(err, &input):
		return cli.DataErr
	case errors.Is(err, fs.ErrPermission):
		return cli.NoPerm
	}
	return cli.TempFail
}

type submission struct {
	*options
	client   *cleanup.Client
	patience time.Duration
	maildrop string // a directory

	dropped string // where the message is instead of in the queue
}

func newSubmission(o *options) *submission {
	return &submission{options: o, client: cleanup.NewSubmitClient(cleanup.SubmitPath), patience: patience, maildrop: maildrop.Dir}
}

func (s *submission) run(stdin io.Reader) error {
	e, err := s.envelope()
	if err != nil {
		return err
	}
	in := newInput(stdin, s.ignoreDots)
	h, err := readHead(in, s.extract)
	if err != nil {
		return inputError{err}
	}
	for _, m := range h.recipients {
		e.Recipients = append(e.Recipients, s.recipient(m))
	}
	e.SMTPUTF8 = needsUTF8(e)
	if len(e.Recipients) == 0 {
		return usageError{errors.New("no recipient addresses found")}
	}
	var b body
	defer b.close()
	if err := b.readAhead(in); err != nil {
		return err
	}
	err = s.submit(e, h, &b)
	var off *ipc.UnavailableError
	if errors.As(err, &off) {
		return s.drop(e, h, &b, err)
	}
	return err
}

// submit puts the message into the queue.
func (s *submission) submit(e *envelope.Envelope, h *head, b *body) error {
	ctx, cancel := context.WithTimeout(context.Background(), submitTimeout)
	defer cancel()
	t, err := s.begin(ctx, e)
	if err != nil {
		return explain(err)
	}
	defer t.Abort()
	if err := s.copyTo(t, h, b, e.Sender); err != nil {
		return err
	}
	return explain(t.Commit())
}

func (s *submission) begin(ctx context.Context, e *envelope.Envelope) (*cleanup.Transaction, error) {
	end := time.Now().Add(s.patience)
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		t, err := s.client.Begin(ctx, e)
		if !isBusy(err) && !ipc.Ended(err) || time.Now().Add(pause).After(end) {
			return t, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// isBusy reports whether err says that the mail system is busy and
// would take the message later (RFC 3463, X.3.2).
func isBusy(err error) bool {
	var verdict *dsn.Error
	return errors.As(err, &verdict) && verdict.Status.String() == "4.3.2"
}

// explain says what to do about a mail system that is off.
func explain(err error) error {
	var off *ipc.UnavailableError
	if errors.As(err, &off) {
		return fmt.Errorf("the mail system is off (systemctl enable --now posthouse-pickup.socket): %w", err)
	}
	return err
}

// copyTo writes the message to w.
func (s *submission) copyTo(w io.Writer, h *head, b *body, sender addr.Mailbox) error {
	fields := h.added
	// The mail system completes the rest, but does not know the name.
	switch {
	case s.options.gateway:
	case h.resent && !h.hasResentFrom:
		fields += fromField("Resent-From", s.fullName(), sender)
	case !h.resent && !h.hasFrom:
		fields += fromField("From", s.fullName(), sender)
	}
	if fields != "" && len(h.raw) > 0 && (h.raw[0] == ' ' || h.raw[0] == '\t') {
		fields += "\r\n" // or the first line of the body would continue the field
	}
	if _, err := io.WriteString(w, fields); err != nil {
		return err
	}
	if _, err := w.Write(h.raw); err != nil {
		return err
	}
	return b.writeTo(w)
}

func (s *submission) recipient(m addr.Mailbox) envelope.Recipient {
	return envelope.Recipient{Address: m, Original: m, Notify: s.notify}
}

// envelope is what the command line and the caller's account say.
func (s *submission) envelope() (*envelope.Envelope, error) {
	e := &envelope.Envelope{Arrival: time.Now(), Return: s.ret, EnvID: s.envID, Body: s.body, Trace: envelope.Trace{Origin: envelope.FromLocal}}
	if s.options.gateway {
		e.Trace.Origin = envelope.FromGateway
	}
	for _, arg := range s.options.recipients {
		list, err := header.ParseAddressList(arg)
		if err != nil {
			return nil, usageError{fmt.Errorf("recipient %.100q: %w", arg, err)}
		}
		for _, m := range list {
			e.Recipients = append(e.Recipients, s.recipient(m))
		}
	}
	var err error
	e.Sender, err = s.senderAddress()
	return e, err
}

// needsUTF8 reports whether an address can travel with SMTPUTF8 only (RFC 6531).
func needsUTF8(e *envelope.Envelope) bool {
	return !e.Sender.IsASCII() || slices.ContainsFunc(e.Recipients, func(r envelope.Recipient) bool { return !r.Address.IsASCII() })
}

// senderAddress is the address that -f gives, or the caller's login name.
func (s *submission) senderAddress() (addr.Mailbox, error) {
	if s.sender == nil {
		return addr.New(loginName(), "")
	}
	if *s.sender == "" || *s.sender == "<>" {
		return addr.Mailbox{}, nil
	}
	list, err := header.ParseAddressList(*s.sender)
	if err == nil && len(list) == 0 {
		err = errors.New("no address")
	}
	if err != nil {
		return addr.Mailbox{}, usageError{fmt.Errorf("sender %.100q: %w", *s.sender, err)}
	}
	return list[0], nil
}

// loginName is who calls: the account of the real uid, as with Postfix. What the
// environment says is anybody's, and counts only where this program, which reads
// nothing but /etc/passwd, knows no account: with users of LDAP, or of a unit with
// DynamicUser=. Then it is LOGNAME or USER, unless that is somebody else; or the
// number.
func loginName() string { return nameOf(strconv.Itoa(os.Getuid())) }

func nameOf(uid string) string {
	if u, err := user.LookupId(uid); err == nil && u.Username != "" {
		return u.Username
	}
	for _, name := range []string{os.Getenv("LOGNAME"), os.Getenv("USER")} {
		if _, err := addr.New(name, ""); err != nil || strings.Contains(name, "@") {
			continue
		}
		if _, err := user.Lookup(name); err != nil {
			return name
		}
	}
	return uid
}

// fullName is the name in From: that of -F, of NAME, or of the account, where &
// stands for the login name.
func (s *submission) fullName() string {
	if s.name != "" {
		return s.name
	}
	if name := os.Getenv("NAME"); name != "" {
		return name
	}
	if u, err := user.LookupId(strconv.Itoa(os.Getuid())); err == nil {
		return accountName(u.Name, u.Username)
	}
	return ""
}

func accountName(full, login string) string {
	if login != "" {
		login = strings.ToUpper(login[:1]) + login[1:]
	}
	return strings.ReplaceAll(full, "&", login)
}

func (c *call) list(path string) int {
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	p := &mailq.Text{W: c.Out}
	err := showq.List(ctx, path, p.Page)
	if err == nil {
		err = p.End()
	}
	if err != nil {
		return c.fail(cli.Unavailable, err)
	}
	return cli.OK
}

// flush makes messages due: all, or those of ids.
func (c *call) flush(path string, ids []queueid.ID) int {
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	reply, err := queuectl.Do(ctx, path, queuectl.Request{Op: queuectl.Retry, All: len(ids) == 0, IDs: ids})
	status := c.steered(reply, err)
	if status == cli.OK && len(reply.Missing) > 0 {
		return c.fail(cli.Unavailable, fmt.Errorf("%s is not in the queue, or on hold", reply.Missing[0]))
	}
	return status
}

// flushSite makes the messages due that are for a domain (-qR).
func (c *call) flushSite(control, site string) int {
	if addr.CheckDomain(site) != nil {
		return cli.OK // no mail is for that
	}
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	return c.steered(queuectl.Do(ctx, control, queuectl.Request{Op: queuectl.Retry, Destination: site}))
}

// steered says why the queue manager has not done what it was asked for.
func (c *call) steered(reply queuectl.Reply, err error) int {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return c.fail(cli.NoPerm, fmt.Errorf("flushing the queue takes root or the group _ph-admin: %w", err))
	case err != nil:
		return c.fail(cli.Unavailable, err)
	case reply.Err != nil:
		return c.fail(cli.TempFail, reply.Err)
	}
	return cli.OK
}
