package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"posthouse/pkg/envelope"
)

// Head is what final delivery puts before a message. Lines end in LF, as in a
// mailbox.
func (j *Job) Head(rcpt *envelope.Recipient) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Return-Path: %s\n", j.Sender.Path())
	if !rcpt.Original.IsNull() {
		fmt.Fprintf(&b, "X-Original-To: %s\n", rcpt.Original)
	}
	fmt.Fprintf(&b, "Delivered-To: %s\n", rcpt.Address)
	return b.String()
}

// maxHeader bounds the search for Delivered-To, in octets. It is well over
// what cleanup lets pass for a header.
const maxHeader = 1 << 20

// DeliveredTo returns the addresses, in lower case, to which the message says
// that it has been delivered before.
func (j *Job) DeliveredTo() (map[string]bool, error) {
	const name = "delivered-to:"
	var found map[string]bool
	r := bufio.NewReaderSize(io.NewSectionReader(j.Content, 0, min(j.Content.Size(), maxHeader)), 4<<10)
	for start := true; ; {
		line, err := r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read the message: %w", err)
		}
		text := strings.TrimRight(string(line), "\r\n")
		if start && text == "" {
			return found, nil
		}
		if start && len(text) > len(name) && strings.EqualFold(text[:len(name)], name) {
			if found == nil {
				found = make(map[string]bool)
			}
			found[strings.ToLower(strings.TrimSpace(text[len(name):]))] = true
		}
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		start = err == nil
	}
}
