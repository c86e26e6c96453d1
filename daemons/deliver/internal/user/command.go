package user

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/command"
	"posthouse/pkg/dsn"
	"posthouse/pkg/mailbox"
	"posthouse/pkg/protocol/deliver"
)

// Limits of commands.
const (
	defaultTimeout = 1000 * time.Second // as Postfix has it
	// MaxTimeout is how long a command may take at most, whatever is asked for.
	MaxTimeout = time.Hour
)

// command runs a command with the message as its input.
func (u *User) command(ctx context.Context, r *deliver.Request, content io.Reader) (string, error) {
	limit := r.Timeout
	if limit == 0 {
		limit = defaultTimeout
	}
	env, err := u.environment(r.Env)
	if err != nil {
		return "", err
	}
	c := command.Command{
		Name: r.Command, Args: words(r.Command), Env: env, Dir: "/",
		Limit: min(limit, MaxTimeout), Late: dsn.MustParse("5.3.0"), // as Postfix has it
	}
	switch ok, err := canEnter(u.Home); {
	case err != nil:
		return "", fmt.Errorf("home directory: %w", err)
	case ok:
		c.Dir = u.Home
	}
	input, err := command.Input(func(w io.Writer) error {
		// The first line is for procmail and its like.
		return mailbox.WriteLF(w, mailbox.FromLine(r.From, r.Arrival.Local())+r.Prefix, content)
	})
	if err != nil {
		return "", err
	}
	defer input.Close() // written by nobody any more
	if err := c.Run(ctx, input); err != nil {
		return "", err
	}
	return "delivered to command: " + command.Short(r.Command), nil
}

// special reports a character of which a command line needs a shell. Not a
// regular expression, here and below: their package makes tables at every start,
// and this process is started for each user.
func special(r rune) bool { return !alphanumeric(r) && !strings.ContainsRune("-!@%_=+:,./ \t", r) }

func alphanumeric(r rune) bool {
	return 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9'
}

// words are the program and the arguments of a command line.
func words(line string) []string {
	if words := strings.Fields(line); !strings.ContainsFunc(line, special) && len(words) > 0 {
		// What is not found may be a command of the shell. If it is not, the
		// shell knows best what to say.
		if _, err := exec.LookPath(words[0]); err == nil {
			return words
		}
	}
	return []string{"/bin/sh", "-c", line}
}

// canEnter reports whether dir is a directory that this user may be in. What is not
// known is an error: somewhere else a command would not do what it is to do.
func canEnter(dir string) (bool, error) {
	info, err := os.Stat(dir)
	if err == nil && info.IsDir() {
		err = unix.Access(dir, unix.X_OK)
	}
	switch {
	case err == nil:
		return info.IsDir(), nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, unix.ENOTDIR):
		return false, nil
	}
	return false, err
}

// isVariable reports whether the environment may have s.
func isVariable(s string) bool {
	name, value, ok := strings.Cut(s, "=")
	return ok && name != "" && (name[0] < '0' || name[0] > '9') &&
		!strings.ContainsFunc(name, func(r rune) bool { return !alphanumeric(r) && r != '_' }) &&
		!strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// environment is that of a command. Of a variable that is there twice os/exec
// takes the last.
func (u *User) environment(asked []string) ([]string, error) {
	for _, v := range asked {
		if !isVariable(v) {
			return nil, fmt.Errorf("environment: %.100q", v)
		}
	}
	shell := u.Shell
	if shell == "" {
		shell = "/bin/sh"
	}
	return append(asked[:len(asked):len(asked)],
		"HOME="+u.Home, "USER="+u.Name, "LOGNAME="+u.Name, "SHELL="+shell, "PATH="+command.SearchPath), nil
}
