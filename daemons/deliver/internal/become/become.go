// Package become has things done with the rights that a user has on files, by a
// thread of this process that does nothing else, before or after.
//
// The kernel has the user, group and groups by which it judges access to files for
// each thread by itself (setfsuid(2)). All else of the process stays what it is, so
// that the user may neither signal nor trace it. A thread that has been a user
// is never used again: its goroutine stays locked to it, and it ends with that. Nor
// does it start others: from one that a goroutine is locked to the runtime of
// Go starts none, since Go 1.10, but has an untouched one do that.
package become

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"

	"golang.org/x/sys/unix"
)

// Identity is who a thread becomes.
type Identity struct {
	UID, GID uint32
	Groups   []uint32 // all others
}

// Panic is the error of a function that has panicked.
type Panic struct {
	Value any
	Stack []byte
}

func (p *Panic) Error() string { return fmt.Sprintf("panic: %v", p.Value) }

// Thread is one that has become somebody.
type Thread struct{ id Identity }

// Go calls f on a thread that has become id, and then done, there too, with the
// error of f. Where the thread cannot become id, or that is root, f is not called,
// and done is told why. Go returns at once.
//
// What f starts as goroutines of its own has the rights of the process, and it
// must not hand on what it opens.
func Go(id Identity, f func(*Thread) error, done func(error)) {
	go func() {
		runtime.LockOSThread() // for good: with the goroutine its thread ends
		if unix.Gettid() == unix.Getpid() {
			// The first thread of a process cannot end before the others. It is kept
			// until the next goroutine has one.
			have := make(chan struct{})
			go func() {
				runtime.LockOSThread()
				close(have)
				run(id, f, done)
			}()
			<-have
			runtime.UnlockOSThread()
			return
		}
		run(id, f, done)
	}()
}

func run(id Identity, f func(*Thread) error, done func(error)) {
	err := errors.New("it has not come to an end") // runtime.Goexit
	defer func() {
		if p := recover(); p != nil {
			err = &Panic{p, debug.Stack()}
		}
		done(err)
	}()
	if trouble := id.assume(); trouble != nil {
		err = trouble
		return
	}
	err = f(&Thread{id})
}

// assume makes this thread id, and believes no system call that it has worked.
func (id Identity) assume() error {
	if id.UID == 0 || id.GID == 0 || slices.Contains(id.Groups, 0) {
		return errors.New("nothing is done as root")
	}
	// This package of the system calls has them for one thread; that of the standard
	// library would change all threads.
	if err := setgroups(id.Groups); err != nil {
		return err
	}
	if _, err := unix.SetfsgidRetGid(int(id.GID)); err != nil {
		return fmt.Errorf("setfsgid: %w", err)
	}
	if _, err := unix.SetfsuidRetUid(int(id.UID)); err != nil {
		return fmt.Errorf("setfsuid: %w", err)
	}
	if err := setCapabilities(0, 1<<unix.CAP_SETGID); err != nil {
		return err
	}
	return id.check()
}

// Regroup gives the thread other groups in the place of those that it has, and takes
// from it the capability for that, which is not in force before: it works once.
func (t *Thread) Regroup(groups []uint32) error {
	if slices.Contains(groups, 0) {
		return errors.New("nothing is done with the group of root")
	}
	if err := setCapabilities(1<<unix.CAP_SETGID, 1<<unix.CAP_SETGID); err != nil {
		return err
	}
	err := setgroups(groups)
	if err := errors.Join(err, setCapabilities(0, 0)); err != nil {
		return err
	}
	t.id.Groups = groups
	return t.id.check()
}

func setgroups(groups []uint32) error {
	list := make([]int, len(groups))
	for i, g := range groups {
		list[i] = int(g)
	}
	if err := unix.Setgroups(list); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	return nil
}

// check reports what this thread is that it should not be.
func (id Identity) check() error {
	const none = -1 // changes nothing
	uid, err := unix.SetfsuidRetUid(none)
	if err != nil || uint32(uid) != id.UID {
		return fmt.Errorf("files are used as user %d, not %d; %w", uid, id.UID, err)
	}
	gid, err := unix.SetfsgidRetGid(none)
	if err != nil || uint32(gid) != id.GID {
		return fmt.Errorf("files are used as group %d, not %d; %w", gid, id.GID, err)
	}
	groups, err := unix.Getgroups()
	if err != nil {
		return fmt.Errorf("getgroups: %w", err)
	}
	want := slices.Compact(slices.Sorted(slices.Values(id.Groups)))
	slices.Sort(groups)
	if !slices.EqualFunc(slices.Compact(groups), want, func(g int, w uint32) bool { return uint32(g) == w }) {
		return fmt.Errorf("files are used with groups %d, not %d", groups, want)
	}
	return nil
}

// setCapabilities leaves this thread no capabilities but those of a set, each with its
// bit: effective ones are what the kernel goes by, and any could give access to files;
// of the permitted ones these can be taken. More than it has it does not get.
func setCapabilities(effective, permitted uint32) error {
	var data [2]unix.CapUserData
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	want := [2]unix.CapUserData{{Effective: effective, Permitted: permitted}}
	data = want
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	if data != want {
		return fmt.Errorf("the capabilities are %x, not %x", data, want)
	}
	return nil
}
