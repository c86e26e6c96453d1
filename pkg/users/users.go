// Package users keeps the virtual users: a passwd-file that Dovecot reads as
// passdb and userdb.
//
//	user@example.org:{ARGON2ID}$argon2id$...:UID:GID::/var/vmail/example.org/user::userdb_mail=maildir:~/Maildir ...
package users

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"posthouse/pkg/addr"
	"posthouse/pkg/table"
)

// fieldCount is that of Dovecot's passwd-file: user, password, uid, gid, gecos,
// home, shell, and extra fields, which may have colons themselves.
const fieldCount = 8

// User is one line of the file.
type User struct {
	Address  addr.Mailbox
	Password string // a hash behind its {SCHEME}
	UID, GID string
	Gecos    string
	Home     string
	Shell    string
	Extra    string
}

// String returns the line.
func (u User) String() string {
	return strings.Join([]string{u.Address.String(), u.Password, u.UID, u.GID, u.Gecos, u.Home, u.Shell, u.Extra}, ":")
}

// checkAddress says whether a user may have this address: its parts become names
// of directories, the line must hold together, and it must not be a comment.
func checkAddress(m addr.Mailbox) error {
	for _, part := range []string{m.Local(), m.Domain()} {
		if part == "" || part[0] == '.' || part[0] == '-' || part[0] == '#' || strings.ContainsAny(part, "/:\\\" @%!") {
			return fmt.Errorf("%s cannot be the address of a virtual user", m)
		}
	}
	return nil
}

func parseLine(line string) (User, error) {
	f := strings.SplitN(line, ":", fieldCount)
	if len(f) < fieldCount-2 {
		return User{}, fmt.Errorf("%d fields, at least %d are needed", len(f), fieldCount-2)
	}
	for len(f) < fieldCount {
		f = append(f, "")
	}
	m, err := addr.Parse(f[0])
	if err != nil {
		return User{}, err
	}
	if err := checkAddress(m); err != nil {
		return User{}, err
	}
	return User{Address: m.Fold(), Password: f[1], UID: f[2], GID: f[3], Gecos: f[4], Home: f[5], Shell: f[6], Extra: f[7]}, nil
}

// parse reads the file into a map by address, in lower case.
func parse(path string, b []byte) (map[addr.Mailbox]User, error) {
	if i := bytes.IndexFunc(b, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' }); i >= 0 {
		return nil, fmt.Errorf("%s:%d: control character", path, 1+bytes.Count(b[:i], []byte("\n")))
	}
	all := make(map[addr.Mailbox]User)
	number := 0
	for line := range strings.Lines(string(b)) {
		number++
		line = strings.TrimRight(line, "\n")
		if strings.TrimSpace(line) == "" || line[0] == '#' {
			continue
		}
		u, err := parseLine(line)
		if err == nil {
			if _, ok := all[u.Address]; ok {
				err = fmt.Errorf("%s is there twice", u.Address)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, number, err)
		}
		all[u.Address] = u
	}
	return all, nil
}

// Table answers whether there is a user, from the file as it is now.
type Table struct {
	file *table.File[map[addr.Mailbox]User]
}

// NewTable returns the table in the file at path.
func NewTable(path string, onError func(error)) *Table {
	return &Table{table.NewFile(path, parse, onError)}
}

// Has reports whether there is a user with this address, whatever its case. The
// error means that it could not look.
func (t *Table) Has(m addr.Mailbox) (bool, error) {
	all, err := t.file.Get()
	if err != nil {
		return false, err
	}
	_, found := all[m.Fold()]
	return found, nil
}

// Errors of the functions that edit.
var (
	ErrExists = errors.New("there is such a user")
	ErrNone   = errors.New("there is no such user")
)
