//go:build system

package crash

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"posthouse/pkg/dsn"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// fate is what has become of a recipient of a message.
type fate struct{ delivered, bounced int }

// whose is one recipient of one message.
type whose struct {
	mark int
	rcpt string
}

// fates looks into mailboxes and at the remote host, and finds what is not as it
// was sent.
func (w *world) fates(all []*message) map[whose]fate {
	found := make(map[whose]fate)
	for _, m := range all {
		for _, rcpt := range m.rcpts {
			var f fate
			for _, copy := range w.copies(rcpt) {
				if mark(copy) != m.mark {
					continue
				}
				f.delivered++
				if !bytes.HasSuffix(copy, []byte("\n"+m.content)) {
					w.fail("I4: message %d for %s is not what was sent: %.300q", m.mark, rcpt, copy)
				}
			}
			for _, notice := range w.copies(sender) {
				if mark(notice) != m.mark || !bytes.Contains(notice, []byte("\nFinal-Recipient: rfc822; "+rcpt+"\n")) {
					continue
				}
				f.bounced++
				if !bytes.Contains(notice, []byte("\n"+m.content)) {
					w.fail("I4: the notification about message %d does not have it: %.300q", m.mark, notice)
				}
			}
			found[whose{m.mark, rcpt}] = f
		}
	}
	return found
}

// copies returns all that a recipient has got.
func (w *world) copies(rcpt string) [][]byte {
	local, domain, _ := strings.Cut(rcpt, "@")
	if domain == host {
		return w.has(local)
	}
	if domain != "virtual.example" {
		return w.sink.of(rcpt)
	}
	var list [][]byte
	files, _ := filepath.Glob(storeDir + domain + "/" + local + "/Maildir/new/*")
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			w.fail("I1: %v", err)
		}
		if mark(b) == 0 {
			w.fail("I4: somebody finds %s, which begins with %.300q", path, b)
		}
		list = append(list, b)
	}
	return list
}

func mark(b []byte) int {
	_, rest, _ := bytes.Cut(b, []byte("\nX-Mark: "))
	value, _, _ := bytes.Cut(rest, []byte("\n"))
	n, _ := strconv.Atoi(string(value)) // 0 is none of ours
	return n
}

// recorded returns who is on record as being done with, and so must get nothing
// any more: it is in the queue file, or the file has gone.
func (w *world) recorded(all []*message) map[whose]bool {
	done := make(map[whose]bool)
	for _, m := range all {
		if !m.accepted {
			continue
		}
		pending := make(map[string]bool)
		for _, f := range w.files() {
			b, err := os.ReadFile(spoolDir + f)
			if err != nil {
				w.fail("%v", err)
			}
			if !bytes.Contains(b, fmt.Appendf(nil, "\nX-Mark: %d\r\n", m.mark)) {
				continue
			}
			var id queueid.ID
			var q *queue.Message
			if id, err = queueid.Parse(filepath.Base(f)); err == nil {
				q, err = readQueueFile(filepath.Dir(f), id)
			}
			for _, rcpt := range m.rcpts {
				pending[rcpt] = pending[rcpt] || err != nil // in the maildrop, or damaged
			}
			if err == nil {
				for i := range q.Recipients {
					if q.Recipients[i].Pending() || q.Recipients[i].Last.Status.Class() == dsn.Permanent && !q.Recipients[i].Reported {
						pending[q.Envelope.Recipients[i].Address.String()] = true
					}
				}
			}
		}
		// Who is done with may get the message by the one to another address that was made of it.
		for _, rcpt := range m.rcpts {
			done[whose{m.mark, rcpt}] = !pending[rcpt] && !(rcpt == address("fred") && pending[forwarded])
		}
	}
	return done
}

func readQueueFile(dir string, id queueid.ID) (*queue.Message, error) {
	d, err := queue.OpenDirectory(spoolDir + dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	f, err := d.Open(id)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return queue.Read(f)
}

// judge compares what has become of the messages with what may. before
// is what had, and done who was on record as done, when all was started again; twice
// says whether second copies are in order.
func (w *world) judge(all []*message, before map[whose]fate, done map[whose]bool, twice bool) (duplicates int) {
	power := strings.HasPrefix(w.point.Fault, "power") && w.hasStruck()
	// A mailbox that is full by its quota gets nothing, notifications neither.
	full := w.point.Fault == "EDQUOT" && w.hasStruck()
	quota := full && w.point.Unit == "virtual"
	after := w.fates(all)
	for _, m := range all {
		w.mu.Lock()
		flush := w.failedFlush() && w.point.Unit == "cleanup" && strings.HasSuffix(w.struck.path, "/"+m.id.String())
		w.mu.Unlock()
		if flush && m.accepted {
			w.fail("I1: message %d was accepted as %s, which may not be on disk", m.mark, m.id)
		}
		for _, rcpt := range m.rcpts {
			f, who := after[whose{m.mark, rcpt}], whose{m.mark, rcpt}
			n := f.delivered + f.bounced
			most := 2
			if power && (m.dropped || rcpt == address("fred")) {
				most = 3 // two files are removed, each after the next one is on disk, and may be back
			}
			switch {
			case quota && f.delivered <= 1 && f.bounced <= 1 && n <= 1:
			case m.accepted && !m.doomed && n == 0:
				w.fail("I1: message %d for %s was accepted as %s, and is lost", m.mark, rcpt, m.id)
			case m.refused && n > 0 && !power && !twice: // or who takes it has ended before it could say so
				w.fail("I1: message %d for %s was refused, and there are %+v", m.mark, rcpt, f)
			case f.delivered > 0 && f.bounced > 0:
				w.fail("I2: message %d for %s: %+v", m.mark, rcpt, f)
			case m.deleted && n > 0 && !power:
				w.fail("message %d for %s was deleted, and there are %+v", m.mark, rcpt, f)
			case n > 1 && !twice, f.delivered > most, f.bounced > 3:
				// A notification may be made again, and the first be delivered again.
				w.fail("I3: message %d for %s: %+v", m.mark, rcpt, f)
			case done[who] && f.delivered > before[who].delivered && !power:
				w.fail("I3: message %d for %s was on record as done with %+v, and now there are %+v", m.mark, rcpt, before[who], f)
			case f.bounced > 0 && !strings.HasPrefix(rcpt, "no@") && !(full && w.point.Unit == "deliver"):
				w.fail("message %d for %s: %+v", m.mark, rcpt, f)
			}
			duplicates += max(n-1, 0)
		}
	}
	for _, f := range w.files() {
		acked := false
		for _, m := range all {
			acked = acked || m.accepted && strings.HasSuffix(f, "/"+m.id.String())
		}
		// What nobody was promised may be damaged by a power cut, for people to look at.
		if acked || !power || !strings.HasPrefix(f, queue.Corrupt) {
			w.fail("I5: left behind: %s", f)
		}
	}
	return duplicates
}
