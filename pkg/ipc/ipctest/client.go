package ipctest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
)

// Dialogue is what a client and its server say to each other in one call.
type Dialogue struct {
	Protocol ipc.Protocol
	// Turns are the messages of the server, in their order, each of one packet;
	// nil stands for a message of the client.
	Turns [][]byte
	// Call talks to the server at path with a client of its own.
	Call func(ctx context.Context, path string) (result any, err error)
}

// enough bounds a call that has no reason to wait. It is less than what a client
// waits that nobody tells to stop.
const enough = 30 * time.Second

// soon is when a client that waits for a silent server is told to stop.
const soon = 50 * time.Millisecond

// TestClient checks that a client bears whatever its server does: in place of
// each thing that the server has to say there is an error, no result, no verdict
// on the mail, and nothing is kept open.
func TestClient(t *testing.T, d Dialogue) {
	t.Run("in order", func(t *testing.T) {
		if _, err := d.Call(t.Context(), listen(t, d.peer(-1, nil))); err != nil {
			t.Error(err)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		var off *ipc.UnavailableError
		if err := d.fails(t, t.Context(), "/nonexistent/socket"); !errors.As(err, &off) {
			t.Errorf("%v is not an UnavailableError", err)
		}
	})
	for i, right := range d.script() {
		if right == nil {
			continue
		}
		for name, wrong := range d.hostile(i, right) {
			t.Run(fmt.Sprintf("%s at %d", name, i), func(t *testing.T) { d.hostility(t, i, wrong) })
		}
		t.Run(fmt.Sprintf("silence at %d", i), func(t *testing.T) { d.silence(t, i) })
		t.Run(fmt.Sprintf("descriptors at %d", i), func(t *testing.T) { d.descriptors(t, i, right) })
	}
}

// script is all that is said on a connection.
func (d Dialogue) script() [][]byte { return append([][]byte{greeting(d.Protocol)}, d.Turns...) }

func greeting(p ipc.Protocol) []byte {
	return Encode(func(m *ipc.Message) {
		m.String(p.Name)
		m.Uint8(p.Version)
	})
}

// peer is a server that keeps to the script but for the i-th message, in place
// of which it does wrong, and goes on only if that returns true.
func (d Dialogue) peer(i int, wrong func(*net.UnixConn) bool) func(*net.UnixConn) {
	return func(c *net.UnixConn) {
		for k, text := range d.script() {
			switch {
			case k == i:
				if !wrong(c) {
					return
				}
			case text == nil:
				if hear(c, d.Protocol.MaxRequest) != nil {
					return
				}
			default:
				say(c, text)
			}
		}
		waitForEnd(c)
	}
}

// fails makes one call, which has to fail.
func (d Dialogue) fails(t *testing.T, ctx context.Context, path string) error {
	t.Helper()
	result, err := d.Call(ctx, path)
	var verdict *dsn.Error
	switch {
	case err == nil:
		t.Errorf("no error, but %+v", result)
	case result != nil && !reflect.ValueOf(result).IsZero():
		t.Errorf("%v, and yet %+v", err, result)
	case errors.As(err, &verdict):
		t.Errorf("%v is a verdict", err)
	}
	return err
}

// hostile is what a server may do in place of the message right, the i-th.
func (d Dialogue) hostile(i int, right []byte) map[string]func(*net.UnixConn) {
	packet := func(flag byte, text []byte) func(*net.UnixConn) {
		return func(c *net.UnixConn) { _, _ = c.Write(append([]byte{flag}, text...)) }
	}
	bad := map[string]func(*net.UnixConn){
		"end":            func(c *net.UnixConn) { _ = c.Close() },
		"cut off":        func(c *net.UnixConn) { packet(1, right)(c); _ = c.Close() },
		"bad packet":     packet(2, right),
		"no packet":      func(c *net.UnixConn) { _, _ = c.Write(nil) },
		"empty":          packet(0, nil),
		"garbage":        packet(0, bytes.Repeat([]byte{0xff}, 100)),
		"too short":      packet(0, right[:len(right)-1]),
		"too long":       packet(0, append(bytes.Clone(right), 0)),
		"over the limit": func(c *net.UnixConn) { say(c, make([]byte, d.Protocol.MaxReply+1)) },
	}
	if i == 0 {
		older, other := d.Protocol, d.Protocol
		older.Version--
		other.Name = "x" + other.Name
		bad["older version"], bad["other protocol"] = packet(0, greeting(older)), packet(0, greeting(other))
	}
	return bad
}

func (d Dialogue) hostility(t *testing.T, i int, wrong func(*net.UnixConn)) {
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	err := d.fails(t, ctx, listen(t, d.peer(i, func(c *net.UnixConn) bool {
		wrong(c)
		waitForEnd(c)
		return false
	})))
	if ctx.Err() != nil {
		t.Errorf("waits until it is told to stop: %v", err)
	}
}

// silence checks that a client waits as long as its context lets it.
func (d Dialogue) silence(t *testing.T, i int) {
	for name, ends := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"deadline": func(ctx context.Context) (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, soon) },
		"cancel": func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(soon, cancel)
			return ctx, cancel
		},
	} {
		ctx, cancel := ends(t.Context())
		done := make(chan struct{})
		err := d.fails(t, ctx, listen(t, d.peer(i, func(*net.UnixConn) bool {
			select {
			case <-done: // whatever the client says meanwhile
			case <-time.After(enough): // then it sees the end
			}
			return false
		})))
		close(done)
		cancel()
		// The time may be over before it has connected: then the error is another one.
		if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, context.Canceled) &&
			!errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// descriptors passes descriptors that nobody has asked for with the message
// right, the i-th. The message stands, and the client keeps none of them.
func (d Dialogue) descriptors(t *testing.T, i int, right []byte) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sent := make(chan error, 1)
	_, err = d.Call(t.Context(), listen(t, d.peer(i, func(c *net.UnixConn) bool {
		fd := int(w.Fd())
		_, _, err := c.WriteMsgUnix(append([]byte{0}, right...), unix.UnixRights(fd, fd), nil)
		sent <- errors.Join(err, w.Close())
		return true
	})))
	if err := errors.Join(err, <-sent); err != nil {
		t.Error(err)
	}
	// The end comes when nobody has the other end any more.
	_ = r.SetReadDeadline(time.Now().Add(enough))
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a descriptor is kept: %v", err)
	}
}

// say sends a message; that the client has gone shows later.
func say(c *net.UnixConn, text []byte) {
	m := ipc.NewMessage()
	m.Raw(text)
	if conn, err := ipc.NewConn(c); err == nil {
		_ = conn.Send(m)
		_ = conn.Close()
	}
}

// hear receives a message.
func hear(c *net.UnixConn, limit int) error {
	conn, err := ipc.NewConn(c)
	if err == nil {
		_, err = conn.Receive(limit)
		err = errors.Join(err, conn.Close())
	}
	return err
}

// waitForEnd reads until the client is gone.
func waitForEnd(c *net.UnixConn) { _, _ = io.Copy(io.Discard, c) }
