package smtpserver

import (
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// meet has a client say things, with the pauses that it takes, to a server whose clock
// is not the machine's. It returns what the server said, how the session went and how
// long it took.
func meet(t *testing.T, cfg Config, p *recorder, say func(client io.Writer)) (said string, stats Stats, took time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		start := time.Now()
		done, quiet := make(chan Stats, 1), make(chan bool)
		go func() {
			done <- Serve(server, cfg, p)
			server.Close()
		}()
		greeting := readGreeting(t, client)
		go func() {
			say(client)
			client.Close()
			close(quiet)
		}()
		rest, _ := io.ReadAll(client)
		said, stats = greeting+string(rest), <-done
		took = time.Since(start)
		<-quiet
	})
	return said, stats, took
}

// introduce goes as far as a recipient, and says what follows.
func introduce(client io.Writer, more string) {
	io.WriteString(client, "EHLO c\r\n")
	time.Sleep(time.Second)
	io.WriteString(client, begin[len("EHLO c\r\n|"):]+more)
}

// TestTimeout: after a time-out nothing more is read (faults 2 and 3 of go-smtp), and
// each command has its own time.
func TestTimeout(t *testing.T) {
	cfg := testConfig
	cfg.CommandTimeout = time.Minute
	p := &recorder{}
	said, stats, took := meet(t, cfg, p, func(client io.Writer) {
		for _, line := range []string{"EHLO c", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA"} {
			io.WriteString(client, line+"\r\n")
			time.Sleep(50 * time.Second)
		}
		io.WriteString(client, "x\r\n")
		time.Sleep(time.Hour)
		io.WriteString(client, "NOOP\r\nNOOP\r\n")
	})
	if got := codes(said); got != "220 250 250 250 354 421" || stats.Cause != "timeout" || stats.After != "DATA (3 bytes)" || p.aborted != 1 {
		t.Errorf("%s, %q after %q", said, stats.Cause, stats.After)
	}
	if took < 3*time.Minute || took > 5*time.Minute {
		t.Error(took)
	}
}

// TestStalledChunk: nor is what comes after a time-out within BDAT (fault 2).
func TestStalledChunk(t *testing.T) {
	p := &recorder{}
	said, stats, _ := meet(t, testConfig, p, func(client io.Writer) {
		introduce(client, "BDAT 100 LAST\r\nx\r\n")
		time.Sleep(time.Hour)
		io.WriteString(client, "MAIL FROM:<a@b>\r\nNOOP\r\n")
	})
	if got := codes(said); got != "220 250 250 250 421" || stats.Cause != "timeout" || stats.After != "BDAT (3 bytes)" || p.aborted != 1 || len(p.stored) > 0 {
		t.Errorf("%s, %q after %q, stored %q", said, stats.Cause, stats.After, p.stored)
	}
}

// TestSessionTimeout: a session ends in time, however busy the client is, and is
// told so.
func TestSessionTimeout(t *testing.T) {
	cfg := testConfig
	cfg.SessionTimeout = 30 * time.Second
	said, stats, took := meet(t, cfg, &recorder{}, func(client io.Writer) {
		for range 100 {
			if _, err := io.WriteString(client, "NOOP\r\n"); err != nil {
				return
			}
			time.Sleep(2 * time.Second)
		}
	})
	if !strings.HasSuffix(said, "\r\n421 4.4.2 mx.example Error: timeout exceeded\r\n") || stats.Cause != "timeout" || took > time.Minute {
		t.Errorf("%s, %q, %s", said, stats.Cause, took)
	}
}

// TestRate: an octet now and then does not keep a session for long, neither in a
// command nor in a message nor in a chunk; a slow line may take all the time that it
// needs.
func TestRate(t *testing.T) {
	cfg := testConfig
	cfg.CommandTimeout, cfg.MessageSize = 5*time.Minute, 1<<20
	drip := func(client io.Writer, n int, piece string) {
		for range n {
			if _, err := io.WriteString(client, piece); err != nil {
				return
			}
			time.Sleep(10 * time.Second)
		}
	}
	for name, before := range map[string]string{"command": "", "message": "DATA\r\n", "chunk": "BDAT 1000\r\n"} {
		p := &recorder{}
		said, stats, took := meet(t, cfg, p, func(client io.Writer) {
			introduce(client, before)
			time.Sleep(time.Second)
			drip(client, 100, "x")
		})
		if stats.Cause != "timeout" || !strings.Contains(said, "\r\n421 4.4.2 ") || p.open != 0 || took < 5*time.Minute || took > 6*time.Minute {
			t.Errorf("%s: %s, %q, %s", name, said, stats.Cause, took)
		}
	}
	p := &recorder{}
	said, _, took := meet(t, cfg, p, func(client io.Writer) {
		introduce(client, "DATA\r\n")
		time.Sleep(time.Second)
		drip(client, 100, strings.Repeat(strings.Repeat("x", 500)+"\r\n", 10)) // 502 octets a second
		io.WriteString(client, ".\r\n")
		time.Sleep(time.Second)
	})
	if got := codes(said); got != "220 250 250 250 354 250" || took < 16*time.Minute {
		t.Errorf("slow: %s in %s", said, took)
	}
}

// TestNothing: who says nothing but what has no effect is slowed down.
func TestNothing(t *testing.T) {
	cfg := testConfig
	cfg.SoftErrors, cfg.CommandTimeout = 10, 5*time.Minute
	for _, line := range []string{"EHLO c\r\n", "HELO c\r\n", "BDAT 0\r\n"} {
		for n, slow := range map[int]time.Duration{maxJunk - 10: 0, maxJunk + 40: 20 * time.Second} {
			_, _, took := meet(t, cfg, &recorder{}, func(client io.Writer) {
				introduce(client, "")
				for range n {
					time.Sleep(time.Millisecond)
					io.WriteString(client, line)
				}
			})
			if took < slow || took > slow+20*time.Second {
				t.Errorf("%d times %q took %v", n, line, took)
			}
		}
	}
}

// TestCrowded: where others wait for a place, who is silent has ten seconds, also who
// was silent before; and nobody's time is touched who says something.
func TestCrowded(t *testing.T) {
	cfg := testConfig
	cfg.CommandTimeout = 5 * time.Minute
	begun := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // as synctest has it
	cfg.Crowded = func() bool { return time.Since(begun) > time.Minute }
	_, stats, took := meet(t, cfg, &recorder{}, func(io.Writer) { time.Sleep(time.Hour) })
	if stats.Cause != "timeout" || took < time.Minute || took > 80*time.Second {
		t.Errorf("%q after %s", stats.Cause, took)
	}
	cfg.Crowded = func() bool { return true }
	said, stats, took := meet(t, cfg, &recorder{}, func(client io.Writer) {
		for range 20 {
			io.WriteString(client, "NOOP\r\n")
			time.Sleep(9 * time.Second)
		}
		io.WriteString(client, "QUIT\r\n")
		time.Sleep(time.Second) // the reply is still to be read
	})
	if stats.Cause != "" || !strings.HasSuffix(said, "\r\n221 2.0.0 Bye\r\n") || took < 3*time.Minute {
		t.Errorf("%s, %q after %s", said, stats.Cause, took)
	}
	cfg.Crowded = func() bool { return false }
	if _, stats, took := meet(t, cfg, &recorder{}, func(io.Writer) { time.Sleep(time.Hour) }); stats.Cause != "timeout" || took != 5*time.Minute {
		t.Errorf("%q after %s", stats.Cause, took)
	}
}
