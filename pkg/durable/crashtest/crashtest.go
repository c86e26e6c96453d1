// Package crashtest is a disk in memory on which one operation goes wrong: it
// fails once, or the power is cut at it. A test lets it strike at every operation
// of a scenario in turn, and looks what a reboot leaves.
package crashtest

import (
	"errors"
	"io/fs"
	"sync"
)

// Fault is what goes wrong.
type Fault uint8

// The faults. After a power cut everything fails until Reboot. What was not
// durable by then is lost, or is partly there: a disk may do either.
const (
	OneError  Fault = iota // the operation fails, a write after half of its octets
	LoseNames              // power cut: files that were not committed are gone
	KeepNames              // power cut: they are there, without data
	KeepLast               // power cut: they are there with their size, but of their data only the last write
	KeepAll                // power cut: they are there, whole as written so far
	end
)

// Faults lists all of them.
func Faults() []Fault {
	list := make([]Fault, 0, end)
	for f := range end {
		list = append(list, f)
	}
	return list
}

// Errors of operations that were struck.
var (
	ErrDisk  = errors.New("input/output error")
	ErrPower = errors.New("no power")
)

// Disk is a directory on a disk. Its operations may be called at the same time.
type Disk struct {
	fault Fault
	at    int

	mu    sync.Mutex
	count int
	off   bool
	files map[string]*content // as programs see them
	saved map[string]*content // names on the disk
}

// content is an inode.
type content struct {
	data  []byte // as programs see it
	saved []byte // on the disk; nil: never committed
	last  [2]int // where the last write was
	lost  bool   // a commit failed: the kernel takes the data for clean from now on
}

// New returns an empty disk on which fault strikes at operation n, counted from 1.
func New(fault Fault, n int) *Disk {
	return &Disk{fault: fault, at: n, files: make(map[string]*content), saved: make(map[string]*content)}
}

// operation counts one operation, and gives the error that it ends with.
func (d *Disk) operation() error {
	if d.off {
		return ErrPower
	}
	d.count++
	switch {
	case d.count != d.at:
		return nil
	case d.fault == OneError:
		return ErrDisk
	}
	d.off = true
	return ErrPower
}

// Struck reports whether the fault has struck.
func (d *Disk) Struck() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count >= d.at
}

// File is an open file.
type File struct {
	disk *Disk
	name string
	c    *content
}

// Create makes a file; it fails if there is one.
func (d *Disk) Create(name string) (*File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.operation(); err != nil {
		return nil, err
	}
	if _, ok := d.files[name]; ok {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	c := &content{}
	d.files[name] = c
	return &File{d, name, c}, nil
}

// Write appends.
func (f *File) Write(p []byte) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	return f.write(p, len(f.c.data))
}

// WriteAt overwrites.
func (f *File) WriteAt(p []byte, at int64) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	return f.write(p, int(at))
}

func (f *File) write(p []byte, at int) (int, error) {
	err := f.disk.operation()
	switch {
	case errors.Is(err, ErrPower):
		return 0, err
	case err != nil:
		p = p[:len(p)/2]
	}
	if grow := at + len(p) - len(f.c.data); grow > 0 {
		f.c.data = append(f.c.data, make([]byte, grow)...)
	}
	f.c.last = [2]int{at, at + copy(f.c.data[at:], p)}
	return len(p), err
}

// Close closes the file; it cannot fail.
func (f *File) Close() error { return nil }

// Commit makes the data of f and its name durable. One that failed is not made
// good by another that succeeds.
func (d *Disk) Commit(f *File) error { return d.commit(f, true) }

// CommitData is a Commit that forgets the name.
func (d *Disk) CommitData(f *File) error { return d.commit(f, false) }

func (d *Disk) commit(f *File, name bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.operation(); err != nil {
		f.c.lost = true
		return err
	}
	if f.c.lost {
		return nil
	}
	f.c.saved = append([]byte{}, f.c.data...)
	if name && d.files[f.name] == f.c {
		d.saved[f.name] = f.c
	}
	return nil
}

// Remove removes a name. That it is gone is durable when the name was never
// committed, and may be undone by a power cut otherwise.
func (d *Disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.operation(); err != nil {
		return err
	}
	if _, ok := d.files[name]; !ok {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	delete(d.files, name)
	return nil
}

// Free is an operation that asks how much space is left; there is plenty.
func (d *Disk) Free() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return 1 << 50, d.operation()
}

// Reboot cuts the power if it is still on, and switches it on again. Nothing
// fails any more.
func (d *Disk) Reboot() {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := make(map[string]*content)
	for name, c := range d.saved {
		after[name] = &content{data: c.saved, saved: c.saved}
	}
	for name, c := range d.files {
		if _, ok := after[name]; ok || d.fault == OneError || d.fault == LoseNames {
			continue
		}
		after[name] = &content{data: d.remains(c)}
	}
	d.files, d.off, d.at = after, false, 0
}

// remains is what a power cut leaves of a file that was not committed.
func (d *Disk) remains(c *content) []byte {
	switch d.fault {
	case KeepLast:
		data := make([]byte, len(c.data))
		copy(data[c.last[0]:c.last[1]], c.data[c.last[0]:c.last[1]])
		return data
	case KeepAll:
		return c.data
	}
	return nil
}

// Names returns the names of the files.
func (d *Disk) Names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []string
	for name := range d.files {
		list = append(list, name)
	}
	return list
}

// Read returns what is in a file.
func (d *Disk) Read(name string) (data []byte, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, ok := d.files[name]
	if !ok {
		return nil, false
	}
	return append([]byte{}, c.data...), true
}
