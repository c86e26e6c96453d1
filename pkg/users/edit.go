package users

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/sys/unix"

	"posthouse/pkg/addr"
)

// Parameters of argon2id (RFC 9106, section 4, the second recommendation): what
// a check costs is 64 MiB and some 50 ms.
const (
	hashTime    = 3
	hashMemory  = 64 << 10 // KiB
	hashThreads = 4
	hashLen     = 32
	saltLen     = 16
)

// Hash returns password in the form that Dovecot takes.
func Hash(password string) (string, error) {
	salt := make([]byte, saltLen)
	if _, err := rand.Read(salt); err != nil {
		return "", fmt.Errorf("password: %w", err)
	}
	sum := argon2.IDKey([]byte(password), salt, hashTime, hashMemory, hashThreads, hashLen)
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("{ARGON2ID}$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, hashMemory, hashTime, hashThreads, b64(salt), b64(sum)), nil
}

// Verify reports whether password is the one of a hash that Hash made.
func Verify(hash, password string) bool {
	f := strings.Split(hash, "$")
	if len(f) != 6 || f[0] != "{ARGON2ID}" || f[1] != "argon2id" || f[3] != fmt.Sprintf("m=%d,t=%d,p=%d", hashMemory, hashTime, hashThreads) {
		return false
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(f[4])
	want, err2 := base64.RawStdEncoding.DecodeString(f[5])
	if err1 != nil || err2 != nil || len(want) != hashLen {
		return false
	}
	got := argon2.IDKey([]byte(password), salt, hashTime, hashMemory, hashThreads, hashLen)
	return subtle.ConstantTimeCompare(got, want) == 1
}

// File edits the file.
type File struct {
	path    string
	readers int
}

// NewFile returns the file at path, for editing.
func NewFile(path string) *File { return &File{path, -1} }

// ReadBy says which group may read the file, if it has to be made.
func (f *File) ReadBy(gid int) { f.readers = gid }

// List returns all users, sorted by address.
func (f *File) List() ([]User, error) {
	b, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("users: %w", err)
	}
	all, err := parse(f.path, b)
	if err != nil {
		return nil, err
	}
	var list []User
	for _, u := range all {
		list = append(list, u)
	}
	slices.SortFunc(list, func(a, b User) int { return strings.Compare(a.Address.String(), b.Address.String()) })
	return list, nil
}

// Add adds a user.
func (f *File) Add(u User) error {
	if err := checkAddress(u.Address); err != nil {
		return err
	}
	u.Address = u.Address.Fold()
	return f.edit(u.Address, func(old *User) (*User, error) {
		if old != nil {
			return nil, fmt.Errorf("%s: %w", u.Address, ErrExists)
		}
		return &u, nil
	})
}

// Delete removes a user. The mailbox stays.
func (f *File) Delete(m addr.Mailbox) error {
	return f.edit(m.Fold(), func(old *User) (*User, error) {
		if old == nil {
			return nil, fmt.Errorf("%s: %w", m, ErrNone)
		}
		return nil, nil
	})
}

// SetPassword gives a user another password, as a hash.
func (f *File) SetPassword(m addr.Mailbox, hash string) error {
	return f.edit(m.Fold(), func(old *User) (*User, error) {
		if old == nil {
			return nil, fmt.Errorf("%s: %w", m, ErrNone)
		}
		old.Password = hash
		return old, nil
	})
}

// edit replaces the line of one user by what change makes of it. Other lines,
// comments among them, stay as they are. The file is replaced whole or not at all.
func (f *File) edit(m addr.Mailbox, change func(old *User) (*User, error)) error {
	f, err := f.behindLinks()
	if err != nil {
		return err
	}
	unlock, err := f.lock()
	if err != nil {
		return err
	}
	defer unlock()
	b, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("users: %w", err)
	}
	// A file that is broken is for its owner to mend.
	all, err := parse(f.path, b)
	if err != nil {
		return err
	}
	var old *User
	if u, ok := all[m]; ok {
		old = &u
	}
	fresh, err := change(old)
	if err != nil {
		return err
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, "\n")
		if u, err := parseLine(line); err == nil && line[0] != '#' && u.Address == m {
			continue
		}
		out.WriteString(line + "\n")
	}
	if fresh != nil {
		out.WriteString(fresh.String() + "\n")
	}
	return f.replace(out.String())
}

// behindLinks returns the file itself: a link stays one.
func (f *File) behindLinks() (*File, error) {
	path, err := filepath.EvalSymlinks(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(f.path); err == nil {
			return nil, fmt.Errorf("users: %s is a link to nothing", f.path)
		}
		return f, nil
	case err != nil:
		return nil, fmt.Errorf("users: %w", err)
	}
	return &File{path, f.readers}, nil
}

// lock keeps two edits from running at once; the kernel ends it with the process.
func (f *File) lock() (unlock func(), err error) {
	dir, err := os.Open(filepath.Dir(f.path))
	if err == nil {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return nil, fmt.Errorf("users: lock: %w", err)
	}
	return func() { _ = dir.Close() }, nil
}

// owner is that of the new file: of the old one, or so that the daemon may read it.
func (f *File) owner(old *unix.Stat_t) (uid, gid int) {
	if old != nil {
		return int(old.Uid), int(old.Gid)
	}
	return -1, f.readers
}

func (f *File) replace(text string) (err error) {
	var mode os.FileMode = 0o640
	old := new(unix.Stat_t)
	if err := unix.Stat(f.path, old); err != nil {
		old = nil
	} else {
		mode = os.FileMode(old.Mode & 0o777)
	}
	dir := filepath.Dir(f.path)
	tmp, err := os.CreateTemp(dir, ".users-")
	if err != nil {
		return fmt.Errorf("users: %w", err)
	}
	defer func() {
		err = errors.Join(err, tmp.Close())
		if err != nil {
			_ = os.Remove(tmp.Name()) // the error above is the one that tells
		}
	}()
	if err := tmp.Chown(f.owner(old)); err != nil {
		return fmt.Errorf("users: %w", err)
	}
	if err := tmp.Chmod(mode); err != nil {
		return fmt.Errorf("users: %w", err)
	}
	if _, err := tmp.WriteString(text); err != nil {
		return fmt.Errorf("users: %w", err)
	}
	// Dovecot reads the file again when its size or the second of its time has
	// changed: of two passwords set within a second the first would stay good.
	if now := time.Now(); old != nil && now.Unix() <= old.Mtim.Sec {
		if err := os.Chtimes(tmp.Name(), now, time.Unix(old.Mtim.Sec+1, 0)); err != nil {
			return fmt.Errorf("users: %w", err)
		}
	}
	if err := tmp.Sync(); err != nil {
		return fmt.Errorf("users: %w", err)
	}
	if err := os.Rename(tmp.Name(), f.path); err != nil {
		return fmt.Errorf("users: %w", err)
	}
	return syncDir(dir)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("users: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("users: %w", err)
	}
	return nil
}
