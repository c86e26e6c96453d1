package table

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// change gives a file new content that the next Get has to notice.
func change[T any](t testing.TB, f *File[T], text string) {
	t.Helper()
	if err := os.WriteFile(f.path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Duration(len(text)+1) * time.Second)
	if err := os.Chtimes(f.path, later, later); err != nil {
		t.Fatal(err)
	}
	f.checked.Store(0)
}

func TestText(t *testing.T) {
	var failures []error
	table := NewText(filepath.Join(t.TempDir(), "t"), func(err error) { failures = append(failures, err) })
	get := func(key string) string {
		v, found, err := table.Lookup(key)
		switch {
		case err != nil:
			return "error"
		case !found:
			return "none"
		}
		return v
	}
	if got := get("a"); got != "none" {
		t.Errorf("missing file: %s", got)
	}
	change(t, table.file, "# comment\nA\tsmtp:[x]:25\nb  one\n  two\n\nc\n")
	for key, want := range map[string]string{"a": "smtp:[x]:25", "A": "smtp:[x]:25", "b": "one two", "c": "", "d": "none"} {
		if got := get(key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	change(t, table.file, "a 1\na 2\n")
	if got := get("c"); got != "" || len(failures) != 1 || !strings.Contains(failures[0].Error(), ":2:") {
		t.Errorf("broken file: %q, %v", got, failures)
	}
	change(t, table.file, "z 1\n")
	if got := get("z") + get("a"); got != "1none" {
		t.Errorf("mended file: %q", got)
	}
}

func TestBrokenFromTheStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	if err := os.WriteFile(path, []byte(" continues nothing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	table := NewText(path, func(error) {})
	if _, found, err := table.Lookup("a"); err == nil || found {
		t.Errorf("%v, %v", found, err)
	}
	// A directory cannot be read as a table.
	if _, _, err := NewText(t.TempDir(), func(error) {}).Lookup("a"); err == nil {
		t.Error("a directory is a table")
	}
}

// TestNoDescriptors: a file that cannot be read now is read again, although it
// does not change.
func TestNoDescriptors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	if err := os.WriteFile(path, []byte("a 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var failures []error
	table := NewText(path, func(err error) { failures = append(failures, err) })
	look := func() (string, error) {
		table.file.checked.Store(0)
		value, _, err := table.Lookup("a")
		return value, err
	}
	again := noFiles(t)
	_, err1 := look()
	_, err2 := look()
	again()
	if err1 == nil || err2 == nil || len(failures) != 1 {
		t.Errorf("without descriptors: %v, %v; reported: %q", err1, err2, failures)
	}
	if v, err := look(); v != "1" || err != nil {
		t.Errorf("with descriptors: %q, %v", v, err)
	}
	if err := os.WriteFile(path, []byte("a two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	again = noFiles(t)
	v, err := look()
	again()
	if v != "1" || err != nil {
		t.Errorf("without descriptors again: %q, %v", v, err)
	}
	if v, err := look(); v != "two" || err != nil {
		t.Errorf("changed: %q, %v", v, err)
	}
}

// noFiles has every open(2) of this process fail until the result is called.
func noFiles(t *testing.T) (again func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	set := func(l syscall.Rlimit) {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
			t.Fatal(err)
		}
	}
	set(syscall.Rlimit{Cur: 0, Max: old.Max})
	return func() { set(old) }
}

func TestAliases(t *testing.T) {
	aliases := NewAliases(filepath.Join(t.TempDir(), "a"), func(err error) { t.Log(err) })
	change(t, aliases.file, "info@example.org: a@example.org,\n  b@example.net\nRoot admin\n")
	got, found, err := aliases.LookupAddresses("INFO@example.org")
	if err != nil || !found || len(got) != 2 || got[1].String() != "b@example.net" {
		t.Errorf("%v, %v, %v", got, found, err)
	}
	if got, _, _ := aliases.LookupAddresses("root"); len(got) != 1 || got[0].String() != "admin" {
		t.Errorf("%v", got)
	}
	for _, text := range []string{"a: |program x", "a: :include:/etc/passwd", "a:", "a: b c", "a: b@\x01", "a: /tmp/mbox"} {
		if _, err := parseAliases("t", []byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// FuzzAliases: what is accepted has addresses that have an external form.
func FuzzAliases(f *testing.F) {
	f.Add("a: b@c, d\n e\n")
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := parseAliases("t", []byte(text))
		if err != nil {
			if entries != nil {
				t.Fatal("an error with entries")
			}
			return
		}
		for key, targets := range entries {
			if len(targets) == 0 || strings.ContainsAny(key, " \n\x00") {
				t.Fatalf("%q: %v", key, targets)
			}
		}
	})
}
