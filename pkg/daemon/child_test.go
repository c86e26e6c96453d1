package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"posthouse/pkg/activation"
	"posthouse/pkg/ipc"
)

// The tests run this program again as a daemon, in one of several modes.
const (
	envMode   = "POSTHOUSE_TEST_MODE"
	envConfig = "POSTHOUSE_TEST_CONFIG"
)

func TestMain(m *testing.M) {
	if mode, ok := os.LookupEnv(envMode); ok {
		os.Exit(status(os.Getenv(envConfig), "showq", func(d *Daemon) error { return setup(d, mode) }))
	}
	os.Exit(m.Run())
}

// setup serves streams at "s", packets at "i" and the FIFO "f", where they are
// passed.
func setup(d *Daemon, mode string) error {
	s := &server{d: d}
	switch mode {
	case "plain":
	case "handoff":
		d.HandOff()
	case "hang":
		d.HandOff()
		if _, err := os.Stat(filepath.Join(os.Getenv(envConfig), "hang")); err == nil {
			fmt.Println("hangs")
			time.Sleep(bound)
		}
	case "loop":
		d.HandOff()
		wake := make(chan struct{})
		d.Loop(func() { close(wake) }, func() {
			fmt.Println("loop begins", os.Getpid())
			<-wake
			// Room for a successor that does not wait.
			time.Sleep(50 * time.Millisecond)
			fmt.Println("loop ends", os.Getpid(), d.Ending())
		})
	case "limits by socket":
		d.LimitsBySocket("dns")
		d.LimitsBySocket("smtp")
		defer s.listen()
		return d.Stream("smtp", s.session)
	case "impatient":
		answerTimeout = 10 * time.Millisecond
	case "per user":
		d.PerUser(2)
	case "hold":
		s.release = d.Hold()
	case "hold at the end":
		s.release = d.Hold() // or it could go before its client is taken
		d.OnEnd(func() { d.Hold() })
	case "slow":
		if err := activation.Notify("STATUS=setup begins"); err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond) // room for a READY=1 that does not wait
		if err := activation.Notify("STATUS=setup ends"); err != nil {
			return err
		}
	default:
		return errors.New("setup: no mode " + mode)
	}
	d.OnEnd(func() { fmt.Println("on end", s.sessions.Load(), s.requests.Load()) })
	if err := d.Stream("s", s.session); err != nil {
		return err
	}
	if err := d.IPC("i", testProtocol, s.request); err != nil {
		return err
	}
	if err := d.FIFO("f", func() { fmt.Println("look", os.Getpid()) }); err != nil {
		return err
	}
	s.listen()
	return nil
}

// listen has s know when nobody is accepted any more; the sockets are set up by then.
func (s *server) listen() {
	s.d.Loop(func() { s.deaf.Store(true) }, func() {}) // woken after all others
}

type server struct {
	d        *Daemon
	release  func()
	sessions atomic.Int32 // under way
	requests atomic.Int32 // under way
	deaf     atomic.Bool  // nobody is accepted any more
}

// session says hello with the number of sessions under way, and does what each
// line asks for.
func (s *server) session(ctx context.Context, c net.Conn) {
	fmt.Fprintln(c, "hello", s.sessions.Add(1))
	defer s.sessions.Add(-1)
	defer context.AfterFunc(s.d.Stopping(), func() {
		if ctx.Err() == nil {
			fmt.Fprintln(c, "stopping")
		}
	})()
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		switch lines.Text() {
		case "pid":
			fmt.Fprintln(c, os.Getpid())
		case "origin":
			fmt.Fprintln(c, s.d.Config().Origin)
		case "ending":
			fmt.Fprintln(c, s.d.Ending() && s.deaf.Load())
		case "waiting":
			s.d.mu.Lock()
			idle, clients := len(s.d.idle), s.d.clients
			s.d.mu.Unlock()
			fmt.Fprintf(c, "%d of %d\n", idle, clients)
		case "hup": // from outside it might hit a process that is not there any more
			fmt.Fprintln(c, syscall.Kill(os.Getpid(), syscall.SIGHUP))
		case "release":
			s.release()
			fmt.Fprintln(c, "released")
		case "stubborn":
			<-ctx.Done()
			fmt.Fprintln(c, "cancelled")
			return
		case "panic":
			panic("a bug in a handler")
		case "quit":
			return
		}
	}
}

var testProtocol = ipc.Protocol{Name: "test", Version: 1, MaxRequest: 100, MaxReply: 100}

// request answers with the number of this process, when there is a file of the
// name that msg holds, if any.
func (s *server) request(_ context.Context, c *ipc.Conn, msg []byte, file *os.File) error {
	s.requests.Add(1)
	defer s.requests.Add(-1)
	if file != nil {
		return errors.Join(errors.New("a file"), file.Close())
	}
	if name := string(msg); name != "" {
		fmt.Println("waits")
		for { // until somebody makes this file
			if _, err := os.Stat(filepath.Join(os.Getenv(envConfig), name)); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	m := ipc.NewMessage()
	m.Int64(int64(os.Getpid()))
	return c.Send(m)
}
