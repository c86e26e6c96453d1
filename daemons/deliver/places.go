package main

import (
	"context"
	"sync"

	"posthouse/pkg/dsn"
)

// Bounds of threads. They count until they have ended, which one that waits for a
// file system whose server has gone does not do: it takes places of its user.
const (
	maxThreads = 100
	// ofHome is how many read .forward, or write to files, as one user.
	ofHome = 2
	// ofSpool is how many write to the spool of mailboxes as one user: a mailbox takes
	// one message at a time, and who waits for a lock polls.
	ofSpool = 1
)

// place is what threads of one user share.
type place struct {
	uid     uint32
	inSpool bool
}

// places bounds threads.
type places struct {
	all chan struct{}

	mu sync.Mutex
	of map[place]*share
}

// share is a bound of one place while somebody is there, or waits.
type share struct {
	taken chan struct{}
	users int
}

func newPlaces() *places {
	return &places{all: make(chan struct{}, maxThreads), of: make(map[place]*share)}
}

// take waits until there is room for one more in p. leave gives it back.
func (s *places) take(ctx context.Context, p place, name string) (leave func(), err error) {
	own := s.enter(p)
	// First what is the user's own: who waits for that is in nobody else's way.
	select {
	case own.taken <- struct{}{}:
	case <-ctx.Done():
		s.exit(p, own)
		return nil, errNoPlace(name)
	}
	select {
	case s.all <- struct{}{}:
	case <-ctx.Done():
		<-own.taken
		s.exit(p, own)
		return nil, errNoPlace(name)
	}
	return func() {
		<-s.all
		<-own.taken
		s.exit(p, own)
	}, nil
}

func errNoPlace(name string) error {
	return dsn.Errorf("4.3.2", "too much is being delivered for %s, or at all", name)
}

func (s *places) enter(p place) *share {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := s.of[p]
	if own == nil {
		most := ofHome
		if p.inSpool {
			most = ofSpool
		}
		own = &share{taken: make(chan struct{}, most)}
		s.of[p] = own
	}
	own.users++
	return own
}

func (s *places) exit(p place, own *share) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if own.users--; own.users == 0 {
		delete(s.of, p)
	}
}
