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
	"os/signal"
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

// firstPatience is how long a new connection may take for its first request
// before it is taken for one that says nothing. Until then it is not closed:
// its client could not know whether the request was carried out.
const firstPatience = time.Second

// end is when the daemon may close the connection.
func (p pause) end() time.Time {
	if p.kept {
		return p.since
	}
	return p.since.Add(firstPatience)
}

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
	onEnd   []func()

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
	lastEnd time.Time
	idle    map[*ipc.Conn]pause // connections that wait for a request
	wakers  []func()            // make accept loops and FIFO readers look at ending
	end     chan error          // why to end: nil for max_use

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
	os.Exit(status(ConfigDir, name, setup))
}

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
	sockets, err := activation.Take()
	if err != nil {
		return nil, err
	}
	watcher, err := config.NewWatcher(dir, func(err error) { log.Warn(nil, "configuration: the old one stays in force: %v", err) })
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	d := &Daemon{
		Name: name, Log: log, watcher: watcher, sockets: sockets, limits: watcher.Current().Daemon(name),
		lastEnd: time.Now(), idle: make(map[*ipc.Conn]pause), end: make(chan error, 16),
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
	// From here on there may be clients, and a signal must not cut them off.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if err := activation.Notify(activation.Ready); err != nil {
		d.Log.Warn(nil, "%v", err)
	}
	// What start-up needed is of no more use.
	debug.FreeOSMemory()
	return d.supervise(signals)
}

// Config returns the configuration that is in force now.
func (d *Daemon) Config() *config.Config { return d.watcher.Current() }

// Context ends when the daemon has been told to stop at once.
func (d *Daemon) Context() context.Context { return d.ctx }

// Stopping ends when the daemon has been told to stop, not when it goes by
// itself: a session ends as soon as its protocol allows it.
func (d *Daemon) Stopping() context.Context { return d.stopping }

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

// Names returns the names of the sockets that were passed.
func (d *Daemon) Names() []string { return d.sockets.Names() }

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
	last := d.limits.MaxUse > 0 && d.used == d.limits.MaxUse
	d.mu.Unlock()
	if last {
		d.end <- nil
	}
}

// Stream serves the stream sockets called name: handle has the connection for
// its whole life, which counts as one use.
func (d *Daemon) Stream(name string, handle func(context.Context, net.Conn)) error {
	listeners, err := d.sockets.Streams(name)
	if err != nil {
		return err
	}
	d.listen(listeners, func(c net.Conn) {
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
	d.listen(listeners, func(nc net.Conn) {
		uc, ok := nc.(*net.UnixConn)
		if !ok {
			d.Log.Error(nil, "socket %s: a %T", name, nc)
			return
		}
		c := ipc.NewConn(uc)
		if err := ipc.Greet(c, p); err != nil {
			return // the client is gone
		}
		for kept := false; d.await(c, kept); kept = true {
			msg, file, err := c.ReceiveFile(p.MaxRequest)
			d.resume(c, err == nil)
			if err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, errGone) && !isEnd(err) {
					d.Log.Warn(nil, "%s: %v", p.Name, err)
				}
				return
			}
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
	})
	return nil
}

var errGone = net.ErrClosed

func isEnd(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)
}

// await marks c as waiting for a request, kept if it is not the first. It
// reports false when the daemon is about to end.
func (d *Daemon) await(c *ipc.Conn, kept bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := pause{time.Now(), kept}
	if d.ending {
		_ = c.SetReadDeadline(p.end())
		return !kept
	}
	d.idle[c] = p
	d.room.Broadcast()
	return true
}

// resume marks c as no longer waiting; with a request it is busy at once, so
// that there is no moment at which the daemon looks idle.
func (d *Daemon) resume(c *ipc.Conn, request bool) {
	d.mu.Lock()
	delete(d.idle, c)
	if request {
		d.busy++
	}
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
					d.end <- fmt.Errorf("FIFO %s: %w", name, err)
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

func (d *Daemon) addLoop(wake, loop func()) {
	d.wakers = append(d.wakers, wake)
	d.serve = append(d.serve, loop)
}

// listen adds an accept loop for each listener.
func (d *Daemon) listen(listeners []activation.Listener, handle func(net.Conn)) {
	for _, ln := range listeners {
		d.addLoop(func() { _ = ln.SetDeadline(time.Unix(1, 0)) }, func() { d.accept(ln, handle) })
	}
}

func (d *Daemon) accept(ln activation.Listener, handle func(net.Conn)) {
	for d.waitForRoom() {
		c, err := ln.Accept()
		switch {
		case err == nil:
			d.mu.Lock()
			d.clients++
			d.lastEnd = time.Now() // its request is about to come
			d.mu.Unlock()
			d.handlers.Go(func() {
				defer func() {
					_ = c.Close() // the handler has said all that there is to say
					d.mu.Lock()
					d.clients--
					d.room.Broadcast()
					d.mu.Unlock()
				}()
				handle(c)
			})
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ECONNABORTED):
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ENOBUFS):
			d.Log.Warn(nil, "accept: %v", err)
			time.Sleep(50 * time.Millisecond)
		default:
			d.end <- fmt.Errorf("accept: %w", err)
			return
		}
	}
}

// waitForRoom waits until another client may be accepted: what is not accepted
// waits in the kernel's backlog and is not lost. Where all the room is taken by
// connections that clients only keep, one of those has to go. It reports false
// when the daemon is about to end.
func (d *Daemon) waitForRoom() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for !d.ending && d.limits.MaxClients > 0 && d.clients >= d.limits.MaxClients {
		again := d.evict()
		d.room.Wait()
		again.Stop()
	}
	return !d.ending
}

// evict closes the connection that has been kept for longest. Where there is
// none, d.room is signalled when a silent one may go. d.mu is held.
func (d *Daemon) evict() (again *time.Timer) {
	var oldest *ipc.Conn
	for c, p := range d.idle {
		if oldest == nil || p.end().Before(d.idle[oldest].end()) {
			oldest = c
		}
	}
	wait := firstPatience
	if oldest != nil {
		if wait = time.Until(d.idle[oldest].end()); wait <= 0 {
			delete(d.idle, oldest)
			_ = oldest.SetReadDeadline(time.Unix(1, 0)) // its handler ends
			wait = firstPatience
		}
	}
	return time.AfterFunc(wait, d.room.Broadcast)
}

// supervise serves until there is a reason to end, and ends in an order that
// loses nothing: first nothing more is accepted, then everything that was
// accepted is served, then the process goes. What arrives meanwhile waits in the
// socket that systemd holds too, and has the next process started. The error is
// what has kept the daemon from its work.
func (d *Daemon) supervise(signals <-chan os.Signal) error {
	alone := d.waitForPredecessor()
	for _, loop := range d.serve {
		d.loops.Go(loop)
	}
	told, err := d.waitForEnd(signals)
	if told {
		d.stop()
	}
	d.mu.Lock()
	d.ending = true
	d.room.Broadcast()
	for c, p := range d.idle {
		_ = c.SetReadDeadline(p.end())
	}
	d.mu.Unlock()
	// Never shutdown(2) or unlink: that would destroy systemd's socket.
	for _, wake := range d.wakers {
		wake()
	}
	d.loops.Wait()
	if d.handOff && !told && err == nil && d.inUse() {
		if err := d.sockets.Successor(); err != nil {
			d.Log.Warn(nil, "new clients have to wait for sessions to end: %v", err)
		}
	}
	drained := make(chan struct{})
	go func() {
		d.handlers.Wait()
		<-alone
		for _, f := range d.onEnd {
			f()
		}
		close(drained)
	}()
	told = d.drain(drained, signals, told)
	if !told && err == nil {
		d.wakeNext()
	}
	return err
}

// wakeNext has systemd start the next process if something is left to do: by a
// byte in our own FIFO, which nobody reads any more.
func (d *Daemon) wakeNext() {
	d.mu.Lock()
	held := d.holds > 0
	d.mu.Unlock()
	if !held {
		return
	}
	for _, f := range d.fifos {
		// A FIFO that is full wakes as well.
		_ = f.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := f.Write([]byte{0}); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			d.Log.Warn(nil, "what is left to do has to wait for the next client: %v", err)
		}
	}
}

// waitForPredecessor keeps the daemon from going away as long as there is a
// predecessor: until that has gone systemd would not notice, start no process,
// and nobody would be served. The result is closed when it has gone.
func (d *Daemon) waitForPredecessor() <-chan struct{} {
	gone := make(chan struct{})
	d.begin()
	go func() {
		d.sockets.WaitForPredecessor()
		close(gone)
		d.done()
	}()
	return gone
}

// inUse reports whether the end of this process may be far off.
func (d *Daemon) inUse() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.clients > 0 || d.busy > 0
}

// drain waits until all is served. systemd kills after TimeoutStopSec=, and
// sessions are told to end before that, also where the order to stop comes
// while the daemon is going by itself. It returns whether there was one.
func (d *Daemon) drain(drained <-chan struct{}, signals <-chan os.Signal, told bool) bool {
	var patience <-chan time.Time
	if told {
		patience = time.After(stopPatience)
	}
	watchdog := time.NewTicker(watchdogInterval())
	defer watchdog.Stop()
	for {
		select {
		case <-drained:
			return told
		case <-watchdog.C:
			_ = activation.Notify(activation.Alive)
		case s := <-signals:
			if isStop(s) && !told {
				told = true
				d.stop()
				patience = time.After(stopPatience)
			}
		case <-patience:
			d.cancel()
		}
	}
}

// isStop reports whether s asks to end at once; SIGHUP asks for a new process.
func isStop(s os.Signal) bool { return s != syscall.SIGHUP }

// stopPatience is how long a stop waits for what is under way before contexts
// are cancelled. It is shorter than TimeoutStopSec= of the units.
const stopPatience = 10 * time.Second

func watchdogInterval() time.Duration {
	if interval := activation.WatchdogInterval(); interval > 0 {
		return interval
	}
	return time.Hour
}

// waitForEnd returns when the daemon has to end: told to stop, or with an error,
// or because it is time for the next process. Meanwhile it feeds the watchdog.
func (d *Daemon) waitForEnd(signals <-chan os.Signal) (told bool, err error) {
	watchdog := time.NewTicker(watchdogInterval())
	defer watchdog.Stop()
	idle := time.NewTimer(0)
	defer idle.Stop()
	for {
		select {
		case err := <-d.end:
			return false, err
		case s := <-signals:
			return isStop(s), nil
		case <-watchdog.C:
			if err := activation.Notify(activation.Alive); err != nil {
				d.Log.Warn(nil, "%v", err)
			}
		case <-idle.C:
			left, ended := d.idleTime()
			if ended {
				return false, nil
			}
			idle.Reset(left)
		}
	}
}

// idleTime returns how long to wait before asking again, or true where the
// daemon has been idle for max_idle.
func (d *Daemon) idleTime() (time.Duration, bool) {
	limit := d.limits.MaxIdle
	if limit <= 0 {
		return time.Hour, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	left := limit - time.Since(d.lastEnd)
	switch {
	case d.busy > 0:
		return limit, false
	case left > 0:
		return left, false
	}
	return 0, true
}
