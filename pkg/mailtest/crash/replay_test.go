//go:build system

package crash

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
)

// state is what a power cut may leave on a disk: all that was done before a flush,
// and of what was done since then, up to the cut, any part.
type state struct {
	flush, cut int   // in recorder.ops; the flush is the last one before the cut
	lost       []int // of what lies between
}

// states lists them: the cut after each write with nothing lost, with everything
// else lost, with this one lost alone at the next flush, and a few by chance.
func states(ops []op) (list []state) {
	chance := rand.New(rand.NewSource(1)) // the same each time
	flush := 0
	for i, o := range ops {
		if o.data == nil {
			flush = i + 1
			continue
		}
		end := i + 1
		for end < len(ops) && ops[end].data != nil {
			end++
		}
		var before, some []int
		for k := flush; k < i; k++ {
			before = append(before, k)
		}
		for k := flush; k < end; k++ {
			if chance.Intn(2) == 0 {
				some = append(some, k)
			}
		}
		list = append(list, state{flush, i + 1, nil}, state{flush, i + 1, before}, state{flush, end, []int{i}}, state{flush, end, some})
	}
	return append(list, state{flush, len(ops), nil})
}

// image returns the disk in a state; base is the disk at first.
func (s state) image(base []byte, ops []op) []byte {
	disk := bytes.Clone(base)
	for i, o := range ops[:s.cut] {
		if o.data != nil && !slices.Contains(s.lost, i) {
			copy(disk[o.at:], o.data)
		}
	}
	return disk
}

const (
	replayDir  = "/run/replay"
	recordPath = "/run/record"
	diskSize   = 32 << 20
)

// event is when something was said that must hold from then on.
type event struct {
	when    int // in recorder.ops
	mark    int
	rcpt    string // "": the message was accepted
	message *message
}

// recording is a machine whose disk is recorded, with messages of all kinds.
type recording struct {
	*world
	r    *recorder
	base []byte

	mu     sync.Mutex
	events []event

	remnants int // mailbox files with a part of a message, in all states
}

func (c *recording) note(e event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.when = c.r.now()
	c.events = append(c.events, e)
}

// record has messages accepted, first so many at once that some share a flush of
// the file system, delivered, deferred, and held, while
// all that is done to the disk is remembered.
func (c *recording) record() error {
	c.sink.reset()
	if err := c.boot(); err != nil {
		return err
	}
	var all []*message
	for round, atOnce := range []int{36, 6, 6} {
		var wg sync.WaitGroup
		for i := range atOnce {
			mark := 1 + len(all)
			rcpts := [][]string{
				{"a@virtual.example"}, {"c@virtual.example", "later@smtp.example"}, {address("ann"), address("max")},
				{"ok@smtp.example", "a@virtual.example"}, {address("bob"), address("new")},
			}[i%5]
			m := newMessage(mark, 1+i*i/2, rcpts...)
			all = append(all, m)
			wg.Go(func() {
				if c.submit(m); m.accepted {
					c.note(event{mark: m.mark, message: m})
				}
			})
		}
		wg.Wait()
		if !until(longTime, c.settled) {
			return fmt.Errorf("stuck: %s", c.files())
		}
		switch round {
		case 0:
			c.ask(queuectl.Hold)
			c.ask(queuectl.Release)
		case 1:
			c.sink.atHome(false)
			c.ask(queuectl.Retry)
		}
	}
	if !until(longTime, c.isEmpty) {
		return fmt.Errorf("stuck: %s", c.files())
	}
	c.halt(unix.SIGTERM)
	for _, m := range all {
		if !m.accepted {
			return fmt.Errorf("message %d is not accepted", m.mark)
		}
	}
	return nil
}

// check looks at what a state of the disk has of the messages.
func (c *recording) check(s state) (bad []string) {
	path := "/run/replayed"
	err := os.WriteFile(path, s.image(c.base, c.r.ops), 0o600)
	if err == nil {
		err = run("mount", "-t", c.fs, "-o", "loop", path, replayDir)
	}
	if err != nil {
		return []string{err.Error()}
	}
	defer func() {
		if err := unix.Unmount(replayDir, 0); err != nil {
			bad = append(bad, err.Error())
		}
	}()
	queued, boxes := c.look(&bad)
	remote := make(map[whose]bool)
	for _, e := range c.events {
		if e.rcpt != "" && e.when <= s.cut {
			remote[whose{e.mark, e.rcpt}] = true
		}
	}
	for _, e := range c.events {
		if e.rcpt != "" || e.when > s.cut {
			continue
		}
		for _, rcpt := range e.message.rcpts {
			who := whose{e.mark, rcpt}
			if !queued[who] && !boxes[who] && !remote[who] {
				bad = append(bad, fmt.Sprintf("I1: message %d for %s was accepted as %s, and is lost", e.mark, rcpt, e.message.id))
			}
		}
	}
	return bad
}

// look returns who will get a message that is in the queue, whole, and who has
// got one.
func (c *recording) look(bad *[]string) (queued, boxes map[whose]bool) {
	queued, boxes = make(map[whose]bool), make(map[whose]bool)
	byMark := make(map[int]*message)
	for _, e := range c.events {
		if e.message != nil {
			byMark[e.mark] = e.message
		}
	}
	forMbox := make(map[string][]waiting)
	for _, m := range byMark {
		for _, path := range glob(replayDir+"/spool/*/"+m.id.String(), replayDir+"/spool/deferred/*/"+m.id.String()) {
			q, err := wholeQueueFile(path, m)
			if err != nil {
				continue // it counts as not there
			}
			for i := range q.Recipients {
				if rcpt := &q.Envelope.Recipients[i]; q.Recipients[i].Pending() {
					queued[whose{m.mark, rcpt.Address.String()}] = true
					forMbox[rcpt.Address.String()] = append(forMbox[rcpt.Address.String()], waiting{m, q, rcpt, path})
				}
			}
		}
	}
	*bad = append(*bad, c.mboxes(byMark, forMbox, boxes)...)
	for _, path := range glob(replayDir+"/vmail/*/*/Maildir/new/*", replayDir+"/home/max/Maildir/new/[0-9]*") {
		b, err := os.ReadFile(path)
		m := byMark[mark(b)]
		if err != nil || m == nil || !bytes.HasSuffix(b, []byte("\n"+m.content)) {
			*bad = append(*bad, fmt.Sprintf("I4: %s: %v, %.200q", path, err, b))
			continue
		}
		if strings.HasPrefix(path, replayDir+"/home/") {
			boxes[whose{m.mark, address("max")}] = true
			continue
		}
		f := strings.Split(strings.TrimPrefix(path, replayDir+"/vmail/"), "/")
		boxes[whose{m.mark, f[1] + "@" + f[0]}] = true
	}
	return queued, boxes
}

func wholeQueueFile(path string, m *message) (*queue.Message, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	q, err := queue.Read(f)
	if err == nil {
		err = q.CheckContent(f)
	}
	if err != nil {
		return nil, err
	}
	b := make([]byte, q.Length)
	if _, err := f.ReadAt(b, q.Offset); err != nil {
		return nil, err
	}
	if !bytes.HasSuffix(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")), []byte("\n"+m.content)) {
		return nil, errors.New("another content")
	}
	return q, nil
}

// replay is the work of a worker: it records, and tries each nth state.
func replay(fs, bin string, nth int) (*replayed, error) {
	c := &recording{}
	var err error
	if c.world, err = newMachine(fs, bin); err != nil {
		return nil, err
	}
	if err := makeDisk(fs, "/run/image", diskSize); err != nil {
		return nil, err
	}
	data, err := os.ReadFile("/run/image")
	if err != nil {
		return nil, err
	}
	if c.r, err = newRecorder(recordPath, data); err != nil {
		return nil, err
	}
	if err := errors.Join(os.Mkdir("/run/disk", 0o755), os.Mkdir(replayDir, 0o755),
		run("mount", "-t", fs, "-o", "loop", recordPath, "/run/disk"), os.Mkdir("/run/disk/spool", 0o755), os.Mkdir("/run/disk/vmail", 0o755),
		os.Mkdir("/run/disk/home", 0o755), unix.Mount("/run/disk/home", homeDir, "", unix.MS_BIND, ""),
		unix.Mount("/run/disk/spool", spoolDir, "", unix.MS_BIND, ""), unix.Mount("/run/disk/vmail", storeDir, "", unix.MS_BIND, "")); err != nil {
		return nil, err
	}
	d, err := os.Open("/run/disk")
	if err != nil {
		return nil, err
	}
	c.disks = []*os.File{d}
	if err := c.clean(); err != nil {
		return nil, err
	}
	c.r.mu.Lock()
	c.base, c.r.ops = bytes.Clone(c.r.data), nil
	c.r.mu.Unlock()
	c.sink.kept = func(rcpt string, content []byte) { c.note(event{mark: mark(content), rcpt: rcpt}) }
	if err := c.record(); err != nil {
		log, _ := os.ReadFile(logFile)
		return nil, fmt.Errorf("%w\n%s", err, log)
	}
	if err := errors.Join(d.Close(), unix.Unmount(spoolDir, 0), unix.Unmount(storeDir, 0), unix.Unmount(homeDir, 0), unix.Unmount("/run/disk", 0)); err != nil {
		return nil, err
	}
	all := states(c.r.ops)
	out := &replayed{Ops: len(c.r.ops), States: len(all)}
	for _, o := range c.r.ops {
		if o.data == nil {
			out.Flushes++
		}
	}
	start := time.Now()
	for i := 0; i < len(all); i += nth {
		out.Tried++
		if bad := c.check(all[i]); len(bad) > 0 {
			out.Bad = append(out.Bad, fmt.Sprintf("%+v:\n\t%s", all[i], strings.Join(bad, "\n\t")))
		}
	}
	out.Took, out.Remnants = time.Since(start), c.remnants
	return out, nil
}

// replayed is what came of it.
type replayed struct {
	Ops, Flushes, States, Tried int
	Remnants                    int
	Bad                         []string
	Took                        time.Duration
}

// TestReplay: of what was written to the disk since its last flush any part may be
// lost when the power goes, and the rest be there. What has been accepted is on
// each such disk, whole: in the queue, for whoever has not got it, or in a mailbox.
func TestReplay(t *testing.T) {
	if *only != "" {
		t.Skip("-point is for another test")
	}
	if *fsys != "ext4" {
		t.Fatal("an XFS is too large to be copied for each state")
	}
	w := startWorker(t, build(t), fmt.Sprintf("replay=%d", *every))
	var r replayed
	if err := w.dec.Decode(&r); err != nil {
		t.Fatalf("worker: %v", err)
	}
	t.Logf("%d writes and %d flushes make %d states, of which %d were tried in %v; %d times a part of a message was in a mailbox: %d violations",
		r.Ops-r.Flushes, r.Flushes, r.States, r.Tried, r.Took, r.Remnants, len(r.Bad))
	for _, bad := range r.Bad[:min(len(r.Bad), 10)] {
		t.Error(bad)
	}
	if r.Flushes < 20 || r.Tried < 50 {
		t.Error("the scenario has become shorter")
	}
}
