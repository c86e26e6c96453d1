//go:build system

package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/maildrop"
	"posthouse/pkg/queue"
)

// Where things are in a worker's own mount namespace. The queue, the mail store, and
// the homes of users with their mailboxes are file systems of their own, so that one can
// lose what the other keeps.
const (
	spoolDir = queue.Dir + "/"
	dropDir  = maildrop.Dir + "/"
	storeDir = "/var/vmail/"
	homeDir  = "/home/"
	mboxDir  = homeDir + "mail/" // which is /var/mail
	tempDir  = "/var/tmp/"       // of users' processes
	logFile  = "/run/log"
	lmtpPath = "/run/lmtp"
	smtpAddr = "127.0.0.1:2525"
)

const host = "mx.example.net"

const configuration = `
hostname: ` + host + `
origin: example.net
limits: {message_size: 1MiB}
domains:
  local: [` + host + `]
  virtual: {virtual.example: {}}
  relay:
    smtp.example: {to: "smtp:[127.0.0.1]:2525"}
    lmtp.example: {to: "lmtp:unix:` + lmtpPath + `"}
`

const table = "a@virtual.example:*:::::\nc@virtual.example:*:::::\nforwarded@virtual.example:*:::::\nsender@virtual.example:*:::::\n"

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
	disks []*os.File // open for the power cut: queue, mail store, homes

	mu     sync.Mutex
	point  point
	counts map[string]int // calls, by daemon and fault
	struck *call
	again  bool     // what a flush has lost was written again
	off    bool     // no power
	bad    []string // what is wrong

	sink  *sink
	parts bool // a mailbox file may have a part of a message, which the next attempt removes
}

// newWorld makes a machine of this process, with its disks.
func newWorld(fs, bin string) (*world, error) {
	w, err := newMachine(fs, bin)
	if err != nil {
		return nil, err
	}
	for i := range mountPoints {
		if err := makeDisk(fs, image(i), map[string]int64{"ext4": 64 << 20, "xfs": 320 << 20}[fs]); err != nil {
			return nil, err
		}
	}
	return w, w.mount()
}

// newMachine makes a machine without disks of this process, which is alone in its
// namespaces.
func newMachine(fs, bin string) (*world, error) {
	for _, dir := range []string{"/run", "/etc", "/var"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1g"); err != nil {
			return nil, fmt.Errorf("tmpfs at %s: %w", dir, err)
		}
	}
	if err := errors.Join(
		unix.Mount("proc", "/proc", "proc", 0, ""), os.MkdirAll("/etc/posthouse/tables", 0o755), loopback(),
		os.MkdirAll(spoolDir, 0o755), os.Mkdir(storeDir, 0o755), os.Mkdir(tempDir, 0o700), os.Chmod(tempDir, 0o777|os.ModeSticky),
		os.Symlink(mboxDir, "/var/mail"), writeAccounts(),
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
	return w, nil
}

var mountPoints = []string{spoolDir, storeDir, homeDir}

func image(i int) string { return fmt.Sprintf("/run/image%d", i) }

func makeDisk(fs, path string, size int64) error {
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		return err
	}
	args := map[string][]string{"ext4": {"-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"}, "xfs": {"-q", "-f"}}[fs]
	return run("mkfs."+fs, append(args, path)...)
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
	for i, dir := range mountPoints {
		if err := run("mount", "-t", w.fs, "-o", "loop", image(i), dir); err != nil {
			return err
		}
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		w.disks = append(w.disks, d)
	}
	return nil
}

func (w *world) unmount() error {
	var errs []error
	for i, dir := range mountPoints {
		errs = append(errs, w.disks[i].Close())
		var err error
		// A file that was passed to a process, and not received, goes a little after it.
		until(stepTime, func() bool {
			err = unix.Unmount(dir, 0)
			return !errors.Is(err, unix.EBUSY)
		})
		errs = append(errs, err)
	}
	w.disks = nil
	return errors.Join(errs...)
}

// queues are the directories of the queue.
var queues = []string{queue.Incoming, queue.Active, queue.Deferred, queue.Hold, queue.Corrupt}

// clean makes the disk empty, but for what a package installs, and that durable.
func (w *world) clean() error {
	var errs []error
	for _, q := range append([]string{queue.Index}, queues...) {
		errs = append(errs, os.RemoveAll(spoolDir+q), os.Mkdir(spoolDir+q, 0o770))
	}
	errs = append(errs, os.Mkdir(spoolDir+queue.Spare, 0o770))
	boxes, err := filepath.Glob(storeDir + "*.example")
	for _, dir := range boxes {
		errs = append(errs, os.RemoveAll(dir))
	}
	errs = append(errs, os.RemoveAll(spoolDir+"maildrop"), os.MkdirAll(dropDir, 0o711), os.Chmod(dropDir, 0o733|os.ModeSetgid|os.ModeSticky), makeHomes())
	for _, d := range w.disks {
		errs = append(errs, unix.Syncfs(int(d.Fd())))
	}
	return errors.Join(append(errs, err, w.out.Truncate(0))...)
}

// shutdown is FS_IOC_SHUTDOWN of the kernel, which XFS calls XFS_IOC_GOINGDOWN.
const shutdown = 0x8004587d

// cut cuts the power: what is not on disk by now never will be. A journal that is
// flushed before has names and sizes, but no data; with power+queue only that of
// the queue is, which then knows more than the mail store and the mailboxes.
func (w *world) cut(fault string) error {
	const flush, none = 1, 2
	flags := map[string][]int{"power": {none, none, none}, "power+log": {flush, flush, flush}, "power+queue": {flush, none, none}}[fault]
	var errs []error
	for i, d := range w.disks {
		errs = append(errs, unix.IoctlSetPointerInt(int(d.Fd()), shutdown, flags[i]))
	}
	return errors.Join(errs...)
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

// answer says what becomes of a call of a daemon, or of the part of it called name.
func (w *world) answer(u *unit, name string, n *notification) unix.Errno {
	c := look(n)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.point.N == 0 {
		for _, f := range faults {
			if w.counts != nil && c.fits(f) {
				w.counts[name+" "+f]++
			}
		}
		return 0
	}
	switch {
	case !w.failedFlush() || c.path != w.struck.path:
	case c.name == "pwrite64" || c.name == "write" || c.name == "ftruncate":
		w.again = true
	case c.name == w.struck.name && !w.again:
		// It would succeed, and say nothing. A directory may have got another name.
		if info, err := os.Stat(c.path); err != nil || !info.IsDir() {
			w.bad = append(w.bad, "I1: flushed again after an error: "+c.path)
		}
	}
	if w.point.N < 0 || name != w.point.Unit || w.struck != nil || !c.fits(w.point.Fault) {
		return 0
	}
	w.point.N--
	if w.point.N > 0 {
		return 0
	}
	w.point.N = -1
	w.struck = c
	switch fault := w.point.Fault; fault {
	case "kill":
		if name == u.name {
			u.kill(unix.SIGKILL)
		} else if err := unix.Kill(int(n.thread), unix.SIGKILL); err != nil { // the process of the thread
			w.bad = append(w.bad, fmt.Sprintf("kill %s: %v", name, err))
		}
	case "power", "power+log", "power+queue":
		w.off = true
		if err := w.cut(fault); err != nil {
			w.bad = append(w.bad, fmt.Sprintf("power cut: %v", err))
		}
		for _, u := range w.units {
			u.stop(unix.SIGKILL)
		}
	default:
		return errnos[fault]
	}
	return 0
}

// failedFlush reports whether what has gone wrong is a flush. w.mu is held.
func (w *world) failedFlush() bool {
	return w.struck != nil && errnos[w.point.Fault] != 0 && w.point.Fault != "EINTR" &&
		slices.Contains([]string{"fsync", "syncfs", "sync_file_range"}, w.struck.name)
}

// unit returns the unit called name.
func (w *world) unit(name string) *unit {
	return w.units[slices.IndexFunc(w.units, func(u *unit) bool { return u.name == name })]
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

// files lists the files in the queue, by their path in it. It looks twice where one
// that moves meanwhile could be missed.
func (w *world) files() (list []string) {
	for _, pattern := range []string{"deferred/*/*", "hold/*", "incoming/*", "active/*", "deferred/*/*", "deferred/*", "corrupt/*", "maildrop/drop/[^.]*", "maildrop/drop/.aside.*"} {
		found, _ := filepath.Glob(spoolDir + pattern)
		for _, path := range found {
			path, _ = strings.CutPrefix(path, spoolDir)
			if info, err := os.Lstat(spoolDir + path); err == nil && !info.IsDir() && !slices.Contains(list, path) {
				list = append(list, path)
			}
		}
	}
	return list
}

// isEmpty reports whether there is nothing in the queue, as often as it looks.
func (w *world) isEmpty() bool {
	for range 2 {
		if len(w.files()) > 0 {
			return false
		}
	}
	return true
}

// glob lists the paths that fit patterns, which are not malformed.
func glob(patterns ...string) (list []string) {
	for _, p := range patterns {
		found, _ := filepath.Glob(p)
		list = append(list, found...)
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
