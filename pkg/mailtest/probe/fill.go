package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// fill makes deferred mail as it is after an attempt that found nobody:
//
//	fill SPOOL N DOMAINS SECONDS
//
// N messages of 1 KB from sN@fill.example, N running to 99, to user@dN.example, N
// running below DOMAINS; due in the hour that begins after that many seconds. It
// has to run as qmgr does, for the owner of the files.
func fill(args []string) error {
	if len(args) != 4 {
		return errors.New("fill: not four arguments")
	}
	spool, n, domains, after := args[0], number(args[1]), number(args[2]), time.Duration(number(args[3]))*time.Second
	unix.Umask(0o007) // as the unit has it
	content := []byte("Subject: made by a test\r\n\r\n" + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 12))
	now := time.Now()
	made := make(map[string]bool)
	for i := range n {
		arrival := now.Add(time.Duration(i)*time.Microsecond - time.Hour)
		next := now.Add(after + time.Hour*time.Duration(i)/time.Duration(n))
		bucket := filepath.Join(spool, queue.Deferred, queue.Bucket(next))
		if !made[bucket] {
			if err := os.MkdirAll(bucket, 0o770); err != nil {
				return err
			}
			made[bucket] = true
		}
		m := filled{from: fmt.Sprintf("s%d@fill.example", i%100), to: fmt.Sprintf("user@d%d.example", i%domains), arrival: arrival, next: next}
		if err := m.write(filepath.Join(bucket, queueid.New(arrival, uint32(i)).String()), content); err != nil {
			return err
		}
	}
	return nil
}

type filled struct {
	from, to      string
	arrival, next time.Time
}

func (m filled) write(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, queue.FileMode)
	if err != nil {
		return err
	}
	defer f.Close() // an error of it is none of the test's
	from, err := addr.Parse(m.from)
	if err != nil {
		return err
	}
	to, err := addr.Parse(m.to)
	if err != nil {
		return err
	}
	e := &envelope.Envelope{Arrival: m.arrival, Sender: from, Recipients: []envelope.Recipient{{Address: to, Original: to}}}
	w := queue.NewWriter(f, e)
	if _, err := w.Write(content); err != nil {
		return err
	}
	if err := w.Finish(); err != nil {
		return err
	}
	q, err := queue.Read(f)
	if err != nil {
		return err
	}
	refused := delivery.Result{Status: dsn.MustParse("4.4.1"), Text: "connect to [192.0.2.1]:25: Connection refused"}
	return errors.Join(q.Append(f, queue.Outcome{Results: []queue.IndexedResult{{Result: refused}}}),
		q.Append(f, queue.Outcome{Schedule: &queue.Schedule{Next: m.next}}))
}
