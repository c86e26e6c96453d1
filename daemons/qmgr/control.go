package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// handleControl carries out a command of the administrator.
func (m *manager) handleControl(_ context.Context, c *ipc.Conn, msg []byte, file *os.File) error {
	if file != nil {
		_ = file.Close() // not asked for
	}
	r, err := queuectl.DecodeRequest(msg)
	if err != nil {
		return err
	}
	reply := m.control(r)
	out := ipc.NewMessage()
	reply.Encode(out)
	return c.Send(out)
}

// sources are the queues in which an operation finds messages that are not in
// memory. In active/ are those that a crash has left there, and that had no room yet.
var sources = map[queuectl.Op][]string{
	queuectl.Hold:    {queue.Active, queue.Incoming, queue.Deferred},
	queuectl.Release: {queue.Hold},
	queuectl.Retry:   {queue.Deferred},
	queuectl.Requeue: {queue.Active, queue.Deferred, queue.Hold},
	queuectl.Delete:  {queue.Active, queue.Incoming, queue.Deferred, queue.Hold, queue.Corrupt},
}

func (m *manager) control(r queuectl.Request) queuectl.Reply {
	o := &operation{manager: m, op: r.Op, begun: m.now().Truncate(time.Microsecond)} // as a file has it
	if r.Op == queuectl.Retry || r.Op == queuectl.Requeue {
		m.mu.Lock()
		m.sched.ReviveAll()
		m.mu.Unlock()
	}
	switch {
	case r.All:
		o.all()
	case r.Destination != "":
		o.destined(r.Destination)
	default:
		o.these(r.IDs, r.Buckets)
	}
	m.dispatch()
	reply := queuectl.Reply{Done: o.done}
	if o.cut {
		reply.Err = dsn.Errorf("4.3.2", "the queue manager is going down, and has not looked at all messages")
		return reply
	}
	if o.trouble != nil && (o.left == nil || len(o.left) > 0) { // or it was not in the way
		reply.Err = dsn.Errorf("4.3.0", "not all that was asked for could be done: %s (the log has more)", maillog.Printable(o.trouble.Error()))
	}
	for _, id := range r.IDs {
		if o.left[id] {
			delete(o.left, id)
			reply.Missing = append(reply.Missing, id)
		}
	}
	return reply
}

// operation is a command of the administrator being carried out.
type operation struct {
	*manager
	op   queuectl.Op
	left map[queueid.ID]bool // those that have not been found; nil: it is for all
	done uint32              // messages
	cut  bool                // the daemon has to go, and the disk has not been looked through

	begun  time.Time
	looked bool // the disk has been looked through, for all

	trouble error // the first that the disk made
}

// isCut reports whether the daemon has to go, and the command with it.
func (o *operation) isCut() bool {
	o.cut = o.cut || o.ending()
	return o.cut
}

// failed notes that the disk did not let it be carried out as a whole.
func (o *operation) failed(err error) {
	o.log.Warn(nil, "%v", err)
	if o.trouble == nil {
		o.trouble = err
	}
}

// all carries it out with every message for which it makes sense. What has moved
// from disk to memory while the disk is looked through is found afterwards.
func (o *operation) all() {
	o.memory()
	if o.op == queuectl.Retry {
		if err := o.listBuckets(); err != nil { // the command may be what has started this process
			o.failed(err)
		}
		counts := o.counts()
		o.mu.Lock()
		n, err := o.rush(counts)
		o.settle()
		o.mu.Unlock()
		o.done += n
		o.trouble = cmp.Or(o.trouble, err)
		wake(o.kick2) // some may be due by themselves
		return
	}
	o.disk()
	o.looked = true
	o.memory()
}

// hasMoved reports whether msg is in memory because it has been requeued by o, which is for
// all, or may be. m.mu is held.
func (o *operation) hasMoved(msg *message) bool {
	return o.looked && (!msg.requeued.Before(o.begun) || msg.turn == nil && msg.from.bucket == dueBucket)
}

// rounds is how often messages are looked for by ID: one that is on its way
// from one directory to the next can be missed, but hardly twice.
const rounds = 3

// these carries it out with messages by ID; buckets says where they may be.
func (o *operation) these(ids []queueid.ID, buckets []int64) {
	o.left = make(map[queueid.ID]bool, len(ids))
	for _, id := range ids {
		o.left[id] = true
	}
	o.memory()
	o.seen(ids, buckets)
	for range rounds {
		if o.memory(); len(o.left) == 0 || o.cut {
			return
		}
		o.disk()
	}
}

// seen carries it out with those that are where they have been seen.
func (o *operation) seen(ids []queueid.ID, buckets []int64) {
	if len(buckets) != len(ids) || !slices.Contains(sources[o.op], queue.Deferred) {
		return
	}
	there := make(map[string][]queueid.ID)
	for i, b := range buckets {
		if b > 0 && o.left[ids[i]] {
			name := queue.BucketName(time.Unix(b, 0))
			there[name] = append(there[name], ids[i])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(there)) {
		p := place{queue.Deferred, name}
		o.look(p, o.spool.in(p, func(d *queue.Directory) error { o.pick(p, d, there[name]); return nil }))
	}
}

// pick carries it out with those of ids that are in d, which is p.
func (o *operation) pick(p place, d *queue.Directory, ids []queueid.ID) {
	for _, id := range ids {
		if len(ids) > fewIDs && o.isCut() {
			return
		}
		if o.left[id] && d.Has(id) {
			o.at(p, d, id)
		}
	}
}

// look comes after a look at p, which has ended with err.
func (o *operation) look(p place, err error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errStopping) {
		o.failed(err)
	}
	if p.queue == queue.Deferred {
		o.mu.Lock()
		o.dropBucket(p.bucket)
		o.mu.Unlock()
	}
}

// memory carries it out with messages in memory.
func (o *operation) memory() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.left == nil {
		for id, msg := range o.known {
			if news, _ := o.wish(msg); news {
				o.found(id)
			}
		}
		return
	}
	for id := range o.left {
		if msg := o.known[id]; msg != nil {
			if news, fits := o.wish(msg); news || fits {
				o.found(id)
			}
		}
	}
}

func (o *operation) found(id queueid.ID) {
	o.done++
	delete(o.left, id)
}

// wish notes what is to become of a message in memory as soon as nothing of it
// is in flight. It reports whether that is another fate than before, and whether
// the operation makes sense for it. m.mu is held.
func (o *operation) wish(msg *message) (news, fits bool) {
	before := msg.want
	if before == wantDeletion && o.op != queuectl.Delete {
		return false, false // as good as gone
	}
	if msg.turn == nil && msg.from.queue == queue.Incoming && errors.Is(complete(o.spool.incoming, msg.id), queue.ErrIncomplete) {
		return false, false // it is being written, and looked at for that moment
	}
	defer func() {
		if msg.want != wantDelivery {
			o.comeBack(msg)
		}
	}()
	switch o.op {
	case queuectl.Hold:
		msg.want = wantHold
	case queuectl.Delete:
		msg.want = wantDeletion
	case queuectl.Requeue:
		if o.hasMoved(msg) {
			return false, false
		}
		msg.want = wantRequeue
	case queuectl.Release:
		if msg.want == wantHold {
			msg.want = wantDelivery
			msg.anew = true // of what was to come next nothing has been tried
		}
		return msg.want != before, false
	case queuectl.Retry:
		msg.anew = msg.anew || msg.ended
		return true, true // it is under way, or about to be
	}
	return msg.want != before, true
}

// fewIDs is how many messages are looked for by name in each directory. For more
// of them the directories are read.
const fewIDs = 50

// disk carries it out with messages on disk.
func (o *operation) disk() {
	for _, p := range o.places() {
		if o.left != nil && len(o.left) <= fewIDs {
			ids := slices.SortedFunc(maps.Keys(o.left), compareIDs) // oldest first
			o.look(p, o.spool.in(p, func(d *queue.Directory) error { o.pick(p, d, ids); return nil }))
			continue
		}
		o.look(p, o.spool.names(p, func(d *queue.Directory, id queueid.ID) error {
			if o.isCut() {
				return errStopping
			}
			if o.left == nil || o.left[id] {
				o.at(p, d, id)
			}
			return nil
		}))
		if o.cut {
			return
		}
	}
}

// places lists where the operation has to look.
func (o *operation) places() (list []place) {
	for _, name := range sources[o.op] {
		switch {
		case name == queue.Corrupt && o.left == nil:
			continue // to be chosen one by one
		case name != queue.Deferred:
			list = append(list, place{queue: name})
			continue
		}
		buckets, _, err := o.spool.deferred()
		if err != nil {
			o.failed(err)
		}
		for _, b := range buckets {
			list = append(list, place{queue.Deferred, b})
		}
	}
	return list
}

// at carries it out with one message, which is in d at p.
func (o *operation) at(p place, d *queue.Directory, id queueid.ID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.known[id] != nil && p.queue != queue.Hold {
		return // it has just been taken up; or, from hold/, never: that is an old notice
	}
	if err := o.move(p, d, id); err != nil {
		// What is being written has not been accepted yet, and is nobody's to touch.
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, queue.ErrIncomplete) {
			o.failed(fmt.Errorf("%s: %w", id, err))
		}
		return
	}
	if word := doneWords[o.op]; word != "" {
		o.log.Info(maillog.Fields{"QUEUE_ID": id.String()}, "%s: %s", id, word)
	}
	o.found(id)
}

// doneWords are what the log says of messages on disk.
var doneWords = map[queuectl.Op]string{
	queuectl.Hold: "placed on hold", queuectl.Release: "released from hold", queuectl.Requeue: "requeued", queuectl.Delete: "removed by the administrator",
}

func (o *operation) move(p place, d *queue.Directory, id queueid.ID) error {
	switch o.op {
	case queuectl.Hold, queuectl.Delete:
		if p.queue == queue.Incoming {
			if err := complete(d, id); err != nil {
				return err
			}
		}
		if o.op == queuectl.Delete {
			return o.spool.remove(d, id)
		}
		return o.spool.move(d, id, o.spool.held)
	case queuectl.Requeue:
		if err := o.markNew(d, id); err != nil {
			return err
		}
	case queuectl.Release, queuectl.Retry:
	}
	return o.fileDue(d, id)
}

// complete returns queue.ErrIncomplete for a message that is being written. It does
// not wait, for m.mu is held.
func complete(d *queue.Directory, id queueid.ID) error {
	f, err := d.Open(id)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading
	if queue.IsIncomplete(f) {
		return queue.ErrIncomplete
	}
	return nil // damaged perhaps, but finished
}

// markNew has a message treated as new when it is taken up. m.mu is held.
func (o *operation) markNew(d *queue.Directory, id queueid.ID) error {
	f, err := o.spool.open(d, id)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading
	q, err := queue.ReadFinished(f)
	if err != nil {
		return err
	}
	return o.spool.append(d, id, q, queue.Outcome{Requeue: o.now()})
}
