package main

import (
	"fmt"
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
