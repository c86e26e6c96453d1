package account

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"
)

// Bounds of a Cache.
const (
	// maxAge is how long an answer of userdb counts.
	maxAge = 2 * time.Second
	// lookEvery is how long files are taken for what they were.
	lookEvery = 50 * time.Millisecond
	// maxKept is how many answers are kept.
	maxKept = 10_000
	// settled is how long ago a file has to have been written for its state to tell it
	// apart: the clock of file systems is coarse.
	settled = time.Second
)

// Cache is Lookup that remembers its answers: a message asks for an account more
// than once, and many come for the same. Those of userdb count for two seconds,
// those of files while the files are the same, which is seen within a twentieth of a
// second; and that there is no account only if files say so. Errors
// are not kept. It may be used by many at once; what comes back is shared, and
// not to be changed.
type Cache struct {
	sources sources
	every   time.Duration // how often files are looked at

	mu     sync.Mutex
	now    state // when it was looked at last
	known  bool  // now says whether the sources have changed
	looked time.Time
	state  state // that the answers are of
	kept   map[string]answered
}

type answered struct {
	account *Account // nil: there is none
	at      time.Time
}

// NewCache returns an empty Cache.
func NewCache() *Cache { return &Cache{sources: system, every: lookEvery} }

// state tells apart what the sources say. Zero is that of userdb.
type state struct{ passwd, group os.FileInfo }

func (s state) is(t state) bool { return same(s.passwd, t.passwd) && same(s.group, t.group) }

func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// state returns what the sources are; ok is false where they may change without that.
func (s sources) state() (now state, ok bool) {
	if _, err := os.Lstat(s.userdb); !errors.Is(err, os.ErrNotExist) {
		return state{}, err == nil
	}
	passwd, err1 := os.Stat(s.passwd)
	group, err2 := os.Stat(s.group)
	if err1 != nil || err2 != nil {
		return state{}, false
	}
	return state{passwd, group}, time.Since(passwd.ModTime()) > settled && time.Since(group.ModTime()) > settled
}

// Lookup returns the account called name.
func (c *Cache) Lookup(ctx context.Context, name string) (*Account, error) {
	now := time.Now()
	state, known := c.look(now) // before they are read
	if known {
		if a, ok := c.get(state, name, now); ok {
			if a == nil {
				return nil, ErrNone
			}
			return a, nil
		}
	}
	a, err := c.sources.lookup(ctx, name)
	if known && (err == nil || errors.Is(err, ErrNone) && state.passwd != nil) {
		c.put(state, name, answered{a, now})
	}
	return a, err
}

// look returns what the sources are, or were a moment ago: an answer that is newer
// than that is kept as one of the older state, and goes with it.
func (c *Cache) look(now time.Time) (state, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known || now.Sub(c.looked) >= c.every {
		c.now, c.known = c.sources.state()
		c.looked = now
	}
	return c.now, c.known
}

func (c *Cache) get(s state, name string, now time.Time) (*Account, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.is(c.state) {
		return nil, false
	}
	a, ok := c.kept[name]
	return a.account, ok && (s.passwd != nil || now.Sub(a.at) < maxAge)
}

func (c *Cache) put(s state, name string, a answered) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.is(c.state) || c.kept == nil || len(c.kept) >= maxKept {
		c.state, c.kept = s, make(map[string]answered)
	}
	c.kept[name] = a
}
