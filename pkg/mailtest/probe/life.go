package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/addr"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/cleanup"
)

// stall is longer than any machine takes to start a daemon and greet.
const stall = 30 * time.Second

// connect opens n sessions in several workers, each after a pause of its own, and
// prints how many were served, how the others failed, and how long the slowest took.
func connect(address string, n, workers int, pause time.Duration) error {
	var mu sync.Mutex
	var slowest time.Duration
	count := make(map[string]int)
	err := each(n, workers, func(int) error {
		time.Sleep(rand.N(pause + 1))
		start := time.Now()
		err := greetAndQuit(address)
		took := time.Since(start)
		how := outcome(err, took)
		mu.Lock()
		defer mu.Unlock()
		count[how]++
		slowest = max(slowest, took)
		if how != "served" {
			return fmt.Errorf("%s: %w", how, err)
		}
		return nil
	})
	fmt.Printf("served %d, refused %d, reset %d, stalled %d, other %d; slowest %v\n",
		count["served"], count["refused"], count["reset"], count["stalled"], count["other"], slowest.Round(time.Millisecond))
	return err
}

func greetAndQuit(address string) error {
	s, err := dial(address)
	if err != nil {
		return err
	}
	defer s.Close()
	return s.steps([2]string{"", "220"}, [2]string{"QUIT", "221"})
}

func outcome(err error, took time.Duration) string {
	var timeout net.Error
	switch {
	case took > stall, errors.As(err, &timeout) && timeout.Timeout():
		return "stalled"
	case err == nil:
		return "served"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF):
		return "reset"
	}
	return "other"
}

// half is the beginning of a message: more than anybody keeps in a buffer.
var half = "Subject: held\r\n\r\n" + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 3000)

// untilReleased says that everything is open, and waits for the end of standard input.
func untilReleased() error {
	fmt.Println("open")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// hold opens n sessions, and goes as far as the middle of a message where it has
// a sender and a recipient. When standard input ends it finishes them all.
func hold(address string, n int, envelope []string) error {
	end := [][2]string{{"NOOP", "250"}, {"QUIT", "221"}}
	if len(envelope) == 2 {
		end[0] = [2]string{"the end\r\n.", "250"}
	}
	var sessions []*session
	for range n {
		s, err := open(address)
		if err != nil {
			return err
		}
		defer s.Close()
		if len(envelope) == 2 {
			if err := s.begin(envelope[0], envelope[1]); err != nil {
				return err
			}
		}
		sessions = append(sessions, s)
	}
	if err := untilReleased(); err != nil {
		return err
	}
	for _, s := range sessions {
		if err := s.steps(end...); err != nil {
			return err
		}
	}
	fmt.Println("closed")
	return nil
}

// begin sends a message but for its end.
func (s *session) begin(from, to string) error {
	err := s.steps([2]string{"MAIL FROM:<" + from + ">", "250"}, [2]string{"RCPT TO:<" + to + ">", "250"}, [2]string{"DATA", "354"})
	if err != nil {
		return err
	}
	_, err = io.WriteString(s, half)
	return err
}

// submit is hold for messages to pickup, such as a local user can send who does
// not use sendmail.
func submit(socket string, n int, from, to string) error {
	sender, err := addr.Parse(from)
	if err != nil {
		return err
	}
	rcpt, err := addr.Parse(to)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	client := cleanup.NewClient(socket)
	var messages []*cleanup.Transaction
	for range n {
		m, err := client.Begin(ctx, &envelope.Envelope{Sender: sender, Recipients: []envelope.Recipient{{Address: rcpt, Original: rcpt}}})
		if err == nil {
			_, err = io.WriteString(m, half)
		}
		if err != nil {
			return err
		}
		messages = append(messages, m)
	}
	if err := untilReleased(); err != nil {
		return err
	}
	for _, m := range messages {
		if err := m.Commit(); err != nil {
			return err
		}
	}
	fmt.Println("closed")
	return nil
}

// latency sends messages, one after the other:
//
//	latency ADDRESS FROM TO DIR N
//
// It prints for each after how many microseconds since the connect there were the
// greeting, the reply to the message, and a new file in DIR.
func latency(args []string) error {
	if len(args) != 5 {
		return errors.New("latency: not five arguments")
	}
	dir := args[3]
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	w := stopwatch{address: args[0], from: args[1], to: args[2], events: events}
	for range number(args[4]) {
		t, err := w.message()
		if err != nil {
			return err
		}
		fmt.Println(t.greeted.Microseconds(), t.taken.Microseconds(), t.arrived.Microseconds())
	}
	return nil
}

// stopwatch times messages whose arrival makes an event.
type stopwatch struct {
	address, from, to string
	events            *os.File
}

type timing struct{ greeted, taken, arrived time.Duration }

func (w stopwatch) message() (t timing, err error) {
	start := time.Now()
	if err := w.events.SetReadDeadline(start.Add(patience)); err != nil {
		return t, err
	}
	s, err := dial(w.address)
	if err != nil {
		return t, err
	}
	defer s.Close()
	if _, err := s.ask("", "220"); err != nil {
		return t, err
	}
	t.greeted = time.Since(start)
	if _, err := s.ask("EHLO probe.example", "250"); err != nil {
		return t, err
	}
	// The file may be there before the reply has been read.
	type arrival struct {
		after time.Duration
		err   error
	}
	arrived := make(chan arrival, 1)
	go func() {
		_, err := w.events.Read(make([]byte, 4096))
		arrived <- arrival{time.Since(start), err}
	}()
	line := strings.Repeat("x", 76) + "\r\n"
	reply, err := s.message(w.from, w.to, []byte("Subject: how long\r\n\r\n"+strings.Repeat(line, 50)))
	if err == nil && !strings.HasPrefix(reply, "250") {
		err = errors.New(reply)
	}
	if err != nil {
		return t, err
	}
	t.taken = time.Since(start)
	a := <-arrived
	if t.arrived = a.after; a.err != nil {
		return t, fmt.Errorf("no file arrives: %w", a.err)
	}
	return t, s.steps([2]string{"QUIT", "221"})
}
