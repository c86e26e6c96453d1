// Package ipctest has the other end of a connection for tests: a real socket,
// and peers that say what none of ours says.
package ipctest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"posthouse/pkg/ipc"
)

// Pair returns two connected ends.
func Pair(t testing.TB) (a, b *ipc.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*ipc.Conn
	for i, fd := range fds {
		c, err := ipc.FromFile(os.NewFile(uintptr(fd), "pair"))
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c
		t.Cleanup(func() { _ = c.Close() })
	}
	return ends[0], ends[1]
}

// Encode returns the message that encode makes.
func Encode(encode func(*ipc.Message)) []byte {
	m := ipc.NewMessage()
	encode(m)
	return m.Data()[1:]
}

// Serve is a server of p at a new socket. As a daemon does, it calls handle for
// each message of a client, with the descriptor that came with it; with an error
// of handle the connection ends. At the end of the test it waits for handle to
// return.
func Serve(t testing.TB, p ipc.Protocol, handle func(c *ipc.Conn, msg []byte, file *os.File) error) (path string) {
	t.Helper()
	return serve(t, func(ctx context.Context, nc *net.UnixConn) {
		c, err := ipc.NewConn(nc)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		defer context.AfterFunc(ctx, func() { _ = c.Close() })()
		err = ipc.Greet(c, p)
		for err == nil {
			var msg []byte
			var file *os.File
			if msg, file, err = c.ReceiveFile(p.MaxRequest); err == nil {
				err = handle(c, msg, file)
			}
		}
	})
}

func listen(t testing.TB, each func(*net.UnixConn)) (path string) {
	t.Helper()
	return serve(t, func(_ context.Context, c *net.UnixConn) { each(c) })
}

// serve calls each for each connection to a new socket. At the end of the test
// connections, and what each has been given, end, and it waits for each to return.
func serve(t testing.TB, each func(context.Context, *net.UnixConn)) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ph") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "s")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	var loops sync.WaitGroup
	t.Cleanup(func() {
		_ = ln.Close()
		end()
		loops.Wait()
		_ = os.RemoveAll(dir)
	})
	loops.Go(func() {
		for {
			c, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			loops.Go(func() {
				defer stop()
				defer c.Close()
				each(ctx, c)
			})
		}
	})
	return path
}
