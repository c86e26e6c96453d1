package account

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// maxFile bounds /etc/passwd and /etc/group, in octets: what is cut off would not be there.
const maxFile = 64 << 20

func (s sources) fromFiles(name string) (*Account, error) {
	var a *Account
	err := records(s.passwd, 7, func(f []string) error {
		if a != nil || f[0] != name {
			return nil // the first counts
		}
		uid, err := parseID(f[2])
		if err != nil {
			return err
		}
		gid, err := parseID(f[3])
		if err != nil {
			return err
		}
		a = &Account{Name: name, UID: uid, GID: gid, Home: f[5], Shell: f[6]}
		if a.Home == "" {
			a.Home = "/" // as login(1) has it
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, ErrNone
	}
	err = records(s.group, 4, func(f []string) error {
		if !slices.Contains(strings.Split(f[3], ","), name) {
			return nil
		}
		gid, err := parseID(f[2])
		a.Groups = append(a.Groups, gid)
		return err
	})
	return a, err
}

// records calls f with the fields of each line that has n. A file without any is
// one that is broken, and says nothing about who is not there.
func records(file string, n int, f func([]string) error) error {
	r, err := os.Open(file)
	if err != nil {
		return err
	}
	defer r.Close() // read-only
	any := false
	lines := bufio.NewScanner(io.LimitReader(r, maxFile+1))
	lines.Buffer(nil, maxFile)
	read := 0
	for lines.Scan() {
		if read += len(lines.Bytes()) + 1; read > maxFile {
			return fmt.Errorf("%s: over %d octets", file, maxFile)
		}
		fields := strings.Split(lines.Text(), ":")
		if len(fields) != n {
			continue // a comment, or one of NIS
		}
		any = true
		if err := f(fields); err != nil {
			return fmt.Errorf("%s: %.100q: %w", file, fields[0], err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if !any {
		return fmt.Errorf("%s: %w", file, errors.New("nobody is in it"))
	}
	return nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}
