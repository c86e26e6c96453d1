package ipc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var testProtocol = Protocol{Name: "test", Version: 3, MaxRequest: 100, MaxReply: 100}

// pair returns two connected ends.
func pair(t testing.TB) (a, b *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*Conn
	for i, fd := range fds {
		c, err := FromFile(os.NewFile(uintptr(fd), "pair"))
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c
		ends[i].SetDeadline(time.Now().Add(time.Minute))
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}

func TestSizes(t *testing.T) {
	a, b := pair(t)
	for _, size := range []int{0, 1, MaxChunk - 1, MaxChunk, MaxChunk + 1, 2 * MaxChunk, 5*MaxChunk + 17} {
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(i * 7)
		}
		m := NewMessage()
		m.Raw(want)
		for range 2 { // a message can be sent again
			sent := make(chan error, 1)
			go func() { sent <- a.Send(m) }()
			got, err := b.Receive(1 << 20)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("size %d: got %d octets, %v", size, len(got), err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestTooBig(t *testing.T) {
	for _, size := range []int{101, 3 * MaxChunk} {
		a, b := pair(t)
		m := NewMessage()
		m.Raw(make([]byte, size))
		go a.Send(m)
		if got, err := b.Receive(100); !errors.Is(err, ErrTooBig) || got != nil {
			t.Errorf("size %d: %d octets, %v", size, len(got), err)
		}
	}
}

// TestGrowth: a large message costs memory in proportion to its size, and only
// for as long as it is needed.
func TestGrowth(t *testing.T) {
	const size = 8 << 20
	a, b := pair(t)
	m := NewMessage()
	m.Raw(make([]byte, size))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	go func() {
		_ = a.Send(m)
		m.Reset()
		_ = a.Send(m)
	}()
	if _, err := b.Receive(size); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 10*size {
		t.Errorf("%d octets are allocated for %d", n, size)
	}
	if _, err := b.Receive(size); err != nil || len(b.buf) > keepBuffer {
		t.Errorf("a small message after it: %v; %d octets are kept", err, len(b.buf))
	}
}

func TestFile(t *testing.T) {
	a, b := pair(t)
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := NewMessage()
	m.String("x")
	if err := a.SendFile(m, f); err != nil {
		t.Fatal(err)
	}
	_, got, err := b.ReceiveFile(100)
	if err != nil || got == nil {
		t.Fatalf("%v, %v", got, err)
	}
	defer got.Close()
	if text, _ := io.ReadAll(got); string(text) != "content" {
		t.Errorf("read %q", text)
	}
	// A descriptor that nobody asked for is dropped, and the message stands.
	if err := a.SendFile(m, f); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Receive(100); err != nil {
		t.Error(err)
	}
}

func TestTwoDescriptors(t *testing.T) {
	a, b := pair(t)
	if _, err := a.sock.Send([]byte{0, 'x'}, unix.UnixRights(0, 1)); err != nil {
		t.Fatal(err)
	}
	if _, f, err := b.ReceiveFile(100); err == nil || f != nil {
		t.Errorf("two descriptors: %v, %v", f, err)
	}
}

func TestGarbage(t *testing.T) {
	for name, packets := range map[string][]string{
		"flag":                          {"\x02abc"},
		"empty packet in a message":     {"\x01a", "\x01"},
		"end within a message":          {"\x01a"},
		"one octet over the packet max": {string(make([]byte, maxPacket+1))},
	} {
		a, b := pair(t)
		for _, p := range packets {
			if _, err := a.sock.Send([]byte(p), nil); err != nil {
				t.Fatal(err)
			}
		}
		a.Close()
		if got, err := b.Receive(1 << 20); err == nil {
			t.Errorf("%s: %.40q is taken for a message", name, got)
		}
	}
}

// listen serves every connection with serve.
func listen(t *testing.T, serve func(*Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			nc, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			c, err := NewConn(nc)
			nc.Close()
			if err != nil {
				t.Error(err)
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return path
}

func TestCall(t *testing.T) {
	// Each connection answers twice and ends, as a server does that goes away.
	path := listen(t, func(c *Conn) {
		Greet(c, testProtocol)
		for range 2 {
			b, err := c.Receive(100)
			if err != nil {
				return
			}
			m := NewMessage()
			m.Raw(b)
			c.Send(m)
		}
	})
	client := NewClient(path, testProtocol)
	for i := range byte(20) {
		m := NewMessage()
		m.Uint8(i)
		var got []byte
		err := client.Call(t.Context(), m, nil, func(b []byte) error { got = bytes.Clone(b); return nil })
		if err != nil || !bytes.Equal(got, []byte{i}) {
			t.Fatalf("call %d: %q, %v", i, got, err)
		}
	}
}

func TestCallCrash(t *testing.T) {
	// A server that dies on every request gets it twice at most.
	requests := make(chan int, 100)
	path := listen(t, func(c *Conn) {
		Greet(c, testProtocol)
		c.Receive(100)
		requests <- 1
	})
	err := NewClient(path, testProtocol).Call(t.Context(), NewMessage(), nil, func([]byte) error { return nil })
	if err == nil || len(requests) > 2 {
		t.Errorf("%v after %d requests", err, len(requests))
	}
}

func TestGreeting(t *testing.T) {
	for _, p := range []Protocol{{Name: "test", Version: 2}, {Name: "other", Version: 3}} {
		path := listen(t, func(c *Conn) { Greet(c, p) })
		err := NewClient(path, testProtocol).Call(t.Context(), NewMessage(), nil, func([]byte) error { return nil })
		if err == nil {
			t.Errorf("speaks to %v", p)
		}
	}
}

func TestUnavailable(t *testing.T) {
	var off *UnavailableError
	err := NewClient(filepath.Join(t.TempDir(), "none"), testProtocol).Call(t.Context(), NewMessage(), nil, nil)
	if !errors.As(err, &off) {
		t.Errorf("%v", err)
	}
}

// TestBacklogClosed: who waits in the backlog of a socket that is closed hears what
// those hear who come later.
func TestBacklogClosed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := l.(*net.UnixListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	called := make(chan error)
	go func() {
		called <- NewClient(path, testProtocol).Call(t.Context(), NewMessage(), nil, nil)
	}()
	// Readable: somebody waits to be taken.
	err = raw.Control(func(fd uintptr) {
		n, err := 0, error(unix.EINTR) // as by a signal of Go's own
		for err == unix.EINTR {
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		}
		if n != 1 {
			t.Errorf("nobody came: %d, %v", n, err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	var off *UnavailableError
	if err := <-called; !errors.As(err, &off) {
		t.Errorf("%v", err)
	}
}

// TestCancel: a call ends with its context, whatever it waits for.
func TestCancel(t *testing.T) {
	for what, serve := range map[string]func(*Conn){
		"greeting": func(*Conn) {},
		"answer":   func(c *Conn) { Greet(c, testProtocol); c.Receive(100) },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		path := listen(t, func(c *Conn) {
			serve(c)
			cancel()
			// A client that waits on meets the end of the connection.
			c.SetReadDeadline(time.Now().Add(time.Minute))
			c.Receive(100)
		})
		err := NewClient(path, testProtocol).Call(ctx, NewMessage(), nil, nil)
		if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestGrace: a server that hears that its client has to go can still answer; one
// that does not has its time.
func TestGrace(t *testing.T) {
	for _, tt := range []struct {
		grace   time.Duration
		answers bool
	}{{time.Minute, true}, {20 * time.Millisecond, false}} {
		proto := testProtocol
		proto.Grace = tt.grace
		ctx, cancel := context.WithCancel(t.Context())
		path := listen(t, func(c *Conn) {
			Greet(c, testProtocol)
			c.Receive(100)
			ended := make(chan bool)
			stop := c.OnEnd(func() { close(ended) })
			cancel()
			<-ended
			stop()
			if !tt.answers {
				time.Sleep(time.Minute)
			}
			m := NewMessage()
			m.String("half done")
			c.Send(m)
		})
		answered := false
		err := NewClient(path, proto).Call(ctx, NewMessage(), nil, func([]byte) error { answered = true; return nil })
		if answered != tt.answers || !answered && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("grace of %v: answered: %v, %v", tt.grace, answered, err)
		}
	}
}

// TestOnEnd: a watch that is stopped leaves the connection as it was.
func TestOnEnd(t *testing.T) {
	a, b := pair(t)
	for range 3 {
		stop := b.OnEnd(func() { t.Error("the other side is there") })
		m := NewMessage()
		m.String("x")
		if err := a.Send(m); err != nil {
			t.Fatal(err)
		}
		stop()
		if got, err := b.Receive(100); err != nil || len(got) != 5 {
			t.Fatalf("%q, %v", got, err)
		}
		b.OnEnd(func() { t.Error("the other side is there") })()
	}
	a.Close()
	ended := make(chan bool)
	defer b.OnEnd(func() { close(ended) })()
	<-ended
}

// FuzzReceive: any packets give messages or an error, within the limit.
func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x01a"), []byte("\x00b"))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		if len(one) == 0 || len(two) == 0 || len(one) > 1000 || len(two) > 1000 {
			return
		}
		a, b := pair(t)
		a.sock.Send(one, nil)
		a.sock.Send(two, nil)
		a.Close()
		got, err := b.Receive(500)
		if err == nil {
			want := one[1:]
			if one[0] == flagMore {
				want = append(bytes.Clone(want), two[1:]...)
			}
			if !bytes.Equal(got, want) || len(got) > 500 {
				t.Fatalf("%q and %q give %q", one, two, got)
			}
		} else if got != nil {
			t.Fatalf("error %v with %q", err, got)
		}
	})
}
