package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"posthouse/daemons/deliver/internal/become"
	"posthouse/pkg/dsn"
	"posthouse/pkg/protocol/deliver"
)

// What a thread writes belongs to the user.
func TestThreadIsTheUser(t *testing.T) {
	a := someone(t, "alice")
	c := serve(t, a)
	for _, path := range []string{"mbox", "Maildir/"} {
		r := about(deliver.Mailbox, "alice")
		r.Path = path
		if got := ask(t, c, r); got.Status.Class() != dsn.Success {
			t.Fatalf("%+v", got)
		}
	}
	list, err := filepath.Glob(a.Home + "/Maildir/new/*")
	if err != nil || len(list) != 1 {
		t.Fatalf("%q, %v", list, err)
	}
	for _, file := range append(list, a.Home+"/mbox", a.Home+"/Maildir/tmp") {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != a.UID || st.Gid != a.GID || info.Mode()&0o077 != 0 {
			t.Errorf("%s: %v of %d:%d", file, info.Mode(), st.Uid, st.Gid)
		}
	}
}

// In one request .forward is looked for, and what is said to be done else is done, with
// the groups that are for it.
func TestForwardElse(t *testing.T) {
	a := someone(t, "alice")
	var mu sync.Mutex
	var as []become.Identity
	c := serveBy(t, a, func(s *service) {
		next, regroup := s.become, s.regroup
		s.become = func(id become.Identity, f func(*become.Thread) error, done func(error)) {
			mu.Lock()
			as = append(as, id)
			mu.Unlock()
			next(id, f, done)
		}
		s.regroup = func(t *become.Thread, groups []uint32) error {
			mu.Lock()
			as = append(as, become.Identity{Groups: groups})
			mu.Unlock()
			return regroup(t, groups)
		}
	})
	r := about(deliver.Forward, "alice")
	r.Files, r.Else, r.Path = []string{".forward"}, deliver.Spool, filepath.Dir(a.Home)+"/mail"
	if got := ask(t, c, r); got.Status.Class() != dsn.Success || !got.Else || got.Text != "delivered to mailbox" {
		t.Errorf("%+v", got)
	}
	if _, err := os.Stat(r.Path + "/alice"); err != nil {
		t.Error(err)
	}
	if os.Getuid() == 0 && (len(as) != 2 || len(as[0].Groups) != 1 || as[0].Groups[0] != 54323 || len(as[1].Groups) != 1 || as[1].Groups[0] != 54324) {
		t.Errorf("%+v", as)
	}
	r.Limit = 1
	if got := ask(t, c, r); got.Status.String() != "5.2.2" || !got.Else {
		t.Errorf("full: %+v", got)
	}
	r.Limit, r.Else, r.Path = 0, deliver.Mailbox, "Maildir/"
	if got := ask(t, c, r); got.Status.Class() != dsn.Success || !got.Else || got.Text != "delivered to maildir" {
		t.Errorf("%+v", got)
	}
	if err := errors.Join(os.WriteFile(a.Home+"/.forward", []byte("bob\n"), 0o600), os.Chown(a.Home+"/.forward", int(a.UID), int(a.GID))); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, c, r); got.Status.Class() != dsn.Success || got.Else || got.Forward != "bob\n" {
		t.Errorf("%+v", got)
	}
	if err := os.Chmod(a.Home+"/.forward", 0o666); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, c, r); got.Status.String() != "4.3.5" || got.Else {
		t.Errorf("%+v", got)
	}
	if list, err := filepath.Glob(a.Home + "/Maildir/new/*"); err != nil || len(list) != 1 {
		t.Errorf("%q, %v", list, err)
	}
}

// Where a thread cannot become the user, or panics, nothing is done, and mail waits.
func TestThreadFails(t *testing.T) {
	a := someone(t, "alice")
	for what, bad := range map[string]func(become.Identity, func(*become.Thread) error, func(error)){
		"not the user": func(_ become.Identity, _ func(*become.Thread) error, done func(error)) {
			done(errors.New("setgroups: EPERM"))
		},
		"a panic": func(_ become.Identity, _ func(*become.Thread) error, done func(error)) {
			done(&become.Panic{Value: "boo", Stack: []byte("goroutine 1")})
		},
	} {
		c := serveBy(t, a, func(s *service) { s.become = bad })
		r := about(deliver.Mailbox, "alice")
		r.Path = "Maildir/"
		for range 2 * ofHome { // none of them keeps its place
			if got := ask(t, c, r); got.Status.String() != "4.3.0" {
				t.Errorf("%s: %+v", what, got)
			}
		}
	}
}

// A thread that hangs takes places of its user, and is waited for no longer than the
// client, or who stops this daemon, wants.
func TestThreadHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var ended []error
		var mu sync.Mutex
		s := &service{places: newPlaces(), become: func(_ become.Identity, _ func(*become.Thread) error, done func(error)) {
			go func() {
				<-release
				done(nil)
			}()
		}}
		hang := func(hurry <-chan struct{}) time.Duration {
			start := time.Now()
			leave, err := s.places.take(t.Context(), place{uid: 1}, "alice")
			if err != nil {
				t.Fatal(err)
			}
			j := &job{s, about(deliver.Mailbox, "alice"), request{}, hurry}
			done := make(chan error, 1)
			s.become(become.Identity{}, nil, func(err error) {
				leave()
				mu.Lock()
				ended = append(ended, err)
				mu.Unlock()
				done <- err
			})
			if err := j.await(done); dsn.Of(err).Status.String() != "4.3.0" {
				t.Errorf("%v", err)
			}
			return time.Since(start)
		}
		if got := hang(nil); got != otherTime {
			t.Errorf("it is waited for for %v", got)
		}
		told := make(chan struct{})
		close(told)
		if got := hang(told); got != leaveTime {
			t.Errorf("in a hurry it is waited for for %v", got)
		}
		wait, cancel := context.WithTimeout(t.Context(), placeTime)
		defer cancel()
		if _, err := s.places.take(wait, place{uid: 1}, "alice"); dsn.Of(err).Status.String() != "4.3.2" {
			t.Errorf("one more: %v", err)
		}
		for _, other := range []place{{uid: 2}, {1, true}} {
			leave, err := s.places.take(t.Context(), other, "bob")
			if err != nil {
				t.Fatal(err)
			}
			leave()
		}
		close(release)
		synctest.Wait()
		if len(ended) != 2 || len(s.places.of) != 0 || len(s.places.all) != 0 {
			t.Errorf("%d have ended, and %d places are taken", len(ended), len(s.places.all))
		}
	})
}

func TestPlaces(t *testing.T) {
	s := newPlaces()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var leave []func()
	take := func(ctx context.Context, p place) error {
		l, err := s.take(ctx, p, "alice")
		if err == nil {
			leave = append(leave, l)
		}
		return err
	}
	for p, most := range map[place]int{{1, false}: ofHome, {1, true}: ofSpool, {2, false}: ofHome} {
		for range most {
			if err := take(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		if err := take(gone, p); err == nil || !strings.Contains(err.Error(), "alice") {
			t.Errorf("%+v: one more: %v", p, err)
		}
	}
	for uid := uint32(100); len(leave) < maxThreads; uid++ {
		if err := take(t.Context(), place{uid, false}); err != nil {
			t.Fatal(err)
		}
	}
	if err := take(gone, place{50, false}); dsn.Of(err).Status.Class() != dsn.Transient || err == nil {
		t.Errorf("over all: %v", err)
	}
	for _, l := range leave {
		l()
	}
	if len(s.of) != 0 || len(s.all) != 0 {
		t.Errorf("left: %v, %d", s.of, len(s.all))
	}
}
