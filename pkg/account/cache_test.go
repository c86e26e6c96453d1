package account

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// old has a file be one that is not being written now.
func old(t *testing.T, file string, age time.Duration) {
	t.Helper()
	at := time.Now().Add(-age)
	if err := os.Chtimes(file, at, at); err != nil {
		t.Fatal(err)
	}
}

func TestCache(t *testing.T) {
	s := sources{filepath.Join(t.TempDir(), "none"), write(t, "passwd", passwd), write(t, "group", group)}
	c := &Cache{sources: s}
	uid := func(name string) string {
		t.Helper()
		a, err := c.Lookup(t.Context(), name)
		if errors.Is(err, ErrNone) {
			return "none"
		}
		if err != nil {
			return "error"
		}
		return fmt.Sprint(a.UID, a.Groups)
	}
	is := func(what, name, want string) {
		t.Helper()
		if got := uid(name); got != want {
			t.Errorf("%s: %s is %s, not %s", what, name, got, want)
		}
	}
	is("fresh", "alice", "1000 [4 8]")
	if len(c.kept) > 0 {
		t.Error("an answer of files that are just being written is kept")
	}
	old(t, s.passwd, time.Hour)
	old(t, s.group, time.Hour)
	is("settled", "alice", "1000 [4 8]")
	is("settled", "bob", "none")
	is("settled", "carol", "none")
	is("settled", "minus", "error")
	if len(c.kept) != 3 {
		t.Errorf("kept are %v", c.kept)
	}
	// As useradd does it, and as an editor may do.
	replace := func(file, content string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file+".new", []byte(content), 0o600), os.Rename(file+".new", file)); err != nil {
			t.Fatal(err)
		}
	}
	replace(s.passwd, strings.Replace(passwd, "1000", "1009", 1)+"bob:x:7:7::/:\n")
	is("replaced", "alice", "1009 [4 8]")
	is("replaced", "bob", "7 [8]")
	old(t, s.passwd, time.Hour)
	is("again", "bob", "7 [8]")
	if err := os.WriteFile(s.group, []byte(strings.Replace(group, "bob,", "xxx,", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	is("written to", "bob", "7 []")
	old(t, s.group, 2*time.Hour)
	is("settled again", "bob", "7 []")
	// No answer counts for long.
	for name, a := range c.kept {
		a.at = a.at.Add(-maxAge)
		a.account = &Account{UID: 99}
		c.kept[name] = a
	}
	is("too old", "bob", "7 []")
	for i := range maxKept + 10 {
		c.put(c.state, fmt.Sprint("u", i), answered{nil, time.Now()})
	}
	if len(c.kept) > maxKept {
		t.Errorf("%d answers are kept", len(c.kept))
	}
	if err := os.Remove(s.passwd); err != nil {
		t.Fatal(err)
	}
	is("away", "bob", "error")
}

// Of userdb it is kept who there is, not who there is not: that may be trouble.
func TestCacheOfUserdb(t *testing.T) {
	c := &Cache{sources: userdbd(t, map[string]string{"GetUserRecord": userRecord, "GetMemberships": nothing})}
	if _, err := c.Lookup(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	c.sources = userdbd(t, map[string]string{"GetUserRecord": nothing})
	if a, err := c.Lookup(t.Context(), "alice"); err != nil || a.UID != 1000 {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := c.Lookup(t.Context(), "bob"); !errors.Is(err, ErrNone) || len(c.kept) != 1 {
		t.Errorf("%v, %v", err, c.kept)
	}
	// Where userdb comes, files do not count any more.
	files := sources{filepath.Join(t.TempDir(), "none"), write(t, "passwd", passwd), write(t, "group", group)}
	old(t, files.passwd, time.Hour)
	old(t, files.group, time.Hour)
	userdb := c.sources
	c.sources = files
	if a, err := c.Lookup(t.Context(), "homeless"); err != nil || a.UID != 1002 {
		t.Errorf("%+v, %v", a, err)
	}
	c.sources = userdb
	if a, err := c.Lookup(t.Context(), "homeless"); !errors.Is(err, ErrNone) {
		t.Errorf("%+v, %v", a, err)
	}
}
