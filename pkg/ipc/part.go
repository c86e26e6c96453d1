package ipc

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Part is the part of a passed file that a request speaks of: length octets at offset.
// The error is that there is no such file, or that it is shorter. Where it becomes shorter
// later, reads fail with io.ErrUnexpectedEOF: what is left of a queue file would otherwise
// be delivered as the message.
func Part(file *os.File, offset, length int64) (*io.SectionReader, error) {
	if file == nil {
		return nil, errors.New("no descriptor was passed")
	}
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("passed descriptor: %w", err)
	}
	if !info.Mode().IsRegular() || offset > info.Size() || length > info.Size()-offset {
		return nil, fmt.Errorf("passed descriptor: not a file that has %d octets at %d", length, offset)
	}
	return io.NewSectionReader(whole{file}, offset, length), nil
}

// whole is a file in which an end is not expected.
type whole struct{ f *os.File }

func (w whole) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
