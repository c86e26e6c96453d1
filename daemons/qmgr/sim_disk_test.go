package main

import (
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// simDisk is the disk of a simulation: the files are real, on a file system in
// memory where there is one, and beside them stands what would be left of them if the
// power went. As a journalling file system has it, changes of directories become
// durable in their order, and all so far with any flush; what is in a file only with its own
// flush. Its fields are guarded by sim.mu.
type simDisk struct {
	base    string
	changes []simChange // of directories, that are not durable
	kept    int         // names in kept/, given so far
	files   map[queueid.ID]*simFile
	nth     map[string]int // calls of a kind about a message, so far

	trouble simTrouble
	crashIn int // calls from now; 0: none is due
	power   bool
	calls   int
}

// simFile is a queue file.
type simFile struct {
	at     string // directory, from base; "": it is gone
	synced int64  // how much of it is durable
	sealed int64  // how long cleanup has made it
}

// there reports whether the message is in the queue.
func (f *simFile) there() bool { return f.at != "" && f.at != queue.Spare }

// simChange is one change of a directory. Paths are from base.
type simChange struct {
	name     string
	id       queueid.ID
	from, to string
	kept     string     // for unlink: where the file still is
	old      queueid.ID // for take: whose file it was,
	content  []byte     // and what was in it
}

// simTrouble is what is wrong with the disk for a while.
type simTrouble struct {
	what    []string // kinds of calls; nil: none
	percent uint64   // of those fail
	errno   syscall.Errno
	torn    bool // writes end in the middle
}

// maxCalls ends a simulation that does not come to rest. Most need a few hundred.
const maxCalls = 200_000

func newSimDisk(base string) *simDisk {
	return &simDisk{base: base, files: make(map[queueid.ID]*simFile), nth: make(map[string]int)}
}

// mix is the part of chance: a number that depends on all that it is given, and on
// nothing else, so that it does not matter in which order things are asked.
func mix(seed uint64, words ...string) uint64 {
	h := fnv.New64a()
	for i := range 8 {
		h.Write([]byte{byte(seed >> (8 * i))})
	}
	for _, w := range words {
		h.Write([]byte(w))
		h.Write([]byte{0})
	}
	x := h.Sum64()
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

func (d *simDisk) rel(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, d.base), "/")
}

func (d *simDisk) path(words ...string) string {
	return filepath.Join(d.base, filepath.Join(words...))
}

// call has the disk do what p asks for, or not.
func (p *process) call(c call, do func() error) error {
	s, d := p.sim, p.sim.disk
	s.mu.Lock()
	defer s.mu.Unlock()
	failed := &fs.PathError{Op: c.name, Path: c.from, Err: syscall.EIO}
	if p.gone {
		return failed
	}
	if d.calls++; d.calls == maxCalls {
		s.failf("does not come to rest")
	}
	if d.calls >= maxCalls {
		p.kill()
		return failed
	}
	if d.crashIn > 0 {
		if d.crashIn--; d.crashIn == 0 {
			s.notef("crash at %s %s", c.name, c.id)
			s.saw("crash at " + c.name)
			p.kill()
			return failed
		}
	}
	key := strings.Join([]string{c.name, c.id.String(), d.rel(c.from), d.rel(c.to)}, " ")
	d.nth[key]++
	n := mix(s.seed, "disk", key, fmt.Sprint(d.nth[key]))
	strikes := slices.Contains(d.trouble.what, c.name) && n%100 < d.trouble.percent
	p.tear = -1
	if dir := d.rel(c.from); c.name == "readdir" && !p.commanding && (dir == queue.Incoming || dir == queue.Active) {
		p.blind[dir] = strikes
	}
	if strikes {
		failed.Err = d.trouble.errno
		s.notef("%s %s fails: %v", c.name, c.id, d.trouble.errno)
		s.saw("error of " + c.name)
		s.failedCall(c.id)
		switch {
		case c.name == "write" && d.trouble.torn:
			p.tear = int(n >> 32 % 60)
			s.saw("torn write")
		case c.name == "fsync":
			d.evict(c.id)
			return failed
		default:
			return failed
		}
	}
	return d.carryOut(s, c, do)
}

// target is f with a disk under it that may take a part of a record only.
func (p *process) target(c call, f *os.File) queue.Target { return simTarget{p, c, f} }

type simTarget struct {
	p *process
	c call
	f *os.File
}

// begin is for what comes after a flush that failed, which is outside of the call. It
// reports false where the process is no more.
func (t simTarget) begin() (end func(), alive bool) {
	if t.c.name == "write" {
		return func() {}, true
	}
	t.p.sim.mu.Lock()
	return t.p.sim.mu.Unlock, !t.p.gone
}

func (t simTarget) WriteAt(b []byte, off int64) (int, error) {
	end, alive := t.begin()
	defer end()
	if !alive {
		return 0, syscall.EIO
	}
	same, before := 0, make([]byte, len(b))
	for n, _ := t.f.ReadAt(before, off); same < n && before[same] == b[same]; {
		same++ // what is written again as it was stays durable
	}
	file := t.p.sim.disk.files[t.c.id]
	file.synced = min(file.synced, off+int64(same))
	if tear := t.p.tear; tear >= 0 && tear < len(b) {
		t.p.tear = -1
		n, err := t.f.WriteAt(b[:tear], off)
		if err == nil {
			err = syscall.ENOSPC
		}
		return n, err
	}
	return t.f.WriteAt(b, off)
}

func (t simTarget) ReadAt(b []byte, off int64) (int, error) { return t.f.ReadAt(b, off) }

func (t simTarget) Truncate(size int64) error {
	end, alive := t.begin()
	defer end()
	if !alive {
		return syscall.EIO
	}
	file := t.p.sim.disk.files[t.c.id]
	file.synced = min(file.synced, size)
	return t.f.Truncate(size)
}

// evict is what the kernel may do after a flush that failed: it takes what it could
// not write for written, and reads it again from the disk, where it is not.
func (d *simDisk) evict(id queueid.ID) {
	file := d.files[id]
	from := max(file.synced, file.sealed)
	path := d.path(file.at, id.String())
	if n := size(path) - from; n > 0 {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil {
			_, err = f.WriteAt(make([]byte, n), from)
			err = firstOf(err, f.Close())
		}
		if err != nil {
			panic(err)
		}
	}
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// carryOut does it, and notes what it has changed.
func (d *simDisk) carryOut(s *sim, c call, do func() error) error {
	change := simChange{name: c.name, id: c.id, from: d.rel(c.from), to: d.rel(c.to)}
	if c.name == "unlink" {
		d.keep(s, &change)
	}
	if c.name == "clear" {
		d.keepSpares(s)
	}
	if err := do(); err != nil {
		return err
	}
	switch c.name {
	case "rename", "mkdir", "rmdir":
		s.notef("%s %s %s %s", c.name, c.id, change.from, change.to)
	case "unlink", "write", "fsync":
		s.notef("%s %s", c.name, c.id)
	}
	switch c.name {
	case "rename", "unlink":
		s.transition(change)
		d.changes = append(d.changes, change)
		d.moved(change)
	case "mkdir", "rmdir":
		d.changes = append(d.changes, change)
	case "fsync":
		d.flushed(c.id)
	}
	return nil
}

// keep has a file come back after a power cut.
func (d *simDisk) keep(s *sim, c *simChange) {
	if !s.power {
		return
	}
	d.kept++
	c.kept = fmt.Sprintf("kept/%d", d.kept)
	if err := os.Link(d.path(c.from, c.id.String()), d.path(c.kept)); err != nil {
		c.kept = ""
	}
}

// keepSpares does so with the files of messages that are done, which go all at once.
func (d *simDisk) keepSpares(s *sim) {
	for _, id := range s.ids() {
		if d.files[id].at == queue.Spare {
			c := simChange{name: "unlink", id: id, from: queue.Spare}
			d.keep(s, &c)
			d.changes = append(d.changes, c)
			d.moved(c)
		}
	}
}

// moved keeps account of where files are.
func (d *simDisk) moved(c simChange) {
	switch {
	case c.id != queueid.ID{}:
		d.files[c.id].at = c.to
	case c.name == "rename":
		for _, f := range d.files {
			if f.at == c.from {
				f.at = c.to
			}
		}
	}
}

// flushed notes that a file is durable, and all that has happened to directories.
func (d *simDisk) flushed(id queueid.ID) {
	if file := d.files[id]; file.there() {
		file.synced = size(d.path(file.at, id.String()))
	}
	for _, c := range d.changes {
		if c.kept != "" {
			_ = os.Remove(d.path(c.kept))
		}
	}
	d.changes = d.changes[:0]
}

// forget is what a power cut does.
func (d *simDisk) forget(s *sim) {
	left := s.chance("changes that are durable", len(d.changes)+1)
	s.notef("of %d changes of directories %d are durable", len(d.changes), left)
	for i := len(d.changes) - 1; i >= left; i-- {
		c := d.changes[i]
		s.saw("undone " + c.name)
		d.undo(s, c)
	}
	for _, c := range d.changes[:left] {
		if c.kept != "" {
			_ = os.Remove(d.path(c.kept))
		}
	}
	d.changes = d.changes[:0]
	for _, id := range s.ids() {
		if f := d.files[id]; f.there() {
			d.forgetTail(s, id, f)
		}
	}
}

func (d *simDisk) undo(s *sim, c simChange) {
	var err error
	id := c.id.String()
	switch c.name {
	case "create":
		err = os.Remove(d.path(c.to, id))
		d.files[c.id].at = ""
	case "take":
		old := d.path(c.from, c.old.String())
		err = firstOf(os.Rename(d.path(c.to, id), old), os.WriteFile(old, c.content, queue.FileMode))
		d.files[c.id].at, d.files[c.old].at = "", c.from
	case "rename":
		err = os.Rename(d.path(c.to, id), d.path(c.from, id))
		c.from, c.to = c.to, c.from
		d.moved(c)
	case "unlink":
		err = os.Rename(d.path(c.kept), d.path(c.from, id))
		d.files[c.id].at = c.from
	case "mkdir":
		err = os.Remove(d.path(c.to))
	case "rmdir":
		err = os.Mkdir(d.path(c.from), 0o700)
	}
	if err != nil {
		s.failf("the model of the disk: undo %v: %v", c, err)
	}
}

// forgetTail takes from a file what the disk does not have: any length of it is
// there, and of that the end may be no more than zeros.
func (d *simDisk) forgetTail(s *sim, id queueid.ID, f *simFile) {
	path := d.path(f.at, id.String())
	all := size(path)
	if all > f.synced {
		left := f.synced + int64(s.chance("length of "+id.String(), int(all-f.synced)+1))
		err := os.Truncate(path, left)
		if n := int64(s.chance("zeros of "+id.String(), int(left-f.synced)+1)); n > 0 && s.chance("zeros at all of "+id.String(), 2) == 0 {
			err = firstOf(err, os.Truncate(path, left-n), os.Truncate(path, left))
			s.saw("zeros at the end")
		}
		if err != nil {
			s.failf("the model of the disk: %v", err)
		}
		if left < all {
			s.saw("lost tail")
		}
		s.notef("of %s %d octets of %d are left, %d were durable", id, left, all, f.synced)
		s.touch(path)
	}
	f.synced = size(path)
}

// touch gives a file the time of the world in which the simulation is.
func (s *sim) touch(path string) {
	now := s.now()
	if err := os.Chtimes(path, now, now); err != nil {
		s.failf("the model of the disk: %v", err)
	}
}

// empty reports what is left on the disk.
func (d *simDisk) rest() (list []string) {
	for _, dir := range simDirs {
		entries, _ := os.ReadDir(d.path(dir))
		for _, e := range entries {
			if name := dir + "/" + e.Name(); name != queue.Spare {
				list = append(list, name)
			}
		}
	}
	return list
}

var simDirs = []string{queue.Incoming, queue.Active, queue.Deferred, queue.Hold, queue.Corrupt}

// makeDirs makes the directories of a queue.
func makeDirs(base string) error {
	for _, dir := range append([]string{"kept", queue.Index}, append(simDirs, queue.Spare)...) {
		if err := os.Mkdir(filepath.Join(base, dir), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// clearDirs empties them, after a simulation that failed or whose power would have
// been cut.
func clearDirs(base string) {
	for _, dir := range append([]string{"kept", queue.Index}, append(simDirs, queue.Spare)...) {
		entries, _ := os.ReadDir(filepath.Join(base, dir))
		for _, e := range entries {
			if name := filepath.Join(dir, e.Name()); name != queue.Spare {
				_ = os.RemoveAll(filepath.Join(base, name))
			}
		}
	}
}
