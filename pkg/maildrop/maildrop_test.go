package maildrop

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// newDir is a directory in which everybody may drop.
func newDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	chmod(t, dir, 0o3733)
	return dir
}

func chmod(t testing.TB, path string, mode uint32) {
	t.Helper()
	if err := unix.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// drop drops the sample and returns the name of the file.
func drop(t testing.TB, dir string) string {
	t.Helper()
	v := sample(t)
	d, err := Create(dir, v.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("a message that is being written is listed: %q", got)
	}
	if _, err := io.WriteString(d, v.Content); err != nil {
		t.Fatal(err)
	}
	path, err := d.Commit()
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Dir(path) != dir {
		t.Errorf("dropped as %s", path)
	}
	return filepath.Base(path)
}

func open(t testing.TB, dir string) *Directory {
	t.Helper()
	d, err := OpenDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func names(t testing.TB, dir string) (all []string) {
	t.Helper()
	if err := open(t, dir).List(func(name string, _ uint32) bool { all = append(all, name); return true }); err != nil {
		t.Error(err)
	}
	return all
}

// TestDrop: what is dropped is found again, by its owner, and is gone when it is
// removed.
func TestDrop(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	dir := newDir(t)
	name := drop(t, dir)
	if got := names(t, dir); !slices.Equal(got, []string{name}) {
		t.Fatalf("%q, not %s", got, name)
	}
	if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != fileMode {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	d := open(t, dir)
	f, err := d.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	var content strings.Builder
	if err := f.CopyTo(&content); err != nil || content.String() != sample(t).Content || int(f.UID) != os.Getuid() {
		t.Errorf("%q of %d, %v", content.String(), f.UID, err)
	}
	if got := string(f.Beginning(9)); got != "Subject: " {
		t.Errorf("begins with %q", got)
	}
	f.Close()
	for range 2 { // the second time it is gone already
		if err := d.Remove(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := d.Open(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
}

// TestLateErrors: whoever is told of an error drops the message once more. So none is
// told of when the message is on disk, or pickup has it; and of another one nothing stays.
func TestLateErrors(t *testing.T) {
	for what, tt := range map[string]struct {
		syncfs func(d *Dropped) error
		ok     bool
	}{
		"close fails":                 {func(d *Dropped) error { return d.f.Close() }, true},
		"flush fails":                 {func(*Dropped) error { return unix.EIO }, false},
		"flush fails, but it is gone": {func(d *Dropped) error { return errors.Join(os.Remove(d.path()), unix.EIO) }, true},
	} {
		dir := newDir(t)
		d, err := Create(dir, sample(t).Envelope)
		if err != nil {
			t.Fatal(err)
		}
		d.syncfs = func(int) error { return tt.syncfs(d) }
		_, err = d.Commit()
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", what, err)
		}
		if left := names(t, dir); len(left) > 0 && err != nil {
			t.Errorf("%s: %q is left", what, left)
		}
	}
}

// TestAbort: what is given up leaves nothing.
func TestAbort(t *testing.T) {
	dir := newDir(t)
	d, err := Create(dir, sample(t).Envelope)
	if err != nil {
		t.Fatal(err)
	}
	d.Abort()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	e := *sample(t).Envelope
	e.Recipients = nil
	if _, err := Create(dir, &e); err == nil {
		t.Error("a message for nobody is written")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestWrongDirectory: nothing is dropped where it could not be picked up, and
// nothing picked up where it could not be removed.
func TestWrongDirectory(t *testing.T) {
	dir := newDir(t)
	for _, mode := range []uint32{0o1777, 0o2777, 0o777} {
		chmod(t, dir, mode)
		if d, err := Create(dir, sample(t).Envelope); err == nil {
			t.Errorf("mode %o: created", mode)
			d.Abort()
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("mode %o: %v, %v", mode, left, err)
		}
		d, err := OpenDirectory(dir)
		if want := mode&0o1000 != 0; (err == nil) != want {
			t.Errorf("mode %o: opened: %v", mode, err)
		}
		if err == nil {
			_ = d.Close()
		}
	}
	if os.Geteuid() == 0 {
		chmod(t, dir, 0o3733)
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenDirectory(dir); err == nil || !strings.Contains(err.Error(), "belongs to user 65534") {
			t.Errorf("somebody else's directory: %v", err)
		}
	}
	if _, err := OpenDirectory(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDirectory(link); err == nil {
		t.Error("a link is followed")
	}
}

// TestHostile: what is no message, or may be somebody else's file, is not opened,
// waited for or read; it can be set aside, and is then not listed.
func TestHostile(t *testing.T) {
	dir := newDir(t)
	outside := t.TempDir()
	put := func(name, content string, mode uint32) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		chmod(t, path, mode)
		return path
	}
	good := string(encode(sample(t)))
	for name, make := range map[string]func(path string) error{
		"link":       func(path string) error { return os.Symlink("/etc/passwd", path) },
		"fifo":       func(path string) error { return unix.Mkfifo(path, fileMode) },
		"directory":  func(path string) error { return os.MkdirAll(path+"/sub", 0o755) },
		"socket":     func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|fileMode, 0) },
		"two-links":  func(path string) error { return os.Link(put("first", good, fileMode), path) },
		"for-others": func(path string) error { put("for-others", good, 0o644); return nil },
		"writable":   func(path string) error { put("writable", good, 0o660); return nil },
		"set-uid":    func(path string) error { put("set-uid", good, 0o4640); return nil },
		"half":       func(path string) error { put("half", good[:len(good)/2], fileMode); return nil },
		"longer":     func(path string) error { put("longer", good+"x", fileMode); return nil },
		"empty":      func(path string) error { put("empty", "", fileMode); return nil },
		"text":       func(path string) error { put("text", strings.Repeat("To: x\n", 1000), fileMode); return nil },
		"huge": func(path string) error {
			put("huge", good, fileMode)
			return os.Truncate(path, 1<<40)
		},
		"odd\nname\xff": func(path string) error { put("odd\nname\xff", "", fileMode); return nil },
		strings.Repeat("n", 255): func(path string) error {
			put(strings.Repeat("n", 255), "", fileMode)
			return nil
		},
		"moved": func(path string) error {
			from := filepath.Join(outside, "moved")
			err := errors.Join(os.WriteFile(from, []byte(good), 0o640), os.Chmod(from, fileMode), os.Chown(from, -1, os.Getgid()+1))
			if os.Geteuid() != 0 {
				return nil // takes root to have a file of another group
			}
			return errors.Join(err, os.Rename(from, path))
		},
	} {
		path := filepath.Join(dir, name)
		if err := make(path); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		d := open(t, dir)
		var bad *BadError
		if f, err := d.Open(name); !errors.As(err, &bad) {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
		if to, err := d.SetAside(name); err != nil || !strings.HasPrefix(to, aside) {
			t.Errorf("%s is set aside as %s, %v", name, to, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "first")); err != nil {
		t.Error(err)
	}
	if got := names(t, dir); len(got) > 0 {
		t.Errorf("still listed: %q", got)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) < 15 {
		t.Errorf("%d files are left, %v", len(left), err)
	}
}

// TestWake: a byte is written where somebody reads, and nothing waits or is made
// where nobody does.
func TestWake(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	Wake(fifo)
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	Wake(fifo)
	f, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	Wake(fifo)
	if n, err := f.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Errorf("%d octets, %v", n, err)
	}
}
