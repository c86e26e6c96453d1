package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"posthouse/pkg/dsn"
	"posthouse/pkg/mailbox"
	"posthouse/pkg/protocol/deliver"
)

// spool appends to the user's mailbox in the spool of mailboxes.
func (u *User) spool(r *deliver.Request, content io.ReadSeeker) (string, error) {
	b, err := u.inSpool(r)
	if err != nil {
		return "", err
	}
	defer b.Dir.Close() // read-only
	if err := b.Append(r.From, r.Arrival.Local(), r.Prefix, content); err != nil {
		return "", err
	}
	return "delivered to mailbox", nil
}

// makeSpool makes that mailbox where it is missing, for a command of the user's
// that delivers there: it may write to the file, but not make it.
func (u *User) makeSpool(r *deliver.Request) error {
	b, err := u.inSpool(r)
	if err != nil {
		return err
	}
	defer b.Dir.Close() // read-only
	return b.Make()
}

// inSpool returns the mailbox, with its directory open.
func (u *User) inSpool(r *deliver.Request) (*mailbox.Mbox, error) {
	if !filepath.IsAbs(r.Path) {
		return nil, dsn.Errorf("4.3.5", "spool of mailboxes: %.100q is no absolute path", r.Path)
	}
	dir, err := mailbox.OpenDir(r.Path, false)
	if err != nil {
		return nil, dsn.Errorf("4.2.0", "spool of mailboxes: %v", err)
	}
	return &mailbox.Mbox{Dir: dir, Name: u.Name, Owner: u.UID, Limit: r.Limit, Sync: u.Sync}, nil
}

// devNull is what aliases name to throw mail away.
const devNull = "/dev/null"

// mailbox appends to a file of the user, or delivers to a Maildir.
func (u *User) mailbox(r *deliver.Request, content io.ReadSeeker) (string, error) {
	path, isDir := r.Path, strings.HasSuffix(r.Path, "/")
	if path == devNull {
		return "delivered to file: " + devNull, nil
	}
	if !filepath.IsAbs(path) {
		if _, err := u.inHome(); err != nil {
			return "", dsn.Errorf("4.2.0", "home directory: %v", err)
		}
		path = filepath.Join(u.Home, path)
	}
	path = filepath.Clean(path)
	if isDir {
		return "delivered to maildir", u.maildir(path, r, content)
	}
	return "delivered to file: " + path, u.file(path, r, content)
}

// dir opens the directory at an absolute path. The way to the home directory is not
// gone twice.
func (u *User) dir(path string, create bool) (dir *os.File, err error) {
	rest, beneath := strings.CutPrefix(path, u.Home+"/")
	if u.home == nil || !beneath {
		dir, err = mailbox.OpenDir(path, create)
	} else {
		dir, err = mailbox.OpenDirIn(u.home, rest, create)
	}
	if err != nil {
		return nil, err
	}
	if err := u.stays(dir); err != nil {
		_ = dir.Close() // read-only
		return nil, err
	}
	return dir, nil
}

// stays reports as an error that what is put into dir goes away with the service. Links
// may lead there: it is the mount that counts.
func (u *User) stays(dir *os.File) error {
	const mountID = unix.STATX_MNT_ID
	var root, there, st unix.Statx_t
	if err := unix.Statx(int(dir.Fd()), "", unix.AT_EMPTY_PATH, mountID, &there); err != nil {
		return os.NewSyscallError("statx", err)
	}
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, mountID, &root); err != nil {
		return os.NewSyscallError("statx", err)
	}
	for _, path := range u.Private {
		err := unix.Statx(unix.AT_FDCWD, path, 0, mountID, &st)
		if err == nil && st.Mnt_id == there.Mnt_id && st.Mnt_id != root.Mnt_id {
			return fmt.Errorf("%s is one of the mail system's own, in which nothing stays", path)
		}
	}
	return nil
}

// maildir delivers to the Maildir at path, which is made where it is missing.
// Links above it are followed: they can lead to what the user has only.
func (u *User) maildir(path string, r *deliver.Request, content io.ReadSeeker) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	dir, err := u.dir(path, true)
	if err != nil {
		return dsn.Errorf("4.2.0", "maildir delivery failed: %v", err)
	}
	m := mailbox.At(dir, host, u.Sync)
	err = m.Deliver(nil, r.Prefix, content)
	_ = m.Close() // a directory
	var e *dsn.Error
	if errors.As(err, &e) { // a typed nil would be an error
		return &dsn.Error{Status: e.Status, Text: fmt.Sprintf("%s: %s", path, e.Text)}
	}
	return err
}

// file appends to the mailbox file at path.
func (u *User) file(path string, r *deliver.Request, content io.ReadSeeker) error {
	if path == "/" {
		return dsn.Errorf("4.3.5", "/ is no mailbox")
	}
	dir, err := u.dir(filepath.Dir(path), false)
	if err != nil {
		return dsn.Errorf("4.2.0", "mailbox delivery failed: %v", err)
	}
	defer dir.Close() // read-only
	b := mailbox.Mbox{Dir: dir, Name: filepath.Base(path), Owner: u.UID, Limit: r.Limit, Sync: u.Sync, MayLack: true}
	return b.Append(r.From, r.Arrival.Local(), r.Prefix, content)
}
