package mailtest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// KernelLog reads what the host's kernel has logged since it was opened. It is
// for one goroutine.
type KernelLog struct {
	fd    int
	audit []string // seen so far
}

// maxRecord is the largest record of /dev/kmsg, in octets (CONSOLE_EXT_LOG_MAX
// of the kernel).
const maxRecord = 8192

// OpenKernelLog opens the kernel's log at its end.
func OpenKernelLog() (*KernelLog, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("kernel log: %w", err)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		return nil, errors.Join(fmt.Errorf("kernel log: %w", err), unix.Close(fd))
	}
	return &KernelLog{fd: fd}, nil
}

// Close closes it.
func (k *KernelLog) Close() error { return unix.Close(k.fd) }

// Seccomp returns all audit records so far about system calls that a filter
// caught, of programs whose path begins with one of prefixes. It fails if
// records were lost.
func (k *KernelLog) Seccomp(prefixes ...string) ([]string, error) {
	record := make([]byte, maxRecord)
	for {
		n, err := unix.Read(k.fd, record)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			var found []string
			for _, line := range k.audit {
				if slices.ContainsFunc(prefixes, func(p string) bool { return strings.Contains(line, ` exe="`+p) }) {
					found = append(found, line)
				}
			}
			return found, nil
		case errors.Is(err, unix.EPIPE):
			return nil, errors.New("kernel log: records were overwritten before they were read")
		case err != nil:
			return nil, fmt.Errorf("kernel log: %w", err)
		}
		if line, ok := seccompRecord(record[:n]); ok {
			k.audit = append(k.audit, line)
		}
	}
}

// seccompRecord returns the message of a record of /dev/kmsg
// (Documentation/ABI/testing/dev-kmsg of the kernel: PREFIX;MESSAGE, and lines
// that are indented) if it is one of type 1326, AUDIT_SECCOMP.
func seccompRecord(record []byte) (string, bool) {
	_, message, ok := bytes.Cut(record, []byte{';'})
	if !ok {
		return "", false
	}
	line, _, _ := strings.Cut(string(message), "\n")
	return line, strings.Contains(line, "type=1326 ")
}
