package mailbox

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the links of a path, as the kernel does.
const maxLinks = 40

// OpenDir opens the directory at an absolute path. With create, what is missing is
// made, for the user alone, and is durable.
//
// Links are followed by what is written in them, each name with the rights of who
// asks. The kernel would follow those of /proc/self/fd to what this process has
// open, past the directories above it, and a link is what users write. Nothing that is
// no directory is opened: a FIFO would not let go.
func OpenDir(path string, create bool) (*os.File, error) {
	return openFrom(unix.AT_FDCWD, path, path, create)
}

// OpenDirIn is OpenDir for a path from dir on, which is open.
func OpenDirIn(dir *os.File, path string, create bool) (*os.File, error) {
	return openFrom(int(dir.Fd()), path, filepath.Join(dir.Name(), path), create)
}

func openFrom(at int, path, name string, create bool) (*os.File, error) {
	w := walk{create: create}
	fd, err := w.to(at, path, asDir)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// How a directory is opened: to be used, and to be passed through only, for which the
// right to do that is enough.
const (
	asDir = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	asWay = asDir | unix.O_PATH
)

// walk is the walk along one path.
type walk struct {
	create bool
	links  int // that have been followed
}

// to opens what path leads to from the directory at, in the way that how says.
func (w *walk) to(at int, path string, how int) (int, error) {
	start := "."
	if strings.HasPrefix(path, "/") {
		start = "/"
	}
	names := slices.DeleteFunc(strings.Split(path, "/"), func(name string) bool { return name == "" || name == "." })
	if len(names) == 0 {
		return openAt(at, start, how)
	}
	fd, err := openAt(at, start, asWay)
	for i, name := range names {
		if err != nil {
			return -1, err
		}
		above, how := fd, how
		if i < len(names)-1 {
			how = asWay
		}
		fd, err = w.step(above, name, how)
		unix.Close(above)
	}
	return fd, err
}

// step goes on to the directory called name.
func (w *walk) step(at int, name string, how int) (int, error) {
	fd, err := openAt(at, name, how)
	switch {
	case w.create && errors.Is(err, unix.ENOENT):
		return makeSub(at, name)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP): // a link, too
		target := [unix.PathMax]byte{}
		n, err := unix.Readlinkat(at, name, target[:])
		if errors.Is(err, unix.EINVAL) {
			return -1, unix.ENOTDIR
		}
		if err != nil {
			return -1, err
		}
		if w.links++; w.links > maxLinks {
			return -1, unix.ELOOP
		}
		// Where it leads to nothing, that may be a disk which is not mounted now.
		defer func(create bool) { w.create = create }(w.create)
		w.create = false
		return w.to(at, string(target[:n]), how)
	}
	return fd, err
}

// makeSub makes a directory.
func makeSub(at int, name string) (int, error) {
	above, err := openDir(at, ".") // to be synced
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	return openSub(above, name)
}

func openAt(at int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(at, name, flags, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}
