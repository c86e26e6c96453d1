package maildrop

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Directory is the directory as pickup sees it, held open.
type Directory struct {
	f    *os.File
	path string
	gid  uint32
}

// OpenDirectory opens the directory at path. It has to belong to the caller, and
// to be sticky: from another one messages could not be removed, and would be
// submitted again and again; or somebody could remove those of others.
func OpenDirectory(path string) (*Directory, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	switch {
	case err != nil:
	case int(st.Uid) != os.Geteuid():
		err = fmt.Errorf("%s belongs to user %d, not to pickup, which is %d", path, st.Uid, os.Geteuid())
	case st.Mode&unix.S_ISVTX == 0:
		err = fmt.Errorf("%s is not sticky (mode 3733)", path)
	}
	if err != nil {
		_ = f.Close() // not used
		return nil, err
	}
	return &Directory{f, path, st.Gid}, nil
}

// Close closes the directory.
func (d *Directory) Close() error { return d.f.Close() }

// How long the pieces of messages stay that nobody has finished, and what was set
// aside. The time is the kernel's (st_ctime), which no user can choose.
const (
	tempTime  = 24 * time.Hour
	asideTime = 30 * 24 * time.Hour
)

// aside begins the names of what is no message, or was refused.
const aside = hidden + "aside."

// List calls each for the names of what may be messages, with their owners, until
// it returns false. It removes what is old and nobody's any more.
func (d *Directory) List(each func(name string, uid uint32) bool) error {
	f, err := os.OpenFile(d.path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading
	for {
		names, err := f.Readdirnames(1000)
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(int(d.f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue // gone; or it is there when we look again
			}
			if strings.HasPrefix(name, hidden) {
				d.tidy(name, time.Unix(st.Ctim.Unix()))
			} else if !each(name, st.Uid) {
				return nil
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (d *Directory) tidy(name string, changed time.Time) {
	limit := tempTime
	if strings.HasPrefix(name, aside) {
		limit = asideTime
	}
	if time.Since(changed) > limit {
		_ = d.Remove(name) // a directory of somebody's stays
	}
}

// BadError says that a file is no message, and will not become one.
type BadError struct{ Err error }

func (e *BadError) Error() string { return e.Err.Error() }
func (e *BadError) Unwrap() error { return e.Err }

// File is an open message.
type File struct {
	*Message
	UID uint32 // whose it is

	f *os.File
}

// Close closes the file.
func (f *File) Close() { _ = f.f.Close() } // opened for reading

// Open opens a message. Files that no sendmail has made are a *BadError: what is
// not a file, or has another name as well, for it might be a file of somebody
// else; what others may read or write, or is not in the group of the directory,
// for it was moved here from elsewhere. A link is not followed, a FIFO not waited
// for.
func (d *Directory) Open(name string) (*File, error) {
	fd, err := unix.Openat(int(d.f.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENXIO):
		return nil, &BadError{err}
	case err != nil:
		return nil, &os.PathError{Op: "open", Path: d.path + "/" + name, Err: err}
	}
	f := &File{f: os.NewFile(uintptr(fd), name)}
	if err := f.read(d.gid); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f *File) read(gid uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.f.Fd()), &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return &BadError{errors.New("not a regular file")}
	case st.Nlink != 1:
		return &BadError{fmt.Errorf("%d links", st.Nlink)}
	case st.Mode&0o7777 != fileMode || st.Gid != gid:
		return &BadError{fmt.Errorf("mode %o, group %d", st.Mode&0o7777, st.Gid)}
	}
	m, err := Read(f.f, st.Size)
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.ESTALE) {
		return err
	}
	if err != nil {
		return &BadError{err}
	}
	f.Message, f.UID = m, st.Uid
	return nil
}

// Remove removes a message. Between Open and Remove only its owner could have put
// another one in its place.
func (d *Directory) Remove(name string) error {
	err := unix.Unlinkat(int(d.f.Fd()), name, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unlink", Path: d.path + "/" + name, Err: err}
	}
	return nil
}

// SetAside gives a file a name under which it is not looked at again, and returns
// that.
func (d *Directory) SetAside(name string) (string, error) {
	to := aside + rand.Text()
	if err := unix.Renameat(int(d.f.Fd()), name, int(d.f.Fd()), to); err != nil {
		return "", &os.PathError{Op: "rename", Path: d.path + "/" + name, Err: err}
	}
	return to, nil
}
