//go:build system

package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/queue"
)

// Where things are in a worker's own mount namespace. All that is ever lost when
// the power is cut is in diskDir.
const (
	spoolDir = queue.Dir + "/"
	storeDir = "/run/disk/vmail/"
	diskDir  = "/run/disk"
	image    = "/run/image"
	logFile  = "/run/log"
	lmtpPath = "/run/lmtp"
	smtpAddr = "127.0.0.1:2525"
)

const configuration = `
hostname: mx.example.net
origin: example.net
limits: {message_size: 1MiB}
domains:
  local: [mx.example.net]
  virtual: {virtual.example: {}}
  relay:
    smtp.example: {to: "smtp:[127.0.0.1]:2525"}
    lmtp.example: {to: "lmtp:unix:` + lmtpPath + `"}
virtual: {base: ` + diskDir + `/vmail}
`

const table = "a@virtual.example:*:::::\nc@virtual.example:*:::::\nsender@virtual.example:*:::::\n"

// point is where what goes wrong: at the Nth call of a daemon for which it makes
// sense, counted over all its processes. N is 0 for none.
type point struct {
	Unit, Fault string
	N           int
}

func (p point) String() string { return fmt.Sprintf("%s:%s:%d", p.Unit, p.Fault, p.N) }

// remote is the host that takes mail by SMTP and LMTP, as a daemon.
const remote = "remote"

// world is a machine: a disk, daemons, and the hosts around.
type world struct {
	fs    string
	units []*unit
	out   *os.File // log of the daemons
	null  *os.File
	disk  *os.File // open for the power cut

	mu     sync.Mutex
	point  point
	counts map[string]int // calls, by daemon and fault
	struck *call
	off    bool     // no power
	bad    []string // what is wrong

	sink *sink
}

// newWorld makes a machine of this process, which is alone in its namespaces.
func newWorld(fs, bin string) (*world, error) {
	for _, dir := range []string{"/run", "/etc", "/var/spool"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512m"); err != nil {
			return nil, fmt.Errorf("tmpfs at %s: %w", dir, err)
		}
	}
	if err := errors.Join(
		unix.Mount("proc", "/proc", "proc", 0, ""), os.MkdirAll("/etc/posthouse/tables", 0o755), loopback(),
		os.MkdirAll(spoolDir, 0o755), os.Mkdir(diskDir, 0o755),
		os.WriteFile("/etc/posthouse/posthouse.yaml", []byte(configuration), 0o644),
		os.WriteFile("/etc/posthouse/tables/users", []byte(table), 0o600)); err != nil {
		return nil, err
	}
	w := &world{fs: fs}
	var err error
	if w.out, err = os.OpenFile(logFile, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	if w.null, err = os.Open(os.DevNull); err != nil {
		return nil, err
	}
	if w.units, err = readUnits("../../../units", bin); err != nil {
		return nil, err
	}
	if w.sink, err = newSink(w); err != nil {
		return nil, err
	}
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(map[string]int64{"ext4": 64 << 20, "xfs": 320 << 20}[fs]), f.Close())
	}
	if err != nil {
		return nil, err
	}
	args := map[string][]string{
		"ext4": {"-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image},
		"xfs":  {"-q", "-f", image},
	}[fs]
	if err := run("mkfs."+fs, args...); err != nil {
		return nil, err
	}
	return w, w.mount()
}

func run(name string, args ...string) error {
	if b, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, b)
	}
	return nil
}

// loopback switches on the one interface of the network namespace.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

func (w *world) mount() error {
	if err := run("mount", "-t", w.fs, "-o", "loop", image, diskDir); err != nil {
		return err
	}
	if err := os.MkdirAll(diskDir+"/spool", 0o755); err != nil {
		return err
	}
	if err := unix.Mount(diskDir+"/spool", spoolDir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind mount: %w", err)
	}
	var err error
	w.disk, err = os.Open(diskDir)
	return err
}

func (w *world) unmount() error {
	return errors.Join(w.disk.Close(), unix.Unmount(spoolDir, 0), unix.Unmount(diskDir, 0))
}

// queues are the directories of the queue.
var queues = []string{queue.Incoming, queue.Active, queue.Deferred, queue.Hold, queue.Corrupt}

// clean makes the disk empty, but for what a package installs, and that durable.
func (w *world) clean() error {
	var errs []error
	for _, q := range queues {
		errs = append(errs, os.RemoveAll(spoolDir+q), os.Mkdir(spoolDir+q, 0o770))
	}
	errs = append(errs, os.RemoveAll(storeDir), os.Mkdir(storeDir, 0o750), w.out.Truncate(0))
	return errors.Join(append(errs, unix.Syncfs(int(w.disk.Fd())))...)
}

// shutdown is FS_IOC_SHUTDOWN of the kernel, which XFS calls XFS_IOC_GOINGDOWN.
const shutdown = 0x8004587d

// cut cuts the power: what is not on disk by now never will be. With flushed the
// journal is written, in which names and sizes are, but no data.
func (w *world) cut(flushed bool) error {
	flags := 2 // no flush of the journal
	if flushed {
		flags = 1
	}
	return unix.IoctlSetPointerInt(int(w.disk.Fd()), shutdown, flags)
}

// boot starts the machine: sockets listen, and qmgr looks what there is.
func (w *world) boot() error {
	w.mu.Lock()
	w.off = false
	w.mu.Unlock()
	if err := errors.Join(os.RemoveAll("/run/posthouse"), os.MkdirAll("/run/posthouse/private", 0o755), os.Mkdir("/run/posthouse/public", 0o755)); err != nil {
		return err
	}
	for _, u := range w.units {
		if err := u.listen(w); err != nil {
			return err
		}
	}
	return nil
}

// halt ends all daemons, and returns when they have.
func (w *world) halt(sig unix.Signal) {
	for _, u := range w.units {
		u.stop(sig)
	}
	for _, u := range w.units {
		u.wait(w)
	}
}

// answer says what becomes of a call of a daemon.
func (w *world) answer(u *unit, n *notification) unix.Errno {
	c := look(n)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.point.N == 0 {
		for _, f := range faults {
			if w.counts != nil && c.fits(f) {
				w.counts[u.name+" "+f]++
			}
		}
		return 0
	}
	if w.point.N < 0 || u.name != w.point.Unit || w.struck != nil || !c.fits(w.point.Fault) {
		return 0
	}
	w.point.N--
	if w.point.N > 0 {
		return 0
	}
	w.point.N = -1
	w.struck = c
	switch w.point.Fault {
	case "kill":
		u.kill(unix.SIGKILL)
	case "power", "power+log":
		w.off = true
		if err := w.cut(w.point.Fault == "power+log"); err != nil {
			w.bad = append(w.bad, fmt.Sprintf("power cut: %v", err))
		}
		for _, u := range w.units {
			u.stop(unix.SIGKILL)
		}
	default:
		return errnos[w.point.Fault]
	}
	return 0
}

func (w *world) hasStruck() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.struck != nil
}

func (w *world) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bad = append(w.bad, fmt.Sprintf(format, args...))
}

// files lists the files in the queue, by their path in it.
func (w *world) files() (list []string) {
	for _, pattern := range []string{"incoming/*", "active/*", "deferred/*", "deferred/*/*", "hold/*", "corrupt/*"} {
		found, _ := filepath.Glob(spoolDir + pattern)
		for _, path := range found {
			if info, err := os.Lstat(path); err == nil && !info.IsDir() {
				list = append(list, strings.TrimPrefix(path, spoolDir))
			}
		}
	}
	return list
}

// until waits, for a time that does not decide about success, and reports whether
// it came true.
func until(limit time.Duration, is func() bool) bool {
	for end := time.Now().Add(limit); ; time.Sleep(2 * time.Millisecond) {
		if is() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}
