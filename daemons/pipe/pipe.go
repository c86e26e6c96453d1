package main

import (
	"bufio"
	"context"
	"io"
	"os"
	"strings"
	"time"

	"posthouse/pkg/agent"
	"posthouse/pkg/command"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/mailbox"
	"posthouse/pkg/protocol/delivery"
)

type service struct {
	config   func() *config.Config
	name     string // of the instance
	uid, gid int
}

// request is one run of the command.
type request struct {
	*agent.Job
	pipe       config.Pipe
	recipients []*envelope.Recipient // whom the command is run for
	delimiters string
}

// leaveTime is how long a command may go on when this process, or qmgr, has to
// go. qmgr waits a little longer.
const leaveTime = 30 * time.Second

func (s *service) deliver(ctx context.Context, j *agent.Job) agent.Verdict {
	pipe, err := s.instance(j)
	if err != nil {
		// Nothing of it is about this message: all mail for here waits.
		return agent.Verdict{Hop: dsn.Of(err), Outcomes: j.All(agent.Failed(j.Transport, err))}
	}
	outcomes := make([]agent.Outcome, len(j.Recipients))
	r := &request{Job: j, pipe: pipe, delimiters: s.config().RecipientDelimiter}
	args, refused, err := r.arguments()
	if err != nil {
		return agent.Verdict{Hop: dsn.Of(err), Outcomes: j.All(agent.Failed(j.Transport, err))}
	}
	for i, err := range refused {
		if err != nil {
			outcomes[i] = agent.Failed(j.Transport, err)
		}
	}
	if len(r.recipients) == 0 {
		return agent.Verdict{Outcomes: outcomes}
	}
	result := agent.Outcome{Relay: j.Transport, Result: delivery.Result{
		Status: dsn.MustParse("2.0.0"), Text: "delivered via " + j.Transport + " service", Relayed: !r.has("X"),
	}}
	if err := r.run(ctx, args); err != nil {
		result = agent.Failed(j.Transport, err)
	}
	for i := range outcomes {
		if refused[i] == nil {
			outcomes[i] = result
		}
	}
	return agent.Verdict{Outcomes: outcomes}
}

// instance returns what this instance is to run for j, or what is wrong with it.
func (s *service) instance(j *agent.Job) (config.Pipe, error) {
	pipe, there := s.config().Pipes[s.name]
	switch {
	case s.uid == 0 || s.gid == 0:
		return pipe, dsn.Errorf("4.3.5", "nothing is run as root: posthouse-pipe@%s.service needs another User= and Group=", s.name)
	case j.Transport != config.PipeTransport(s.name):
		return pipe, dsn.Errorf("4.3.5", "posthouse-pipe@%s.service was asked for %s", s.name, j.Transport)
	case !there:
		return pipe, dsn.Errorf("4.3.5", "there is no entry %s in pipes", s.name)
	}
	return pipe, nil
}

func (r *request) has(flag string) bool { return strings.Contains(r.pipe.Flags, flag) }

// run runs the command and says what has become of the message.
func (r *request) run(ctx context.Context, args []string) error {
	if size := int64(r.pipe.Size); size > 0 && r.Content.Size() > size {
		return dsn.Errorf("5.2.3", "message too large")
	}
	if n := len(r.recipients); n > 1 && (r.has("D") || r.has("O")) {
		return dsn.Errorf("4.3.5", "flags D and O are about one recipient, not %d", n)
	}
	if r.has("D") {
		delivered, err := r.DeliveredTo()
		if err != nil {
			return err
		}
		if to := r.recipients[0].Address; delivered[to.Fold().String()] {
			return dsn.Errorf("5.4.6", "mail forwarding loop for %s", to)
		}
	}
	if ctx.Err() != nil {
		return dsn.Errorf("4.3.2", "the system is going down")
	}
	input, err := r.input()
	if err != nil {
		return err
	}
	defer input.Close() // written by nobody any more
	c := command.Command{
		Name: r.pipe.Command[0], Args: args, Env: environment(), Dir: r.pipe.Directory,
		Limit: time.Duration(r.pipe.Timeout), Late: dsn.MustParse("4.3.0"),
	}
	patient, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(leaveTime, kill) })
	defer stop()
	return c.Run(patient, input)
}

// environment is that of commands. What else is there is between systemd and
// this process.
func environment() []string {
	env := []string{"PATH=" + command.SearchPath}
	for _, name := range []string{"HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// input returns the message as the command gets it.
func (r *request) input() (*os.File, error) {
	form := mailbox.Form{EOL: "\n", From: r.has(">"), Dot: r.has(".")}
	if r.pipe.EOL == "crlf" {
		form.EOL = "\r\n"
	}
	return command.Input(func(f io.Writer) error {
		out := bufio.NewWriterSize(f, 32<<10)
		for _, line := range r.head() {
			_, _ = out.WriteString(line + form.EOL) // an error sticks
		}
		lines := mailbox.NewLines(out, form)
		if err := mailbox.WriteLF(lines, "", io.NewSectionReader(r.Content, 0, r.Content.Size())); err != nil {
			return err
		}
		lines.End(r.has("B"))
		return out.Flush()
	})
}

// head are the lines that stand before the message.
func (r *request) head() []string {
	var head []string
	sender := r.Sender.String()
	if r.Sender.IsNull() {
		sender = r.pipe.NullSender
	}
	if r.has("F") {
		head = append(head, strings.TrimSuffix(mailbox.FromLine(sender, r.Arrival.Local()), "\n"))
	}
	if r.has("R") {
		head = append(head, "Return-Path: <"+sender+">")
	}
	if original := r.recipients[0].Original; r.has("O") && !original.IsNull() {
		head = append(head, "X-Original-To: "+original.String())
	}
	if r.has("D") {
		head = append(head, "Delivered-To: "+r.recipients[0].Address.String())
	}
	return head
}
