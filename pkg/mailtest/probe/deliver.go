package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"posthouse/pkg/protocol/deliver"
)

// deliverAs has deliver do the same N times, by so many WORKERS, and prints what comes of it: "STATUS TEXT", and for a .forward that is found its name
// and content.
//
//	forward USER NAME     spool USER DIR     mailbox USER PATH     command USER COMMAND TIMEOUT
//	user USER PATH        as local asks: forward, or else a Maildir, or in a DIR without a slash at its end the mailbox
func deliverAs(args []string) error {
	if len(args) < 7 {
		return errors.New("deliver: what, as whom, and what with?")
	}
	socket, file, n, workers := args[0], args[1], number(args[2]), number(args[3])
	args = args[4:]
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	r := deliver.Request{
		From: "s@example.org", Arrival: time.Now(), Prefix: "Return-Path: <s@example.org>\n", Length: info.Size(),
		Env: []string{"SENDER=s@example.org"},
	}
	r.User = args[1]
	switch args[0] {
	case "forward":
		r.Kind, r.Files = deliver.Forward, args[2:]
	case "user":
		r.Kind, r.Files, r.Else, r.Path = deliver.Forward, []string{".forward"}, deliver.Spool, args[2]
		if strings.HasSuffix(r.Path, "/") {
			r.Else = deliver.Mailbox
		}
	case "spool":
		r.Kind, r.Path = deliver.Spool, args[2]
	case "mailbox":
		r.Kind, r.Path = deliver.Mailbox, args[2]
	case "command":
		r.Kind, r.Command = deliver.Command, args[2]
		r.Timeout = time.Duration(number(append(args, "60")[3])) * time.Second
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	c := deliver.NewClient(socket)
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				reply, err := c.Do(ctx, &r, f)
				switch {
				case err != nil:
					fmt.Printf("error %v\n", err)
				case reply.Found:
					fmt.Printf("%s %s %s %q\n", reply.Status, reply.Text, reply.Name, reply.Forward)
				default:
					fmt.Printf("%s %s\n", reply.Status, reply.Text)
				}
			}
		})
	}
	wg.Wait()
	return nil
}
