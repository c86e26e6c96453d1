package mailbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemnant: what was written of a message before the process was killed, at
// whatever octet, is gone when the message is in the mailbox.
func TestRemnant(t *testing.T) {
	const head = "Return-Path: <s@example.org>\n"
	other := "From other@example.org  Wed Nov  4 09:08:06 2026\nx\n\n"
	for name, body := range map[string]string{
		"short": "Received: by x id 1\r\n\r\nFrom here\r\nend\r\n",
		"long":  "Received: by x id 1\r\n\r\n" + strings.Repeat(strings.Repeat("line of text ", 5)+"\r\nFrom\r\n", 5*tail/70),
	} {
		dir := t.TempDir()
		b := mbox(t, dir, &syncer{})
		if err := b.Append("s@example.org", date, head, strings.NewReader(body)); err != nil {
			t.Fatal(err)
		}
		whole := content(t, dir)
		step := 1 + len(whole)/300
		for _, before := range []string{"", other, other + "\n", other + strings.Repeat("y", 3*tail) + "\n\n"} {
			for n := 1; n < len(whole); n += step {
				dir := t.TempDir()
				b := mbox(t, dir, &syncer{})
				if err := os.WriteFile(filepath.Join(dir, "alice"), []byte(before+whole[:n]), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := b.Append("s@example.org", date, head, strings.NewReader(body)); err != nil {
					t.Fatal(err)
				}
				b.Dir.Close() // they are many
				if got := content(t, dir); got != before+whole {
					t.Fatalf("%s: of the first %d octets something is left: %.300q", name, n, got)
				}
			}
		}
	}
}

// TestNULs: where the power went while a message was written, there may be NULs for what
// was, or for the rest of it. They are gone when this message, or another one, is in the
// mailbox.
func TestNULs(t *testing.T) {
	const head = "Return-Path: <s@example.org>\n"
	other := "From other@example.org  Wed Nov  4 09:08:06 2026\nx\n\n"
	for _, before := range []string{"", other, "no end of a line"} {
		for _, nuls := range []int{1, 500, 40 * tail} {
			dir := t.TempDir()
			b := mbox(t, dir, &syncer{})
			path := filepath.Join(dir, "alice")
			write := func(s string) {
				t.Helper()
				if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			deliver := func(body string) string {
				t.Helper()
				if err := b.Append("s@example.org", date, head, strings.NewReader(body)); err != nil {
					t.Fatal(err)
				}
				return content(t, dir)
			}
			const body = "Received: by x id 1\r\n\r\nend\r\n"
			write(before)
			whole := deliver(body)
			for n := len(before); n < len(whole); n++ {
				write(whole[:n] + strings.Repeat("\x00", nuls))
				if got := deliver(body); got != whole {
					t.Fatalf("%q, then %d NULs: %.300q", whole[:n], nuls, got)
				}
				// They may be in the middle, and the message end where it does or before.
				const hidden = 30
				for end := n + hidden + 1; nuls == 1 && end <= len(whole); end += 7 {
					hole := whole[:n] + strings.Repeat("\x00", hidden) + whole[n+hidden:end]
					write(hole)
					if got := deliver(body); got != whole {
						t.Fatalf("%q: %.300q", hole, got)
					}
				}
			}
			write(before)
			want := deliver("another\r\n")
			write(before + strings.Repeat("\x00", nuls))
			if got := deliver("another\r\n"); got != want {
				t.Fatalf("%q, then %d NULs: %.300q", before, nuls, got)
			}
		}
	}
}

// TestForeignNULs: mail of others with NULs in it is left alone.
func TestForeignNULs(t *testing.T) {
	const head, body = "Return-Path: <s@example.org>\n", "Received: by x id 1\r\n\r\nend\r\n"
	first := FromLine("s@example.org", date)
	for _, old := range []string{
		first + head + "Received: by x id \x00\n\nanother\n\n",
		first + "\x00\n\n",
		"x\x00\n\n",
		"\x00\x00\x00\x00ly the end of another\n\n",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "alice"), []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := mbox(t, dir, &syncer{}).Append("s@example.org", date, head, strings.NewReader(body)); err != nil {
			t.Fatal(err)
		}
		if got := content(t, dir); !strings.HasPrefix(got, old) {
			t.Errorf("after %q: %q", old, got)
		}
	}
}

// TestManyNULs: a hole of any size in a file of a user's costs no more than a bound.
func TestManyNULs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "alice")
	if err := errors.Join(os.WriteFile(path, []byte("x"), 0o600), os.Truncate(path, 1<<40)); err != nil {
		t.Fatal(err)
	}
	if err := mbox(t, dir, &syncer{}).Append("s@example.org", date, "", strings.NewReader("body\r\n")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() < 1<<40 {
		t.Errorf("%v, %v", info.Size(), err)
	}
}

// TestNoRemnant: nobody else's message is taken for one, however much it is like it.
func TestNoRemnant(t *testing.T) {
	const head, body = "Return-Path: <s@example.org>\n", "Received: by x id 1\r\n\r\nend\r\n"
	first := FromLine("s@example.org", date)
	whole := first + head + "Received: by x id 1\n\nend\n\n"
	for _, old := range []string{
		whole,
		first + head + "Received: by x id 2\n\n",
		first + head + "Received: by x id 1\n\nend of another\n\n",
		first + "x\n",
		"From s@example.org  Wed Nov  4 09:08:08 2026\n",
		"From",
		"x\nFrom\n",
		"x\nFar",
		"no mailbox",
		"From the author of this text\n",
		"x From s@example.org",
	} {
		if strings.HasPrefix(whole, old) && old != whole {
			continue // as in TestRemnant
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "alice"), []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := mbox(t, dir, &syncer{}).Append("s@example.org", date, head, strings.NewReader(body)); err != nil {
			t.Fatal(err)
		}
		if got := content(t, dir); !strings.HasPrefix(got, old) || !strings.HasSuffix(got, whole) {
			t.Errorf("after %q: %q", old, got)
		}
	}
}

// TestRemnantFails: where the message cannot be delivered again, the mailbox is left
// without the beginning of it.
func TestRemnantFails(t *testing.T) {
	dir := t.TempDir()
	first := FromLine("s@example.org", date)
	if err := os.WriteFile(filepath.Join(dir, "alice"), []byte("old\n\n"+first+"x"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := mbox(t, dir, &syncer{failAt: 1, err: unix.EIO}).Append("s@example.org", date, "", strings.NewReader("xyz\r\n"))
	if got := content(t, dir); err == nil || got != "old\n\n" {
		t.Errorf("%q, %v", got, err)
	}
}
