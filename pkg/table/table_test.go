package table

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// change gives a file new content, of some time ago, that the next Get has to
// notice.
func change[T any](t testing.TB, f *File[T], text string) {
	t.Helper()
	if err := os.WriteFile(f.path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	before := time.Now().Add(-time.Hour - time.Duration(len(text))*time.Second)
	if err := os.Chtimes(f.path, before, before); err != nil {
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

// TestEdit: what editors and scripts do on the way to a new table is not seen.
func TestEdit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	table := NewText(path, func(err error) { t.Error(err) })
	clock := time.Now()
	table.file.now = func() time.Time { return clock }
	// write is a change right now.
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, clock, clock); err != nil {
			t.Fatal(err)
		}
	}
	step := func(after time.Duration, want string) {
		t.Helper()
		clock = clock.Add(after)
		a, _, err := table.Lookup("a")
		b, _, err2 := table.Lookup("b")
		if got := a + b; got != want || err != nil || err2 != nil {
			t.Errorf("%q, want %q: %v, %v", got, want, err, err2)
		}
	}
	step(0, "")
	write("a 1\nb 2\n") // where nothing was known
	step(checkEvery, "12")
	write("")
	step(checkEvery, "12")
	write("a 3\n")
	step(settle-1, "12")
	write("a 3\nb 4\n")
	step(settle-1, "12")
	step(checkEvery, "34")

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	step(checkEvery, "34")
	write("a 5\nb 6\n")
	step(checkEvery, "34")
	step(settle, "56")
	// Nobody asks for long.
	write("a 7\nb 8\n")
	step(settle, "78")

	// Another file, with all that shows the same.
	other := path + "~"
	if err := os.WriteFile(other, []byte("a 9\nb 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chtimes(other, info.ModTime(), info.ModTime()), os.Rename(other, path)); err != nil {
		t.Fatal(err)
	}
	step(settle, "90")
	// A clock that was ahead.
	ahead := clock.Add(time.Hour)
	write("a 1\nb 1\n")
	if err := os.Chtimes(path, ahead, ahead); err != nil {
		t.Fatal(err)
	}
	step(checkEvery, "90")
	step(settle, "11")

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	step(checkEvery, "11")
	step(settle-1, "11")
	step(checkEvery, "")
}

// TestClockSetBack: a change is seen although the clock was ahead when the file was
// looked at.
func TestClockSetBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	table := NewText(path, func(err error) { t.Error(err) })
	clock := time.Now().Add(time.Hour)
	table.file.now = func() time.Time { return clock }
	if err := os.WriteFile(path, []byte("a 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, _, err := table.Lookup("a"); v != "1" || err != nil {
		t.Fatalf("%q, %v", v, err)
	}
	clock = clock.Add(-time.Hour)
	if err := os.WriteFile(path, []byte("a 22\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		clock = clock.Add(settle)
		if _, _, err := table.Lookup("a"); err != nil {
			t.Fatal(err)
		}
	}
	if v, _, err := table.Lookup("a"); v != "22" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
}

// TestDeadLink: what a link leads to may be there, out of a daemon's sight. That is no
// table that is empty.
func TestDeadLink(t *testing.T) {
	for _, name := range []string{"tables", "tables/t"} {
		dir := t.TempDir()
		link, away := filepath.Join(dir, name), filepath.Join(dir, "away")
		if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o700), os.Symlink(away, link)); err != nil {
			t.Fatal(err)
		}
		table := NewText(filepath.Join(dir, "tables", "t"), func(error) {})
		if _, _, err := table.Lookup("a"); err == nil || !strings.Contains(err.Error(), link+" is a link to "+away) {
			t.Errorf("%s: %v", name, err)
		}
	}
	table := NewText(filepath.Join(t.TempDir(), "tables", "t"), func(err error) { t.Error(err) })
	if _, found, err := table.Lookup("a"); found || err != nil {
		t.Errorf("no directory: %v", err)
	}
}

// TestLinkDies: while a link leads nowhere, what was there holds.
func TestLinkDies(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "t")
	if err := errors.Join(os.WriteFile(file, []byte("a 1\n"), 0o600), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	var said []error
	table := NewText(link, func(err error) { said = append(said, err) })
	clock := time.Now()
	table.file.now = func() time.Time { return clock }
	for i := range 4 {
		if got, _, err := table.Lookup("a"); got != "1" || err != nil {
			t.Errorf("%d: %q, %v", i, got, err)
		}
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		clock = clock.Add(settle)
	}
	if len(said) != 1 {
		t.Errorf("%v", said)
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
	// A directory cannot be read as a table, and nobody waits for who writes to a FIFO.
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{t.TempDir(), fifo} {
		if _, _, err := NewText(path, func(error) {}).Lookup("a"); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s is a table: %v", path, err)
		}
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
	change(t, table.file, "a two\n")
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
	got, found, err := aliases.Targets("INFO@example.org")
	if err != nil || !found || len(got) != 2 || got[1].String() != "b@example.net" {
		t.Errorf("%v, %v, %v", got, found, err)
	}
	if got, _, _ := aliases.Targets("root"); len(got) != 1 || got[0].String() != "admin" {
		t.Errorf("%v", got)
	}
	if got, err := parseAliases("t", []byte("@old.example: @new.example, x@b.example")); err != nil || len(got["@old.example"]) != 2 ||
		got["@old.example"][0] != (Target{Domain: "new.example"}) || got["@old.example"][1].String() != "x@b.example" {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"a: |program x", "a: :include:/etc/passwd", "a:", "a: b c", "a: b@\x01", "a: /tmp/mbox", "@a: @", "@a: @b c", "@a: @[x"} {
		if _, err := parseAliases("t", []byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// TestLongEntry: a list with a line for each address is read in time that grows with
// it; an entry that was copied for each line took seconds, and the table with it.
func TestLongEntry(t *testing.T) {
	read := func(lines int) uint64 {
		text := []byte("all@example.org:\n" + strings.Repeat("  a@example.org,\n", lines))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := parseAliases("t", text); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	if small, large := read(500), read(5000); large > 20*small {
		t.Errorf("%d octets for 500 lines, %d for 5000", small, large)
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
