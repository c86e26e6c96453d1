package mailbox

import (
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
				if got := content(t, dir); got != before+whole {
					t.Fatalf("%s: of the first %d octets something is left: %.300q", name, n, got)
				}
			}
		}
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
