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
	old(t, s.group, -time.Hour) // however long this takes
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
	// While the files are the same an answer counts, however old it is.
	for name, a := range c.kept {
		a.at = a.at.Add(-time.Hour)
		c.kept[name] = a
	}
	if err := os.Chmod(s.passwd, 0); err != nil {
		t.Fatal(err)
	}
	kept := c.kept["bob"].account
	if a, err := c.Lookup(t.Context(), "bob"); a != kept || err != nil {
		t.Errorf("an answer of an hour ago: %+v, %v", a, err)
	}
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

// TestCacheLooks: files are not looked at for each answer, but an answer that does not
// come from what was seen then goes with it.
func TestCacheLooks(t *testing.T) {
	s := sources{filepath.Join(t.TempDir(), "none"), write(t, "passwd", passwd), write(t, "group", group)}
	old(t, s.passwd, time.Hour)
	old(t, s.group, time.Hour)
	c := &Cache{sources: s, every: time.Hour}
	uid := func(name string) uint32 {
		t.Helper()
		a, err := c.Lookup(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return a.UID
	}
	uid("alice")
	if err := os.WriteFile(s.passwd, []byte(strings.ReplaceAll(passwd, "100", "900")), 0o600); err != nil {
		t.Fatal(err)
	}
	old(t, s.passwd, time.Minute)
	if got := uid("alice"); got != 1000 {
		t.Errorf("looked at again: %d", got)
	}
	if got := uid("homeless"); got != 9002 {
		t.Errorf("read: %d", got)
	}
	c.looked = c.looked.Add(-time.Hour)
	if alice, homeless := uid("alice"), uid("homeless"); alice != 9000 || homeless != 9002 {
		t.Errorf("of the new file: %d, %d", alice, homeless)
	}
	if len(c.kept) != 2 {
		t.Errorf("kept are %v", c.kept)
	}
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
	c.mu.Lock()
	for name, a := range c.kept {
		a.at = a.at.Add(-maxAge)
		c.kept[name] = a
	}
	c.mu.Unlock()
	if _, err := c.Lookup(t.Context(), "alice"); !errors.Is(err, ErrNone) {
		t.Errorf("an answer that is too old: %v", err)
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
