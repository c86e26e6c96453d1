package maildrop

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"posthouse/pkg/envelope"
)

// Dir is where messages are dropped. Who may get there is a matter of the
// directory above it, which the administrator opens; the directory itself lets
// everybody make files (mode 3733, owner and group are pickup's): nobody but
// pickup can list it or remove what is not his own, and what is made in it is in
// pickup's group, so that pickup can read files of everybody and nobody else can.
const Dir = "/var/spool/posthouse/maildrop/drop"

// fileMode is the mode of a message: its group is that of the directory.
const fileMode = 0o640

// hidden begins the names that pickup does not take for messages.
const hidden = "."

// Dropped is a message that is being written.
type Dropped struct {
	f    *os.File
	enc  *encoder
	dir  string
	name string
	temp bool // the name is the temporary one

	syncfs func(fd int) error // that of the kernel, but for tests
}

// Create begins a message in the directory dir. It ends with Commit or Abort.
func Create(dir string, e *envelope.Envelope) (*Dropped, error) {
	// The name cannot be guessed: who knows the name of a file that he may not see
	// could hinder it with a hard link.
	d := &Dropped{dir: dir, name: rand.Text(), temp: true, syncfs: unix.Syncfs}
	f, err := os.OpenFile(d.path(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	d.f = f
	if err := d.open(e); err != nil {
		d.Abort()
		return nil, fmt.Errorf("%s: %w", d.path(), err)
	}
	return d, nil
}

func (d *Dropped) path() string {
	if d.temp {
		return filepath.Join(d.dir, hidden+d.name)
	}
	return filepath.Join(d.dir, d.name)
}

func (d *Dropped) open(e *envelope.Envelope) error {
	// Where the group is not the directory's pickup could not read the file.
	var dir, file unix.Stat_t
	if err := errors.Join(unix.Stat(d.dir, &dir), unix.Fstat(int(d.f.Fd()), &file)); err != nil {
		return err
	}
	if dir.Mode&unix.S_ISGID == 0 || dir.Mode&unix.S_ISVTX == 0 || dir.Gid != file.Gid {
		return errors.New("the directory is not set-gid and sticky, or the file system does not care")
	}
	if err := d.f.Chmod(fileMode); err != nil { // whatever the umask
		return err
	}
	var err error
	d.enc, err = begin(d.f, e)
	return err
}

// Write adds to the content.
func (d *Dropped) Write(p []byte) (int, error) { return d.enc.Write(p) }

// Commit returns the path of the message when that is on disk. The directory
// itself cannot be opened by whoever drops, nor be flushed by itself: so the file
// system is. What pickup has taken before an error is in its hands, and no failure.
func (d *Dropped) Commit() (string, error) {
	err := d.enc.end()
	if err == nil {
		err = d.f.Sync()
	}
	if err == nil {
		from := d.path()
		d.temp = false
		err = os.Rename(from, d.path())
		d.temp = err != nil
	}
	if err == nil {
		if err = d.syncfs(int(d.f.Fd())); err != nil && errors.Is(os.Remove(d.path()), fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		err = &fs.PathError{Op: "write", Path: d.path(), Err: err}
		d.Abort()
		return "", err
	}
	_ = d.f.Close() // all is on disk: the caller must not drop it once more
	return d.path(), nil
}

// Abort gives the message up.
func (d *Dropped) Abort() {
	_ = os.Remove(d.path()) // or pickup does, when it is old
	_ = d.f.Close()
}

// Wake writes a byte into the FIFO at path, if somebody reads it: where nobody
// does, pickup looks when it starts.
func Wake(path string) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	_, _ = unix.Write(fd, []byte{1}) // one that is full wakes as well
	_ = unix.Close(fd)
}
