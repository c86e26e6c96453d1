// Package command runs a program that gets a message: with a bound on its time
// and on what it says, and with a verdict made of how it ends.
//
// No shell is in between. What a program and all that it has started leave
// running at the end of its time is killed, as far as it is in its process group.
package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/dsn"
	"posthouse/pkg/maillog"
)

// SearchPath is the PATH of commands.
const SearchPath = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

// maxOutput is how much of what a command says is kept, in octets.
const maxOutput = 1000

// What has ended a command that did not end itself.
var (
	errTime  = errors.New("command time limit exceeded")
	errLeave = errors.New("the system is going down")
)

// Command is a program to be run once.
type Command struct {
	Name  string   // what the log and the sender are told of it
	Args  []string // the program and its arguments
	Env   []string // NAME=value
	Dir   string
	Limit time.Duration
	Late  dsn.Status // the verdict on one that takes longer than Limit
}

// Input returns what fill writes, as a file without a name from its beginning on.
// A message is all there before a program starts. With a pipe in its place the
// program took the end of the process that writes, whatever that was, for the
// end of the message.
func Input(fill func(io.Writer) error) (_ *os.File, err error) {
	f, err := os.CreateTemp("", "message-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // the error above is the one that tells
			err = fmt.Errorf("copy the message: %w", err)
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	if err := fill(f); err != nil {
		return nil, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

// Run runs c with input as its input. When ctx ends, c is killed. The error is
// an *dsn.Error; without one the command has taken the message.
func (c *Command) Run(ctx context.Context, input *os.File) error {
	ctx, kill := context.WithCancelCause(ctx)
	defer kill(nil)
	defer time.AfterFunc(c.Limit, func() { kill(errTime) }).Stop()
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdin = c.Env, c.Dir, input
	out := new(output)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// The program, and all that it has started.
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	// How long to wait for the end of output behind the end of the command: what
	// it has left behind may keep it open.
	cmd.WaitDelay = 2 * time.Second

	err := cmd.Start()
	if err == nil {
		// How it has ended is in its ProcessState; an error is that this is not known.
		if err = cmd.Wait(); cmd.ProcessState != nil {
			err = nil
		}
	}
	cause := context.Cause(ctx)
	if errors.Is(cause, context.Canceled) {
		cause = errLeave
	}
	if err == nil && cmd.ProcessState.Exited() {
		return c.exited(cmd.ProcessState.ExitCode(), out.b.String())
	}
	if cause != nil && !errors.Is(err, cause) {
		err = errors.Join(err, cause)
	}
	return c.broken(cmd.ProcessState, err)
}

// output keeps the beginning of what a command says.
type output struct{ b bytes.Buffer }

func (o *output) Write(p []byte) (int, error) {
	o.b.Write(p[:min(len(p), maxOutput-o.b.Len())])
	return len(p), nil
}

// verdicts are what exit statuses of commands mean (sysexits.h), as Postfix has
// it.
var verdicts = map[int]string{
	64: "5.3.0 command line usage error", 65: "5.6.0 data format error", 66: "5.3.0 cannot open input",
	67: "5.1.1 user unknown", 68: "5.1.2 host name unknown", 69: "5.3.0 service unavailable",
	70: "5.3.0 internal software error", 71: "4.3.0 system resource problem", 72: "5.3.0 critical OS file missing",
	73: "5.2.0 can't create user output file", 74: "5.3.0 input/output error", 75: "4.3.0 temporary failure",
	76: "5.5.0 remote error in protocol", 77: "5.7.0 permission denied", 78: "5.3.5 local configuration error",
}

// exited is what became of a command that has ended itself. What it says may begin
// with the status of a failure (RFC 3463), which then counts. The command is no
// business of the sender's, and named only where there is no better text.
func (c *Command) exited(code int, said string) error {
	if code == 0 {
		return nil
	}
	verdict, known := verdicts[code]
	if !known {
		verdict = fmt.Sprintf("5.3.0 command died with status %d: %q", code, Short(c.Name))
	}
	status, text, _ := strings.Cut(verdict, " ")
	e := &dsn.Error{Text: text}
	e.Status, said = dsn.Cut(said, dsn.MustParse(status))
	if said != "" {
		e.Text += ". Command output: " + said
	}
	return e
}

// broken is what became of one that somebody has ended, or that has not begun.
func (c *Command) broken(state *os.ProcessState, err error) error {
	if errors.Is(err, errTime) {
		return &dsn.Error{Status: c.Late, Text: fmt.Sprintf("%v: %q", errTime, Short(c.Name))}
	}
	if err == nil {
		err = fmt.Errorf("command died: %v", state)
	}
	return dsn.Errorf("4.3.0", "%v: %q", err, Short(c.Name))
}

// Short makes the name of a command fit for a line of text.
func Short(name string) string {
	const most = 200
	if len(name) > most {
		name = strings.ToValidUTF8(name[:most], "")
	}
	return maillog.Printable(name)
}
