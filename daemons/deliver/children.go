package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"posthouse/daemons/deliver/internal/user"
	"posthouse/pkg/ipc"
)

// Bounds of children. They count until they have ended, which one that its user
// has stopped does not do: it takes places of that user.
const (
	maxChildren = 100
	maxOfUser   = 8
	// keepTime is how long a child is kept for more of its user's commands.
	keepTime = 2 * time.Second
	// maxUse is how many requests a child serves: one whose user never has enough makes
	// room for others.
	maxUse = 100
)

// childID is who a child is.
type childID struct {
	user     user.User
	uid, gid uint32
	groups   []uint32
}

func (id *childID) key() string {
	return fmt.Sprintf("%q %d %d %d", id.user.Args(), id.uid, id.gid, id.groups)
}

// process is a child that runs.
type process struct {
	conn *ipc.Conn
	wait func() error // returns when it has ended
}

// kid is a child in the pool.
type kid struct {
	conn  *ipc.Conn
	uid   uint32
	key   string
	used  int         // requests
	left  atomic.Bool // it has been told to end
	timer *time.Timer // while it is idle
}

// leave tells the child to come to an end with what it does.
func (k *kid) leave() {
	if !k.left.Swap(true) {
		_ = k.conn.CloseWrite() // what fails here the answer meets, too
	}
}

// pool keeps children for a while, and bounds them.
type pool struct {
	start func(*childID) (process, error)
	keep  time.Duration // keepTime, but in tests

	mu      sync.Mutex
	idle    []*kid         // oldest first
	running map[uint32]int // by uid: that bound does not depend on what else the database of users says
	all     int
	waiting map[string]int // who waits for a child, by the key of its identity
	changed chan struct{}  // closed when a child has ended or is idle
}

func newPool(start func(*childID) (process, error)) *pool {
	return &pool{start: start, keep: keepTime, running: make(map[uint32]int), waiting: make(map[string]int), changed: make(chan struct{})}
}

// get returns a child that is id and has nothing to do.
func (p *pool) get(ctx context.Context, id *childID) (*kid, error) {
	key := id.key()
	p.wait(key, 1)
	defer p.wait(key, -1)
	for {
		k, room, changed := p.take(id.uid, key)
		if k != nil {
			return k, nil
		}
		if room {
			return p.begin(id, key)
		}
		select {
		case <-ctx.Done():
			return nil, errNoPlace(id.user.Name)
		case <-changed:
		}
	}
}

// take returns an idle child, or whether there is room for a new one, which is
// then taken.
func (p *pool) take(uid uint32, key string) (k *kid, room bool, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.idle) - 1; i >= 0; i-- {
		if p.idle[i].key == key && !p.idle[i].left.Load() {
			return p.remove(i), false, nil
		}
	}
	if p.running[uid] < maxOfUser && p.all < maxChildren {
		p.running[uid]++
		p.all++
		return nil, true, nil
	}
	// One that is idle makes room when it has ended: of this user, if that is what is
	// full. One that somebody waits for would be started again at once.
	for i, k := range p.idle {
		if p.waiting[k.key] == 0 && (k.uid == uid || p.running[uid] < maxOfUser) {
			p.drop(p.remove(i))
			break
		}
	}
	return nil, false, p.changed
}

// wait adds to the number of those who wait for a child.
func (p *pool) wait(key string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting[key] += n; p.waiting[key] == 0 {
		delete(p.waiting, key)
	}
}

// remove takes an idle child out. p.mu is held.
func (p *pool) remove(i int) *kid {
	k := p.idle[i]
	p.idle = append(p.idle[:i], p.idle[i+1:]...)
	k.timer.Stop()
	return k
}

func (p *pool) begin(id *childID, key string) (*kid, error) {
	proc, err := p.start(id)
	if err != nil {
		p.ended(id.uid)
		return nil, fmt.Errorf("cannot start a process of %s: %w", id.user.Name, err)
	}
	go func() {
		_ = proc.wait() // who waits for its answer says what there is to say
		p.ended(id.uid)
	}()
	return &kid{conn: proc.conn, uid: id.uid, key: key}, nil
}

func (p *pool) ended(uid uint32) {
	p.mu.Lock()
	if p.all--; p.running[uid] == 1 {
		delete(p.running, uid)
	} else {
		p.running[uid]--
	}
	p.signal()
	p.mu.Unlock()
}

// signal wakes who waits for a child. p.mu is held.
func (p *pool) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// put gives back a child that has answered.
func (p *pool) put(k *kid) {
	if k.used++; k.left.Load() || k.used >= maxUse {
		p.drop(k)
		return
	}
	p.mu.Lock()
	k.timer = time.AfterFunc(p.keep, func() { p.expire(k) })
	p.idle = append(p.idle, k)
	p.signal()
	p.mu.Unlock()
}

// drop has a child end that is not idle.
func (p *pool) drop(k *kid) { _ = k.conn.Close() }

func (p *pool) expire(k *kid) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.idle {
		if p.idle[i] == k {
			p.drop(p.remove(i))
			return
		}
	}
}

// close has all idle children end.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.idle) > 0 {
		p.drop(p.remove(0))
	}
}

// childPath is the program of children, which is beside this one.
func childPath() (string, error) {
	self, err := os.Executable()
	return filepath.Join(filepath.Dir(self), user.Program), err
}

// newStarter returns what starts children, which run program. They become the user
// themselves, with the capabilities of this process, and then run it once more.
func newStarter(program string) func(*childID) (process, error) {
	return func(id *childID) (process, error) {
		return start(program, id.user.Start(program, user.Identity{UID: id.uid, GID: id.gid, Groups: id.groups}))
	}
}

// start starts a child. There is no Pdeathsig: the kernel would want a right to
// signal the user for it. The end of the socket tells the child. No user can signal what
// this waits for.
func start(program string, args []string) (process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return process{}, err
	}
	defer null.Close() // nothing is written
	conn, theirs, err := ipc.Pair()
	if err != nil {
		return process{}, err
	}
	p, err := os.StartProcess(program, append([]string{user.Program}, args...), &os.ProcAttr{
		Dir:   "/",
		Env:   []string{},
		Files: []*os.File{null, null, null, theirs},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err := errors.Join(err, theirs.Close()); err != nil {
		return process{}, errors.Join(err, conn.Close())
	}
	return process{conn, func() error { _, err := p.Wait(); return err }}, nil
}
