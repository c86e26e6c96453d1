package main

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// maxMemory bounds what is kept in memory of a body, in octets.
const maxMemory = 1 << 20

// body is what follows the header of a message. It is read to its end before the
// transaction with pickup begins: a program may take hours to write it, and a
// transaction has its time, and holds one of the places that a user has.
//
// Its octets are those of the file, then those in memory, then those that rest
// has still to give.
type body struct {
	file   *os.File // has no name; nil for a small body, which needs no file
	stored int64    // octets in file
	memory []byte
	rest   *input // nil where all has been read
}

// readAhead reads a body to its end, or as far as there is room for it: where no
// file can be made, or written, the rest is passed on as it comes.
func (b *body) readAhead(in *input) error {
	for {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return inputError{err}
		}
		b.memory = append(b.memory, line...)
		if len(b.memory) >= maxMemory && !b.store() {
			b.rest = in
			return nil
		}
	}
}

// store moves what is in memory to the file, and reports whether it could. What
// a failed write has left in the file does not count.
func (b *body) store() bool {
	if b.file == nil {
		f, err := os.CreateTemp("", "sendmail-*")
		if err != nil {
			return false
		}
		b.file = f
		// Without a name nothing stays behind, however this ends. O_TMPFILE would
		// do the same, but not on every file system.
		if err := os.Remove(f.Name()); err != nil {
			return false
		}
	}
	if _, err := b.file.WriteAt(b.memory, b.stored); err != nil {
		return false
	}
	b.stored += int64(len(b.memory))
	b.memory = b.memory[:0]
	return true
}

// writeTo passes the body on.
func (b *body) writeTo(w io.Writer) error {
	if b.file != nil {
		n, err := io.Copy(w, io.NewSectionReader(b.file, 0, b.stored))
		if err == nil && n != b.stored {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("copy the message: %w", err)
		}
	}
	if _, err := w.Write(b.memory); err != nil {
		return err
	}
	for b.rest != nil {
		line, err := b.rest.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return inputError{err}
		}
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	return nil
}

func (b *body) close() {
	if b.file != nil {
		_ = b.file.Close() // what was in it is with pickup, or of no more use
	}
}
