// Package answer is what all that serve a request of deliver's protocol share.
package answer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"posthouse/pkg/dsn"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/deliver"
	"posthouse/pkg/wire"
)

// Content is the message within the queue file that was passed.
func Content(r *deliver.Request, file *os.File) (*io.SectionReader, error) {
	if file == nil {
		return nil, errors.New("a delivery without a descriptor")
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || r.Offset > info.Size() || r.Length > info.Size()-r.Offset {
		return nil, fmt.Errorf("passed descriptor: not a file that has %d octets at %d", r.Length, r.Offset)
	}
	return io.NewSectionReader(file, r.Offset, r.Length), nil
}

// Done is the reply for what has been done, or for the error of it. One that carries
// no status defers.
func Done(text string, err error) *deliver.Reply {
	if err != nil {
		e := dsn.Of(err)
		return &deliver.Reply{Status: e.Status, Text: Line(e.Text)}
	}
	return &deliver.Reply{Status: dsn.MustParse("2.0.0"), Text: Line(text)}
}

// Line makes a text fit for a reply: printable, one line, bounded.
func Line(s string) string {
	if most := wire.MaxText / 2; len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	if s = maillog.Printable(s); len(s) > wire.MaxText { // an escape may be longer than what it stands for
		s = strings.ToValidUTF8(s[:wire.MaxText], "")
	}
	return s
}
