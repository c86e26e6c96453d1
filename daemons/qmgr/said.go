package main

import (
	"errors"
	"io/fs"
	"sync"
)

// said keeps what is found wrong with every look at the queue out of the log, but
// for the first time.
type said struct {
	mu   sync.Mutex
	last map[string]string // what was said, by what it was about
}

// maxSaid bounds what is remembered. Beyond it things are said again.
const maxSaid = 10_000

// isNew reports whether text has not been said of subject already.
func (s *said) isNew(subject, text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, ok := s.last[subject]; ok && last == text {
		return false
	}
	if s.last == nil || len(s.last) >= maxSaid {
		s.last = make(map[string]string)
	}
	s.last[subject] = text
	return true
}

// forget has isNew report what is wrong with subject from now on.
func (s *said) forget(subject string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.last, subject)
}

// short is an error without the path that it is about: the same message may be
// found in one bucket after the other.
func short(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return err.Error()
}
