package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"posthouse/pkg/cli"
	"posthouse/pkg/users"
)

// maxPassword bounds a password, in octets.
const maxPassword = 1000

// readPassword reads a line and returns its hash. A terminal does not show it. The end of
// ctx ends the wait for it: the signals that end a process are caught.
func readPassword(ctx context.Context, std cli.Streams) (string, error) {
	show := hide(std.In)
	fmt.Fprint(std.Err, "Password: ")
	type answer struct {
		line string
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		line, err := bufio.NewReader(io.LimitReader(std.In, maxPassword+2)).ReadString('\n')
		answers <- answer{line, err}
	}()
	var got answer
	select {
	case got = <-answers:
	case <-ctx.Done():
		got.err = ctx.Err()
	}
	if show != nil {
		show()
		fmt.Fprintln(std.Err) // the one that was typed was not shown
	}
	if got.err != nil && !errors.Is(got.err, io.EOF) {
		return "", fmt.Errorf("read the password: %w", got.err)
	}
	line := strings.TrimRight(got.line, "\r\n")
	if line == "" || len(line) > maxPassword {
		return "", fmt.Errorf("the password is empty, or longer than %d octets", maxPassword)
	}
	return users.Hash(line)
}

// hide keeps a terminal from showing what is typed, until show is called. nil: in is none.
func hide(in io.Reader) (show func()) {
	f, ok := in.(*os.File)
	if !ok {
		return nil
	}
	fd := int(f.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil
	}
	hidden := *before
	hidden.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &hidden); err != nil {
		return nil
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) } // there is nothing else to do
}
