package smtpserver

import (
	"io"
	"net"
	"time"
)

// ServeStdio runs a session with a program that has this one at its standard
// input and output. There is no time limit but what r and w have: whoever has
// started the program can end it.
func ServeStdio(r io.Reader, w io.Writer, cfg Config, policy Policy) Stats {
	return Serve(stdio{r, w}, cfg, policy)
}

// stdio is a connection without addresses and deadlines.
type stdio struct {
	io.Reader
	io.Writer
}

func (stdio) Close() error                     { return nil }
func (stdio) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (stdio) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (stdio) SetDeadline(time.Time) error      { return nil }
func (stdio) SetReadDeadline(time.Time) error  { return nil }
func (stdio) SetWriteDeadline(time.Time) error { return nil }
