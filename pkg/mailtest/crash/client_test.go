//go:build system

package crash

import (
	"bufio"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"posthouse/pkg/queueid"
)

// smtpdAddr is where smtpd listens.
const smtpdAddr = "127.0.0.1:25"

// send sends a message by SMTP, and notes what the answer was: 250 after its end, or that
// it is not taken; or none.
func (w *world) send(m *message) {
	c, err := net.DialTimeout("tcp", smtpdAddr, stepTime)
	if err != nil {
		return
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(stepTime)); err != nil {
		w.fail("%v", err)
		return
	}
	commands := []string{"", "EHLO client.example", "MAIL FROM:<" + sender + ">"}
	for _, r := range m.rcpts {
		commands = append(commands, "RCPT TO:<"+r+">")
	}
	// A dot before each that begins a line.
	content := strings.ReplaceAll(strings.ReplaceAll("\n"+m.content, "\n", "\r\n"), "\r\n.", "\r\n..")[2:]
	commands = append(commands, "DATA", content+".", "QUIT")
	r := bufio.NewReader(c)
	for i, command := range commands {
		if command != "" {
			if _, err := c.Write([]byte(command + "\r\n")); err != nil {
				return
			}
		}
		code, text, err := reply(r)
		switch {
		case err != nil:
			return
		case code >= 400:
			m.refused = true
			return
		case i == len(commands)-2:
			m.accepted = true
			if m.id, err = queueid.Parse(text[strings.LastIndexByte(text, ' ')+1:]); err != nil || code != 250 {
				w.fail("smtpd: %d %s: %v", code, text, err)
			}
			return // it may take its time to say good bye
		}
	}
}

// reply reads a reply; text is that of its last line.
func reply(r *bufio.Reader) (code int, text string, err error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return 0, "", err
		}
		line = strings.TrimRight(line, "\r\n")
		if len(line) < 4 {
			return 0, "", fmt.Errorf("%q is no reply", line)
		}
		if code, err = strconv.Atoi(line[:3]); err != nil || line[3] == ' ' {
			return code, line[4:], err
		}
	}
}
