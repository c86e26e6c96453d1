package main

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"posthouse/pkg/envelope"
	"posthouse/pkg/maildrop"
)

// drop leaves the message in the maildrop. Where that is not for the caller, as
// it is not for anybody unless the administrator says so, the error is off: that
// the mail system is.
func (s *submission) drop(e *envelope.Envelope, h *head, b *body, off error) error {
	err := s.write(e, h, b)
	var input inputError
	switch {
	case err == nil, errors.As(err, &input):
		return err
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return off
	}
	return fmt.Errorf("%w; and the message cannot be dropped: %v", off, err)
}

func (s *submission) write(e *envelope.Envelope, h *head, b *body) error {
	d, err := maildrop.Create(s.maildrop, e)
	if err != nil {
		return err
	}
	if !h.hasDate {
		// The mail system would add the time at which it takes the message.
		h.added = "Date: " + time.Now().Format("Mon, 2 Jan 2006 15:04:05 -0700") + "\r\n"
	}
	if err := s.copyTo(d, h, b, e.Sender); err != nil {
		d.Abort()
		return err
	}
	s.dropped, err = d.Commit()
	return err
}
