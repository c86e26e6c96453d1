package mailbox

import (
	"errors"
	"os"
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
	links := 0
	fd, err := walk(unix.AT_FDCWD, path, create, &links)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	dir, err := openDir(fd, ".")
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(dir), path), nil
}

// place is how a directory is opened that is passed through only, for which the
// right to do that is enough.
const place = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// walk returns a descriptor of what path leads to from the directory at.
func walk(at int, path string, create bool, links *int) (int, error) {
	start := "."
	if strings.HasPrefix(path, "/") {
		start = "/"
	}
	fd, err := openAt(at, start, place)
	for name := range strings.SplitSeq(path, "/") {
		if err != nil {
			return -1, err
		}
		if name == "" || name == "." {
			continue
		}
		above := fd
		fd, err = step(above, name, create, links)
		unix.Close(above)
	}
	return fd, err
}

// step goes on to the directory called name.
func step(at int, name string, create bool, links *int) (int, error) {
	fd, err := openAt(at, name, place)
	switch {
	case create && errors.Is(err, unix.ENOENT):
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
		if *links++; *links > maxLinks {
			return -1, unix.ELOOP
		}
		// Where it leads to nothing, that may be a disk which is not mounted now.
		return walk(at, string(target[:n]), false, links)
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
