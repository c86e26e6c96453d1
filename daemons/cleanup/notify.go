package main

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/arrival"
	"posthouse/pkg/queueid"
)

// notifier tells qmgr of new messages. It never holds anybody up: a notice that
// would have to wait is left to a goroutine, which exists while there are any,
// and what arrives meanwhile goes with the next one. Where qmgr cannot be told, a
// byte in its FIFO asks it to look.
type notifier struct {
	client *ipc.Client
	fifo   string
	log    logger
	hold   func() (release func()) // keeps the daemon from going away meanwhile

	mu      sync.Mutex
	pending []queueid.ID
	running bool
	wg      sync.WaitGroup
	closing chan struct{}

	connMu sync.Mutex
	conn   *ipc.Conn
}

// Bounds of one notice. What is not sent by then is found by a scan.
const (
	connectTimeout = 10 * time.Second
	sendTimeout    = 5 * time.Second
	maxPending     = 10 * arrival.MaxIDs
	offPause       = time.Second // until a qmgr that is switched off is tried again
)

func newNotifier(path, fifo string, log logger) *notifier {
	return &notifier{
		client: ipc.NewClient(path, arrival.Protocol), fifo: fifo, log: log,
		hold: func() func() { return func() {} }, closing: make(chan struct{}),
	}
}

// wake has qmgr started.
func (n *notifier) wake() {
	n.wg.Go(func() {
		n.connMu.Lock()
		defer n.connMu.Unlock()
		if n.conn == nil {
			_, _ = n.connect() // the notice will tell
		}
	})
}

// add has qmgr told of a message.
func (n *notifier) add(id queueid.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.running && n.tell(id) {
		return
	}
	if len(n.pending) < maxPending { // more are found by the scan that too many cause
		n.pending = append(n.pending, id)
	}
	if !n.running {
		n.running = true
		release := n.hold()
		n.wg.Go(func() {
			defer release()
			n.run()
		})
	}
}

// tell sends a notice if there is a connection that takes it at once. Anything
// else is for run.
func (n *notifier) tell(id queueid.ID) bool {
	if !n.connMu.TryLock() {
		return false
	}
	defer n.connMu.Unlock()
	if n.conn == nil {
		return false
	}
	m := ipc.NewMessage()
	arrival.Encode(m, []queueid.ID{id})
	return n.conn.TrySend(m) == nil
}

// close waits until everything is said. It is called once.
func (n *notifier) close() {
	close(n.closing)
	n.wg.Wait()
	n.connMu.Lock()
	defer n.connMu.Unlock()
	n.drop(n.conn)
}

func (n *notifier) run() {
	for {
		n.mu.Lock()
		ids := n.pending
		n.pending = nil
		n.running = len(ids) > 0
		n.mu.Unlock()
		if len(ids) == 0 {
			return
		}
		overflow, off := len(ids) == maxPending, false
		for len(ids) > 0 {
			piece := ids[:min(len(ids), arrival.MaxIDs)]
			ids = ids[len(piece):]
			if err := n.send(piece); err != nil {
				var unavailable *ipc.UnavailableError
				if off = errors.As(err, &unavailable); !off {
					n.log.Warn(nil, "notice to qmgr: %v", err)
				}
				overflow, ids = true, nil
			}
		}
		if overflow {
			n.look()
		}
		if off {
			n.pause()
		}
	}
}

// pause gathers what arrives while qmgr is off, so that not every message has to
// find that out.
func (n *notifier) pause() {
	select {
	case <-time.After(offPause):
	case <-n.closing:
	}
}

// send sends one notice. A connection that turns out to be dead is replaced
// once: qmgr may have come and gone.
func (n *notifier) send(ids []queueid.ID) error {
	m := ipc.NewMessage()
	arrival.Encode(m, ids)
	n.connMu.Lock()
	defer n.connMu.Unlock()
	if n.conn != nil {
		if n.sendOn(n.conn, m) == nil {
			return nil
		}
		n.drop(n.conn)
	}
	conn, err := n.connect()
	if err != nil {
		return err
	}
	if err := n.sendOn(conn, m); err != nil {
		n.drop(conn)
		return err
	}
	return nil
}

func (n *notifier) sendOn(conn *ipc.Conn, m *ipc.Message) error {
	// Only what is sent here has a time limit; watch waits as long as it takes.
	if err := errors.Join(conn.SetDeadline(time.Now().Add(sendTimeout)), conn.SetReadDeadline(time.Time{})); err != nil {
		return err
	}
	return errors.Join(conn.Send(m), conn.SetDeadline(time.Time{}))
}

// connect makes a new connection; connMu is held.
func (n *notifier) connect() (*ipc.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	conn, _, err := n.client.Get(ctx)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		_ = conn.Close() // unused
		return nil, err
	}
	n.conn = conn
	go n.watch(conn)
	return conn, nil
}

// drop closes a connection; connMu is held.
func (n *notifier) drop(conn *ipc.Conn) {
	if conn == nil {
		return
	}
	_ = conn.Close() // what was sent is not lost by that
	if n.conn == conn {
		n.conn = nil
	}
}

// watch waits for the end of a connection. Notices have no answer, so a qmgr
// that goes away while one is on its way would leave a message lying about. But
// the kernel tells: a socket that is closed with something unread resets the
// connection. A byte in the FIFO then outlives that qmgr and starts the next.
func (n *notifier) watch(conn *ipc.Conn) {
	_, err := conn.Receive(0)
	if errors.Is(err, syscall.ECONNRESET) {
		n.look()
	}
	n.connMu.Lock()
	defer n.connMu.Unlock()
	n.drop(conn)
}

// look asks qmgr to scan. Where nobody reads the FIFO qmgr is switched off, and
// scans when it is switched on; where it is full qmgr is about to look anyway.
func (n *notifier) look() {
	err := writeByte(n.fifo)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.EAGAIN):
	default:
		n.log.Warn(nil, "%s: %v", n.fifo, err)
	}
}

func writeByte(fifo string) error {
	fd, err := unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte{1})
	return errors.Join(err, unix.Close(fd))
}
