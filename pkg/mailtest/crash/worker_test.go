//go:build system

package crash

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/queueid"
)

// result is what came of a point.
type result struct {
	Struck     string // the call; "": there was none
	Bad        []string
	Log        string         // of the daemons, where something is wrong
	Counts     map[string]int // of point 0
	Names      []string       // queue IDs
	Duplicates int
	Took       time.Duration
}

// The jobs of a worker: points, or replay=N.
const points = "points"

// work does a job, and says on standard output, in JSON, what came of it.
func work(fs, bin, job string) error {
	nth, ok := strings.CutPrefix(job, "replay=")
	if !ok {
		return tryAll(fs, bin, os.Stdin, os.Stdout)
	}
	n, err := strconv.Atoi(nth)
	if err != nil {
		return err
	}
	r, err := replay(fs, bin, n)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// tryAll tries the points that come by in, and says what came of each by out.
func tryAll(fs, bin string, in io.Reader, out io.Writer) error {
	w, err := newWorld(fs, bin)
	if err != nil {
		return err
	}
	dec, enc := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	for {
		var p point
		switch err := dec.Decode(&p); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		r, err := w.try(p)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
}

// trace is how what a daemon of Go's says begins when it ends by a fault of its own.
var trace = regexp.MustCompile(`(?m)^(panic: |fatal error: |unexpected fault|goroutine \d+ )`)

// noPoller is the end that Go's runtime makes where it cannot have its poller: nothing has
// begun then.
const noPoller = "fatal error: runtime: netpollinit failed"

// tooLong is when the test itself is broken.
const tooLong = 5 * time.Minute

// try lets the scenario run, with what is to go wrong at a point, and what follows
// without anything that does.
func (w *world) try(p point) (*result, error) {
	start := time.Now()
	defer time.AfterFunc(tooLong, func() {
		b := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "%s hangs:\n%s\n", p, b[:runtime.Stack(b, true)])
		os.Exit(1)
	}).Stop()
	today, err := dayOf(p.Unit)
	if err != nil {
		return nil, err
	}
	if err := w.clean(); err != nil {
		return nil, err
	}
	w.sink.reset()
	w.mu.Lock()
	w.point, w.struck, w.again, w.bad, w.counts = p, nil, false, nil, nil
	if p.N == 0 {
		w.counts = make(map[string]int)
	}
	w.mu.Unlock()
	if err := w.boot(); err != nil {
		return nil, err
	}
	all := today.live(w)
	w.mu.Lock()
	r := &result{Counts: w.counts}
	if w.struck != nil {
		r.Struck = w.struck.String()
	}
	w.counts, w.point.N = nil, -1
	class := other
	if w.struck != nil {
		class = w.struck.class
	}
	w.mu.Unlock()

	crash := p.Fault == "kill" || p.Unit == remote || w.off
	twice := r.Struck != "" && (crash || class != file)
	w.halt(unix.SIGTERM) // one crash is enough
	if w.off {
		if err := errors.Join(w.unmount(), w.mount()); err != nil {
			return nil, fmt.Errorf("after the power cut: %w", err)
		}
	}
	w.parts = true
	before, done := w.fates(all), w.recorded(all)
	w.parts = false
	w.drain()
	w.halt(unix.SIGTERM)
	r.Duplicates = w.judge(all, before, done, twice)
	for _, m := range all {
		if m.id != (queueid.ID{}) {
			r.Names = append(r.Names, m.id.String())
		}
	}
	b, err := os.ReadFile(logFile)
	if err != nil {
		return nil, err
	}
	if trace.Match(b) && !bytes.Contains(b, []byte(noPoller)) {
		w.fail("a daemon panics")
	}
	r.Bad, r.Took = w.bad, time.Since(start)
	if len(r.Bad) > 0 {
		r.Log = string(b[max(0, len(b)-20_000):])
	}
	return r, nil
}
