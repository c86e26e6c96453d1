package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// checkEvery is how often the files are looked at, at most.
const checkEvery = time.Second

// settle is how long all files must stay as they are before they count, as with
// tables: editors and scripts write in steps, and half a file, or none, would be
// another mail system.
const settle = 3 * time.Second

// Watcher has the configuration that is in force and notices when it has changed
// and been quiet for some seconds.
type Watcher struct {
	dir     string
	onError func(error)
	now     func() time.Time

	current atomic.Pointer[Config]
	checked atomic.Int64 // when the files were last looked at, in ns

	mu    sync.Mutex
	stamp string
	said  string    // the last error that onError has heard of
	next  string    // the stamp that was seen last
	since time.Time // when it was first seen
}

// NewWatcher loads the configuration in dir, as it is now. onError hears of a changed
// one that is broken, once; the old one stays in force.
func NewWatcher(dir string, onError func(error)) (*Watcher, error) {
	stamp, _ := stampOf(dir)
	w := &Watcher{dir: dir, onError: onError, now: time.Now, stamp: stamp}
	c, err := Load(dir)
	if err != nil {
		return nil, err
	}
	w.current.Store(c)
	w.checked.Store(w.now().UnixNano())
	return w, nil
}

// Current returns the configuration in force. It looks at the files at most
// once a second.
func (w *Watcher) Current() *Config {
	now := w.now()
	last := w.checked.Load()
	// The clock may have been set back since.
	if ago := time.Duration(now.UnixNano() - last); ago.Abs() >= checkEvery && w.checked.CompareAndSwap(last, now.UnixNano()) {
		w.check(now)
	}
	return w.current.Load()
}

func (w *Watcher) check(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	stamp, changed := stampOf(w.dir)
	if stamp != w.next {
		w.next, w.since = stamp, now
	}
	// Nobody may have looked for long: then the files know since when they are as they are.
	quiet := now.Sub(w.since) >= settle || now.Sub(changed) >= settle
	if stamp == w.stamp || !quiet {
		return
	}
	w.stamp = stamp
	c, err := Load(w.dir)
	if err != nil {
		// What could not be read may be readable the next time, without a change.
		if errors.As(err, new(*fs.PathError)) {
			w.stamp = ""
		}
		if err.Error() != w.said {
			w.said = err.Error()
			w.onError(err)
		}
		return
	}
	w.said = ""
	w.current.Store(c)
}

// stampOf returns what changes when any of the files does, and the time of the last
// change. That of a directory tells of files that have gone.
func stampOf(dir string) (stamp string, changed time.Time) {
	files, err := Files(dir)
	if err != nil {
		return err.Error(), changed
	}
	var b strings.Builder
	for _, name := range append(files, dir, filepath.Join(dir, dropIns), mailname) {
		if info, err := os.Stat(name); err == nil {
			fmt.Fprintf(&b, "%s %d %d\n", name, info.ModTime().UnixNano(), info.Size())
			if info.ModTime().After(changed) {
				changed = info.ModTime()
			}
		}
	}
	return b.String(), changed
}
