package mailbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenDir(t *testing.T) {
	base := t.TempDir()
	for link, target := range map[string]string{
		"absolute": base + "/a/.b", "relative": "a/../a/.b/.", "twice": "relative/c", "dangling": "none", "loop": "loop", "file": "plain", "root": "/",
	} {
		if err := os.Symlink(target, filepath.Join(base, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(base+"/plain", nil, 0o600), syscall.Mkfifo(base+"/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	top, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	for _, tt := range []struct {
		path   string
		create bool
		want   string // the same directory
		err    error
	}{
		{"a", false, "", unix.ENOENT},
		{"a/.b/c", true, "a/.b/c", nil},
		{"a/.b/c", true, "a/.b/c", nil},
		{"absolute/c", false, "a/.b/c", nil},
		{"relative/c", false, "a/.b/c", nil},
		{"twice", false, "a/.b/c", nil},
		{"twice/./d/", true, "a/.b/c/d", nil},
		{"root" + base + "/a", false, "a", nil},
		{"a/.b/../..", false, ".", nil},
		{"dangling", true, "", unix.ENOENT},
		{"dangling/x", true, "", unix.ENOENT},
		{"loop", true, "", unix.ELOOP},
		{"plain", true, "", unix.ENOTDIR},
		{"plain/x", true, "", unix.ENOTDIR},
		{"file/x", true, "", unix.ENOTDIR},
		{"fifo", true, "", unix.ENOTDIR},
		{"fifo/x", true, "", unix.ENOTDIR},
	} {
		for way, open := range map[string]func() (*os.File, error){
			"from the root":      func() (*os.File, error) { return OpenDir(base+"/"+tt.path, tt.create) },
			"from the directory": func() (*os.File, error) { return OpenDirIn(top, tt.path, tt.create) },
		} {
			f, err := open()
			if !errors.Is(err, tt.err) || tt.err == nil && err != nil {
				t.Errorf("%s, %s: %v, not %v", tt.path, way, err, tt.err)
			}
			if err != nil {
				continue
			}
			got, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			if want, err := os.Stat(filepath.Join(base, tt.want)); err != nil || !os.SameFile(got, want) {
				t.Errorf("%s, %s: not %s; %v", tt.path, way, tt.want, err)
			}
			if _, err := f.ReadDir(1); err != nil && !errors.Is(err, io.EOF) {
				t.Errorf("%s, %s: cannot be read: %v", tt.path, way, err)
			}
			f.Close()
		}
	}
	if _, err := os.Stat(base + "/none"); err == nil {
		t.Error("what a link led to has been made")
	}
	if info, err := os.Stat(base + "/a/.b"); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
}

// What is open in this process is reached by no path, past what is above it.
func TestOpenDirFollowsNoDescriptor(t *testing.T) {
	base := t.TempDir()
	if err := os.MkdirAll(base+"/locked/open", 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(base + "/locked/open")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Removed, it has no path any more that could be written in a link.
	if err := os.Remove(base + "/locked/open"); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"self", "thread-self", fmt.Sprint(os.Getpid())} {
		path := fmt.Sprintf("/proc/%s/fd/%d", dir, f.Fd())
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("the kernel follows it: %v", err)
		}
		if err := os.Symlink(path, base+"/"+dir); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{path, base + "/" + dir} {
			if f, err := OpenDir(path, true); err == nil {
				f.Close()
				t.Errorf("%s is followed", path)
			}
		}
	}
}
