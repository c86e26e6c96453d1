package queue

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queueid"
)

func testEnvelope(t testing.TB, recipients int) *envelope.Envelope {
	t.Helper()
	m, err := addr.Parse("user@example.org")
	if err != nil {
		t.Fatal(err)
	}
	e := &envelope.Envelope{Arrival: time.UnixMicro(1790000000000001), Sender: m}
	for range recipients {
		e.Recipients = append(e.Recipients, envelope.Recipient{Address: m})
	}
	return e
}

func write(t testing.TB, e *envelope.Envelope, content []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "q"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w := NewWriter(f, e)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return f
}

// What one message was written with the next one has, too: nothing of the first is
// in the file of the second, which has no header before it is finished.
func TestWriterAgain(t *testing.T) {
	e := testEnvelope(t, 3)
	for _, pieces := range []int{1, 4, 40} {
		first := NewWriter(&buffer{}, e)
		for range pieces {
			if _, err := first.Write(bytes.Repeat([]byte("x"), 10_000)); err != nil {
				t.Fatal(err)
			}
		}
		if err := first.Finish(); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(t.TempDir(), "q"))
		if err != nil {
			t.Fatal(err)
		}
		w := NewWriter(f, testEnvelope(t, 1))
		_, err = w.Write(bytes.Repeat([]byte("y"), writeBuffer))
		begun, err2 := os.ReadFile(f.Name())
		if err := errors.Join(err, err2); err != nil || len(begun) < writeBuffer {
			t.Fatalf("%d octets, %v", len(begun), err)
		}
		if len(bytes.Trim(begun[:headerLen], "\x00")) > 0 || bytes.Contains(begun, []byte("xx")) {
			t.Errorf("after %d pieces: %q", pieces, begun[:100])
		}
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		if m, err := Read(f); err != nil || m.Length != writeBuffer || len(m.Recipients) != 1 {
			t.Errorf("after %d pieces: %+v, %v", pieces, m, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// look is Look for a file at path, with memory that has been used before.
func look(path string) (*Message, error) {
	d, err := OpenDirectory(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	id, err := queueid.Parse(filepath.Base(path))
	if err != nil {
		return nil, err
	}
	buf := bytes.Repeat([]byte{0xa5}, 4<<10)
	m, err := d.Look(id, buf)
	for i := range buf {
		buf[i] = 0x5a // nothing of the result is in it
	}
	return m, err
}

// TestLook: it is Read, whatever of the file its memory takes, and takes nothing
// but a file.
func TestLook(t *testing.T) {
	for _, recipients := range []int{1, 3, 1000} {
		for _, content := range []int{0, 1000, 4 << 10, 8 << 10, 100_000} {
			path := filepath.Join(t.TempDir(), queueid.New(time.Unix(1790000000, 0), 1).String())
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			w := NewWriter(f, testEnvelope(t, recipients))
			w.Write(make([]byte, content))
			if err := w.Finish(); err != nil {
				t.Fatal(err)
			}
			for n := range 30 {
				m, err := Read(f)
				if err != nil {
					t.Fatal(err)
				}
				if looked, err := look(path); err != nil || !reflect.DeepEqual(m, looked) {
					t.Errorf("%d recipients, %d octets, %d outcomes: %v", recipients, content, n, err)
				}
				if err := m.Append(f, Outcome{Results: []IndexedResult{{0, result("4.4.1", strings.Repeat("x", n*60))}}}); err != nil {
					t.Fatal(err)
				}
			}
			f.Close()
		}
	}
	dir := t.TempDir()
	for i, make := range []func(string) error{
		func(p string) error { return os.Mkdir(p, 0o700) },
		func(p string) error { return syscall.Mkfifo(p, 0o600) },
		func(p string) error { return os.Symlink("/etc/passwd", p) },
	} {
		path := filepath.Join(dir, queueid.New(time.Unix(1790000000, 0), uint32(i)).String())
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if _, err := look(path); err == nil {
			t.Errorf("%d is a message", i)
		}
	}
}

func result(status, text string) delivery.Result {
	return delivery.Result{Status: dsn.MustParse(status), Text: text}
}

func TestRoundTrip(t *testing.T) {
	for _, recipients := range []int{1, 3, 1000} {
		content := bytes.Repeat([]byte("line\r\n"), 20000)
		f := write(t, testEnvelope(t, recipients), content)
		m, err := Read(f)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(io.NewSectionReader(f, m.Offset, m.Length))
		if !bytes.Equal(got, content) || m.CheckContent(f) != nil || len(m.Envelope.Recipients) != recipients {
			t.Errorf("%d recipients: not what was written", recipients)
		}
	}
}

// TestReadWhileWritten: who looks at a file that is being written sees one that is
// incomplete, or all of it, and never a damaged one: that would be taken away
// from a sender who is told in a moment that it has been accepted.
func TestReadWhileWritten(t *testing.T) {
	e, content := testEnvelope(t, 3), bytes.Repeat([]byte("line\r\n"), 3*writeBuffer/12)
	for i := range 300 {
		f, err := os.Create(filepath.Join(t.TempDir(), queueid.New(time.Unix(1790000000, 0), 1).String()))
		if err != nil {
			t.Fatal(err)
		}
		written := make(chan error)
		go func() {
			w := NewWriter(f, e)
			_, err := w.Write(content)
			written <- errors.Join(err, w.Finish())
		}()
		read := func() (*Message, error) { return Read(f) }
		if i%2 == 1 {
			read = func() (*Message, error) { return look(f.Name()) }
		}
		for {
			m, err := read()
			if err == nil && m.Length == int64(len(content)) {
				break
			}
			if !errors.Is(err, ErrIncomplete) {
				t.Fatalf("while it is written: %v", err)
			}
		}
		if err := errors.Join(<-written, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOutcomes(t *testing.T) {
	f := write(t, testEnvelope(t, 3), []byte("x\r\n"))
	m, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	next := time.UnixMicro(1790000300000000)
	for _, o := range []Outcome{
		{Results: []IndexedResult{{0, result("2.0.0", "ok")}, {1, result("4.4.1", "no route")}}},
		{Results: []IndexedResult{{2, result("5.1.1", "nobody")}}},
		{Reported: []uint32{2}},
		{Schedule: &Schedule{Next: next, Warned: true}},
	} {
		if err := m.Append(f, o); err != nil {
			t.Fatal(err)
		}
	}
	again, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct{ pending, reported bool }{{false, false}, {true, false}, {false, true}} {
		if r := again.Recipients[i]; r.Pending() != want.pending || r.Reported != want.reported || r != m.Recipients[i] {
			t.Errorf("recipient %d: %+v", i, r)
		}
	}
	if !again.Schedule.Next.Equal(next) || !again.Schedule.Warned {
		t.Errorf("schedule %+v", again.Schedule)
	}
}

// TestNews: results that do not change from one attempt to the next let no
// file grow, however many recipients and attempts there are; what they change is read
// back.
func TestNews(t *testing.T) {
	const rcpts = 1000
	f := write(t, testEnvelope(t, rcpts), []byte("x\r\n"))
	m, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	attempt := func(text string) (size int64) {
		var o Outcome
		for i := range uint32(rcpts) {
			o.Results = append(o.Results, IndexedResult{i, result("4.4.1", text)})
		}
		for _, o := range m.News(o) {
			if err := m.Append(f, o); err != nil {
				t.Fatal(err)
			}
		}
		again, err := Read(f)
		if err != nil || !reflect.DeepEqual(again.Recipients, m.Recipients) {
			t.Fatalf("is read in another way: %v", err)
		}
		return again.size
	}
	first := attempt("no route")
	for range 100 {
		attempt("no route")
	}
	if size := attempt("no route"); size != first {
		t.Errorf("%d octets after an attempt, %d after many", first, size)
	}
	if err := m.Append(f, Outcome{Retries: []Retry{{7, time.UnixMicro(1790000300000000)}}}); err != nil {
		t.Fatal(err)
	}
	if attempt("no route"); !m.Recipients[7].Next.IsZero() {
		t.Error("a recipient keeps a time that is over")
	}
	if before := m.size; attempt("refused")-before < rcpts*int64(len("refused")) {
		t.Error("another reason is not written")
	}
}

// TestRenewal: who is pending makes room for others; who is not stays, in the
// file too. Nobody is dropped that nobody has asked for.
func TestRenewal(t *testing.T) {
	f := write(t, testEnvelope(t, 3), []byte("x\r\n"))
	m, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	at := time.UnixMicro(1790000300000000)
	other, err := addr.Parse("other@example.org")
	if err != nil {
		t.Fatal(err)
	}
	renewal := Outcome{Renewal: []envelope.Recipient{{Address: other}, {Address: other, Notify: dsn.NotifyNever}}}
	for _, o := range []Outcome{
		{Results: []IndexedResult{{0, result("4.4.1", "no route")}, {1, result("5.1.1", "nobody")}}},
		{Schedule: &Schedule{Next: at, Warned: true}},
		{Requeue: at},
		renewal,
		{Results: []IndexedResult{{2, result("2.0.0", "ok")}}},
	} {
		if err := m.Append(f, o); err != nil {
			t.Fatal(err)
		}
	}
	again, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Message{m, again} {
		if len(m.Recipients) != 3 || len(m.Envelope.Recipients) != 3 || m.Recipients[0].Last.Status.String() != "5.1.1" || !m.Recipients[1].Pending() ||
			m.Recipients[1].Tried || m.Recipients[2].Pending() || m.Envelope.Recipients[1].Address != other || m.Envelope.Recipients[2].Notify != dsn.NotifyNever {
			t.Errorf("%+v of %+v", m.Recipients, m.Envelope.Recipients)
		}
		if !m.Requeued.IsZero() || !m.Envelope.Arrival.Equal(at) || m.Schedule != (Schedule{}) {
			t.Errorf("%+v, arrival %v", m, m.Envelope.Arrival)
		}
	}
	if err := m.Append(f, renewal); err == nil { // twice
		t.Error("new recipients that nobody has asked for are written")
	}
	if _, err := f.WriteAt(renewal.encode(), m.tail); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(f); err == nil {
		t.Error("new recipients that nobody has asked for are taken")
	}
}

// TestTorn cuts the file at every octet and flips every octet. What was
// accepted is whole or known to be damaged; a torn outcome is forgotten.
func TestTorn(t *testing.T) {
	content := []byte("Subject: x\r\n\r\nbody\r\n")
	f := write(t, testEnvelope(t, 2), content)
	m, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	end := m.Offset + m.Length
	if err := m.Append(f, Outcome{Results: []IndexedResult{{0, result("2.0.0", "ok")}}}); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, at int, data []byte) {
		g, err := os.Create(filepath.Join(t.TempDir(), queueid.New(time.Unix(1790000000, 0), 1).String()))
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		if _, err := g.Write(data); err != nil {
			t.Fatal(err)
		}
		m, err := Read(g)
		looked, lookErr := look(g.Name())
		if (err == nil) != (lookErr == nil) || err == nil && !reflect.DeepEqual(m, looked) {
			t.Fatalf("%s at %d: read %+v, %v; looked %+v, %v", what, at, m, err, looked, lookErr)
		}
		if err == nil {
			err = m.CheckContent(g)
		}
		switch {
		case int64(at) < end && err == nil:
			t.Errorf("%s at %d: damage is not noticed", what, at)
		case int64(at) >= end && err != nil:
			t.Errorf("%s at %d, in an outcome: %v", what, at, err)
		case int64(at) >= end && !m.Recipients[0].Pending():
			t.Errorf("%s at %d: a torn outcome counts", what, at)
		case int64(at) >= end:
			if err := m.Append(g, Outcome{Results: []IndexedResult{{1, result("2.0.0", "ok")}}}); err != nil {
				t.Fatal(err)
			}
			if m, err := Read(g); err != nil || m.Recipients[1].Pending() {
				t.Errorf("%s at %d: append behind a torn outcome is lost: %v", what, at, err)
			}
		}
	}
	for i := range whole {
		check("cut", i, whole[:i])
		flipped := bytes.Clone(whole)
		flipped[i] ^= 1
		check("flip", i, flipped)
	}
}

func TestIncomplete(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "q"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := NewWriter(f, testEnvelope(t, 1))
	w.Write(make([]byte, 100000))
	if _, err := Read(f); !errors.Is(err, ErrIncomplete) || !IsIncomplete(f) {
		t.Errorf("unfinished: %v", err)
	}
	if err := w.Finish(); err != nil || IsIncomplete(f) {
		t.Errorf("finished: %v", err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(f); !errors.Is(err, ErrIncomplete) || !IsIncomplete(f) {
		t.Errorf("empty: %v", err)
	}
}

// TestReadNew: a new message is there when its writer has let go of it.
func TestReadNew(t *testing.T) {
	s := newStand(t)
	s.put(s.old())
	for what, begin := range map[string]func() *os.File{
		"new": func() *os.File {
			f, err := s.incoming.Create(s.id())
			if err != nil {
				t.Fatal(err)
			}
			return f
		},
		"spare": s.take,
	} {
		writer := begin()
		if writer == nil {
			t.Fatalf("%s: no file", what)
		}
		reader, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", writer.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		if err := NewWriter(writer, testEnvelope(t, 1)).Finish(); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadNew(reader); !errors.Is(err, ErrLocked) || !IsIncomplete(reader) {
			t.Errorf("%s: nobody writes: %v", what, err)
		}
		// As a process has it that is being started.
		copied, err := syscall.Dup(int(writer.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		err = LetGo(writer)
		if _, notThere := ReadNew(reader); err != nil || notThere != nil || IsIncomplete(reader) {
			t.Errorf("%s: somebody still writes: %v, %v", what, err, notThere)
		}
		if err := errors.Join(writer.Close(), syscall.Close(copied)); err != nil {
			t.Error(err)
		}
	}
}

// TestCreateWhileRead: whoever looks at a message that has just appeared does not keep
// its writer from locking it.
func TestCreateWhileRead(t *testing.T) {
	s := newStand(t)
	var next atomic.Value // the ID of the message that is made at this moment
	next.Store(s.id())
	done := make(chan struct{})
	var looking sync.WaitGroup
	looking.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			f, err := s.incoming.Open(next.Load().(queueid.ID))
			if err != nil {
				continue
			}
			if _, err := ReadNew(f); !errors.Is(err, ErrIncomplete) || !IsIncomplete(f) {
				t.Errorf("an empty file: %v", err)
			}
			_ = f.Close()
		}
	})
	for range 500 {
		id := s.id()
		next.Store(id)
		f, err := s.incoming.Create(id)
		if err != nil {
			t.Error(err)
			break
		}
		_ = f.Close()
	}
	close(done)
	looking.Wait()
}

// TestFlush: outcomes that a process before this one has written are written again,
// too, where a flush fails.
func TestFlush(t *testing.T) {
	f := write(t, testEnvelope(t, 2), []byte("Subject: x\r\n\r\n"))
	for i := range uint32(2) {
		m, err := Read(f)
		if err == nil {
			err = m.Append(f, Outcome{Results: []IndexedResult{{i, result("2.0.0", "ok")}}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	m, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	from := m.Offset + m.Length
	broken := errors.New("EIO")
	if err := m.Flush(f, func() error { return errors.Join(broken, f.Truncate(from)) }); !errors.Is(err, broken) {
		t.Errorf("a flush that fails: %v", err)
	}
	if m, err = Read(f); err != nil || m.done() != 2 {
		t.Errorf("after a flush that has failed: %v", err)
	}
	flushed := 0
	if err := m.Flush(f, func() error { flushed++; return nil }); err != nil || flushed != 1 {
		t.Errorf("%v, flushed %d times", err, flushed)
	}
}

// TestIsAbandoned: a file is given up when it has no header and nobody is writing it.
func TestIsAbandoned(t *testing.T) {
	base := t.TempDir()
	d, err := OpenDirectory(base)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for n, complete := range []bool{false, true} {
		id := queueid.New(time.Unix(1790000000, 0), uint32(n))
		w, err := d.Create(id)
		if err != nil {
			t.Fatal(err)
		}
		f, err := d.Open(id)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if IsAbandoned(f) {
			t.Error("is given up while it is written")
		}
		if complete {
			if err := NewWriter(w, testEnvelope(t, 1)).Finish(); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if IsAbandoned(f) == complete {
			t.Errorf("complete: %v, given up: %v", complete, !complete)
		}
	}
}
