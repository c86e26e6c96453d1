package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Each message of a load has a number, its mark, and the sum of its own body, so
// that afterwards every file can tell which message it is and whether it is whole.

const (
	markField = "X-Mark: "
	sumField  = "X-Sum: "
)

// marked returns the message with a mark, between 1 and 20 KiB; lines end in LF.
func marked(mark int) []byte {
	var body bytes.Buffer
	for i := range 20 + mark*37%380 {
		switch i % 10 {
		case 3:
			fmt.Fprintf(&body, ". a line that begins with a dot\n")
		case 7:
			fmt.Fprintf(&body, "\n")
		default:
			fmt.Fprintf(&body, "Line %d of the message %d that is sent under load.\n", i, mark)
		}
	}
	return fmt.Appendf(nil, "From: probe@example.org\nSubject: load\n%s%d\n%s%x\n\n%s", markField, mark, sumField, sha256.Sum256(body.Bytes()), body.Bytes())
}

const (
	loadWorkers = 20
	tryPause    = 100 * time.Millisecond
	loadTime    = 90 * time.Second // for one message
)

// load sends messages and goes on after errors, until all are acknowledged:
//
//	load ADDRESS FROM TO,TO... FIRST N [AFTER COMMAND...]
//
// The marks are FIRST and up; the recipients take turns. One with a ! before it
// gets its messages by sendmail, the others by SMTP at ADDRESS. When AFTER of
// them are acknowledged the command is run once, while the load goes on. It
// prints "acked MARK" for each, and "unsure MARK" for every time that the answer
// to a whole message did not come.
func load(args []string) error {
	if len(args) < 5 {
		return errors.New("load: too few arguments")
	}
	address, from, to := args[0], args[1], strings.Split(args[2], ",")
	first, n := number(args[3]), number(args[4])
	after, command := 0, args[5:]
	if len(command) > 1 {
		after, command = number(command[0]), command[1:]
	}
	var out sync.Mutex
	say := func(word string, mark int) {
		out.Lock()
		defer out.Unlock()
		fmt.Println(word, mark)
	}
	var acked atomic.Int64
	return each(n, loadWorkers, func(i int) error {
		mark := first + i - 1
		rcpt := to[mark%len(to)]
		for end := time.Now().Add(loadTime); ; time.Sleep(tryPause) {
			unsure, err := loadOne(address, from, rcpt, mark)
			if err == nil {
				break
			}
			if unsure {
				say("unsure", mark)
			}
			if time.Now().After(end) {
				return fmt.Errorf("message %d: gave up: %w", mark, err)
			}
		}
		say("acked", mark)
		if len(command) > 0 && acked.Add(1) == int64(after) {
			if b, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", command, err, b)
			}
		}
		return nil
	})
}

// loadOne sends one message. unsure says that it may have been taken all the same.
func loadOne(address, from, to string, mark int) (unsure bool, err error) {
	content := marked(mark)
	if rcpt, ok := strings.CutPrefix(to, "!"); ok {
		cmd := exec.Command("sendmail", "-i", "-f", from, rcpt)
		cmd.Stdin = bytes.NewReader(content)
		b, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("sendmail: %w: %s", err, b)
		}
		return err != nil, err
	}
	s, err := open(address)
	if err != nil {
		return false, err
	}
	defer s.Close()
	reply, err := s.message(from, to, bytes.ReplaceAll(content, []byte("\n"), []byte("\r\n")))
	switch {
	case err != nil:
		return reply == "" && !strings.HasPrefix(err.Error(), `"`), err // steps quotes the command that failed
	case !strings.HasPrefix(reply, "250"):
		return false, errors.New(reply)
	}
	return false, nil
}

// marks prints for each file in a directory "message MARK ok", or what is wrong
// with it in the place of ok; for a notification about a message "notice MARK ok",
// and for what has no mark "other 0 ok".
func marks(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return err
		}
		kind := "message"
		if bytes.HasPrefix(b, []byte("Return-Path: <>\n")) {
			kind = "notice"
		}
		mark, err := strconv.Atoi(field(b, markField))
		if err != nil {
			kind = "other"
		}
		state := "ok"
		_, body, _ := bytes.Cut(b, []byte("\n\n"))
		if kind == "message" && field(b, sumField) != fmt.Sprintf("%x", sha256.Sum256(body)) {
			state = "damaged:" + f.Name()
		}
		fmt.Fprintln(out, kind, mark, state)
	}
	return out.Flush()
}

// field returns what follows the first line that begins with name.
func field(b []byte, name string) string {
	_, rest, _ := bytes.Cut(b, []byte("\n"+name))
	value, _, _ := bytes.Cut(rest, []byte("\n"))
	return string(value)
}

// sink serves SMTP, and keeps every message that came to its end in a file of a
// directory before it says so. It refuses recipients that begin with "no".
func sink(address, dir string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	var next atomic.Int64
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if err := sinkSession(c, dir, &next); err != nil && !errors.Is(err, io.EOF) {
				fmt.Fprintln(os.Stderr, "probe:", err)
			}
		}()
	}
}

func sinkSession(c net.Conn, dir string, next *atomic.Int64) error {
	r := bufio.NewReader(c)
	reply := "220 sink.example"
	for {
		if _, err := io.WriteString(c, reply+"\r\n"); err != nil {
			return err
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		switch word := strings.ToUpper(strings.TrimSpace(line)); {
		case strings.HasPrefix(word, "RCPT TO:<NO"):
			reply = "550 5.1.1 No such user"
		case strings.HasPrefix(word, "QUIT"):
			_, err := io.WriteString(c, "221 bye\r\n")
			return err
		case word == "DATA":
			if _, err := io.WriteString(c, "354 go on\r\n"); err != nil {
				return err
			}
			content, err := sinkData(r)
			if err != nil {
				return err
			}
			name := filepath.Join(dir, strconv.FormatInt(next.Add(1), 10))
			if err := os.WriteFile(name, content, 0o644); err != nil {
				return err
			}
			reply = "250 2.0.0 kept"
		default:
			reply = "250 2.0.0 yes"
		}
	}
}

// sinkData reads a message, with LF for CRLF.
func sinkData(r *bufio.Reader) ([]byte, error) {
	var b bytes.Buffer
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		if bytes.Equal(line, []byte(".\r\n")) {
			return b.Bytes(), nil
		}
		line = bytes.TrimPrefix(line, []byte("."))
		b.Write(bytes.TrimSuffix(line, []byte("\r\n")))
		b.WriteByte('\n')
	}
}
