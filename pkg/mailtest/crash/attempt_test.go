//go:build system

package crash

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"posthouse/pkg/agent"
	"posthouse/pkg/envelope"
	"posthouse/pkg/mailbox"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queue"
)

// waiting is a message in the queue that one who has a mailbox file will get.
type waiting struct {
	message *message
	q       *queue.Message
	rcpt    *envelope.Recipient
	path    string // the queue file
}

// mboxes looks into the mailbox files of a disk. What is not whole there has to be
// gone after the next attempt, so that is made: with a copy, by each message that it may
// be of, for it is not known which comes first.
func (c *recording) mboxes(byMark map[int]*message, queued map[string][]waiting, boxes map[whose]bool) (bad []string) {
	for _, who := range someones {
		if who.forward != "" {
			continue
		}
		path := filepath.Join(replayDir, "home/mail", who.name)
		list, trouble := c.inMbox(path, who.mbox, true)
		bad = append(bad, trouble...)
		for _, b := range list {
			m := byMark[mark(b)]
			switch {
			case m != nil && bytes.HasSuffix(b, []byte("\n"+m.content)):
				boxes[whose{m.mark, address(who.name)}] = true
			case bytes.IndexByte(b, 0) < 0:
				bad = append(bad, fmt.Sprintf("I4: %s: %.200q", path, b))
			}
		}
		if _, trouble = c.inMbox(path, who.mbox, false); len(trouble) == 0 {
			continue
		}
		c.remnants++
		mended := false
		for _, w := range queued[address(who.name)] {
			err := w.attempt(path)
			list, trouble := c.inMbox(attemptPath, who.mbox, false)
			mended = mended || err == nil && len(trouble) == 0 && len(list) > 0 && bytes.HasSuffix(list[len(list)-1], []byte("\n"+w.message.content))
		}
		if !mended {
			bad = append(bad, fmt.Sprintf("after the next attempt, of any of %d: %s", len(queued[address(who.name)]), strings.Join(trouble, "; ")))
		}
	}
	return bad
}

// inMbox returns the messages in a mailbox file, and what is wrong with it.
func (c *recording) inMbox(path, before string, parts bool) (list [][]byte, bad []string) {
	c.bad, c.parts = nil, parts
	list = c.messages(path, before, "\n")
	for i := range list {
		list[i] = bytes.ReplaceAll(list[i], []byte("\n>From "), []byte("\nFrom "))
		if !parts && bytes.IndexByte(list[i], 0) >= 0 {
			c.fail("I4: %s: NULs in a message", path)
		}
	}
	bad, c.bad, c.parts = c.bad, nil, false
	return list, bad
}

// attemptPath is the copy of a mailbox to which a message is delivered.
const attemptPath = "/run/attempt"

// attempt delivers to a copy of the mailbox at path what waits, as deliver does.
func (w *waiting) attempt(path string) error {
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(attemptPath, b, 0o600)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(attemptPath))
	if err != nil {
		return err
	}
	defer dir.Close()
	content, err := os.ReadFile(w.path)
	if err != nil {
		return err
	}
	box := mailbox.Mbox{Dir: dir, Name: filepath.Base(attemptPath), Sync: nothing{}}
	job := agent.Job{Request: &delivery.Request{Sender: w.q.Envelope.Sender}}
	return box.Append(w.q.Envelope.Sender.String(), w.q.Envelope.Arrival.UTC(), job.Head(w.rcpt),
		bytes.NewReader(content[w.q.Offset:w.q.Offset+w.q.Length]))
}

// nothing is a mailbox.Syncer for what nobody has to find again.
type nothing struct{}

func (nothing) Write(_, _ *os.File) error  { return nil }
func (nothing) Commit(_, _ *os.File) error { return nil }
