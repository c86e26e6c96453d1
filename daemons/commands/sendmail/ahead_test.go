package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"posthouse/pkg/cli"
	"posthouse/pkg/dsn"
	"posthouse/pkg/protocol/cleanup"
)

// eof calls f at the end of what a program writes.
type eof struct {
	io.Reader
	f func()
}

func (e eof) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		e.f()
	}
	return n, err
}

// bodyOf is a body of n octets or somewhat more, of lines that differ.
func bodyOf(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		b.WriteString(strings.Repeat(string(rune('a'+i%26)), i%500) + "\r\n")
	}
	return b.String()
}

// TestReadAhead: the transaction begins at the end of the input, wherever the
// message is kept until then; where there is no room for it, it is sent as it
// comes. No file stays behind.
func TestReadAhead(t *testing.T) {
	room := t.TempDir()
	nowhere := filepath.Join(room, "nowhere")
	for _, tt := range []struct {
		name   string
		size   int
		tmpdir string
		ahead  bool
	}{
		{"empty", 0, nowhere, true},
		{"small, no file", maxMemory - 1000, nowhere, true},
		{"large", 3*maxMemory + 12345, room, true},
		{"large, no file", 3*maxMemory + 12345, nowhere, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var begun, early atomic.Bool
			path, took := busyPickup(t, func() (*dsn.Error, error) { begun.Store(true); return nil, nil }, nil)
			content := "From: me@x\r\n\r\n" + bodyOf(tt.size)
			in := eof{strings.NewReader(content), func() { early.Store(begun.Load()) }}
			s := submission{options: &options{sender: new(string), recipients: []string{"x"}}, client: cleanup.NewClient(path)}
			t.Setenv("TMPDIR", tt.tmpdir)
			umask := syscall.Umask(0o777) // is the caller's, too
			err := s.run(in)
			syscall.Umask(umask)
			if err != nil {
				t.Fatal(err)
			}
			if m := <-took; m.content != content {
				t.Errorf("%d octets became %d others", len(content), len(m.content))
			}
			if early.Load() == tt.ahead {
				t.Errorf("begun before the end of the input: %v", early.Load())
			}
			if left, err := os.ReadDir(room); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// TestFullDisk: what cannot be written to the file is not lost.
func TestFullDisk(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	content := bodyOf(3 * maxMemory)
	if err := os.WriteFile(name, []byte(content[:maxMemory]), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name) // to write to it fails
	if err != nil {
		t.Fatal(err)
	}
	b := &body{file: f, stored: maxMemory}
	defer b.close()
	if err := b.readAhead(newInput(strings.NewReader(content[maxMemory:]), true)); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := b.writeTo(&got); err != nil || b.rest == nil || got.String() != content {
		t.Errorf("%d octets became %d, %v", len(content), got.Len(), err)
	}
}

// TestBrokenInput: a message that was not read to its end is not sent, and what
// was lost of the file is an error, not a shorter message.
func TestBrokenInput(t *testing.T) {
	path, took := pickup(t, nil)
	for _, size := range []int{0, 100, maxMemory + 100} {
		s := submission{options: &options{sender: new(string), recipients: []string{"x"}}, client: cleanup.NewClient(path)}
		err := s.run(io.MultiReader(strings.NewReader("\n"+bodyOf(size)), brokenReader{}))
		if statusOf(err) != cli.DataErr {
			t.Errorf("%d octets: %v", size, err)
		}
	}
	if len(took) > 0 {
		t.Error("half a message was sent")
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	b := &body{file: f, stored: 1}
	defer b.close()
	if err := b.writeTo(io.Discard); err == nil || statusOf(err) != cli.TempFail {
		t.Errorf("a file that was cut off: %v", err)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("broken") }
