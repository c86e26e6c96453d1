// Package answer is what all that serve a request of deliver's protocol share.
package answer

import (
	"strings"

	"posthouse/pkg/dsn"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/deliver"
	"posthouse/pkg/wire"
)

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
