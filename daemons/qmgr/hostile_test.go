package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/maillog"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queue"
	"posthouse/pkg/wire"
)

// TestLongestReport: an agent that says as much as its protocol allows damages
// no queue file, whatever qmgr adds to its words for a destination that is
// suspended.
func TestLongestReport(t *testing.T) {
	log := maillog.New("qmgr")
	text := strings.Repeat("é", wire.MaxText/2)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, log, "")
		w.hop = &dsn.Error{Status: dsn.MustParse("4.4.1"), Text: text}
		w.answer = func(envelope.Recipient) delivery.Result {
			return delivery.Result{Status: dsn.MustParse("4.4.1"), Text: text, Diagnostic: text}
		}
		for i := range 200 {
			w.put(queue.Incoming, uint32(i), "a@x.example")
		}
		w.run(time.Hour)
		suspended := 0
		files, _ := filepath.Glob(filepath.Join(w.base, queue.Deferred, "*", "*"))
		for _, name := range files {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			m, err := queue.Read(f)
			f.Close()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if strings.Contains(m.Recipients[0].Last.Text, "suspended") {
				suspended++
			}
		}
		if len(files) != 200 || suspended == 0 {
			t.Errorf("%d files are left, %d recipients were suspended", len(files), suspended)
		}
	})
}
