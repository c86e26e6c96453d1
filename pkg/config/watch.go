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

// Watcher has the configuration that is in force and notices when it changes.
type Watcher struct {
	dir     string
	onError func(error)

	current atomic.Pointer[Config]
	checked atomic.Int64 // when the files were last looked at, in ns

	mu    sync.Mutex
	stamp string
	said  string // the last error that onError has heard of
}

// NewWatcher loads the configuration in dir. onError hears of a changed one that
// is broken, once; the old one stays in force.
func NewWatcher(dir string, onError func(error)) (*Watcher, error) {
	w := &Watcher{dir: dir, onError: onError, stamp: stampOf(dir)}
	c, err := Load(dir)
	if err != nil {
		return nil, err
	}
	w.current.Store(c)
	w.checked.Store(time.Now().UnixNano())
	return w, nil
}

// Current returns the configuration in force. It looks at the files at most
// once a second.
func (w *Watcher) Current() *Config {
	now := time.Now().UnixNano()
	last := w.checked.Load()
	if now-last >= int64(checkEvery) && w.checked.CompareAndSwap(last, now) {
		w.check()
	}
	return w.current.Load()
}

func (w *Watcher) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	stamp := stampOf(w.dir)
	if stamp == w.stamp {
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

// stampOf changes when any of the files does.
func stampOf(dir string) string {
	files, err := configFiles(dir)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, name := range append(files, filepath.Join(dir, dropIns), mailname) {
		if info, err := os.Stat(name); err == nil {
			fmt.Fprintf(&b, "%s %d %d\n", name, info.ModTime().UnixNano(), info.Size())
		}
	}
	return b.String()
}
