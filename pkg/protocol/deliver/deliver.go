// Package deliver is the protocol by which local has something done by the user
// whom a message is for.
//
// What is done with files a thread of deliver does that has the user's rights on
// files and no others; a command runs in a process that is the user. To that one the
// request goes unread but for its Head, with the descriptor of the queue file, and
// its reply comes back as it is.
//
// Trust: the client is local, which has read aliases and what users wrote into
// their .forward files. It may name any account but root; what is done with the
// rights of an account can harm nobody but its owner. local believes the reply about
// this delivery, nothing else.
package deliver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/wire"
)

// Protocol is what the socket greets with. Stopping, local ends what it sends:
// deliver then finishes what is nearly done.
var Protocol = ipc.Protocol{Name: "deliver", Version: 3, MaxRequest: 512 << 10, MaxReply: 128 << 10, Grace: 40 * time.Second}

// Path is where the server is.
const Path = "/run/posthouse/private/deliver"

// Kind is what is to be done.
type Kind uint8

// The kinds.
const (
	Forward Kind = 1 + iota // read the first of some files in the home directory
	Spool                   // append to a mailbox in the spool of mailboxes, /var/mail
	Mailbox                 // append to a mailbox file, or deliver to a Maildir
	Command                 // run a program, with the message as its input
	Make                    // make the mailbox in the spool of mailboxes where it is missing
)

// MaxUser bounds the name of an account, in octets.
const MaxUser = 64

// HeadLen is the length of a Head, in octets.
const HeadLen = 1 + MaxUser

// Head is the beginning of a request, of a fixed form.
type Head struct {
	Kind Kind
	User string // the name of an account
}

// CheckUser reports what keeps a name from being that of an account. Databases of
// users allow more than this in places; nothing else than letters, digits, and
// some marks that mean nothing in a path or to a shell is delivered to.
func CheckUser(name string) error {
	bad := func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-@", c)
	}
	if name == "" || len(name) > MaxUser || strings.ContainsRune(".-", rune(name[0])) || strings.IndexFunc(name, bad) >= 0 {
		return fmt.Errorf("%.80q cannot be the name of an account", name)
	}
	return nil
}

// DecodeHead reads the head of a request and returns what follows it.
func DecodeHead(b []byte) (h Head, rest []byte, err error) {
	if len(b) < HeadLen {
		return Head{}, nil, errors.New("deliver request: shorter than its head")
	}
	name := string(b[1:HeadLen])
	user := strings.TrimRight(name, "\x00")
	h = Head{Kind(b[0]), user}
	if h.Kind == 0 || h.Kind > Make {
		return Head{}, nil, fmt.Errorf("deliver request: kind %d", b[0])
	}
	if err := CheckUser(user); err != nil {
		return Head{}, nil, fmt.Errorf("deliver request: %w", err)
	}
	return h, b[HeadLen:], nil
}

// Limits of a request.
const (
	MaxFiles   = 4
	MaxPath    = 4096 // octets of a path, or of the name of a file
	MaxCommand = 64 << 10
	MaxEnv     = 100
	MaxPrefix  = 64 << 10
	// MaxForward bounds the text of a .forward file, in octets.
	MaxForward = 64 << 10
)

// Request is what is done as a user. Which fields count depends on the kind.
type Request struct {
	Head

	Files []string // Forward: names beneath the home directory, the first that is there counts
	// Else is, for Forward, what is done where none of them is there: Spool, Mailbox,
	// or zero for nothing.
	Else Kind

	// Path is, for Mailbox, the file, or with a slash at its end the Maildir:
	// absolute, or beneath the home directory. For Spool and Make it is the
	// directory with the mailboxes.
	Path  string
	Limit int64 // octets that a mailbox file may have; 0: any number

	Command string        // Command: with its arguments
	Env     []string      // Command: NAME=value
	Timeout time.Duration // Command: how long it may take

	From    string    // the sender, as in the From_ line of a mailbox file
	Arrival time.Time // the same
	Prefix  string    // header fields to put before the message; lines end in LF

	Offset, Length int64 // of the content within the queue file
}

// Encode appends r to m.
func (r *Request) Encode(m *ipc.Message) {
	var head [HeadLen]byte
	head[0] = byte(r.Kind)
	copy(head[1:], r.User)
	m.Raw(head[:])
	encodeStrings(&m.Encoder, r.Files)
	m.Uint8(uint8(r.Else))
	m.String(r.Path)
	m.Int64(r.Limit)
	m.String(r.Command)
	encodeStrings(&m.Encoder, r.Env)
	m.Int64(int64(r.Timeout))
	m.String(r.From)
	m.Time(r.Arrival)
	m.String(r.Prefix)
	m.Int64(r.Offset)
	m.Int64(r.Length)
}

// DecodeRequest reads a whole request: its head and what follows.
func DecodeRequest(b []byte) (*Request, error) {
	h, rest, err := DecodeHead(b)
	if err != nil {
		return nil, err
	}
	d := wire.NewDecoder(rest)
	r := &Request{
		Head: h, Files: decodeStrings(d, MaxFiles, MaxPath), Else: Kind(d.Uint8()), Path: d.String(MaxPath), Limit: d.Int64(),
		Command: d.String(MaxCommand), Env: decodeStrings(d, MaxEnv, MaxPath), Timeout: time.Duration(d.Int64()),
		From: d.Text(MaxPath), Arrival: d.Time(), Prefix: d.String(MaxPrefix), Offset: d.Int64(), Length: d.Int64(),
	}
	if r.Limit < 0 || r.Timeout < 0 || r.Offset < 0 || r.Length < 0 {
		d.Fail(errors.New("a negative number"))
	}
	if r.Else != 0 && (r.Kind != Forward || r.Else != Spool && r.Else != Mailbox) {
		d.Fail(fmt.Errorf("kind %d after kind %d", r.Else, r.Kind))
	}
	for _, s := range append(append([]string{r.Path, r.Command}, r.Files...), r.Env...) {
		if strings.ContainsRune(s, 0) {
			d.Fail(errors.New("a NUL in a string"))
		}
	}
	if err := d.End(); err != nil {
		return nil, fmt.Errorf("deliver request: %w", err)
	}
	return r, nil
}

func encodeStrings(e *wire.Encoder, list []string) {
	e.Uint32(uint32(len(list)))
	for _, s := range list {
		e.String(s)
	}
}

func decodeStrings(d *wire.Decoder, most, length int) []string {
	var list []string
	for range d.Count(most) {
		list = append(list, d.String(length))
	}
	return list
}

// Reply is what came of it. The zero value defers.
type Reply struct {
	Status dsn.Status // 2.x.x: delivered, or the file was read
	Text   string     // for people, one line

	// Else is, of Forward, that no file is there, and the rest is about what was done
	// else.
	Else bool
	// Of Forward: whether there is a file, and what is in it.
	Found   bool
	Name    string
	Forward string
}

// Encode appends r to m.
func (r *Reply) Encode(m *ipc.Message) {
	m.Status(r.Status)
	m.String(r.Text)
	m.Bool(r.Else)
	m.Bool(r.Found)
	m.String(r.Name)
	m.String(r.Forward)
}

// DecodeReply reads a reply. On an error the result is zero.
func DecodeReply(b []byte) (Reply, error) {
	d := wire.NewDecoder(b)
	r := Reply{d.Status(), d.Text(wire.MaxText), d.Bool(), d.Bool(), d.Text(MaxPath), d.String(MaxForward)}
	if !r.Found && (r.Name != "" || r.Forward != "") {
		d.Fail(errors.New("a file that is not there has content"))
	}
	if r.Found && r.Else {
		d.Fail(errors.New("a file is there, and is not"))
	}
	if err := d.End(); err != nil {
		return Reply{}, fmt.Errorf("deliver reply: %w", err)
	}
	return r, nil
}

// Client asks.
type Client struct{ ipc *ipc.Client }

// NewClient returns a client for the server at path.
func NewClient(path string) *Client { return &Client{ipc.NewClient(path, Protocol)} }

// Wake has systemd start the server.
func (c *Client) Wake(ctx context.Context) { c.ipc.Wake(ctx) }

// Do has r done; file is the queue file, open for reading only, or nil for
// Make, and for Forward alone. An error says that nothing is known of it: defer. It is an
// *ipc.UnavailableError where the server is switched off.
func (c *Client) Do(ctx context.Context, r *Request, file *os.File) (reply Reply, err error) {
	m := ipc.NewMessage()
	r.Encode(m)
	err = c.ipc.Call(ctx, m, file, func(b []byte) error {
		reply, err = DecodeReply(b)
		return err
	})
	return reply, err
}
