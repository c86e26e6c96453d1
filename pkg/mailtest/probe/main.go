// Command probe is what tests run within a machine: clients that say exactly
// what they are told, and look at exactly what comes back. A mail program would
// mend both.
//
//	probe send ADDRESS FROM TO FILE...   each file by SMTP, as it is; prints "FILE REPLY"
//	probe connect ADDRESS N WORKERS [MS] N sessions of greeting and QUIT, after a pause of up to MS; prints how they went
//	probe latency ADDRESS FROM TO DIR N  N messages, one after the other; prints when they were greeted, taken, in DIR
//	probe load ...                       many messages that can be told apart, whatever happens to the servers; see load.go
//	probe marks DIR                      which of them have arrived in DIR
//	probe list ADDRESS FROM N DOMAINS    one message to uN@dM.list.example, N recipients in so many domains
//	probe spread ADDRESS FROM N WORKERS USERS DOMAIN   N messages to userM@DOMAIN, M running from 1 to USERS
//	probe fill SPOOL N DOMAINS SECONDS   deferred mail, due after that; see fill.go
//	probe sink ADDRESS DIR               an SMTP server that keeps them
//	probe big ADDRESS FROM TO OCTETS     one message of that size
//	probe garble N SOCKET...             what no client would send, to servers of ours; see garble.go
//	probe silent N SOCKET...             N connections each that say nothing until standard input ends
//	probe impostor SOCKET                a server that misbehaves
//	probe hold ADDRESS N [FROM TO]       N sessions, or messages half sent, until standard input ends
//	probe submit SOCKET N FROM TO        the same with messages to pickup
//	probe talk ADDRESS                   the dialogue of a script on standard input; see talk.go
//	probe dns ADDRESS                    a name server that says what a script on standard input has it say; see dns.go
//	probe deliver SOCKET FILE N WORKERS KIND USER ...   something done by a user; see deliver.go
//	probe try PATH...                    what this process may not do; see try.go
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("see the source for the arguments")
	}
	switch verb, args := args[0], args[1:]; verb {
	case "send":
		return send(args[0], args[1], args[2], args[3:])
	case "connect":
		pause := number(append(args, "0")[3])
		return connect(args[0], number(args[1]), number(args[2]), time.Duration(pause)*time.Millisecond)
	case "latency":
		return latency(args)
	case "load":
		return load(args)
	case "list":
		return list(args[0], args[1], number(args[2]), number(args[3]))
	case "spread":
		return spread(args)
	case "fill":
		return fill(args)
	case "marks":
		return marks(args[0])
	case "sink":
		return sink(args[0], args[1])
	case "big":
		return big(args[0], args[1], args[2], number(args[3]))
	case "hold":
		return hold(args[0], number(args[1]), args[2:])
	case "submit":
		return submit(args[0], number(args[1]), args[2], args[3])
	case "talk":
		return talk(args[0], os.Stdin)
	case "dns":
		return names(args[0], os.Stdin)
	case "garble":
		return garble(number(args[0]), args[1:])
	case "silent":
		return silent(number(args[0]), args[1:])
	case "impostor":
		return impostor(args[0])
	case "deliver":
		return deliverAs(args)
	case "try":
		return try(args)
	default:
		return fmt.Errorf("unknown verb %q", verb)
	}
}

func number(s string) int {
	n, _ := strconv.Atoi(s) // 0 does nothing
	return n
}

// session is an SMTP client without opinions.
type session struct {
	net.Conn
	r *bufio.Reader
}

const patience = 60 * time.Second

func dial(address string) (*session, error) {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	return &session{c, bufio.NewReader(c)}, nil
}

// reply reads one reply and returns its last line.
func (s *session) reply() (string, error) {
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			return line, err
		}
		if len(line) > 3 && line[3] == ' ' {
			return strings.TrimRight(line, "\r\n"), nil
		}
	}
}

// ask sends a command and wants a reply that begins with code.
func (s *session) ask(command, code string) (string, error) {
	_ = s.SetDeadline(time.Now().Add(patience))
	if command != "" {
		if _, err := io.WriteString(s, command+"\r\n"); err != nil {
			return "", err
		}
	}
	line, err := s.reply()
	if err == nil && !strings.HasPrefix(line, code) {
		err = errors.New(line)
	}
	return line, err
}

func (s *session) steps(steps ...[2]string) error {
	for _, step := range steps {
		if _, err := s.ask(step[0], step[1]); err != nil {
			return fmt.Errorf("%q: %w", step[0], err)
		}
	}
	return nil
}

func open(address string) (*session, error) {
	s, err := dial(address)
	if err != nil {
		return nil, err
	}
	if err := s.steps([2]string{"", "220"}, [2]string{"EHLO probe.example", "250"}); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// message sends content, whose lines end as they do, and returns the reply.
func (s *session) message(from, to string, content []byte) (string, error) {
	err := s.steps([2]string{"MAIL FROM:<" + from + "> BODY=8BITMIME", "250"}, [2]string{"RCPT TO:<" + to + ">", "250"}, [2]string{"DATA", "354"})
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	for line := range bytes.Lines(content) {
		if line[0] == '.' {
			b.WriteByte('.')
		}
		b.Write(line)
	}
	if !bytes.HasSuffix(content, []byte("\n")) {
		b.WriteString("\r\n")
	}
	b.WriteString(".\r\n")
	go func() { _, _ = s.Write(b.Bytes()) }() // a refusal may come in the middle
	return s.reply()
}

func send(address, from, to string, files []string) error {
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		s, err := open(address)
		if err != nil {
			return err
		}
		reply, err := s.message(from, to, content)
		if err != nil {
			reply = "error " + err.Error()
		}
		s.Close()
		fmt.Println(name, reply)
	}
	return nil
}

// list sends one message to many recipients, some of whose commands are under way
// at once.
func list(address, from string, n, domains int) error {
	s, err := open(address)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.steps([2]string{"MAIL FROM:<" + from + ">", "250"}); err != nil {
		return err
	}
	const window = 100
	for first := 0; first < n; first += window {
		var commands strings.Builder
		last := min(first+window, n)
		for i := first; i < last; i++ {
			fmt.Fprintf(&commands, "RCPT TO:<u%d@d%d.list.example>\r\n", i, i%domains)
		}
		if _, err := io.WriteString(s, commands.String()); err != nil {
			return err
		}
		for range last - first {
			if reply, err := s.reply(); err != nil || !strings.HasPrefix(reply, "250") {
				return fmt.Errorf("list: %q, %v", reply, err) // or no error, and another reply
			}
		}
	}
	return s.steps([2]string{"DATA", "354"}, [2]string{"Subject: a list\r\n\r\n" + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 50) + ".", "250"},
		[2]string{"QUIT", "221"})
}

// spread sends messages of 4 KB, each in a session of its own, to accounts in turn. smtp-source
// has one recipient for all that it sends.
func spread(args []string) error {
	if len(args) != 6 {
		return errors.New("spread: not six arguments")
	}
	address, from, users, domain := args[0], args[1], number(args[4]), args[5]
	content := []byte("Subject: spread\r\n\r\n" + strings.Repeat(strings.Repeat("x", 78)+"\r\n", 51))
	return each(number(args[2]), number(args[3]), func(i int) error {
		s, err := open(address)
		if err != nil {
			return err
		}
		defer s.Close()
		reply, err := s.message(from, fmt.Sprintf("user%d@%s", 1+(i-1)%users, domain), content)
		if err != nil || !strings.HasPrefix(reply, "250") {
			return fmt.Errorf("%q, %v", reply, err)
		}
		return s.steps([2]string{"QUIT", "221"})
	})
}

// each runs f n times, in several workers, and counts the errors; it prints
// those that are new.
func each(n, workers int, f func(i int) error) error {
	var next, failed atomic.Int64
	var seen sync.Map
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				if err := f(int(i)); err != nil {
					failed.Add(1)
					if _, old := seen.LoadOrStore(err.Error(), true); !old {
						fmt.Fprintln(os.Stderr, "probe:", i, err)
					}
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 {
		return fmt.Errorf("%d of %d failed", failed.Load(), n)
	}
	return nil
}

func big(address, from, to string, octets int) error {
	s, err := open(address)
	if err != nil {
		return err
	}
	defer s.Close()
	line := strings.Repeat("x", 76) + "\r\n"
	reply, err := s.message(from, to, []byte("Subject: big\r\n\r\n"+strings.Repeat(line, octets/len(line))))
	fmt.Println(reply)
	return err
}
