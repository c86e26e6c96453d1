// Package daemon is the skeleton of every daemon: it takes over the sockets,
// serves up to max_clients at once, and goes away in the order that loses
// nothing, after max_use requests, after max_idle without any, or when told to.
//
// A daemon's main names its sockets and their handlers:
//
//	func main() { daemon.Main("dns", setup) }
//
//	func setup(d *daemon.Daemon) error {
//		return d.IPC("ipc", resolve.Protocol, answer)
//	}
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"posthouse/pkg/activation"
	"posthouse/pkg/config"
	"posthouse/pkg/ipc"
	"posthouse/pkg/maillog"
)

// pause is what a connection does between requests.
type pause struct {
	since time.Time
	kept  bool // it has had one, and its client knows that it may be closed
}

// caller is a connection that can be told to end while it waits for a request.
type caller interface{ SetReadDeadline(time.Time) error }

// firstPatience is how long a new connection may take for its first request
// before it is taken for one that says nothing. Until then it is not closed:
// its client could not know whether the request was carried out.
const firstPatience = time.Second

// answerTimeout is how long an answer waits for a client to read those before.
// One that reads none would keep the daemon from going away, and so from coming
// back, for ever. A variable for tests.
var answerTimeout = time.Minute

// end is when the daemon may close the connection.
func (p pause) end() time.Time {
	if p.kept {
		return p.since
	}
	return p.since.Add(firstPatience)
}

// tidyAfter is how long after the start a daemon returns memory.
const tidyAfter = 2 * time.Second

// ConfigDir is where the configuration is.
const ConfigDir = "/etc/posthouse"

// Daemon is one running daemon.
type Daemon struct {
	Name string
	Log  *maillog.Logger

	watcher *config.Watcher
	sockets *activation.Sockets
	limits  config.Limits
	serve   []func()
	fifos   []*os.File
	handOff bool
	perUser int
	onEnd   []func()

	signals   signals
	successor *os.Process // while this process drains

	ctx    context.Context
	cancel context.CancelFunc

	stopping context.Context
	stop     context.CancelFunc

	mu      sync.Mutex // guards what follows
	room    *sync.Cond
	ending  bool
	busy    int // requests and sessions under way, and holds
	clients int
	used    int
	holds   int
	follows bool                           // there is a predecessor
	users   map[uint32]map[caller]struct{} // connections of IPC, where perUser is set
	lastEnd time.Time
	idle    map[caller]pause    // connections that wait for a request, or have waited for it in vain
	evicted map[caller]struct{} // those that have to go, and have not gone yet
	wakers  []func()            // make accept loops and FIFO readers look at ending
	end     chan error          // why to end: nil for max_use; the first counts

	loops    sync.WaitGroup
	handlers sync.WaitGroup
}

// Main runs a daemon and ends the process. Exit status 1 makes systemd wait
// for a few seconds before it starts the next one.
//
// Status 0 stands for an end in order: max_use, max_idle, SIGTERM, SIGHUP. A
// panic ends the process at once, with status 2: what else it was doing is then
// not known to be right, and who has had no answer tries again.
func Main(name string, setup func(*Daemon) error) {
	// A message is the work of several daemons, side by side: none of them needs
	// all processors, and each that Go may use is woken for every little thing.
	processors((runtime.GOMAXPROCS(0) + 1) / 2)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbage)
	}
	os.Exit(status(ConfigDir, name, setup))
}

// garbage is how much of it may be there for what is in use, in percent. What a message
// needs most memory for is used again, so that there is little; at Go's 100 a daemon
// was a sixth larger under load.
const garbage = 50

// processors says how many Go may use, unless the environment does (GOMAXPROCS).
func processors(n int) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(n)
	}
}

// flushers is how many goroutines of a daemon may wait for the disk before others
// have to wait for them.
const flushers = 4

// Flushes says that the daemon makes many files durable. While a goroutine waits
// for that in the kernel, Go takes it for running at first, and with one processor
// nobody else runs: so that few flushes are under way at once, and none of them
// does for several files. To be called from setup.
func (d *Daemon) Flushes() { d.Processors(flushers) }

// Processors says that the daemon can make use of n processors. To be
// called from setup.
func (d *Daemon) Processors(n int) { processors(max(runtime.GOMAXPROCS(0), n)) }

func status(dir, name string, setup func(*Daemon) error) int {
	log := maillog.New(name)
	defer log.Flush()
	d, err := start(dir, name, log)
	if err == nil {
		err = d.run(setup)
	}
	if err != nil {
		log.Error(nil, "%v", err)
		return 1
	}
	return 0
}

func start(dir, name string, log *maillog.Logger) (*Daemon, error) {
	var s signals
	s.catchHup()
	sockets, err := activation.Take()
	if err != nil {
		return nil, err
	}
	watcher, err := config.NewWatcher(dir, func(err error) { log.Warn(nil, "configuration: the old one stays in force: %v", err) })
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	d := &Daemon{
		Name: name, Log: log, watcher: watcher, sockets: sockets, limits: watcher.Current().Daemon(name), signals: s,
		lastEnd: time.Now(), idle: make(map[caller]pause), evicted: make(map[caller]struct{}), end: make(chan error, 1),
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.stopping, d.stop = context.WithCancel(d.ctx)
	d.room = sync.NewCond(&d.mu)
	return d, nil
}

func (d *Daemon) run(setup func(*Daemon) error) error {
	defer d.cancel()
	if err := setup(d); err != nil {
		return err
	}
	if err := d.sockets.Check(); err != nil {
		return err
	}
	d.signals.catchTerm()
	if err := activation.Notify(activation.Ready); err != nil {
		d.Log.Warn(nil, "%v", err)
	}
	// What start-up needed is of no more use; but a client is waiting, and it would
	// wait for as long as all of the start has taken.
	tidy := time.AfterFunc(tidyAfter, debug.FreeOSMemory)
	defer tidy.Stop()
	return d.supervise()
}

// Config returns the configuration that is in force now.
func (d *Daemon) Config() *config.Config { return d.watcher.Current() }

// Context ends when the daemon has been told to stop at once.
func (d *Daemon) Context() context.Context { return d.ctx }

// Stopping ends when the daemon has been told to stop, not when it goes by
// itself: a session ends as soon as its protocol allows it.
func (d *Daemon) Stopping() context.Context { return d.stopping }

// LimitsBySocket is for a program of which several units are instances: where the
// socket called name was passed, the limits are those that the configuration has
// for a daemon of that name.
func (d *Daemon) LimitsBySocket(name string) {
	if d.sockets.Passed(name) {
		d.limits = d.Config().Daemon(name)
	}
}

// Hold keeps the daemon from going away for being idle until release is called.
// Where it goes for another reason, max_use or SIGHUP, and has a FIFO, the next
// process is started at once, since there may be no client to start it.
func (d *Daemon) Hold() (release func()) {
	d.hold(1)
	return sync.OnceFunc(func() { d.hold(-1) })
}

func (d *Daemon) hold(n int) {
	d.mu.Lock()
	d.busy += n
	d.holds += n
	d.lastEnd = time.Now()
	d.mu.Unlock()
}

// OnEnd has f called after the last request, before the process ends.
func (d *Daemon) OnEnd(f func()) { d.onEnd = append(d.onEnd, f) }

// HandOff makes the daemon start its successor before it drains, for daemons
// whose sessions may take long.
func (d *Daemon) HandOff() { d.handOff = true }

// Ending reports whether the daemon is about to go away: a session may end
// where its protocol allows it.
func (d *Daemon) Ending() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ending
}

func (d *Daemon) begin() {
	d.mu.Lock()
	d.busy++
	d.mu.Unlock()
}

func (d *Daemon) done() {
	d.mu.Lock()
	d.busy--
	d.lastEnd = time.Now()
	d.room.Broadcast()
	d.mu.Unlock()
}

// count books a use; the one that reaches max_use makes the daemon end.
func (d *Daemon) count() {
	d.mu.Lock()
	d.used++
	d.endIfUsedUp()
	d.mu.Unlock()
}

// endIfUsedUp makes the daemon end at max_use. While there is a predecessor,
// it waits for that: it cannot go before it, and with a third process, a fourth
// and so on a client that stays for long would fill the memory. d.mu is held.
func (d *Daemon) endIfUsedUp() {
	if d.limits.MaxUse > 0 && d.used >= d.limits.MaxUse && !d.follows {
		d.endFor(nil)
	}
}

func (d *Daemon) endFor(reason error) {
	select {
	case d.end <- reason:
	default:
	}
}

// Stream serves the stream sockets called name: handle has the connection for
// its whole life, which counts as one use.
func (d *Daemon) Stream(name string, handle func(context.Context, net.Conn)) error {
	listeners, err := d.sockets.Streams(name)
	if err != nil {
		return err
	}
	listen(d, listeners, func(c net.Conn) (net.Conn, error) { return c, nil }, func(c net.Conn) {
		d.begin()
		defer d.done()
		d.count()
		handle(d.ctx, c)
	})
	return nil
}

// IPC serves the sockets called name: handle is called for each message of a
// client, receives more itself if the protocol has more, and answers. With an
// error the connection ends. file is nil unless the client passed one; handle
// closes it.
func (d *Daemon) IPC(name string, p ipc.Protocol, handle func(ctx context.Context, c *ipc.Conn, msg []byte, file *os.File) error) error {
	listeners, err := d.sockets.Packets(name)
	if err != nil {
		return err
	}
	listen(d, listeners, packets, func(c *ipc.Conn) { d.converse(c, p, handle) })
	return nil
}

// packets makes a connection of IPC of c.
func packets(c net.Conn) (*ipc.Conn, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("a client that is a %T", c)
	}
	conn, err := ipc.NewConn(sc)
	if err == nil {
		_ = c.Close() // conn has a descriptor of its own
	}
	return conn, err
}

// converse serves one client of IPC.
func (d *Daemon) converse(c *ipc.Conn, p ipc.Protocol, handle func(ctx context.Context, c *ipc.Conn, msg []byte, file *os.File) error) {
	leave, ok := d.enterUser(c)
	if !ok {
		return
	}
	defer leave()
	defer d.forget(c)
	c.SetSendTimeout(answerTimeout)
	if err := ipc.Greet(c, p); err != nil {
		return // the client is gone
	}
	for kept := false; d.await(c, kept); kept = true {
		msg, file, err := c.ReceiveFile(p.MaxRequest)
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, errGone) && !isEnd(err) {
				d.Log.Warn(nil, "%s: %v", p.Name, err)
			}
			return
		}
		d.resume(c)
		d.count()
		_ = c.SetDeadline(time.Time{})
		err = handle(d.ctx, c, msg, file)
		d.done()
		if err != nil {
			if !isEnd(err) {
				d.Log.Warn(nil, "%s: %v", p.Name, err)
			}
			return
		}
	}
}

var errGone = net.ErrClosed

func isEnd(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)
}

// await marks c as waiting for a request, kept if it is not the first. It
// reports false when the daemon is about to end.
func (d *Daemon) await(c caller, kept bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := pause{time.Now(), kept}
	d.idle[c] = p
	if d.ending {
		_ = c.SetReadDeadline(p.end())
		return !kept
	}
	d.room.Broadcast()
	return true
}

// resume marks c as busy; there is no moment at which the daemon looks idle.
func (d *Daemon) resume(c caller) {
	d.mu.Lock()
	delete(d.idle, c)
	delete(d.evicted, c) // a request came first
	d.busy++
	d.mu.Unlock()
}

// forget takes c off the list of those that wait for a request.
func (d *Daemon) forget(c caller) {
	d.mu.Lock()
	delete(d.idle, c)
	delete(d.evicted, c)
	d.mu.Unlock()
}

// FIFO has look called once for any number of bytes in the FIFOs called name.
func (d *Daemon) FIFO(name string, look func()) error {
	fifos, err := d.sockets.FIFOs(name)
	if err != nil {
		return err
	}
	d.fifos = append(d.fifos, fifos...)
	for _, f := range fifos {
		d.addLoop(func() { _ = f.SetReadDeadline(time.Unix(1, 0)) }, func() {
			buf := make([]byte, 64<<10)
			for !d.Ending() {
				_, err := f.Read(buf)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					continue
				}
				if err != nil {
					d.endFor(fmt.Errorf("FIFO %s: %w", name, err))
					return
				}
				d.begin()
				look()
				d.done()
			}
		})
	}
	return nil
}

// Loop has loop run as those do that serve sockets: from when the daemon serves,
// until wake is called, which is when Ending begins to hold. A successor starts,
// and the process ends, only after loop has returned: so no two processes of a
// daemon are in it at once.
func (d *Daemon) Loop(wake, loop func()) { d.addLoop(wake, loop) }

func (d *Daemon) addLoop(wake, loop func()) {
	d.wakers = append(d.wakers, wake)
	d.serve = append(d.serve, loop)
}

// listen adds an accept loop for each listener, which has handle serve what take makes of
// each client.
func listen[C io.Closer](d *Daemon, listeners []activation.Listener, take func(net.Conn) (C, error), handle func(C)) {
	for _, ln := range listeners {
		d.addLoop(func() { _ = ln.SetDeadline(time.Unix(1, 0)) }, func() {
			var waits net.Conn // for descriptors, as others do in the backlog
			accept(d, func() (c C, err error) {
				if waits == nil {
					waits, err = ln.Accept()
				}
				if err == nil {
					c, err = take(waits)
				}
				if err == nil {
					waits = nil
				}
				return c, err
			}, handle)
			if waits != nil {
				_ = waits.Close() // it has been told nothing yet, and comes again
			}
		})
	}
}

func accept[C io.Closer](d *Daemon, next func() (C, error), handle func(C)) {
	short := false // of descriptors or memory, and the log knows
	for d.waitForRoom() {
		c, err := next()
		switch {
		case err == nil:
			short = false
			d.mu.Lock()
			d.clients++
			d.lastEnd = time.Now() // its request is about to come
			d.mu.Unlock()
			d.handlers.Go(func() {
				handle(c)
				d.mu.Lock()
				d.clients--
				d.room.Broadcast()
				d.mu.Unlock()
				_ = c.Close() // the handler has said all that there is to say; who sees the end finds room
			})
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ECONNABORTED):
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ENOBUFS),
			errors.Is(err, syscall.ENOSPC):
			if !short {
				d.Log.Warn(nil, "accept: %v", err)
			}
			short = true
			time.Sleep(50 * time.Millisecond)
		default:
			d.endFor(fmt.Errorf("accept: %w", err))
			return
		}
	}
}

// waitForRoom waits until another client may be accepted: what is not accepted
// waits in the kernel's backlog and is not lost. Where all the room is taken, and
// some of it by connections that clients only keep, one of those has to go. It
// reports false when the daemon is about to end.
//
// With several sockets each waits for room, so that there can be one client more
// for each socket but the first.
func (d *Daemon) waitForRoom() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for !d.ending && d.limits.MaxClients > 0 && d.clients >= d.limits.MaxClients {
		again := d.evict()
		d.room.Wait() // wakes for other reasons, too
		again.Stop()
	}
	return !d.ending
}

// evict closes the connection that has been kept for longest. Where there is
// none, d.room is signalled when a silent one may go. d.mu is held.
func (d *Daemon) evict() (again *time.Timer) {
	var oldest caller
	for c, p := range d.idle {
		if oldest == nil || p.end().Before(d.idle[oldest].end()) {
			oldest = c
		}
	}
	wait := firstPatience
	if oldest != nil && len(d.evicted) == 0 { // else one is on its way
		if wait = time.Until(d.idle[oldest].end()); wait <= 0 {
			d.dismiss(oldest)
			wait = firstPatience
		}
	}
	return time.AfterFunc(wait, func() {
		d.mu.Lock() // or it might be too early to be heard
		d.room.Broadcast()
		d.mu.Unlock()
	})
}
