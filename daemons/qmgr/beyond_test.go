package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

const beyondSettings = "queue: {active_messages: 4}\ntransports: {smtp: {concurrency: 1}}\n"

// beyond fills the queue with mail for two slow destinations, in turn: far more than
// may wait outside of memory. A delivery takes ten seconds.
func (w *world) beyond(n, senders int) {
	w.pause = func(*delivery.Request) { time.Sleep(10 * time.Second) }
	w.m.limitOutside = 20
	for i := range uint32(2 * n) {
		w.sender = fmt.Sprintf("u%d@example.org", i%uint32(senders))
		w.put(queue.Incoming, i, fmt.Sprintf("a@slow%d.example", i%2))
	}
	w.wait(10 * time.Hour) // that it is old is no reason to try it later
}

func (w *world) arrived() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, times := range w.delivered {
		n += times
	}
	return n
}

// TestBeyond: what is too much even to wait outside of memory goes out as fast as
// if it were not; of that nothing is read again and again meanwhile.
func TestBeyond(t *testing.T) {
	in(t, beyondSettings, func(w *world) {
		const n = 150
		w.beyond(n, 1)
		opened := make(map[queueid.ID]int)
		w.m.spool.disk = striking(func(call string, id queueid.ID) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if call == "open" {
				opened[id]++
			}
			return nil
		})
		w.m.start()
		w.wait(time.Minute)
		if where := w.where(); strings.Count(where, queue.Deferred) < 2*n-40 {
			t.Fatalf("in %s", where)
		}
		w.wait(5 * time.Minute)
		w.sender = "other@example.org"
		w.do(queuectl.Release, 1, w.put(queue.Hold, 1000, "a@x.example"))
		w.wait(11 * time.Second)
		w.set(func() {
			if w.delivered["a@x.example"] != 1 {
				t.Error("deferred mail for others waits")
			}
		})
		w.wait((n - 30) * 10 * time.Second)
		if got := w.arrived(); got != 2*n+1 {
			t.Errorf("%d of %d are there in time", got, 2*n+1)
		}
		w.set(func() {
			for id, times := range opened {
				if times > 5 { // at first, when its sender has his turn, its destination has, and for its delivery
					t.Errorf("%s was opened %d times", id, times)
				}
			}
		})
		w.wait(5 * time.Minute)
		w.m.mu.Lock()
		if len(w.m.loads)+len(w.m.crowds)+len(w.m.crowdTurn)+len(w.m.known)+w.m.outside+w.m.recipients+w.m.deferred+w.m.comers+len(w.m.buckets) != 0 {
			t.Errorf("left: %v, %v, %d messages, %d outside, %d recipients, %v", w.m.loads, w.m.crowds, len(w.m.known), w.m.outside, w.m.recipients, w.m.buckets)
		}
		w.m.mu.Unlock()
		w.m.stop()
		w.expect("")
	})
}

// TestBeyondEnds: where the index cannot be relied on, the process ends, or the
// administrator has something else in mind, everybody gets his mail once.
func TestBeyondEnds(t *testing.T) {
	const n = 60
	for name, f := range map[string]func(w *world, ids []queueid.ID){
		"index": func(w *world, _ []queueid.ID) {
			w.m.index.mu.Lock()
			defer w.m.index.mu.Unlock()
			for _, s := range w.m.index.shelves {
				s.whole = false
			}
		},
		"restart": func(w *world, _ []queueid.ID) {
			w.m.stop()
			w.boot(w.m.config())
			w.m.start()
		},
		"retry all": func(w *world, _ []queueid.ID) {
			w.m.control(queuectl.Request{Op: queuectl.Retry, All: true})
		},
		"retry": func(w *world, ids []queueid.ID) {
			w.m.control(queuectl.Request{Op: queuectl.Retry, IDs: ids})
		},
		"hold": func(w *world, ids []queueid.ID) {
			w.m.control(queuectl.Request{Op: queuectl.Hold, IDs: ids})
			w.wait(5 * time.Minute)
			w.m.control(queuectl.Request{Op: queuectl.Release, IDs: ids})
		},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, beyondSettings, func(w *world) {
				w.beyond(n, 1)
				w.m.start()
				w.wait(2 * time.Minute)
				var ids []queueid.ID
				for _, b := range w.buckets() {
					_ = w.m.spool.names(place{queue.Deferred, filepath.Base(b)}, func(_ *queue.Directory, id queueid.ID) error {
						ids = append(ids, id)
						return nil
					})
				}
				if len(ids) < 40 {
					t.Fatalf("%d are beyond", len(ids))
				}
				f(w, ids)
				w.wait(time.Hour)
				w.m.stop()
				w.expect("")
				w.set(func() {
					if len(w.delivered) != 2 || w.delivered["a@slow0.example"] != n || w.delivered["a@slow1.example"] != n {
						t.Errorf("delivered %v", w.delivered)
					}
				})
			})
		})
	}
}

// TestBeyondAsked: what the administrator has asked for is tried, however much it is.
func TestBeyondAsked(t *testing.T) {
	in(t, strings.Replace(beyondSettings, "{active", "{defer_transports: [smtp], active", 1), func(w *world) {
		const n = 60
		w.beyond(n, 1)
		w.m.start()
		w.wait(time.Minute)
		if got := w.arrived(); got != 0 {
			t.Errorf("%d are delivered", got)
		}
		w.do(queuectl.Retry, 2*n)
		w.wait(n*10*time.Second + time.Minute)
		if got := w.arrived(); got != 2*n {
			t.Errorf("%d of %d are delivered", got, 2*n)
		}
		w.m.stop()
		w.expect("")
	})
}

// TestBeyondExpires: what has waited too long goes back to its sender.
func TestBeyondExpires(t *testing.T) {
	in(t, strings.Replace(beyondSettings, "{active", "{lifetime: 11h, retry: {max: 30m}, active", 1), func(w *world) {
		const n = 2000
		w.beyond(n, 2*n) // nobody has too much
		w.m.start()
		w.wait(2 * time.Hour)
		got := w.arrived()
		w.set(func() {
			if back := len(w.notified); got < 700 || got+back != 2*n {
				t.Errorf("%d delivered, %d returned of %d", got, back, 2*n)
			}
		})
		w.m.stop()
	})
}
