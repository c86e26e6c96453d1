package daemon

import (
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"

	"posthouse/pkg/activation"
)

// signals are the orders from systemd. Each channel has room for one: more of
// the same say nothing new.
type signals struct {
	term chan os.Signal // SIGTERM, SIGINT: end at once
	hup  chan os.Signal // SIGHUP: let a new process take over
}

// catchHup is called first thing, before the configuration is read. A successor
// is the main process of the unit from its first moment on, and SIGHUP must not
// kill it; its predecessor has had it ignored until here, see handOver.
func (s *signals) catchHup() {
	s.hup = make(chan os.Signal, 1)
	signal.Notify(s.hup, syscall.SIGHUP)
}

// catchTerm is called when there may be clients, which must not be cut off.
// Before that SIGTERM ends the process, whatever its start-up is waiting for.
func (s *signals) catchTerm() {
	s.term = make(chan os.Signal, 1)
	signal.Notify(s.term, syscall.SIGTERM, syscall.SIGINT)
}

// supervise serves until there is a reason to end, and ends in an order that
// loses nothing: first nothing more is accepted, then everything that was
// accepted is served, then the process goes. What arrives meanwhile waits in the
// socket that systemd holds too, and has the next process started. The error is
// what has kept the daemon from its work.
func (d *Daemon) supervise() error {
	alone := d.waitForPredecessor()
	for _, loop := range d.serve {
		d.loops.Go(loop)
	}
	told, err := d.waitForEnd()
	if told {
		d.tell()
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
	known := make(chan struct{}) // the successor, to systemd
	if d.handOff && !told && err == nil && d.inUse() {
		d.handOver(known)
	} else {
		close(known)
	}
	drained := make(chan bool)
	go func() {
		d.handlers.Wait()
		<-alone
		<-known
		left := d.held() // OnEnd may hold the daemon while it tidies up
		for _, f := range d.onEnd {
			f()
		}
		drained <- left
	}()
	left, told := d.drain(drained, told)
	if left && !told && err == nil {
		d.wakeNext()
	}
	return err
}

// tell has sessions end as soon as their protocol allows it. Only here systemd
// hears of the end: its limit for a stop is not for a process that goes by
// itself, whose sessions may take their time.
func (d *Daemon) tell() {
	d.stop()
	if err := activation.Notify(activation.Stopping); err != nil {
		d.Log.Warn(nil, "%v", err)
	}
	// It may have come too late to hear what all processes of the unit were told.
	if d.successor != nil {
		_ = d.successor.Signal(syscall.SIGTERM) // it may have gone
	}
	// With KillMode=mixed only the main process is told.
	d.sockets.TellPredecessor(syscall.SIGTERM)
}

// barrierTime is how long systemd may take to hear of a successor.
const barrierTime = 30 * time.Second

// handOver starts the successor, and closes known when systemd knows it.
func (d *Daemon) handOver(known chan<- struct{}) {
	// Ignored signals stay ignored in a new program until it asks for them; for
	// this process SIGHUP has no meaning any more.
	signal.Ignore(syscall.SIGHUP)
	var err error
	if d.successor, err = d.sockets.Successor(); err != nil {
		d.Log.Warn(nil, "new clients have to wait for sessions to end: %v", err)
		close(known)
		return
	}
	go d.watch()
	go func() {
		defer close(known)
		if err := activation.Barrier(barrierTime); err != nil {
			d.Log.Warn(nil, "systemd may not know the process that takes over: %v", err)
		}
	}()
}

// watch has the daemon end as if told where its successor ends before it, which
// is in no order: systemd may have told that one to stop, and not this one, before
// it could hear it, or it has failed. systemd starts no other process while this one
// is there.
func (d *Daemon) watch() {
	d.sockets.WaitForSuccessor()
	d.Log.Warn(nil, "the process that was to take over has ended")
	select {
	case d.signals.term <- syscall.SIGTERM:
	default: // it has been told
	}
}

func (d *Daemon) held() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.holds > 0
}

// wakeNext has systemd start the next process, for what is left to do: by a byte
// in our own FIFO, which nobody reads any more.
func (d *Daemon) wakeNext() {
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
	d.follows = true
	go func() {
		d.sockets.WaitForPredecessor()
		close(gone)
		d.done()
		d.mu.Lock()
		d.follows = false
		d.endIfUsedUp()
		d.mu.Unlock()
	}()
	return gone
}

// inUse reports whether the end of this process may be far off: whether there is
// more than connections that may be closed.
func (d *Daemon) inUse() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	inUse := d.clients
	for _, p := range d.idle {
		if !time.Now().Before(p.end()) {
			inUse--
		}
	}
	return inUse > 0 || d.busy > 0
}

// drain waits until all is served, and passes on whether something is left.
// systemd kills after TimeoutStopSec=, and sessions are told to end before that,
// also where the order to stop comes while the daemon is going by itself.
func (d *Daemon) drain(drained <-chan bool, told bool) (left, stopped bool) {
	var patience <-chan time.Time
	if told {
		patience = time.After(stopPatience)
	}
	watchdog := time.NewTicker(watchdogInterval())
	defer watchdog.Stop()
	for {
		select {
		case left := <-drained:
			select {
			case <-d.signals.term: // came at the same time, and the successor may not have heard of it
				if !told {
					told = true
					d.tell()
				}
			default:
			}
			return left, told
		case <-watchdog.C:
			_ = activation.Notify(activation.Alive)
		case <-d.signals.term:
			if !told {
				told = true
				d.tell()
				patience = time.After(stopPatience)
			}
		case <-patience:
			d.cancel()
		}
	}
}

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
func (d *Daemon) waitForEnd() (told bool, err error) {
	watchdog := time.NewTicker(watchdogInterval())
	defer watchdog.Stop()
	idle := time.NewTimer(0)
	defer idle.Stop()
	for {
		select {
		case err := <-d.end:
			return false, err
		case <-d.signals.term:
			return true, nil
		case <-d.signals.hup:
			return false, nil
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
