package users

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"posthouse/pkg/addr"
)

func mailbox(t testing.TB, s string) addr.Mailbox {
	t.Helper()
	m, err := addr.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestEdit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(path, []byte("# kept\nzoe@example.org:{PLAIN}x:1:2::/home::\n"), 0o604); err != nil {
		t.Fatal(err)
	}
	f := NewFile(path)
	alice := User{Address: mailbox(t, "Alice@Example.org"), Password: "{PLAIN}p", UID: "999", GID: "999", Home: "/var/vmail/example.org/alice", Extra: "userdb_mail=maildir:~/Maildir"}
	if err := f.Add(alice); err != nil {
		t.Fatal(err)
	}
	if err := f.Add(alice); !errors.Is(err, ErrExists) {
		t.Errorf("added twice: %v", err)
	}
	if err := f.SetPassword(mailbox(t, "ALICE@example.org"), "{PLAIN}q"); err != nil {
		t.Fatal(err)
	}
	table := NewTable(path, func(err error) { t.Error(err) })
	for address, want := range map[string]bool{"alice@example.org": true, "ZOE@EXAMPLE.ORG": true, "bob@example.org": false} {
		if got, err := table.Has(mailbox(t, address)); err != nil || got != want {
			t.Errorf("has %s: %v, %v", address, got, err)
		}
	}
	if err := f.Delete(mailbox(t, "zoe@example.org")); err != nil {
		t.Fatal(err)
	}
	if err := f.Delete(mailbox(t, "zoe@example.org")); !errors.Is(err, ErrNone) {
		t.Errorf("deleted twice: %v", err)
	}
	b, err := os.ReadFile(path)
	want := "# kept\nalice@example.org:{PLAIN}q:999:999::/var/vmail/example.org/alice::userdb_mail=maildir:~/Maildir\n"
	if err != nil || string(b) != want {
		t.Errorf("file is %q, %v", b, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o604 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	list, err := f.List()
	if err != nil || len(list) != 1 || list[0].Home != alice.Home {
		t.Errorf("%v, %v", list, err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".users-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestEveryChangeHasItsSecond: Dovecot, which compares size and whole seconds, sees
// each of several changes in a moment.
func TestEveryChangeHasItsSecond(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	f := NewFile(path)
	m := mailbox(t, "user@example.org")
	if err := f.Add(User{Address: m, Password: "{PLAIN}0"}); err != nil {
		t.Fatal(err)
	}
	var last int64
	for i := range 5 {
		if err := f.SetPassword(m, "{PLAIN}"+strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if now := st.ModTime().Unix(); now <= last {
			t.Errorf("change %d has second %d, the one before it %d", i, now, last)
		} else {
			last = now
		}
	}
}

// TestKept: a new password changes nothing else: neither what the administrator has
// written into the line, nor a link.
func TestKept(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "real"), filepath.Join(dir, "users")
	if err := os.Symlink("real", link); err != nil {
		t.Fatal(err)
	}
	zoe := mailbox(t, "zoe@example.org")
	if err := NewFile(link).Add(User{Address: zoe}); err == nil {
		t.Error("a link to nothing was replaced")
	}
	if err := os.WriteFile(file, []byte("zoe@example.org:x:1:2:Zoe Z.:/home:/bin/false:a=b c=d\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := NewFile(link).SetPassword(zoe, "y"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if want := "zoe@example.org:y:1:2:Zoe Z.:/home:/bin/false:a=b c=d\n"; err != nil || string(b) != want {
		t.Errorf("file is %q, %v", b, err)
	}
	if target, err := os.Readlink(link); err != nil || target != "real" {
		t.Errorf("link to %q, %v", target, err)
	}
}

// TestNewFile: the daemon can read a table that was not there.
func TestNewFile(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "users")
	f := NewFile(path)
	f.ReadBy(12345)
	if err := f.Add(User{Address: mailbox(t, "zoe@example.org")}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Gid != 12345 || st.Uid != 0 || st.Mode&0o777 != 0o640 {
		t.Errorf("owner %d:%d, mode %o, %v", st.Uid, st.Gid, st.Mode, err)
	}
}

func TestRefused(t *testing.T) {
	f := NewFile(filepath.Join(t.TempDir(), "users"))
	for _, in := range []string{"..@example.org", ".x@example.org", `"a/b"@example.org`, `"a:b"@example.org`, `"a b"@example.org`, "-x@example.org", "#x@example.org", "nodomain"} {
		m, err := addr.Parse(in)
		if err != nil {
			continue
		}
		if err := f.Add(User{Address: m}); err == nil {
			t.Errorf("%s is added", in)
		}
	}
	for _, text := range []string{"x", "a@b:p:1:2", "a/b@c:p:1:2::h", "a@b:p:1:2::h\na@B:p:1:2::h", "a@b:p:1:2::h\r"} {
		if all, err := parse("users", []byte(text)); err == nil || all != nil {
			t.Errorf("%q is accepted: %v", text, all)
		}
	}
}

func TestHash(t *testing.T) {
	h, err := Hash("secret")
	if err != nil {
		t.Fatal(err)
	}
	if !Verify(h, "secret") || Verify(h, "Secret") || Verify(h, "") || Verify("{PLAIN}secret", "secret") || strings.Contains(h, ":") {
		t.Errorf("hash %s", h)
	}
	if again, _ := Hash("secret"); again == h {
		t.Error("no salt")
	}
}

// FuzzParse: an accepted line gives itself back, but for the case of its address
// and the fields that are not kept.
func FuzzParse(f *testing.F) {
	f.Add("user@example.org:{PLAIN}x:1:2:gecos:/home:/bin/sh:a=b:c")
	f.Fuzz(func(t *testing.T, line string) {
		u, err := parseLine(line)
		if err != nil {
			if u != (User{}) {
				t.Fatalf("%q: error with %v", line, u)
			}
			return
		}
		if again, err := parseLine(u.String()); err != nil || again != u {
			t.Fatalf("%q gives %q, %v", line, u.String(), err)
		}
	})
}
