package user

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/dsn"
	"posthouse/pkg/mailbox"
	"posthouse/pkg/protocol/deliver"
)

// Limits of commands.
const (
	searchPath     = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
	defaultTimeout = 1000 * time.Second // as Postfix has it
	// MaxTimeout is how long a command may take at most, whatever is asked for.
	MaxTimeout = time.Hour
	// maxOutput is how much of what a command says is kept, in octets.
	maxOutput = 1000
)

// What has ended a command that did not end itself.
var (
	errTime  = errors.New("command time limit exceeded")
	errLeave = errors.New("the system is going down")
)

// command runs a command with the message as its input.
func (u *User) command(ctx context.Context, r *deliver.Request, content io.Reader) (string, error) {
	limit := r.Timeout
	if limit == 0 {
		limit = defaultTimeout
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer time.AfterFunc(min(limit, MaxTimeout), func() { cancel(errTime) }).Stop()
	cmd, err := u.prepare(ctx, r)
	if err != nil {
		return "", err
	}
	out := new(output)
	cmd.Stdout, cmd.Stderr = out, out
	in := &source{Reader: content}
	err = run(cmd, func(w io.Writer) error {
		_ = mailbox.WriteLF(w, r.Prefix, in) // it need not read all of it
		if in.err != nil {
			cancel(errors.New("the message cannot be read")) // for cmd must not take it for whole
		}
		return in.err
	})
	if err == nil && in.err != nil {
		err = in.err
	}
	cause := context.Cause(ctx)
	if errors.Is(cause, context.Canceled) {
		cause = errLeave
	}
	if err == nil && cmd.ProcessState.Exited() {
		return exited(r.Command, cmd.ProcessState.ExitCode(), out.b.String())
	}
	return "", broken(r.Command, cmd.ProcessState, errors.Join(err, cause))
}

// source remembers that the message could not be read.
type source struct {
	io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// output keeps the beginning of what a command says.
type output struct{ b bytes.Buffer }

func (o *output) Write(p []byte) (int, error) {
	o.b.Write(p[:min(len(p), maxOutput-o.b.Len())])
	return len(p), nil
}

// plain are the characters of a command that needs no shell.
var plain = regexp.MustCompile(`^[-A-Za-z0-9!@%_=+:,./ \t]+$`)

// prepare makes a command of a command line.
func (u *User) prepare(ctx context.Context, r *deliver.Request) (*exec.Cmd, error) {
	env, err := u.environment(r.Env)
	if err != nil {
		return nil, err
	}
	argv := []string{"/bin/sh", "-c", r.Command}
	if words := strings.Fields(r.Command); plain.MatchString(r.Command) && len(words) > 0 {
		// What is not found may be a command of the shell. If it is not, the
		// shell knows best what to say.
		if _, err := exec.LookPath(words[0]); err == nil {
			argv = words
		}
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = env
	if cmd.Dir = "/"; canEnter(u.Home) {
		cmd.Dir = u.Home
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// The shell, and all that it has started.
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	// How long to wait for the end of output behind the end of the command: what
	// it has left behind may keep it open.
	cmd.WaitDelay = 2 * time.Second
	return cmd, nil
}

func canEnter(dir string) bool {
	info, err := os.Stat(dir)
	return err == nil && info.IsDir() && unix.Access(dir, unix.X_OK) == nil
}

// variable is what the environment may have.
var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=[^\x00-\x1f\x7f]*$`)

// environment is that of a command. Of a variable that is there twice os/exec
// takes the last.
func (u *User) environment(asked []string) ([]string, error) {
	for _, v := range asked {
		if !variable.MatchString(v) {
			return nil, fmt.Errorf("environment: %.100q", v)
		}
	}
	shell := u.Shell
	if shell == "" {
		shell = "/bin/sh"
	}
	return append(asked[:len(asked):len(asked)],
		"HOME="+u.Home, "USER="+u.Name, "LOGNAME="+u.Name, "SHELL="+shell, "PATH="+searchPath), nil
}

// run runs cmd with what feed writes as its input, which does not end where feed
// fails. How cmd has ended is in its ProcessState; the error is that of running it.
func run(cmd *exec.Cmd, feed func(io.Writer) error) error {
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return err
	}
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		if feed(in) == nil {
			_ = in.Close()
		}
	}()
	err = cmd.Wait() // and closes the input
	<-fed
	if cmd.ProcessState != nil {
		return nil
	}
	return err
}

// verdicts are what exit statuses of commands mean (sysexits.h), as Postfix has
// it.
var verdicts = map[int]string{
	64: "5.3.0", 65: "5.6.0", 66: "5.3.0", 67: "5.1.1", 68: "5.1.2", 69: "5.3.0", 70: "5.3.0", 71: "4.3.0",
	72: "5.3.0", 73: "5.2.0", 74: "5.3.0", 75: "4.3.0", 76: "5.5.0", 77: "5.7.0", 78: "5.3.5",
}

// exited is what became of a command that has ended itself. What it says may begin
// with the status of a failure (RFC 3463), which then counts.
func exited(command string, code int, said string) (string, error) {
	if code == 0 {
		return "delivered to command: " + printable(command, 200), nil
	}
	status, known := verdicts[code]
	if !known {
		status = "5.3.0"
	}
	e := &dsn.Error{}
	e.Status, said = dsn.Cut(said, dsn.MustParse(status))
	e.Text = fmt.Sprintf("command died with status %d: %q", code, printable(command, 200))
	if said != "" {
		e.Text += ". Command output: " + said
	}
	return "", e
}

// broken is what became of one that somebody has ended, or that has not begun.
func broken(command string, state *os.ProcessState, err error) error {
	if errors.Is(err, errTime) {
		return dsn.Errorf("5.3.0", "%v: %q", errTime, printable(command, 200))
	}
	if err == nil {
		err = fmt.Errorf("command died: %v", state)
	}
	return dsn.Errorf("4.3.0", "%v: %q", err, printable(command, 200))
}
