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
// Exit status 0 means that the message is in the queue, on disk. The message is
// read to its end before pickup hears of it: in memory, or in a file without a
// name where it is large.
//
// # Standards
//
// RFC 5322 (-t), RFC 3461 (-N, -R, -V), sysexits(3).
//
// # Files
//
// /run/posthouse/public/submit, /run/posthouse/public/showq; $TMPDIR.
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
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/cli"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/header"
	"posthouse/pkg/ipc"
	"posthouse/pkg/mailq"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/protocol/showq"
)

func main() { os.Exit(run(filepath.Base(os.Args[0]), os.Args[1:], cli.Std())) }

// Timeouts of what is asked of the mail system. A caller may take all the time
// that it wants to write its message.
const (
	submitTimeout = time.Hour
	listTimeout   = 10 * time.Minute
)

// A mail system that is busy, as where a user has too many messages under way at
// once, is asked again with longer and longer pauses, until patience ends: few
// callers of sendmail try again, although they are told to.
const (
	patience     = 2 * time.Minute
	firstPause   = 50 * time.Millisecond
	longestPause = 5 * time.Second
)

func run(program string, args []string, std cli.Streams) int {
	o, err := parseOptions(program, args)
	if err != nil {
		return std.Errorf(cli.Usage, "%s: %v", program, err)
	}
	switch o.mode {
	case queueMode:
		return list(std)
	case aliasMode:
		return cli.OK
	case flushMode:
		return flush(std)
	case submitMode:
	}
	s := submission{options: o, client: cleanup.NewClient(cleanup.SubmitPath), patience: patience}
	if err := s.run(std.In); err != nil {
		return std.Errorf(statusOf(err), "%s: %v", program, err)
	}
	return cli.OK
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
	case errors.As(err, &input):
		return cli.DataErr
	case errors.As(err, &verdict) && verdict.Status.Class() == dsn.Permanent:
		return cli.Unavailable
	case errors.Is(err, fs.ErrPermission):
		return cli.NoPerm
	}
	return cli.TempFail
}

type submission struct {
	*options
	client   *cleanup.Client
	patience time.Duration
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
	return s.submit(e, h, &b)
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
	if err := s.copyHead(t, h, e.Sender); err != nil {
		return err
	}
	if err := b.writeTo(t); err != nil {
		return err
	}
	return explain(t.Commit())
}

func (s *submission) begin(ctx context.Context, e *envelope.Envelope) (*cleanup.Transaction, error) {
	end := time.Now().Add(s.patience)
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		t, err := s.client.Begin(ctx, e)
		if !isBusy(err) || time.Now().Add(pause).After(end) {
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

func (s *submission) copyHead(t io.Writer, h *head, sender addr.Mailbox) error {
	if !h.hasFrom {
		// The mail system completes the rest, but does not know the name.
		from := fromField(s.fullName(), sender)
		if from != "" && len(h.raw) > 0 && (h.raw[0] == ' ' || h.raw[0] == '\t') {
			from += "\r\n" // or the first line of the body would continue the field
		}
		if _, err := io.WriteString(t, from); err != nil {
			return err
		}
	}
	_, err := t.Write(h.raw)
	return err
}

func (s *submission) recipient(m addr.Mailbox) envelope.Recipient {
	return envelope.Recipient{Address: m, Original: m, Notify: s.notify}
}

// envelope is what the command line and the caller's account say.
func (s *submission) envelope() (*envelope.Envelope, error) {
	e := &envelope.Envelope{Arrival: time.Now(), Return: s.ret, EnvID: s.envID, Body: s.body, Trace: envelope.Trace{Origin: envelope.FromLocal}}
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

// loginName is who calls: the account of the real uid, or its number where it
// has none. What the environment says is anybody's.
func loginName() string {
	uid := strconv.Itoa(os.Getuid())
	u, err := user.LookupId(uid)
	if err != nil || u.Username == "" {
		return uid
	}
	return u.Username
}

func (s *submission) fullName() string {
	if s.name != "" {
		return s.name
	}
	if name := os.Getenv("NAME"); name != "" {
		return name
	}
	if u, err := user.LookupId(strconv.Itoa(os.Getuid())); err == nil {
		return u.Name
	}
	return ""
}

func list(std cli.Streams) int {
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	p := &mailq.Text{W: std.Out}
	err := showq.List(ctx, showq.Path, p.Entry)
	if err == nil {
		err = p.End()
	}
	if err != nil {
		return std.Errorf(cli.Unavailable, "mailq: %v", err)
	}
	return cli.OK
}

func flush(std cli.Streams) int {
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	_, err := queuectl.Do(ctx, queuectl.Path, queuectl.Request{Op: queuectl.Retry, All: true})
	switch {
	case err == nil:
		return cli.OK
	case errors.Is(err, fs.ErrPermission):
		return std.Errorf(cli.NoPerm, "sendmail: flushing the queue takes root or the group _ph-admin: %v", err)
	}
	return std.Errorf(cli.Unavailable, "sendmail: %v", err)
}
