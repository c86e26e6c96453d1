//go:build system

// Package crash has messages go through the real daemons, and one thing go wrong:
// at a system call a daemon is killed, the power is cut, or the call fails. Then
// all is started again, and the invariants of the mail system are checked: what
// was acknowledged arrives, once but for what was in flight, as it was sent; and
// nothing stays behind. On one day mail comes by SMTP, for virtual users and other
// hosts; on another by sendmail and the maildrop, for UNIX accounts.
//
// Calls are stopped by seccomp. They are counted for each daemon and fault by
// themselves: the point qmgr:EIO:7 is the seventh call of qmgr that can end with
// EIO. What daemons do depends on what else runs, so the same point is not always
// the same call, but all of them cover all calls. The threads of deliver that are a
// user are stopped like others, and its processes, deliver-as, are counted by
// themselves; users' commands are not stopped, nor are clone, execve and fcntl
// (see numbers), so that no lock of the kernel's fails.
//
// Another test records what is written to the disk, and looks what is there when
// any part of it is lost that a power cut may take.
package crash

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	every = flag.Int("every", 16, "try each `N`th point")
	only  = flag.String("point", "", "try `POINTS` alone: qmgr, qmgr:kill, or qmgr:kill:7")
	times = flag.Int("times", 10, "how often to try a single one")
	fsys  = flag.String("fs", "ext4", "file system: ext4 or xfs")
)

// workerEnv makes this program a worker: a file system, the directory of
// the daemons, and the job.
const workerEnv = "POSTHOUSE_CRASH_WORKER"

func TestMain(m *testing.M) {
	if f := strings.Split(os.Getenv(workerEnv), ":"); len(f) == 3 {
		if os.Getpid() != 1 {
			fmt.Fprintln(os.Stderr, "crash: not in a namespace of its own")
			os.Exit(1)
		}
		if err := work(f[0], f[1], f[2]); err != nil {
			fmt.Fprintln(os.Stderr, "crash:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// worker is a process with a machine of its own.
type worker struct {
	cmd *exec.Cmd
	enc *json.Encoder
	dec *json.Decoder
}

func startWorker(t *testing.T, bin, job string) *worker {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), workerEnv+"="+*fsys+":"+bin+":"+job)
	cmd.Stderr = os.Stderr
	// Mounts of its own, none of which anybody else sees; ended as a whole.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait() // what is wrong with it has been said
	})
	return &worker{cmd, json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out))}
}

func (w *worker) try(p point) (*result, error) {
	if err := w.enc.Encode(p); err != nil {
		return nil, err
	}
	r := new(result)
	err := w.dec.Decode(r)
	return r, err
}

// build makes the daemons as they are shipped.
func build(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", bin+"/", "../../../daemons/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, b)
	}
	bin, err := filepath.EvalSymlinks(bin)
	if err != nil {
		t.Fatal(err)
	}
	// Processes of users get there, and may not read, and so trace, what deliver starts.
	if err := errors.Join(os.Chmod(filepath.Dir(bin), 0o711), os.Chmod(bin, 0o711), os.Chmod(filepath.Join(bin, child), 0o711)); err != nil {
		t.Fatal(err)
	}
	return bin
}

// tally is the table: what was tried, and what was found.
type tally struct {
	t *testing.T

	mu                         sync.Mutex
	tried, missed, bad, copies map[string]int
	calls                      map[string]int
	ids                        map[string]point
}

func newTally(t *testing.T) *tally {
	return &tally{
		t: t, tried: make(map[string]int), missed: make(map[string]int), bad: make(map[string]int), copies: make(map[string]int),
		calls: make(map[string]int), ids: make(map[string]point),
	}
}

// slow is what is worth to be mentioned.
const slow = 3 * time.Second

func (y *tally) add(p point, r *result) {
	y.mu.Lock()
	defer y.mu.Unlock()
	key := p.Unit + " " + p.Fault
	for _, id := range r.Names {
		if old, ok := y.ids[id]; ok {
			r.Bad = append(r.Bad, fmt.Sprintf("I6: %s was there at %s", id, old))
		}
		y.ids[id] = p
	}
	if r.Struck == "" && p.N > 0 {
		y.missed[key]++
	} else {
		y.tried[key]++
		name, _, _ := strings.Cut(r.Struck, " ")
		y.calls[p.Unit+" "+name]++
	}
	y.copies[key] += r.Duplicates
	if r.Took > slow {
		y.t.Logf("%s (%s): %v", p, r.Struck, r.Took)
	}
	if len(r.Bad) > 0 {
		y.bad[key]++
		y.t.Errorf("%s (%s): again with -point %s\n\t%s\n%s", p, r.Struck, p, strings.Join(r.Bad, "\n\t"), r.Log)
	}
}

func (y *tally) print() {
	var b strings.Builder
	var rows []string
	for _, d := range days {
		rows = append(rows, d.units...)
	}
	fmt.Fprintf(&b, "points tried, and with + how many recipients got a second copy\n%-12s", "")
	columns := append(slices.Clone(faults), dies, diesLate)
	for _, f := range columns {
		fmt.Fprintf(&b, "%12s", f)
	}
	total, bad, missed := 0, 0, 0
	for _, u := range rows {
		if !slices.ContainsFunc(columns, func(f string) bool { return y.tried[u+" "+f]+y.missed[u+" "+f] > 0 }) {
			continue // not asked for
		}
		fmt.Fprintf(&b, "\n%-12s", u)
		for _, f := range columns {
			key := u + " " + f
			cell := strconv.Itoa(y.tried[key])
			if y.copies[key] > 0 {
				cell += "+" + strconv.Itoa(y.copies[key])
			}
			if y.bad[key] > 0 {
				cell += "!" + strconv.Itoa(y.bad[key])
			}
			fmt.Fprintf(&b, "%12s", cell)
			total, bad, missed = total+y.tried[key], bad+y.bad[key], missed+y.missed[key]
		}
	}
	fmt.Fprintf(&b, "\n%d points, %d violations (!), %d points not reached", total, bad, missed)
	y.t.Log(b.String())
}

func TestCrash(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root")
	}
	bin := build(t)
	y := newTally(t)
	var workers []*worker
	const parallel = 2
	for range parallel {
		workers = append(workers, startWorker(t, bin, points))
	}
	todo := make(chan point)
	var wg sync.WaitGroup
	list := y.plan(t, workers[0])
	for _, w := range workers {
		wg.Go(func() {
			for p := range todo {
				r, err := w.try(p)
				if err != nil {
					t.Errorf("%s: worker: %v", p, err)
					w = startWorker(t, bin, points)
					continue
				}
				y.add(p, r)
			}
		})
	}
	for _, p := range list {
		todo <- p
	}
	close(todo)
	wg.Wait()
	y.print()
}

// plan lists the points to try. How many there are is found out by trying none.
func (y *tally) plan(t *testing.T, w *worker) (list []point) {
	if f := strings.Split(*only, ":"); len(f) == 3 {
		n, err := strconv.Atoi(f[2])
		if err != nil {
			t.Fatal(err)
		}
		return slices.Repeat([]point{{f[0], f[1], n}}, *times)
	}
	for _, d := range days {
		most := make(map[string]int)
		for range 3 {
			r, err := w.try(point{Unit: d.units[0]})
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Bad) > 0 {
				t.Fatalf("%s without a fault: %s\n%s", d.name, strings.Join(r.Bad, "\n"), r.Log)
			}
			t.Logf("%s without a fault: %v", d.name, r.Took)
			for key, n := range r.Counts {
				most[key] = max(most[key], n)
			}
		}
		for _, u := range d.units {
			for _, f := range append(slices.Clone(faults), dies, diesLate) {
				last := most[u+" "+f]
				if last == 0 || !strings.HasPrefix(u+":"+f+":", strings.TrimSuffix(*only, ":")) {
					continue
				}
				for n := 1 + len(list)%min(*every, last); n <= last; n += *every {
					list = append(list, point{u, f, n})
				}
			}
		}
	}
	if len(list) == 0 {
		t.Fatal("no points")
	}
	return list
}
