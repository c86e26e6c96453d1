package rawsock

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns two connected UNIX sockets of type kind.
func pair(t *testing.T, kind int) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns []*net.UnixConn
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns = append(conns, c.(*net.UnixConn))
	}
	return conns[0], conns[1]
}

// packets is pair for packets, as daemons have them.
func packets(t *testing.T) (a, b *Unix) {
	t.Helper()
	var ends [2]*Unix
	ca, cb := pair(t, unix.SOCK_SEQPACKET)
	for i, c := range []*net.UnixConn{ca, cb} {
		u, err := NewUnix(c)
		if err = errors.Join(err, c.Close()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() })
		ends[i] = u
	}
	return ends[0], ends[1]
}

func TestPackets(t *testing.T) {
	ca, cb := packets(t)
	a, b := New(ca), New(cb)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	rights := unix.UnixRights(int(file.Fd()))
	if n, err := a.Send([]byte("one"), rights); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := a.Send([]byte("second"), nil); n != 6 || err != nil {
		t.Fatal(n, err)
	}
	p, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, err := b.Receive(p, oob)
	if string(p[:n]) != "one" || oobn != len(rights) || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || err != nil {
		t.Errorf("%q, %d octets of control data, flags %x, %v", p[:n], oobn, flags, err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatal(messages, err)
	}
	passed, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(passed) != 1 {
		t.Fatal(passed, err)
	}
	if flags, err := unix.FcntlInt(uintptr(passed[0]), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the descriptor would be inherited: flags %x, %v", flags, err)
	}
	unix.Close(passed[0])
	if n, oobn, flags, err = b.Receive(p, oob); string(p[:n]) != "seco" || oobn != 0 || flags&unix.MSG_TRUNC == 0 || err != nil {
		t.Errorf("a packet that is too long: %q, %d, %x, %v", p[:n], oobn, flags, err)
	}
	// A later call waits, and an end is no error of the call.
	got := make(chan error, 1)
	go func() {
		n, _, _, err := b.Receive(p, nil)
		if n != 0 {
			err = errors.New("something")
		}
		got <- err
	}()
	ca.Close()
	if err := <-got; err != nil {
		t.Errorf("at the end: %v", err)
	}
	if _, err := b.Send([]byte("x"), nil); !errors.Is(err, unix.EPIPE) {
		t.Errorf("to nobody: %v", err)
	}
	if _, err := a.Send([]byte("x"), nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestFull: what does not fit waits, or does not where it must not, and a
// deadline ends the wait.
func TestFull(t *testing.T) {
	ca, cb := packets(t)
	a, b := New(ca), New(cb)
	packet := make([]byte, 1000)
	sent := fill(t, a, packet)
	if err := ca.SetDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if n, err := a.Send(packet, nil); n != 0 || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%d, %v, want a time-out", n, err)
	}
	if err := ca.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := a.Send(packet, nil)
		done <- err
	}()
	for range sent + 1 {
		if n, _, _, err := b.Receive(packet, nil); n != len(packet) || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := cb.SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := b.Receive(packet, nil); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%v, want a time-out", err)
	}
}

// fill sends packets until no more fit, and returns how many it were.
func fill(t *testing.T, s *Socket, packet []byte) (sent int) {
	t.Helper()
	for ; ; sent++ {
		_, err := s.TrySend(packet, nil)
		if errors.Is(err, unix.EAGAIN) {
			return sent
		}
		if err != nil || sent > 1_000_000 {
			t.Fatal(sent, err)
		}
	}
}

// TestQuiet: that what was sent has been taken wakes nobody; what arrives does, and
// so does the end.
func TestQuiet(t *testing.T) {
	ca, cb := packets(t)
	a, b := New(ca), New(cb)
	woken := func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(ca.in.Fd()), Events: unix.POLLIN | unix.POLLOUT}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
	p := make([]byte, 10)
	for range 3 {
		if _, err := a.Send([]byte("x"), nil); err != nil {
			t.Fatal(err)
		}
		if n, _, _, err := b.Receive(p, nil); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if woken() {
			t.Error("woken by what was taken")
		}
	}
	if _, err := b.Send([]byte("x"), nil); err != nil || !woken() {
		t.Errorf("not woken by what arrives; %v", err)
	}
	if n, _, _, err := a.Receive(p, nil); n != 1 || err != nil || woken() {
		t.Errorf("%d, %v, or still woken", n, err)
	}
	if err := cb.CloseWrite(); err != nil || !woken() {
		t.Errorf("not woken by the end; %v", err)
	}
}

// TestEndOfWaits: a deadline that is set later, and Close, end what waits already.
func TestEndOfWaits(t *testing.T) {
	for what, end := range map[string]struct {
		do   func(*Unix) error
		want error
	}{
		"deadline": {func(u *Unix) error { return u.SetDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		"close":    {(*Unix).Close, net.ErrClosed},
	} {
		c, _ := packets(t)
		s := New(c)
		fill(t, s, make([]byte, 1000))
		receives, sends := make(chan error, 1), make(chan error, 1)
		go func() {
			_, _, _, err := s.Receive(make([]byte, 1), nil)
			receives <- err
		}()
		go func() {
			_, err := s.Send(make([]byte, 1000), nil)
			sends <- err
		}()
		for waits := false; !waits; time.Sleep(time.Millisecond) {
			c.mu.Lock()
			waits = c.out != nil
			c.mu.Unlock()
		}
		if err := end.do(c); err != nil {
			t.Error(what, err)
		}
		for call, err := range map[string]error{"receive": <-receives, "send": <-sends} {
			if !errors.Is(err, end.want) {
				t.Errorf("%s: %s: %v", what, call, err)
			}
		}
		if _, err := s.Send([]byte("x"), nil); !errors.Is(err, end.want) {
			t.Errorf("%s: later: %v", what, err)
		}
	}
	c, _ := packets(t)
	if err := errors.Join(c.Close(), c.Control(func(uintptr) { t.Error("closed, and used") })); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"close": c.Close(), "close write": c.CloseWrite(), "deadline": c.SetDeadline(time.Time{}), "write deadline": c.SetWriteDeadline(time.Time{}),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestStream(t *testing.T) {
	ca, cb := pair(t, unix.SOCK_STREAM)
	a, ok := Wrap(ca).(*Conn)
	b, ok2 := Wrap(cb).(*Conn)
	if !ok || !ok2 {
		t.Fatal("not wrapped")
	}
	if n, err := b.Peek(); n != 0 || !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nothing there: %d, %v", n, err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef\r\n"), 100_000) // more than fits
	go func() {
		if n, err := a.Write(want); n != len(want) || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
		if err := a.CloseWrite(); err != nil {
			t.Error(err)
		}
	}()
	got := make([]byte, 10)
	if n, err := io.ReadFull(b, got); err != nil {
		t.Fatal(n, err)
	}
	if n, err := b.Peek(); n != 1 || err != nil {
		t.Errorf("more there: %d, %v", n, err)
	}
	rest, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(append(got, rest...), want) {
		t.Errorf("%d octets arrived of %d, %v", len(got)+len(rest), len(want), err)
	}
	if n, err := b.Peek(); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if n, err := b.Read(nil); n != 0 || err != nil {
		t.Errorf("nothing asked for: %d, %v", n, err)
	}
	if pipe, _ := net.Pipe(); Wrap(pipe) != pipe {
		t.Error("no socket, and wrapped")
	}
}

// TestNone: what is no socket any more is an error.
func TestNone(t *testing.T) {
	s := New(new(net.TCPConn))
	if _, err := s.Send([]byte("x"), nil); err == nil {
		t.Error("sent to nothing")
	}
	if _, _, _, err := s.Receive(make([]byte, 1), nil); err == nil {
		t.Error("received from nothing")
	}
	if err := Send(-1, []byte("x")); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v", err)
	}
}
