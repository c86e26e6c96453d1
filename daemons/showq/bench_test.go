package main

import (
	"fmt"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"posthouse/pkg/mailq"
	"posthouse/pkg/protocol/showq"
)

// BenchmarkListing is what mailq costs for each message of a deferred queue: the
// CPU of both sides of the socket.
func BenchmarkListing(b *testing.B) {
	const messages = 20000
	s := &spool{t: b, base: b.TempDir()}
	s.queues()
	for i := range messages {
		s.put(fmt.Sprintf("deferred/%010d", i%60*60), fmt.Sprintf("user@d%d.example=4.4.1", i%1000))
	}
	b.ResetTimer()
	before := used(b)
	for range b.N {
		p := &mailq.Text{W: io.Discard}
		n := 0
		err := showq.List(b.Context(), s.serve(), func(page []showq.Entry) error { n += len(page); return p.Page(page) })
		if err != nil || n != messages {
			b.Fatalf("%d messages, %v", n, err)
		}
	}
	b.ReportMetric(float64(used(b)-before)/float64(b.N*messages), "cpu-ns/message")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*messages), "ns/message")
}

// used is the CPU time of this process in nanoseconds.
func used(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
