package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"posthouse/pkg/agent"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/protocol/deliver"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queueid"
)

// relay is what the log calls this agent.
const relay = "local"

// doer has something done with the rights of an account.
type doer interface {
	Do(ctx context.Context, r *deliver.Request, file *os.File) (deliver.Reply, error)
}

// queue is where new messages go.
type queue interface {
	submit(ctx context.Context, e *envelope.Envelope, content io.Reader) (queueid.ID, error)
}

// logger is the mail log.
type logger interface {
	Warn(fields maillog.Fields, format string, args ...any)
}

type service struct {
	*directory
	deliver doer
	queue   queue
	log     logger
}

// request is the delivery to the recipients of one request, one after the other.
type request struct {
	*service
	ctx  context.Context
	cfg  *config.Config
	job  *agent.Job
	done map[string]outcome // what has been had done by deliver: once is enough
}

func (s *service) run(ctx context.Context, j *agent.Job) agent.Verdict {
	delivered, err := j.DeliveredTo()
	if err != nil {
		return agent.Verdict{Outcomes: j.All(agent.Failed(relay, err))}
	}
	r := &request{service: s, ctx: ctx, cfg: s.config(), job: j, done: make(map[string]outcome)}
	outcomes := make([]agent.Outcome, len(j.Recipients))
	for i := range j.Recipients {
		rcpt := &j.Recipients[i]
		if delivered[rcpt.Address.Fold().String()] {
			outcomes[i] = agent.Failed(relay, dsn.Errorf("5.4.6", "mail forwarding loop for %s", rcpt.Address))
			continue
		}
		outcomes[i] = r.recipient(rcpt)
	}
	return agent.Verdict{Outcomes: outcomes}
}

// recipient delivers to one recipient. What it stands for comes first, new
// messages last: while something of the rest defers, they would be sent again.
func (r *request) recipient(rcpt *envelope.Recipient) agent.Outcome {
	w := &walk{request: r, rcpt: rcpt, seen: make(map[string]outcome)}
	o := w.name(rcpt.Address)
	for i := range w.out {
		if o.status.Class() == dsn.Transient {
			break
		}
		o.add(w.send(&w.out[i]))
	}
	result := agent.Outcome{Result: delivery.Result{Status: o.status, Text: o.text}, Relay: relay}
	if o.passedOn && rcpt.Notify.Wants(dsn.NotifySuccess) {
		// The new message asks for the notification, too: this system, as its next
		// stop, is the one that sends it (RFC 3461, section 5.2.7.2).
		result.RemoteMTA = r.cfg.Hostname
	}
	return result
}

// outcome is what became of a target, or of several.
type outcome struct {
	status   dsn.Status
	text     string
	passedOn bool // with success: in new messages, along with what the sender wants to be told
	known    bool // false: of no target yet
}

func success(text string) outcome { return outcome{dsn.MustParse("2.0.0"), text, false, true} }

// failed is the outcome of an error; one without a status defers.
func failed(err error) outcome {
	var off *ipc.UnavailableError
	if errors.As(err, &off) {
		daemon := filepath.Base(off.Path)
		err = dsn.Errorf("4.3.5", "%s is switched off: enable posthouse-%s.socket", daemon, daemon)
	}
	e := dsn.Of(err)
	return outcome{e.Status, e.Text, false, true}
}

// add joins the outcome of one more target: what can be tried again counts more
// than what has failed for good, for a failed recipient is not tried again.
func (o *outcome) add(p outcome) {
	rank := func(o *outcome) int {
		return map[dsn.Class]int{dsn.Success: 0, dsn.Permanent: 1, dsn.Transient: 2}[o.status.Class()]
	}
	switch a, b := rank(o), rank(&p); {
	case !o.known || b > a:
		*o = p
	case a > b:
	default:
		o.passedOn = o.passedOn && p.passedOn
		if p.text != "" && !strings.Contains(o.text, p.text) && len(o.text) < 500 {
			o.text = strings.TrimPrefix(o.text+"; "+p.text, "; ")
		}
	}
}

// cleanupQueue submits to cleanup.
type cleanupQueue struct{ client *cleanup.Client }

// submitTimeout bounds one submission; qmgr waits longer.
const submitTimeout = 10 * time.Minute

func (q cleanupQueue) submit(ctx context.Context, e *envelope.Envelope, content io.Reader) (queueid.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	t, err := q.client.Begin(ctx, e)
	if err != nil {
		return queueid.ID{}, err
	}
	defer t.Abort()
	if _, err := io.Copy(t, content); err != nil {
		return queueid.ID{}, err
	}
	if err := t.Commit(); err != nil {
		return queueid.ID{}, err
	}
	return t.ID, nil
}
