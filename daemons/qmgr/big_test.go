package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"posthouse/pkg/queue"
)

// TestBigMessages: messages with more recipients, each or together, than may be in
// memory, all of them slow, hold up nobody else's mail.
func TestBigMessages(t *testing.T) {
	for _, sizes := range [][]int{{2000}, {200, 200}, {350, 2000, 350, 350, 350}} {
		in(t, "queue: {active_messages: 400, active_recipients: 400}\n", func(w *world) {
			at := make(map[string]time.Duration)
			w.slowly(time.Now(), at)
			w.sender = "list@example.org"
			all := 20
			for n, size := range sizes {
				all += size
				var to []string
				for i := range size {
					to = append(to, fmt.Sprintf("m%d-%d@slow.example", n, i))
				}
				w.put(queue.Incoming, uint32(n), to...)
			}
			w.m.start()
			w.wait(10 * time.Second)
			w.sender = ""
			for i := range uint32(20) {
				w.put(queue.Incoming, 100+i, fmt.Sprintf("u%d@x.example", i))
			}
			w.m.look()
			w.wait(10 * time.Second)
			w.set(func() {
				if len(at) != 20 {
					t.Errorf("%v: %d of 20 get their mail", sizes, len(at))
				}
			})
			w.wait(12 * time.Hour)
			w.m.stop()
			w.expect("")
			if len(w.delivered) != all {
				t.Errorf("%v: %d recipients of %d have got a message", sizes, len(w.delivered), all)
			}
		})
	}
}

// TestManyAttempts: what is said of many recipients, time and again, does not fill the
// disk, nor the memory of who reads it.
func TestManyAttempts(t *testing.T) {
	in(t, "", func(w *world) {
		w.answer = byLocal
		var to []string
		for range 1000 {
			to = append(to, "later@x.example")
		}
		w.put(queue.Incoming, 1, to...)
		w.m.start()
		size := func() int64 {
			list, _ := filepath.Glob(filepath.Join(w.base, queue.Deferred, "*", "*"))
			if len(list) != 1 {
				t.Fatalf("%d messages are deferred", len(list))
			}
			info, err := os.Stat(list[0])
			if err != nil {
				t.Fatal(err)
			}
			return info.Size()
		}
		w.wait(time.Minute)
		first := size()
		w.wait(100 * time.Hour)
		if last := size(); last > first+10_000 {
			t.Errorf("%d octets after the first attempt, %d in the end", first, last)
		}
		w.m.stop()
	})
}
