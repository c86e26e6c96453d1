//go:build system

package crash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// op is what happened to a disk: a write, or where data is nil a flush, before
// which nothing is certain to be on it.
type op struct {
	at   int64
	data []byte
}

// recorder is a disk that remembers all that was done to it: a file, served by
// FUSE, for a loop device. Where the kernel flushes the device the file is synced.
type recorder struct {
	mu   sync.Mutex
	data []byte
	ops  []op
}

// The protocol of /dev/fuse (linux/fuse.h), as much as one file needs that is the
// root of its own file system.
const (
	fuseGetattr, fuseSetattr, fuseOpen, fuseRead, fuseWrite, fuseRelease, fuseFsync = 3, 4, 14, 15, 16, 18, 20
	fuseFlush, fuseInit, fuseForget, fuseInterrupt, fuseDestroy, fuseBatchForget    = 25, 26, 2, 36, 38, 42

	fuseInHeader  = 40
	fuseOutHeader = 16
	fuseWriteIn   = 40
	fuseMaxWrite  = 128 << 10
	fuseRegular   = unix.S_IFREG | 0o600
)

var native = binary.NativeEndian

// newRecorder serves a disk with data on it at path.
func newRecorder(path string, data []byte) (*recorder, error) {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0", dev, fuseRegular)
	if err := unix.Mount("recorder", path, "fuse", 0, options); err != nil {
		return nil, fmt.Errorf("FUSE: %w", err)
	}
	r := &recorder{data: data}
	go r.serve(dev)
	return r, nil
}

func (r *recorder) serve(dev int) {
	b := make([]byte, fuseMaxWrite+64<<10)
	for {
		n, err := unix.Read(dev, b)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil: // unmounted
			unix.Close(dev)
			return
		}
		code := native.Uint32(b[4:])
		if code == fuseForget || code == fuseBatchForget || code == fuseInterrupt {
			continue
		}
		out, errno := r.answer(code, b[fuseInHeader:n])
		reply := make([]byte, fuseOutHeader, fuseOutHeader+len(out))
		native.PutUint32(reply, uint32(cap(reply)))
		native.PutUint32(reply[4:], uint32(-int32(errno)))
		copy(reply[8:16], b[8:16])                    // which request it is
		_, _ = unix.Write(dev, append(reply, out...)) // nobody waits for it where that fails
	}
}

func (r *recorder) answer(code uint32, in []byte) ([]byte, unix.Errno) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch code {
	case fuseInit:
		out := make([]byte, 64)
		native.PutUint32(out, 7)      // version 7.31
		native.PutUint32(out[4:], 31) //
		native.PutUint32(out[20:], fuseMaxWrite)
		return out, 0
	case fuseGetattr, fuseSetattr:
		out := make([]byte, 104)
		native.PutUint64(out[16:], 1) // inode
		native.PutUint64(out[24:], uint64(len(r.data)))
		native.PutUint64(out[32:], uint64(len(r.data)/512))
		native.PutUint32(out[76:], fuseRegular)
		native.PutUint32(out[80:], 1) // link
		native.PutUint32(out[96:], 4096)
		return out, 0
	case fuseOpen:
		return make([]byte, 16), 0
	case fuseRead:
		at := min(native.Uint64(in[8:]), uint64(len(r.data)))
		end := min(at+uint64(native.Uint32(in[16:])), uint64(len(r.data)))
		return append([]byte{}, r.data[at:end]...), 0
	case fuseWrite:
		at, piece := native.Uint64(in[8:]), in[fuseWriteIn:]
		if at+uint64(len(piece)) > uint64(len(r.data)) {
			return nil, unix.ENOSPC
		}
		copy(r.data[at:], piece)
		r.ops = append(r.ops, op{int64(at), append([]byte{}, piece...)})
		out := make([]byte, 8)
		native.PutUint32(out, uint32(len(piece)))
		return out, 0
	case fuseFsync:
		r.ops = append(r.ops, op{})
		return nil, 0
	case fuseFlush, fuseRelease, fuseDestroy:
		return nil, 0
	}
	return nil, unix.ENOSYS
}

// now is how much has been done so far.
func (r *recorder) now() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ops)
}
