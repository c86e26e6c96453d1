package become

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func root(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may become somebody")
	}
}

// do waits for what Go does.
func do(id Identity, f func() error) error {
	done := make(chan error)
	Go(id, func(*Thread) error { return f() }, func(err error) { done <- err })
	return <-done
}

// status returns fields of /proc/self/task/TID/status.
func status(t *testing.T, tid int, keys ...string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", tid))
	if err != nil {
		return "" // it has ended
	}
	var got []string
	for line := range strings.Lines(string(b)) {
		if key, value, _ := strings.Cut(line, ":"); slices.Contains(keys, key) {
			got = append(got, key+": "+strings.Join(strings.Fields(value), " "))
		}
	}
	return strings.Join(got, "\n")
}

// everyone returns what all threads of this process are.
func everyone(t *testing.T) map[string]int {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]int)
	for _, task := range tasks {
		var tid int
		if _, err := fmt.Sscan(filepath.Base(task), &tid); err != nil {
			t.Fatal(err)
		}
		if s := status(t, tid, "Uid", "Gid", "Groups", "CapEff", "CapPrm"); s != "" {
			all[s]++
		}
	}
	return all
}

func TestIdentity(t *testing.T) {
	root(t)
	var got string
	if err := do(Identity{1234, 1235, []uint32{7, 5}}, func() error {
		got = status(t, unix.Gettid(), "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapAmb")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := "Uid: 0 0 0 1234\nGid: 0 0 0 1235\nGroups: 5 7\n"
	for _, set := range []string{"CapInh: 0", "CapPrm: 0000000000000040", "CapEff: 0", "CapAmb: 0"} { // CAP_SETGID, for Regroup
		want += (set + "000000000000000")[:24] + "\n"
	}
	if got+"\n" != want {
		t.Errorf("%s\nnot\n%s", got, want)
	}
}

// Groups are changed once, and after that there is no capability.
func TestRegroup(t *testing.T) {
	root(t)
	keys := []string{"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapAmb"}
	var got string
	done := make(chan error)
	Go(Identity{1234, 1235, []uint32{7, 5}}, func(thread *Thread) error {
		if err := thread.Regroup([]uint32{0}); err == nil {
			t.Error("it has the group of root")
		}
		if err := thread.Regroup([]uint32{8}); err != nil {
			return err
		}
		got = status(t, unix.Gettid(), keys...)
		if err := thread.Regroup([]uint32{7}); err == nil {
			t.Error("groups are changed twice")
		}
		if unix.Setgroups(nil) == nil {
			t.Error("there is a way to other groups")
		}
		if again := status(t, unix.Gettid(), keys...); again != got {
			t.Error(again)
		}
		return nil
	}, func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want := "Uid: 0 0 0 1234\nGid: 0 0 0 1235\nGroups: 8"
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		want += "\n" + set + ": 0000000000000000"
	}
	if got != want {
		t.Errorf("%s\nnot\n%s", got, want)
	}
	// While it has not been called, there is none in force.
	if err := do(Identity{1234, 1235, []uint32{7}}, func() error {
		if unix.Setgroups(nil) == nil {
			return errors.New("there is a way to other groups")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// What a thread does to files the user does: makes its own, and no more than they may.
func TestFiles(t *testing.T) {
	root(t)
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o711), os.Chmod(dir, 0o711), os.WriteFile(dir+"/secret", nil, 0o600), os.WriteFile(dir+"/group", nil, 0o060), os.Chmod(dir+"/group", 0o060),
		os.Chown(dir+"/group", 0, 5), os.Mkdir(dir+"/own", 0o700), os.Chown(dir+"/own", 1234, 1235)); err != nil {
		t.Fatal(err)
	}
	try := func(id Identity) (secret, group, own error) {
		if err := do(id, func() error {
			_, secret = os.ReadFile(dir + "/secret")
			_, group = os.ReadFile(dir + "/group")
			own = os.WriteFile(dir+"/own/"+fmt.Sprint(id.Groups), nil, 0o600)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return secret, group, own
	}
	if secret, group, own := try(Identity{1234, 1235, []uint32{5}}); !errors.Is(secret, os.ErrPermission) || group != nil || own != nil {
		t.Errorf("%v, %v, %v", secret, group, own)
	}
	if secret, group, own := try(Identity{1236, 1235, nil}); !errors.Is(secret, os.ErrPermission) || !errors.Is(group, os.ErrPermission) || !errors.Is(own, os.ErrPermission) {
		t.Errorf("another: %v, %v, %v", secret, group, own)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/own/[5]", &st); err != nil || st.Uid != 1234 || st.Gid != 1235 {
		t.Errorf("of %d:%d; %v", st.Uid, st.Gid, err)
	}
}

// No thread is a user when what was to be done is, and none that was started
// meanwhile, by the runtime for goroutines that wait in the kernel.
func TestNothingStays(t *testing.T) {
	root(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	// Threads of the tests before this one may not have ended yet.
	before := everyone(t)
	for end := time.Now().Add(time.Minute); len(before) != 1; before = everyone(t) {
		if time.Now().After(end) {
			t.Fatalf("before: %v", before)
		}
		time.Sleep(time.Millisecond)
	}
	var mine string
	for mine = range before {
	}
	var wg sync.WaitGroup
	for round := range 20 {
		for i := range uint32(20) {
			id := Identity{2000 + i, 3000 + i, []uint32{4000 + i}}
			wg.Add(1)
			Go(id, func(*Thread) error {
				children := make(chan string)
				for range 3 {
					go func() { // each needs a thread while it sleeps there
						runtime.LockOSThread() // else it may have gone on to another one when it looks
						defer runtime.UnlockOSThread()
						ts := unix.NsecToTimespec(int64(time.Millisecond))
						_ = unix.Nanosleep(&ts, nil)
						children <- status(t, unix.Gettid(), "Uid", "Gid", "Groups", "CapEff", "CapPrm")
					}()
				}
				for range 3 {
					if got := <-children; got != mine {
						t.Errorf("a goroutine of its own is\n%s", got)
					}
				}
				ts := unix.NsecToTimespec(int64(time.Millisecond))
				_ = unix.Nanosleep(&ts, nil)
				if got, want := status(t, unix.Gettid(), "Uid"), fmt.Sprintf("Uid: 0 0 0 %d", id.UID); got != want {
					t.Errorf("%s, not %s", got, want)
				}
				if round%5 == 0 {
					panic("on purpose")
				}
				return nil
			}, func(error) { wg.Done() })
		}
	}
	wg.Wait()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		after := everyone(t)
		if len(after) == 1 && after[mine] > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after: %v", after)
		}
	}
}

// The first thread of the process cannot end, and becomes nobody.
func TestNotTheFirstThread(t *testing.T) {
	root(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for range 200 {
		if err := do(Identity{1234, 1235, nil}, func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("on the first thread")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if got := status(t, os.Getpid(), "Uid"); got != "Uid: 0 0 0 0" {
		t.Error(got)
	}
}

func TestFailures(t *testing.T) {
	root(t)
	wrong := errors.New("wrong")
	if err := do(Identity{1, 1, nil}, func() error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("%v", err)
	}
	var p *Panic
	if err := do(Identity{1, 1, nil}, func() error { panic("boo") }); !errors.As(err, &p) || p.Error() != "panic: boo" || !strings.Contains(string(p.Stack), "TestFailures") {
		t.Errorf("%v", err)
	}
	if err := do(Identity{1, 1, nil}, func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error of what has not come to an end")
	}
	for _, id := range []Identity{{0, 1, nil}, {1, 0, nil}, {1, 1, []uint32{0}}, {1, 1, []uint32{5, 0}}, {1<<32 - 1, 1, nil}, {1, 1<<32 - 1, nil}, {1, 1, make([]uint32, 70_000)}} {
		if err := do(id, func() error { t.Errorf("done as %+v", id); return nil }); err == nil {
			t.Errorf("%d:%d: no error", id.UID, id.GID)
		}
	}
}

// What is not as it should be is noticed, whatever the system calls have said.
func TestCheck(t *testing.T) {
	root(t)
	is := Identity{1234, 1235, []uint32{5, 7}}
	if err := do(is, func() error {
		for _, id := range []Identity{{1235, 1235, is.Groups}, {1234, 1234, is.Groups}, {1234, 1235, nil}, {1234, 1235, []uint32{5}}, {1234, 1235, []uint32{5, 7, 8}}} {
			if id.check() == nil {
				t.Errorf("%+v is taken for %+v", is, id)
			}
		}
		return is.check()
	}); err != nil {
		t.Error(err)
	}
}

func BenchmarkGo(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("only root may become somebody")
	}
	for b.Loop() {
		if err := do(Identity{1, 1, nil}, func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
