package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/account"
	"posthouse/pkg/addr"
	"posthouse/pkg/agent"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/ipc/ipctest"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/deliver"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/recipient"
	"posthouse/pkg/queueid"
)

func parse(t testing.TB, s string) addr.Mailbox {
	t.Helper()
	if s == "" {
		return addr.Mailbox{}
	}
	m, err := addr.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// lookup knows some accounts.
func lookup(_ context.Context, name string) (*account.Account, error) {
	switch name {
	case "root":
		return &account.Account{Name: name}, nil
	case "alice", "bob", "bob-work", "carol", "dave", "erin", "nobody":
		return &account.Account{Name: name, UID: 1000}, nil
	case "unsure":
		return nil, errors.New("userdb is away")
	}
	return nil, account.ErrNone
}

// machine is what is around local: it does what it is asked, and tells.
type machine struct {
	t        testing.TB
	files    map[string]string        // .forward files, by user/name
	verdicts map[string]*dsn.Error    // of deliveries, by how did tells of them
	trouble  map[string]error         // the same, without an answer
	refuse   func(addr.Mailbox) error // of cleanup
	did      []string                 // in their order
	asked    []*deliver.Request       // what deliver was asked
	sent     []*envelope.Envelope     // new messages
	content  []string                 // of them
	warnings []string
	stop     func() // at the first delivery
	silent   bool   // it says no more than that all is well
}

func (m *machine) Do(_ context.Context, r *deliver.Request, file *os.File) (deliver.Reply, error) {
	b := ipctest.Encode(r.Encode)
	if _, err := deliver.DecodeRequest(b); err != nil {
		m.t.Errorf("deliver would not understand: %v", err)
	}
	if (file == nil) != (r.Kind == deliver.Forward && r.Else == 0 || r.Kind == deliver.Make) {
		m.t.Errorf("kind %d with descriptor %v", r.Kind, file)
	}
	m.asked = append(m.asked, r)
	if m.stop != nil {
		m.stop()
	}
	ok := deliver.Reply{Status: dsn.MustParse("2.0.0"), Text: "delivered"}
	if m.silent {
		return ok, nil
	}
	for kind := r.Kind; ; kind = r.Else {
		what := r.User + " " + map[deliver.Kind]string{deliver.Forward: "forward", deliver.Spool: "spool", deliver.Mailbox: "file " + r.Path, deliver.Command: "| " + r.Command, deliver.Make: "make in " + r.Path}[kind]
		if err := m.trouble[what]; err != nil {
			return deliver.Reply{}, err
		}
		ok.Else = kind != deliver.Forward && r.Kind == deliver.Forward
		if e := m.verdicts[what]; e != nil {
			return deliver.Reply{Status: e.Status, Text: e.Text, Else: ok.Else}, nil
		}
		if kind != deliver.Forward {
			m.did = append(m.did, what)
			return ok, nil
		}
		for _, name := range r.Files {
			if text, found := m.files[r.User+"/"+name]; found {
				ok.Found, ok.Name, ok.Forward = true, name, text
				return ok, nil
			}
		}
		if r.Else == 0 {
			return ok, nil
		}
	}
}

func (m *machine) submit(_ context.Context, e *envelope.Envelope, content io.Reader) (queueid.ID, error) {
	b, err := io.ReadAll(content)
	if err != nil {
		m.t.Error(err)
	}
	var to []string
	for _, r := range e.Recipients {
		if m.refuse != nil {
			if err := m.refuse(r.Address); err != nil {
				return queueid.ID{}, err
			}
		}
		to = append(to, r.Address.String())
	}
	m.did = append(m.did, fmt.Sprintf("<%s> to %s", e.Sender, strings.Join(to, " ")))
	m.sent, m.content = append(m.sent, e), append(m.content, string(b))
	return queueid.New(time.Unix(1_700_000_000, 0), uint32(len(m.sent))), nil
}

func (m *machine) Warn(_ maillog.Fields, format string, args ...any) {
	m.warnings = append(m.warnings, fmt.Sprintf(format, args...))
}

const message = "Subject: x\r\nDelivered-To: Looping@Example.org\r\n\r\nbody\r\n"

// job is a message to recipients, from s@sender.example.
func job(t testing.TB, recipients ...string) *agent.Job {
	path := filepath.Join(t.TempDir(), "q")
	if err := os.WriteFile(path, []byte("xxxx"+message), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	r := &delivery.Request{
		QueueID: queueid.New(time.Unix(1_700_000_000, 0), 7), Sender: parse(t, "s@sender.example"), EnvID: "id", Return: dsn.ReturnHeaders,
		Body: envelope.Body8BitMIME, SMTPUTF8: true, Arrival: time.Unix(1_700_000_000, 0), Offset: 4, Length: int64(len(message)),
	}
	for _, to := range recipients {
		r.Recipients = append(r.Recipients, envelope.Recipient{
			Address: parse(t, to), Original: parse(t, "orig@example.org"), Notify: dsn.NotifySuccess | dsn.NotifyFailure,
			ORCPT: dsn.OriginalRecipient{Type: "rfc822", Address: "orig@example.org"},
		})
	}
	return &agent.Job{Request: r, Content: io.NewSectionReader(f, r.Offset, r.Length), File: f}
}

const testAliases = `
staff: alice, bob, ALICE@example.org, far@away.example
info: |"report x", /var/log/info, /dev/null
team: \alice, :include:DIR/list
empty: :include:DIR/empty
gone: :include:DIR/gone
open: :include:DIR/open
wild: :include:DIR/wild
announce: alice, far@away.example
owner-announce: carol
secret: :include:DIR/list
owner-secret: carol
self: self, bob
alice+news: far@away.example
dave: dave, far@away.example
loop1: loop2
loop2: bob, loop1
mixed: alice, nosuch, |bad
unsafe: unsure, far@away.example
many: many1, many2
many1: a@x, b@x, c@x
many2: b@x, d@x, e@x
odd: bare@away.example, alice@[127.0.0.1], far@[192.0.2.1]
forwards: bob
ghost: nosuch
twice: bob, bob
bar: |bad
tag: tag+x
erin: erin, erin+copy
erin+copy: |copy
b.smith: bob+Lists
both: far@away.example, bob
`

func newService(t testing.TB, m *machine, settings string) *service {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	write("list", "# the team\nbob, far@away.example\nfar@Away.example\n", 0o644)
	write("empty", "# nobody\n", 0o644)
	write("open", "bob\n", 0o666)
	write("wild", "bob\n|rm\n/etc/x\n", 0o644)
	write("aliases", strings.ReplaceAll(testAliases, "DIR", dir), 0o644)
	write("more", "staff: carol\nextra: carol\nbroken: nosuch\n", 0o644)
	write("posthouse.yaml", "hostname: mail.example.org\norigin: example.org\nlimits: {expansion: 5}\n"+
		"local: {aliases: ["+dir+"/aliases, "+dir+"/more], command_timeout: 7m, "+settings+"}\n", 0o644)
	cfg, err := config.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	m.t = t
	names := newDirectory(func() *config.Config { return cfg }, lookup, func(err error) { m.warnings = append(m.warnings, err.Error()) })
	return &service{names, m, m, m}
}

// TestWhatBecomesOfNames is resolution: what is done for a recipient, in which
// order, and with what result.
func TestWhatBecomesOfNames(t *testing.T) {
	for _, tt := range []struct{ to, settings, status, did string }{
		// Accounts.
		{"alice@example.org", "", "2.0.0", "alice spool"},
		{"ALICE+list@localhost", "", "2.0.0", "alice spool"},
		{"root@example.org", "", "2.0.0", "root spool"},
		{"alice@example.org", "mailbox: Maildir/", "2.0.0", "alice file Maildir/"},
		{"root@example.org", "mailbox: Maildir/", "2.0.0", "root spool"},
		{"nosuch@example.org", "", "5.1.1", ""},
		{`"../x"@example.org`, "", "5.1.1", ""},
		{"unsure@example.org", "", "4.3.0", ""},
		{"looping@example.org", "", "5.4.6", ""},
		{"postmaster@example.org", "", "2.0.0", "root spool"},
		{"mailer-daemon@example.org", "", "2.0.0", "root spool"},
		// Aliases.
		{"staff@example.org", "", "2.0.0", "alice spool; bob spool; <s@sender.example> to far@away.example"},
		{"Staff+x@example.org", "", "2.0.0", "alice spool; bob spool; <s@sender.example> to far@away.example"},
		{"extra@example.org", "", "2.0.0", "carol spool"},
		{"alice+news@example.org", "", "2.0.0", "<s@sender.example> to far@away.example"},
		{"info@example.org", "", "2.0.0", "nobody | report x; nobody file /var/log/info"},
		{"self@example.org", "", "5.1.1", "bob spool"},
		{"tag@example.org", "", "5.1.1", ""},
		{"dave@example.org", "", "2.0.0", "dave spool; <s@sender.example> to far@away.example"},
		{"erin@example.org", "", "2.0.0", "erin spool; nobody | copy"},
		{"twice@example.org", "", "2.0.0", "bob spool"},
		{"loop1@example.org", "", "5.4.6", "bob spool"},
		{"mixed@example.org", "", "5.1.1", "alice spool; nobody | bad"},
		{"unsafe@example.org", "", "4.3.0", ""},
		{"ghost@example.org", "", "5.1.1", ""},
		{"broken@example.org", "", "5.1.1", ""},
		{"odd@example.org", "", "2.0.0", "alice spool; <s@sender.example> to bare@away.example far@[192.0.2.1]"},
		{"many@example.org", "", "2.0.0", "<s@sender.example> to a@x b@x c@x d@x e@x"},
		// Lists.
		{"team@example.org", "", "2.0.0", "alice spool; <s@sender.example> to bob@example.org far@away.example"},
		{"announce@example.org", "", "2.0.0", "<owner-announce@example.org> to alice@example.org far@away.example"},
		{"owner-announce@example.org", "", "2.0.0", "carol spool"},
		{"secret@example.org", "", "2.0.0", "<owner-secret@example.org> to bob@example.org far@away.example"},
		{"wild@example.org", "", "5.7.0", "<s@sender.example> to bob@example.org"},
		{"empty@example.org", "", "4.3.0", ""},
		{"gone@example.org", "", "4.3.0", ""},
		{"open@example.org", "", "4.3.0", ""},
		// .forward files.
		{"bob@example.org", "f: bob/.forward far@away.example", "2.0.0", "<s@sender.example> to far@away.example"},
		{"bob@example.org", "f: bob/.forward carol", "2.0.0", "<s@sender.example> to carol@example.org"},
		{"forwards@example.org", "f: bob/.forward \\bob, \"|vacation bob\", /tmp/x/", "2.0.0", "bob spool; bob make in /var/mail; bob | vacation bob; bob file /tmp/x/"},
		{"bob@example.org", "f: bob/.forward ~/mail/new/, ~/box", "2.0.0", "bob file mail/new/; bob file box"},
		{"bob@example.org", "f: bob/.forward BOB+x@localhost,bob", "2.0.0", "bob spool"},
		{"bob@example.org", "f: bob/.forward # nothing", "2.0.0", "bob spool"},
		{"bob@example.org", "f: bob/.forward far@away.example\nforward: false", "2.0.0", "bob spool"},
		{"bob@example.org", "f: bob/.forward a b", "4.3.5", ""},
		{"bob@example.org", "f: bob/.forward far@away.example, :include:/etc/passwd", "4.3.5", ""},
		{"bob+x@example.org", "f: bob/.forward+x far@away.example", "2.0.0", "<s@sender.example> to far@away.example"},
		{"bob+y@example.org", "f: bob/.forward+x far@away.example", "2.0.0", "bob spool"},
		{"bob+a/b@example.org", "f: bob/.forward far@away.example", "2.0.0", "<s@sender.example> to far@away.example"},
		{"root@example.org", "f: root/.forward far@away.example", "2.0.0", "root spool"},
		// A command for all.
		{"alice+x@example.org", "mailbox_command: lda", "2.0.0", "alice make in /var/mail; alice | lda"},
		{"alice@example.org", "mailbox_command: lda, forward: false", "2.0.0", "alice make in /var/mail; alice | lda"},
		{"root@example.org", "mailbox_command: lda", "2.0.0", "root spool"},
		{"twice@example.org", "mailbox_command: lda", "2.0.0", "bob make in /var/mail; bob | lda"},
		{"bob@example.org", "f: bob/.forward \\bob, carol\nmailbox_command: lda", "2.0.0", "bob make in /var/mail; bob | lda; <s@sender.example> to carol@example.org"},
		{"bob@example.org", "f: bob/.forward carol\nmailbox_command: lda", "2.0.0", "<s@sender.example> to carol@example.org"},
		{"alice@example.org", "mailbox_command: bad", "5.3.0", "alice make in /var/mail; nobody | bad"},
		// Other ways.
		{"nosuch@example.org", "luser_relay: catch@away.example", "2.0.0", "<s@sender.example> to catch@away.example"},
		{"nosuch@example.org", "luser_relay: catch", "2.0.0", "<s@sender.example> to catch@example.org"},
		{"nosuch@example.org", "fallback_transport: 'smtp:[x]'", "4.3.5", ""},
		{"ghost@example.org", "fallback_transport: 'smtp:[x]'", "2.0.0", "<s@sender.example> to nosuch@example.org"},
		{"alice@example.org", "mailbox_transport: 'lmtp:unix:/x'", "2.0.0", "alice spool"},
		{"twice@example.org", "mailbox_transport: 'lmtp:unix:/x'", "2.0.0", "<s@sender.example> to bob@example.org"},
		{"postmaster@example.org", "mailbox_transport: 'lmtp:unix:/x'", "2.0.0", "<s@sender.example> to root@example.org"},
	} {
		m := &machine{files: map[string]string{}}
		settings := tt.settings
		if file, ok := strings.CutPrefix(settings, "f: "); ok {
			file, settings, _ = strings.Cut(file, "\n")
			name, text, _ := strings.Cut(file, " ")
			m.files[name] = text
		}
		m.verdicts = map[string]*dsn.Error{"nobody | bad": dsn.Errorf("5.3.0", "status 1"), "alice | bad": dsn.Errorf("5.3.0", "status 1")}
		s := newService(t, m, settings)
		o := s.run(t.Context(), job(t, tt.to)).Outcomes[0]
		if slices.ContainsFunc(m.asked, func(r *deliver.Request) bool { return r.Command == "bad" }) {
			m.did = append(m.did, "nobody | bad")
		}
		if got := strings.Join(m.did, "; "); o.Status.String() != tt.status || got != tt.did || o.Text == "" {
			t.Errorf("%s with %q: %s (%s) %s\nwant %s %s", tt.to, tt.settings, o.Status, o.Text, got, tt.status, tt.did)
		}
	}
}

// TestOwnName: who names himself in his .forward file has his mailbox, and nobody else's
// name is taken for his.
func TestOwnName(t *testing.T) {
	for _, tt := range []struct{ to, forward, did string }{
		{"bob-work@example.org", "\\bob-work, far@away.example", "bob-work spool; <s@sender.example> to far@away.example"},
		{"bob-work@example.org", "bob", "<s@sender.example> to bob@example.org"},
		{"bob@example.org", "bob-x, BOB", "bob spool"},
		{"bob@example.org", "bob-work", "<s@sender.example> to bob-work@example.org"},
		{"bob@example.org", "bob-list", "<s@sender.example> to bob-list@example.org"},
	} {
		m := &machine{files: map[string]string{"bob/.forward": tt.forward, "bob-work/.forward": tt.forward}}
		s := newService(t, m, "")
		s.config().RecipientDelimiter = "-"
		path := filepath.Join(t.TempDir(), "aliases")
		if err := os.WriteFile(path, []byte("bob-list: carol\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.config().Local.Aliases = []string{path}
		o := s.run(t.Context(), job(t, tt.to)).Outcomes[0]
		if got := strings.Join(m.did, "; "); o.Status.Class() != dsn.Success || got != tt.did {
			t.Errorf("%s with %q: %+v, %s\nwant %s", tt.to, tt.forward, o, got, tt.did)
		}
	}
}

// TestTriedAgain: while anything of a recipient is to be tried again, no new
// message is sent for it; what has failed for good keeps nobody else from his.
func TestTriedAgain(t *testing.T) {
	for _, tt := range []struct {
		verdict   *dsn.Error
		trouble   error
		text, did string
	}{
		{dsn.Errorf("4.2.0", "locked"), nil, "4.2.0 locked", "bob spool"},
		{dsn.Errorf("5.2.2", "full"), nil, "5.2.2 full", "bob spool; <s@sender.example> to far@away.example"},
		{nil, errors.New("deliver has died"), "4.3.0 deliver has died", "bob spool"},
		{nil, &ipc.UnavailableError{Path: deliver.Path, Err: errors.New("x")}, "4.3.5 deliver is switched off: enable posthouse-deliver.socket", "bob spool"},
		{nil, context.DeadlineExceeded, "4.3.0 " + context.DeadlineExceeded.Error(), "bob spool"},
	} {
		m := &machine{verdicts: map[string]*dsn.Error{"alice spool": tt.verdict}, trouble: map[string]error{"alice spool": tt.trouble}}
		o := newService(t, m, "").run(t.Context(), job(t, "staff@example.org")).Outcomes[0]
		if got := o.Status.String() + " " + o.Text; got != tt.text || strings.Join(m.did, "; ") != tt.did {
			t.Errorf("%q, %q, want %q, %q", got, m.did, tt.text, tt.did)
		}
	}
	// A .forward file that cannot be read may say anything.
	m := &machine{verdicts: map[string]*dsn.Error{"bob forward": dsn.Errorf("5.7.0", "others may write to it")}}
	if o := newService(t, m, "").run(t.Context(), job(t, "bob@example.org")).Outcomes[0]; o.Status.String() != "4.7.0" || len(m.did) > 0 {
		t.Errorf("%+v, %q", o, m.did)
	}
	// Whether there is one is said, or nothing is known.
	m = &machine{silent: true}
	if o := newService(t, m, "").run(t.Context(), job(t, "bob@example.org")).Outcomes[0]; o.Status.Class() != dsn.Transient {
		t.Errorf("%+v, %q", o, m.did)
	}
}

// TestOnce: what two recipients stand for is delivered to once, and has one outcome.
func TestOnce(t *testing.T) {
	m := &machine{verdicts: map[string]*dsn.Error{"bob spool": dsn.Errorf("4.2.0", "locked")}}
	v := newService(t, m, "").run(t.Context(), job(t, "alice@example.org", "staff@example.org", "bob@example.org", "alice+x@example.org"))
	var got []string
	for _, o := range v.Outcomes {
		got = append(got, o.Status.String())
	}
	if s := strings.Join(got, " "); s != "2.0.0 4.2.0 4.2.0 2.0.0" || strings.Join(m.did, "; ") != "alice spool" {
		t.Errorf("%s, %q", s, m.did)
	}
}

// TestNewMessage: what is sent on is the message with its envelope, and marked.
func TestNewMessage(t *testing.T) {
	m := &machine{}
	s := newService(t, m, "")
	j := job(t, "staff@example.org", "announce@example.org")
	v := s.run(t.Context(), j)
	if len(m.sent) != 2 {
		t.Fatalf("%q, %+v", m.did, v)
	}
	e := *m.sent[0]
	want := envelope.Envelope{
		Arrival: j.Arrival, Sender: j.Sender, Return: j.Return, EnvID: j.EnvID, Body: j.Body, SMTPUTF8: j.SMTPUTF8,
		Trace: envelope.Trace{Origin: envelope.FromSystem},
	}
	rcpt := j.Recipients[0]
	rcpt.Address = parse(t, "far@away.example")
	if !slices.Equal(e.Recipients, []envelope.Recipient{rcpt}) {
		t.Errorf("recipients %+v", e.Recipients)
	}
	if e.Recipients = nil; fmt.Sprint(e) != fmt.Sprint(want) {
		t.Errorf("%+v, want %+v", e, want)
	}
	if m.content[0] != "Delivered-To: staff@example.org\r\n"+message {
		t.Errorf("%q", m.content[0])
	}
	// A list has its own sender, who asks for nothing.
	if e := m.sent[1]; e.EnvID != "" || e.Return != 0 || e.Recipients[0].Notify != 0 || e.Recipients[0].Original != e.Recipients[0].Address || e.Recipients[0].ORCPT != (dsn.OriginalRecipient{}) {
		t.Errorf("%+v", e)
	}
	// Who asked for a notification of success has it from where the message arrives:
	// staff was delivered to a mailbox here, too; so was the list itself.
	if v.Outcomes[0].RemoteMTA != "" || v.Outcomes[1].RemoteMTA != "" || !strings.Contains(v.Outcomes[1].Text, "forwarded as ") {
		t.Errorf("%+v", v.Outcomes)
	}
	if v := s.run(t.Context(), job(t, "alice+news@example.org")); v.Outcomes[0].RemoteMTA != "mail.example.org" {
		t.Errorf("%+v", v.Outcomes)
	}
	if v := s.run(t.Context(), job(t, "both@example.org")); v.Outcomes[0].RemoteMTA != "" {
		t.Errorf("%+v", v.Outcomes)
	}
	// A notification keeps its null reverse-path.
	j = job(t, "announce@example.org")
	j.Sender = addr.Mailbox{}
	m.did = nil
	if s.run(t.Context(), j); len(m.did) != 1 || !strings.HasPrefix(m.did[0], "<> to alice") {
		t.Errorf("%q", m.did)
	}
}

// TestRefusedByCleanup: a recipient that cleanup does not take is the only one to
// suffer; trouble with cleanup defers all of them.
func TestRefusedByCleanup(t *testing.T) {
	m := &machine{refuse: func(to addr.Mailbox) error {
		if to.Local() == "b" {
			return dsn.Errorf("5.4.6", "loop")
		}
		return nil
	}}
	o := newService(t, m, "").run(t.Context(), job(t, "many@example.org")).Outcomes[0]
	if o.Status.String() != "5.4.6" || len(m.sent) != 4 {
		t.Errorf("%+v, %q", o, m.did)
	}
	for _, err := range []error{errors.New("reset"), dsn.Errorf("4.3.1", "disk full"), &ipc.UnavailableError{Path: "/x/cleanup", Err: errors.New("x")}} {
		m := &machine{refuse: func(addr.Mailbox) error { return err }}
		if o := newService(t, m, "").run(t.Context(), job(t, "many@example.org")).Outcomes[0]; o.Status.Class() != dsn.Transient || len(m.sent) > 0 {
			t.Errorf("%v: %+v", err, o)
		}
	}
	// One address too many.
	m = &machine{}
	s := newService(t, m, "")
	s.config().Limits.Expansion = 4
	if o := s.run(t.Context(), job(t, "many@example.org")).Outcomes[0]; o.Status.String() != "4.6.0" || len(m.did) > 0 {
		t.Errorf("%+v, %q", o, m.did)
	}
}

// TestRequest is what deliver is told.
func TestRequest(t *testing.T) {
	m := &machine{}
	s := newService(t, m, "mailbox_size: 60MiB")
	j := job(t, "info+a`b@example.org")
	j.Sender = addr.Mailbox{}
	s.run(t.Context(), j)
	if len(m.asked) != 2 {
		t.Fatalf("%q", m.did)
	}
	r := m.asked[0]
	env := []string{"LOCAL=info+a_b", "DOMAIN=example.org", "EXTENSION=a_b", "RECIPIENT=info+a_b@example.org", "ORIGINAL_RECIPIENT=orig@example.org", "SENDER=", "ENVID=id"}
	if r.Timeout != 7*time.Minute || !slices.Equal(r.Env, env) || r.From != "MAILER-DAEMON" || r.Offset != 4 || r.Length != int64(len(message)) ||
		!r.Arrival.Equal(j.Arrival) || r.Prefix != "Return-Path: <>\nX-Original-To: orig@example.org\nDelivered-To: info+a`b@example.org\n" {
		t.Errorf("%+v", r)
	}
	if r := m.asked[1]; r.Limit != 60<<20 {
		t.Errorf("%+v", r)
	}
	// What an alias leads to is what its command, or .forward file, is for.
	m.files = map[string]string{"bob/.forward+Lists": "", "bob/.forward+lists": "|sort"}
	m.asked = nil
	s.run(t.Context(), job(t, "b.smith+x@example.org"))
	if env := m.asked[len(m.asked)-1].Env; !slices.Equal(env[:4], []string{"LOCAL=bob+lists", "DOMAIN=example.org", "EXTENSION=lists", "RECIPIENT=bob+Lists@example.org"}) {
		t.Errorf("%q", env)
	}
	// Scripts make paths of an extension.
	m.asked = nil
	s.run(t.Context(), job(t, "info+x/y@example.org"))
	if env := m.asked[0].Env; !slices.Equal(env[:3], []string{"LOCAL=info", "DOMAIN=example.org", "RECIPIENT=info+x/y@example.org"}) {
		t.Errorf("%q", env)
	}
	m.asked = nil
	s.config().RecipientDelimiter = "+-"
	s.run(t.Context(), job(t, "alice-A@example.org"))
	if len(m.asked) != 1 || !slices.Equal(m.asked[0].Files, []string{".forward-a", ".forward"}) || m.asked[0].Else != deliver.Spool || m.asked[0].Path != "/var/mail" || m.asked[0].From != "s@sender.example" {
		t.Errorf("%+v", m.asked)
	}
}

// TestStop: who has to go begins nothing more.
func TestStop(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	m := &machine{stop: cancel}
	v := newService(t, m, "forward: false").run(ctx, job(t, "alice@example.org", "bob@example.org", "alice+news@example.org"))
	if v.Outcomes[0].Status.Class() != dsn.Success || v.Outcomes[1].Status.Class() != dsn.Transient ||
		v.Outcomes[2].Status.Class() != dsn.Transient || len(m.did) != 1 {
		t.Errorf("%+v, %q", v.Outcomes, m.did)
	}
}

// TestNesting: depth is bounded, and so is work.
func TestNesting(t *testing.T) {
	var chain, tree strings.Builder
	for i := range maxNesting + 1 {
		fmt.Fprintf(&chain, "chain%d: chain%d\n", i, i+1)
		fmt.Fprintf(&tree, "tree%d: tree%d, \"tree%d\"@example.org\n", i, i+1, i+1)
	}
	path := filepath.Join(t.TempDir(), "deep")
	if err := os.WriteFile(path, []byte(chain.String()+tree.String()+"chain101: alice\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &machine{}
	s := newService(t, m, "")
	s.config().Local.Aliases = []string{path}
	for to, want := range map[string]string{"chain0": "5.4.6", "chain3": "2.0.0", "tree2": "5.1.1"} {
		if o := s.run(t.Context(), job(t, to+"@example.org")).Outcomes[0]; o.Status.String() != want {
			t.Errorf("%s: %+v", to, o)
		}
	}
}

// TestRecipients answers rewrite.
func TestRecipients(t *testing.T) {
	ask := func(s *service, localParts ...string) []recipient.Outcome {
		t.Helper()
		got, err := recipient.NewClient(ipctest.Serve(t, recipient.Protocol, func(c *ipc.Conn, msg []byte, file *os.File) error {
			return s.handle(t.Context(), c, msg, file)
		})).Ask(t.Context(), localParts)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	got := ask(newService(t, &machine{}, ""), "alice", "ALICE+x", "alice+news", "staff+x", "postmaster", "nosuch", "unsure", "", "../x", "root")
	want := []recipient.Outcome{
		recipient.Account, recipient.Account, recipient.Alias, recipient.Alias, recipient.Alias, recipient.None,
		recipient.Unknown, recipient.None, recipient.None, recipient.Account,
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// Where the aliases cannot be read nothing is known.
	s := newService(t, &machine{}, "")
	s.config().Local.Aliases = []string{t.TempDir()}
	if got := ask(s, "alice"); got[0] != recipient.Unknown {
		t.Errorf("with broken aliases: %v", got)
	}
	if o := s.run(t.Context(), job(t, "alice@example.org")).Outcomes[0]; o.Status.Class() != dsn.Transient {
		t.Errorf("with broken aliases: %+v", o)
	}
}
