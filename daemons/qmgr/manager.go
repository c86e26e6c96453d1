package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"posthouse/daemons/qmgr/internal/schedule"
	"posthouse/pkg/config"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/arrival"
	"posthouse/pkg/protocol/bounce"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// What qmgr asks of others.
type (
	asker interface {
		Ask(ctx context.Context, r rewrite.Request) ([]rewrite.Answer, error)
	}
	deliverer interface {
		Deliver(ctx context.Context, r *delivery.Request, file *os.File) (*delivery.Report, error)
	}
	notifier interface {
		Notify(ctx context.Context, r *bounce.Request, file *os.File) (string, error)
	}
)

// Bounds of waiting for others. An agent has time-outs of its own at each stage.
const (
	rewriteTimeout  = time.Minute
	bounceTimeout   = 5 * time.Minute
	deliveryTimeout = 2 * time.Hour
	stopTimeout     = 30 * time.Second // with the grace of deliveries shorter than TimeoutStopSec= of the unit
)

const (
	scanInterval = 5 * time.Minute // between looks into incoming/, for notices that got lost, and into deferred/
	loaders      = 16              // messages that are read and resolved at once
	notices      = 100             // notifications that are made at once
	maxFresh     = 100_000         // IDs of notices that are remembered; more are found by a scan
)

// located is a message and where it is.
type located struct {
	place
	id queueid.ID
}

// feeder is a set of the goroutines that take up messages.
type feeder uint8

const (
	freshFeeder feeder = 1 << iota
	deferredFeeder
	leftFeeder
)

// manager holds everything that is active. Messages live in its memory from
// load to file or removal; all others cost nothing.
type manager struct {
	config  func() *config.Config
	log     *maillog.Logger
	spool   *spool
	index   *index
	rewrite asker
	bounce  notifier
	agent   func(name string) deliverer
	hold    func() (release func())
	ending  func() bool // the daemon is to go: no command goes on
	now     func() time.Time
	random  func() float64 // from 0 to 1
	started time.Time
	said    said

	limitOutside int // see mostOutside; 0 but for tests

	ctx    context.Context // ends what is under way when the daemon has to go
	cancel context.CancelFunc
	kick   chan struct{} // the feeders look again
	kick2  chan struct{}
	kick3  chan struct{}
	slots  chan struct{} // loaders
	notice chan struct{} // notifications that are being made
	wg     sync.WaitGroup

	mu         sync.Mutex // guards what follows
	room       *sync.Cond
	stopping   bool
	sched      *schedule.Scheduler[*entry]
	transports transports
	loads      map[party]int // recipients in memory
	crowds     map[party]*crowd
	crowdTurn  []*crowd   // all of them
	outside    int        // of known, how many wait outside of memory
	coming     []*message // back from there
	comers     int        // goroutines that read them
	warned     time.Time  // of a crowd
	alarm      time.Time  // when dispatch is called though nothing happens; zero: not
	agents     map[string]deliverer
	known      map[queueid.ID]*message
	deferred   int                  // of known, how many came from deferred/, and have not waited outside
	recipients int                  // in memory
	fresh      []located            // told of by cleanup
	later      map[queueid.ID]place // could not be read; tried again
	laterSet   bool                 // in a moment
	laterDue   bool                 // now
	scan       bool                 // incoming/ is to be looked through
	rescan     bool                 // in a moment: a directory could not be read
	feeding    feeder               // those that are at work
	buckets    map[string]time.Time // all there are, and when each is taken up
	refilled   map[string]bool      // buckets to which the administrator has added while they are taken up
	release    func()               // see settle
}

func newManager(cfg func() *config.Config, log *maillog.Logger, sp *spool) *manager {
	m := &manager{
		config: cfg, log: log, spool: sp, now: time.Now, random: rand.Float64, hold: func() func() { return func() {} }, ending: func() bool { return false },
		kick: make(chan struct{}, 1), kick2: make(chan struct{}, 1), kick3: make(chan struct{}, 1), slots: make(chan struct{}, loaders), notice: make(chan struct{}, notices),
		agents: make(map[string]deliverer), known: make(map[queueid.ID]*message),
		loads: make(map[party]int), crowds: make(map[party]*crowd),
		later: make(map[queueid.ID]place), buckets: make(map[string]time.Time), refilled: make(map[string]bool), scan: true,
	}
	sp.odd = func(p place, name string) {
		if m.said.isNew(p.queue+"/"+name, "") { // buckets are renamed
			log.Warn(nil, "%s/%s: left alone: is not the name of a message", p, name)
		}
	}
	m.index = openIndex(filepath.Join(sp.base, queue.Index), filepath.Join(sp.base, queue.Deferred), func(err error) {
		if m.said.isNew(queue.Index, short(err)) {
			log.Warn(nil, "index of destinations: %v", err)
		}
	}, func(name string) error { return sp.call(call{name: name}, func() error { return nil }) })
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.room = sync.NewCond(&m.mu)
	m.sched = schedule.New[*entry](func(transport string) schedule.Limits { return m.transports.limits(cfg(), transport) },
		func() time.Duration { return time.Duration(cfg().Queue.Retry.Min) })
	return m
}

// start begins to look after the queue.
func (m *manager) start() {
	m.started = m.now()
	m.spool.clearSpares() // a crash may have left some
	m.release = m.hold()  // until the queue has been looked at
	m.feeding = freshFeeder | deferredFeeder | leftFeeder
	m.wg.Go(m.feedLeft)
	m.wg.Go(m.feedFresh)
	m.wg.Go(m.feedDeferred)
}

// stop lets what is under way come to an end, and begins nothing more. After
// some time agents are told to end, and to say how far they have come: what they
// have delivered is not to be delivered again. What is left in active/ is taken
// up by the next process.
func (m *manager) stop() {
	m.mu.Lock()
	m.stopping = true
	m.room.Broadcast()
	m.mu.Unlock()
	wake(m.kick)
	wake(m.kick2)
	wake(m.kick3)
	defer time.AfterFunc(stopTimeout, m.cancel).Stop()
	m.wg.Wait()
	// What the disk did not take it may take now: else it would be done again.
	m.mu.Lock()
	left := slices.Collect(maps.Values(m.known))
	m.mu.Unlock()
	for _, msg := range left {
		m.lastTry(msg)
	}
	m.index.seal()
	m.spool.clearSpares()
}

// lastTry does what is left to do with a message when nothing else is done any more:
// what the administrator wants of it, which the next process would not know; the
// last step, or writing what is known of it so far, which the disk did not take.
func (m *manager) lastTry(msg *message) {
	m.mu.Lock()
	last := msg.stuck || msg.want != wantDelivery
	m.mu.Unlock()
	if last && (msg.q != nil || m.read(msg)) {
		m.conclude(msg)
		return
	}
	msg.file.Lock()
	defer msg.file.Unlock()
	if err := m.write(msg); err != nil {
		m.log.Error(msg.fields(), "%s: %v", msg.id, err)
	}
}

// handleArrival takes a notice.
func (m *manager) handleArrival(_ context.Context, _ *ipc.Conn, msg []byte, file *os.File) error {
	if file != nil {
		_ = file.Close() // not asked for
	}
	ids, err := arrival.Decode(msg)
	if err != nil {
		return err
	}
	m.mu.Lock()
	if len(m.fresh) < maxFresh {
		for _, id := range ids {
			m.fresh = append(m.fresh, located{place{queue: queue.Incoming}, id})
		}
	} else {
		m.scan = true
	}
	m.settle()
	m.mu.Unlock()
	wake(m.kick)
	return nil
}

// look has incoming/ looked through.
func (m *manager) look() {
	m.mu.Lock()
	m.scan = true
	m.settle()
	m.mu.Unlock()
	wake(m.kick)
	wake(m.kick2)
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// settle keeps the daemon while there is anything to do, now or at a known
// time. m.mu is held.
func (m *manager) settle() {
	busy := len(m.known) > 0 || len(m.buckets) > 0 || len(m.fresh) > 0 || len(m.later) > 0 || m.scan || m.rescan || m.feeding > 0
	switch {
	case busy && m.release == nil:
		m.release = m.hold()
	case !busy && m.release != nil:
		m.release()
		m.release = nil
	}
}

// feedLeft takes up what a crash has left in active/. That may be much, so what is
// new does not wait for it.
func (m *manager) feedLeft() {
	for {
		done := m.each(place{queue: queue.Active}, nil)
		m.mu.Lock()
		if done = done || m.stopping; done {
			m.feeding &^= leftFeeder
			m.settle()
		}
		m.mu.Unlock()
		if done {
			return
		}
		again := time.NewTimer(retryPause)
		select {
		case <-m.kick3:
		case <-again.C:
		}
		again.Stop()
	}
}

// feedFresh takes up what is new: what cleanup tells of, and what scans of
// incoming/ find.
func (m *manager) feedFresh() {
	next := time.NewTimer(scanInterval)
	defer next.Stop()
	for {
		m.mu.Lock()
		if m.stopping { // what is new is left to the next process
			m.feeding &^= freshFeeder
			m.settle()
			m.mu.Unlock()
			return
		}
		m.feeding |= freshFeeder
		list, scan := m.fresh, m.scan
		m.fresh, m.scan = nil, false
		if m.laterDue {
			list = append(list, oldestFirst(m.later)...)
			clear(m.later)
			m.laterDue = false
		}
		m.mu.Unlock()
		for _, l := range list {
			m.admit(l.place, l.id, nil)
		}
		if scan && !m.each(place{queue: queue.Incoming}, nil) {
			m.scanAgain()
		}
		m.mu.Lock()
		idle := len(m.fresh) == 0 && !m.scan && !m.laterDue
		if idle {
			m.feeding &^= freshFeeder
			m.settle()
		}
		m.mu.Unlock()
		if !idle {
			continue
		}
		select {
		case <-m.kick:
		case <-next.C:
			next.Reset(scanInterval)
			m.mu.Lock()
			m.scan = true
			m.mu.Unlock()
		}
	}
}

// scanAgain has the directories looked through that could not be. Without it
// qmgr might go, and leave what is there until the next message comes.
func (m *manager) scanAgain() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rescan {
		return
	}
	m.rescan = true
	time.AfterFunc(retryPause, func() {
		m.mu.Lock()
		m.scan, m.rescan = true, false
		m.mu.Unlock()
		wake(m.kick)
	})
}

// postpone has a message looked at again that could not be read.
func (m *manager) postpone(msg *message, why error) {
	if m.said.isNew(msg.id.String(), short(why)) {
		m.log.Warn(msg.fields(), "%s: left alone for now: %v", msg.id, why)
	}
	m.lookAgain(msg)
}

// lookAgain has a message looked at again in a moment.
func (m *manager) lookAgain(msg *message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	msg.q, msg.postponed = nil, true
	if msg.from.queue == queue.Deferred {
		return // its bucket stays
	}
	if m.later[msg.id].queue != queue.Active { // an old notice would have it in incoming/
		m.later[msg.id] = msg.from
	}
	if !m.laterSet {
		m.laterSet = true
		time.AfterFunc(retryPause, func() {
			m.mu.Lock()
			m.laterSet, m.laterDue = false, true
			m.mu.Unlock()
			wake(m.kick)
		})
	}
}

// oldestFirst lists messages in the order of their arrival.
func oldestFirst(messages map[queueid.ID]place) (list []located) {
	for id, p := range messages {
		list = append(list, located{p, id})
	}
	slices.SortFunc(list, func(a, b located) int { return compareIDs(a.id, b.id) })
	return list
}

func compareIDs(a, b queueid.ID) int { return cmp.Compare(a.String(), b.String()) }

// each admits every message at p. It reports false where it could not look. moving
// may be nil; else it waits for them to be elsewhere.
func (m *manager) each(p place, moving *sync.WaitGroup) bool {
	err := m.spool.names(p, func(_ *queue.Directory, id queueid.ID) error {
		if !m.admit(p, id, moving) {
			return errStopping
		}
		return nil
	})
	if err == nil || err == errStopping || errors.Is(err, fs.ErrNotExist) {
		m.said.forget(p.String())
		return true
	}
	if m.said.isNew(p.String(), err.Error()) {
		m.log.Warn(nil, "%v", err)
	}
	return false
}

// admit has a message loaded when there is room. It reports false when the
// daemon is about to end. Deferred mail leaves a quarter of the room to what is
// new.
func (m *manager) admit(p place, id queueid.ID, moving *sync.WaitGroup) bool {
	limits := &m.config().Queue
	m.mu.Lock()
	for !m.stopping && (len(m.known)-m.outside >= limits.ActiveMessages || m.recipients >= limits.ActiveRecipients ||
		p.queue == queue.Deferred && m.deferred >= max(1, limits.ActiveMessages/4*3)) {
		m.room.Wait()
	}
	if known := m.known[id]; m.stopping || known != nil {
		if known != nil && (known.again == place{} || p.queue != queue.Incoming) { // it does not go back to incoming/
			known.again = p
		}
		stopping := m.stopping
		m.mu.Unlock()
		return !stopping
	}
	if m.later[id] == p {
		delete(m.later, id) // it is looked at now
	}
	msg := &message{id: id, from: p, moving: moving}
	if moving != nil {
		moving.Add(1)
	}
	m.known[id] = msg
	if msg.deferred = p.queue == queue.Deferred; msg.deferred {
		m.deferred++
	}
	m.settle()
	m.mu.Unlock()
	m.slots <- struct{}{}
	m.wg.Go(func() {
		defer func() { <-m.slots }()
		m.load(msg)
	})
	return true
}

// notLoaded forgets a message that was not to be taken up. Where it has been told
// of meanwhile it is looked at once more: it may have been looked at a moment
// before it was complete, or where it is no more, and nobody would tell of it another time. What the
// administrator wants of it is known here alone: then it is not forgotten.
func (m *manager) notLoaded(msg *message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if msg.postponed && msg.want != wantDelivery {
		time.AfterFunc(retryPause, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			if !m.stopping {
				m.wg.Go(func() {
					m.slots <- struct{}{}
					defer func() { <-m.slots }()
					m.load(msg)
				})
			}
		})
		return
	}
	if msg.again.queue == queue.Incoming || msg.again.queue == queue.Active { // buckets stay
		m.fresh = append(m.fresh, located{msg.again, msg.id})
		wake(m.kick)
	}
	m.forget(msg)
	if msg.want != wantDelivery && !m.stopping {
		m.wg.Go(func() { m.elsewhere(msg) })
	}
}

// elsewhere does what the administrator wants of a message that was not where an old
// notice had it.
func (m *manager) elsewhere(msg *message) {
	op := map[wish]queuectl.Op{wantHold: queuectl.Hold, wantDeletion: queuectl.Delete, wantRequeue: queuectl.Requeue}[msg.want]
	m.control(queuectl.Request{Op: op, IDs: []queueid.ID{msg.id}})
}

// forget ends the life of a message in memory. m.mu is held.
func (m *manager) forget(msg *message) {
	delete(m.known, msg.id)
	m.recipients -= msg.counted
	m.burden(msg.sender, -msg.counted)
	if msg.deferred {
		m.deferred--
	}
	m.settle()
	m.letIn(msg.sender)
	m.room.Broadcast()
}
