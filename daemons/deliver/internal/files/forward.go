package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"posthouse/daemons/deliver/internal/answer"
	"posthouse/pkg/dsn"
	"posthouse/pkg/protocol/deliver"
)

// forward reads the first of the files that is there. One that others could have
// written is not obeyed, and not passed over either, which would put mail where
// its owner does not want it: it waits until somebody mends that.
func (u *User) forward(files []string) *deliver.Reply {
	name, text, err := u.readFirst(files)
	if err != nil {
		var e *dsn.Error
		if !errors.As(err, &e) {
			e = &dsn.Error{Status: dsn.MustParse("4.2.0"), Text: err.Error()}
		}
		e.Status = e.Status.With(dsn.Transient) // it may say anything
		return answer.Done("", e)
	}
	return &deliver.Reply{Status: dsn.MustParse("2.0.0"), Found: name != "", Name: answer.Line(name), Forward: text}
}

// readFirst returns no name where no file is there, which holds for a home
// directory, too.
func (u *User) readFirst(files []string) (name, text string, err error) {
	home, err := u.inHome()
	if absent(err) {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	for _, name := range files {
		if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
			return "", "", fmt.Errorf("%.100q is not the name of a file in a home directory", name)
		}
		text, err := u.readForward(home, name)
		if absent(err) {
			continue
		}
		if err != nil {
			return "", "", err
		}
		return name, text, nil
	}
	return "", "", nil
}

func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG)
}

func (u *User) readForward(home *os.File, name string) (string, error) {
	var st, above unix.Stat_t
	path := filepath.Join(u.Home, name)
	// Before it is opened: to open a device may do something by itself.
	err := unix.Fstatat(int(home.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if err := unix.Fstat(int(home.Fd()), &above); err != nil {
		return "", fmt.Errorf("%s: %w", u.Home, err)
	}
	if above.Mode&unix.S_IFMT == unix.S_IFDIR && above.Mode&0o002 != 0 {
		return "", dsn.Errorf("4.3.5", "%s is not read: everybody may write to %s", path, u.Home)
	}
	if err := u.trusted(path, &st); err != nil {
		return "", err
	}
	fd, err := unix.Openat(int(home.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // read-only
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if err := u.trusted(path, &st); err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, deliver.MaxForward+1))
	if err != nil {
		return "", err
	}
	if len(b) > deliver.MaxForward {
		return "", dsn.Errorf("4.3.5", "%s is not read: it has over %d octets", path, deliver.MaxForward)
	}
	return string(b), nil
}

// trusted reports who but the user and root may have written a file.
func (u *User) trusted(path string, st *unix.Stat_t) error {
	why := ""
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		why = "it is no regular file"
	case st.Uid != u.UID && st.Uid != 0:
		why = fmt.Sprintf("it belongs to user %d", st.Uid)
	case st.Mode&0o002 != 0: // a group of the user's own is usual, and whose it is cannot be told
		why = "everybody may write to it"
	}
	if why != "" {
		return dsn.Errorf("4.3.5", "%s is not read: %s", path, why)
	}
	return nil
}
