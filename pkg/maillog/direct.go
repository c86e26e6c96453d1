package maillog

import (
	"errors"
	"strconv"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"

	"posthouse/pkg/rawsock"
)

// direct sends entries to the journal from the goroutine that makes them, if the
// journal has room for them. journal.Send would wait where it has not, and a
// goroutine of its own for every entry costs each of them two wake-ups, which
// are dearer than the entry. The socket is connected, which spares the kernel the
// search for its name each time.
type direct struct {
	fd int
	to unix.Sockaddr
}

const journalSocket = "/run/systemd/journal/socket"

// openDirect returns nil where there is no socket to be had.
func openDirect() *direct {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	return &direct{fd, &unix.SockaddrUnix{Name: journalSocket}} // connected at the first entry
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

// send reports whether the journal has taken the entry, in its native protocol.
func (d *direct) send(text string, priority journal.Priority, fields map[string]string) bool {
	if d == nil {
		return false
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	b := append((*buf)[:0], "PRIORITY="...)
	b = strconv.AppendInt(b, int64(priority), 10)
	b = append(append(b, "\nMESSAGE="...), text...)
	b = append(b, '\n')
	for name, value := range fields {
		if strings.ContainsRune(value, '\n') {
			return false // takes another form; Printable leaves none
		}
		b = append(append(append(append(b, name...), '='), value...), '\n')
	}
	*buf = b
	err := rawsock.Send(d.fd, b)
	if err == nil || errors.Is(err, unix.EAGAIN) {
		return err == nil
	}
	// The journal has another socket by now.
	return unix.Connect(d.fd, d.to) == nil && rawsock.Send(d.fd, b) == nil
}
