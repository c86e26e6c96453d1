package rewrite

import (
	"slices"
	"sync"
	"time"

	"posthouse/pkg/addr"
)

// Bounds of what a client remembers. It is less time than the server may take to
// see that a table has changed.
const (
	rememberTime  = time.Second
	rememberMost  = 1000 // answers
	rememberShort = 8    // addresses of an answer; longer ones are lists, which are rare
)

// question is what an answer depends on.
type question struct {
	op              Op
	sender, address addr.Mailbox
}

type remembered struct {
	Answer
	until time.Time
}

// memory has the answers of the last moment: under load the same question is
// asked for one message after the other. That something is not known, or does not
// exist, is never remembered.
type memory struct {
	now func() time.Time

	mu      sync.Mutex
	answers map[question]remembered
}

func (m *memory) recall(q question) (Answer, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.answers[q]
	if !ok || !m.now().Before(r.until) {
		return Answer{}, false
	}
	r.Addresses = slices.Clone(r.Addresses)
	return r.Answer, true
}

func (m *memory) remember(q question, a Answer) {
	if a.Err != nil || a.Unverified || len(a.Addresses) > rememberShort {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.answers == nil || len(m.answers) >= rememberMost {
		m.answers = make(map[question]remembered)
	}
	a.Addresses = slices.Clone(a.Addresses)
	m.answers[q] = remembered{a, m.now().Add(rememberTime)}
}
