package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// talk holds the dialogue of a script:
//
//	> TEXT      is sent as a line
//	>> "TEXT"   is sent as it is; a string of Go
//	< PREFIX    a reply has to come, and its last line to begin like that
//	.           the server has to close the connection
//
// The first thing that is not as the script says is an error.
func talk(address string, script io.Reader) error {
	s, err := dial(address)
	if err != nil {
		return err
	}
	defer s.Close()
	lines := bufio.NewScanner(script)
	for number := 1; lines.Scan(); number++ {
		_ = s.SetDeadline(time.Now().Add(patience))
		if err := s.step(lines.Text()); err != nil {
			return fmt.Errorf("line %d, %s: %w", number, lines.Text(), err)
		}
	}
	return lines.Err()
}

func (s *session) step(line string) error {
	mark, text, _ := strings.Cut(strings.TrimLeft(line, " \t"), " ")
	switch mark {
	case "":
		return nil
	case ">":
		_, err := io.WriteString(s, text+"\r\n")
		return err
	case ">>":
		raw, err := strconv.Unquote(text)
		if err == nil {
			_, err = io.WriteString(s, raw)
		}
		return err
	case "<":
		_, err := s.ask("", text)
		return err
	case ".":
		if rest, err := io.ReadAll(s.r); err != nil || len(rest) > 0 {
			return fmt.Errorf("%q %w", rest, err)
		}
		return nil
	}
	return errors.New("not a line of a script")
}
