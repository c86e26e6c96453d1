// Package account looks up UNIX accounts.
//
// Where systemd-userdbd runs it is asked, by varlink: it knows the accounts of
// files, LDAP and whatever else the machine's name service has. Elsewhere
// /etc/passwd and /etc/group are read. os/user is not for this: without cgo it reads
// the files only, and it does not tell an account that is not there from one that
// cannot be looked up.
//
// What comes back is checked: a daemon acts as the user that it is told.
package account

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Account is the account of a user.
type Account struct {
	Name     string
	UID, GID uint32
	Groups   []uint32 // supplementary, ascending; GID is not among them
	Home     string   // absolute and clean; it may not be there
	Shell    string
}

// ErrNone says that there is no such account. Any other error says that it is
// not known now whether there is one.
var ErrNone = errors.New("no such account")

// timeout bounds a lookup.
const timeout = 5 * time.Second

// maxGroups bounds the groups of a user. The kernel takes 65536.
const maxGroups = 1000

// sources is where accounts are looked up.
type sources struct{ userdb, passwd, group string }

var system = sources{"/run/systemd/userdb/io.systemd.Multiplexer", "/etc/passwd", "/etc/group"}

func (s sources) lookup(ctx context.Context, name string) (*Account, error) {
	// No database could have it.
	if name == "" || len(name) > 256 || strings.ContainsAny(name, ":/,") || printable(name) != nil {
		return nil, ErrNone
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	a, err := s.ask(ctx, name)
	if err == nil {
		err = a.check(name)
	}
	if errors.Is(err, ErrNone) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("look up the account %s: %w", name, err)
	}
	return a, nil
}

// ask asks systemd-userdbd where it has a socket. One at which nobody listens is
// trouble: the files may lack the user. A name of digits alone is none to it, which it
// reports as trouble, too, and in no uniform way: only files can have that.
func (s sources) ask(ctx context.Context, name string) (*Account, error) {
	_, err := os.Lstat(s.userdb)
	if errors.Is(err, os.ErrNotExist) || strings.Trim(name, "0123456789") == "" {
		return s.fromFiles(name)
	}
	if err != nil {
		return nil, err
	}
	return fromUserdb(ctx, s.userdb, name)
}

// check reports what makes a an account that nobody may act as.
func (a *Account) check(name string) error {
	if a.Name != name {
		return fmt.Errorf("got that of %.100q", a.Name)
	}
	for _, id := range append([]uint32{a.UID, a.GID}, a.Groups...) {
		if id == noID || id == noID16 {
			return fmt.Errorf("user or group %d means nobody", id)
		}
	}
	if a.Home == "" || a.Home[0] != '/' || len(a.Home) > 4096 || printable(a.Home) != nil {
		return fmt.Errorf("home directory %.100q", a.Home)
	}
	if len(a.Shell) > 4096 || printable(a.Shell) != nil {
		return fmt.Errorf("shell %.100q", a.Shell)
	}
	a.Home = path.Clean(a.Home)
	slices.Sort(a.Groups)
	a.Groups = slices.DeleteFunc(slices.Compact(a.Groups), func(g uint32) bool { return g == a.GID })
	if len(a.Groups) > maxGroups {
		return fmt.Errorf("over %d groups", maxGroups)
	}
	return nil
}

// IDs that system calls take for "no change", in 32 and in 16 bits.
const (
	noID   = 1<<32 - 1
	noID16 = 1<<16 - 1
)

func printable(s string) error {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) {
		return errors.New("a control character, or not UTF-8")
	}
	return nil
}
