package queue

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/queueid"
)

// stand is a queue of the directories that matter here.
type stand struct {
	t                *testing.T
	base             string
	active, incoming *Directory
	spares           *Spares
	n                uint32
}

func newStand(t *testing.T) *stand {
	s := &stand{t: t, base: t.TempDir()}
	for _, name := range []string{Active, Spare} {
		if err := os.MkdirAll(filepath.Join(s.base, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	for name, d := range map[string]**Directory{Active: &s.active, Incoming: &s.incoming} {
		if *d, err = OpenDirectory(filepath.Join(s.base, name)); err != nil {
			t.Fatal(err)
		}
	}
	if s.spares, err = OpenSpares(s.path(Spare)); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stand) path(name string) string { return filepath.Join(s.base, name) }

func (s *stand) id() queueid.ID {
	s.n++
	return queueid.New(time.Unix(1790000000, 0), s.n)
}

const secret = "what was in the old message"

// old makes a message in active/.
func (s *stand) old() queueid.ID {
	s.t.Helper()
	id := s.id()
	f, err := s.active.Create(id)
	if err == nil {
		_, err = f.WriteString(secret)
	}
	if err := errors.Join(err, f.Chmod(FileMode), f.Close()); err != nil {
		s.t.Fatal(err)
	}
	return id
}

func (s *stand) put(id queueid.ID) {
	s.t.Helper()
	if err := s.spares.Put(s.active, &Message{size: int64(len(secret))}, id); err != nil {
		s.t.Fatal(err)
	}
}

// take takes a file for a new message, when it is time to look again.
func (s *stand) take() *os.File {
	s.t.Helper()
	s.spares.looked = time.Time{}
	f, err := s.spares.Take(s.incoming, s.id())
	if err != nil {
		s.t.Fatal(err)
	}
	if f != nil {
		s.t.Cleanup(func() { f.Close() })
	}
	return f
}

func files(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// TestSpare: the file of an old message is that of a new one, and nothing of the
// old one is in it; its time is now, or it would be taken for abandoned.
func TestSpare(t *testing.T) {
	s := newStand(t)
	if f := s.take(); f != nil {
		t.Fatal("a file out of nothing")
	}
	id := s.old()
	long := time.Now().Add(-100 * time.Hour)
	if err := os.Chtimes(filepath.Join(s.path(Active), id.String()), long, long); err != nil {
		t.Fatal(err)
	}
	s.put(id)
	f := s.take()
	if f == nil {
		t.Fatal("there is no spare file")
	}
	if info, err := f.Stat(); err != nil || info.Size() != 0 || time.Since(info.ModTime()) > time.Minute {
		t.Errorf("%v, %v", info, err)
	}
	if list := files(t, s.path(Incoming)); len(list) != 1 || list[0] == id.String() {
		t.Errorf("incoming: %v", list)
	}
	if left := append(files(t, s.path(Spare)), files(t, s.path(Active))...); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestSpareInUse: who has the old message open reads it to its end, and never a
// word of a new one; with a mapping of it, too.
func TestSpareInUse(t *testing.T) {
	s := newStand(t)
	id := s.old()
	reader, err := s.active.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	s.put(id)
	if f := s.take(); f != nil {
		t.Fatal("a file that somebody reads is taken")
	}
	b := make([]byte, 100)
	if n, _ := reader.ReadAt(b, 0); string(b[:n]) != secret {
		t.Errorf("read: %q", b[:n])
	}
	var disk unix.Statfs_t
	if err := unix.Fstatfs(int(reader.Fd()), &disk); err != nil {
		t.Fatal(err)
	}
	var page []byte
	if disk.Type != unix.OVERLAYFS_SUPER_MAGIC { // whose mappings are of the file below
		if page, err = unix.Mmap(int(reader.Fd()), 0, len(secret), unix.PROT_READ, unix.MAP_SHARED); err != nil {
			t.Fatal(err)
		}
	}
	reader.Close()
	if page != nil {
		if f := s.take(); f != nil {
			t.Fatal("a file that somebody has mapped is taken")
		}
		if string(page) != secret {
			t.Errorf("mapped: %q", page)
		}
		if err := unix.Munmap(page); err != nil {
			t.Fatal(err)
		}
	}
	if f := s.take(); f == nil {
		t.Error("a file that nobody has open any more is not taken")
	}
}

// TestSpareLate: who has opened a spare file, and comes to it when it has become a
// message by somebody else, leaves it as it is.
func TestSpareLate(t *testing.T) {
	s := newStand(t)
	id := s.old()
	s.put(id)
	late, err := s.spares.dir.OpenWrite(id)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	// The other opens it, too, and so gets no lease while this one has it open. It may have had it before.
	if err := s.spares.dir.moveNew(id, s.incoming, s.id()); err != nil {
		t.Fatal(err)
	}
	if s.spares.empty(late, id) {
		t.Error("it is taken")
	}
	s.put(s.old())
	if err := os.Rename(filepath.Join(s.path(Spare), files(t, s.path(Spare))[0]), filepath.Join(s.path(Spare), id.String())); err != nil {
		t.Fatal(err)
	}
	if s.spares.empty(late, id) {
		t.Error("it is taken where another has its name")
	}
	b := make([]byte, 100)
	if n, _ := late.ReadAt(b, 0); string(b[:n]) != secret {
		t.Errorf("%q is left of it", b[:n])
	}
}

// TestSpareOdd: what is not as queue files are is not taken, nor changed.
func TestSpareOdd(t *testing.T) {
	s := newStand(t)
	spare := func() string { return filepath.Join(s.path(Spare), s.id().String()) }
	victim := s.path("victim")
	var err error
	for _, e := range []error{
		os.WriteFile(victim, []byte(secret), 0o600), os.Chmod(victim, FileMode),
		os.Symlink(victim, spare()), os.Link(victim, spare()), unix.Mkfifo(spare(), FileMode), os.Mkdir(spare(), 0o700),
		os.WriteFile(spare(), []byte(secret), 0o600), os.WriteFile(s.path(Spare)+"/other", nil, FileMode),
	} {
		err = errors.Join(err, e)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if f := s.take(); f != nil {
			t.Errorf("%s is taken", f.Name())
		}
	}
	if b, err := os.ReadFile(victim); err != nil || !bytes.Equal(b, []byte(secret)) {
		t.Errorf("%q, %v", b, err)
	}
}

// TestSpareTaken: a name that is in use is not given again.
func TestSpareTaken(t *testing.T) {
	s := newStand(t)
	s.put(s.old())
	id := s.id()
	f, err := s.incoming.Create(id)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(secret); err != nil {
		t.Fatal(err)
	}
	s.spares.looked = time.Time{}
	if f, err := s.spares.Take(s.incoming, id); !errors.Is(err, fs.ErrExist) || f != nil {
		t.Errorf("%v, %v", f, err)
	}
	if b, err := os.ReadFile(filepath.Join(s.path(Incoming), id.String())); err != nil || string(b) != secret {
		t.Errorf("%q, %v", b, err)
	}
}

// TestSpareLimits: no more files than the limit are kept, and none that is large.
func TestSpareLimits(t *testing.T) {
	s := newStand(t)
	for i := range maxSpares + 10 {
		if err := s.spares.Put(s.active, &Message{size: maxSpare}, s.old()); (err == nil) != (i < maxSpares) {
			t.Fatalf("file %d: %v", i, err)
		}
	}
	if n := len(files(t, s.path(Active))); n != 10 {
		t.Errorf("%d messages are where they were, not 10", n)
	}
	s.spares.Clear()
	if left := files(t, s.path(Spare)); len(left) != 0 {
		t.Errorf("%d files are left", len(left))
	}
	if err := s.spares.Put(s.active, &Message{size: maxSpare + 1}, s.old()); err == nil {
		t.Error("a large file is kept")
	}
	s.put(s.old())
	if f := s.take(); f == nil {
		t.Error("there is no room after Clear")
	}
}

// TestSpareRace: many take and put at the same time, with two processes' ideas
// of what is there; no file becomes that of two messages.
func TestSpareRace(t *testing.T) {
	s := newStand(t)
	other, err := OpenSpares(s.path(Spare))
	if err != nil {
		t.Fatal(err)
	}
	const n = 300
	var ids []queueid.ID
	for range 2 * n {
		ids = append(ids, s.id())
	}
	for range n {
		s.put(s.old())
	}
	var mu sync.Mutex
	inodes := make(map[uint64]int)
	var wg sync.WaitGroup
	for i, spares := range []*Spares{s.spares, other} {
		spares.looked = time.Time{}
		wg.Go(func() {
			for _, id := range ids[i*n : (i+1)*n] {
				f, err := spares.Take(s.incoming, id)
				if err != nil {
					t.Error(err)
				}
				if f == nil {
					continue
				}
				defer f.Close() // open to the end, as the writer of a message keeps it
				var st unix.Stat_t
				if err := unix.Fstat(int(f.Fd()), &st); err != nil {
					t.Error(err)
				}
				mu.Lock()
				inodes[st.Ino]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(inodes) == 0 { // neither gets one that both have open at the same time
		t.Error("no file was taken")
	}
	for ino, n := range inodes {
		if n > 1 {
			t.Errorf("file %d has become that of %d messages", ino, n)
		}
	}
	if got := len(files(t, s.path(Incoming))); got != len(inodes) {
		t.Errorf("%d messages of %d files", got, len(inodes))
	}
}
