package main

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"unicode"

	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
	"posthouse/pkg/wire"
)

// index knows for which destinations there is mail in each bucket of deferred/,
// so that what is for one of them is found without a look at the rest.
//
// For each bucket there is a file of the same name: an entry for each message and
// destination, in the order in which they were filed, with no more of the
// destination than a hash. It goes with the bucket, and so do entries of messages
// that are long gone. It is a hint: what it has is checked against the queue file,
// and where it may lack something the bucket is looked through, which makes it
// whole. That is so for what was there before a process that did not come to its
// end, or when the disk was full. In order, the end of a process writes down what
// each directory looked like (seal); what has been changed since is not trusted.
type index struct {
	dir, queues string // of its own, and that of the buckets
	failed      func(error)
	struck      func(call string) error // see spool.call

	mu       sync.Mutex
	shelves  map[string]*shelf // by bucket; nil: the bucket is not to be relied on
	buffered int               // octets, of all shelves
}

// shelf is what there is of the index for one bucket.
type shelf struct {
	whole  bool   // it has every message of the bucket
	making bool   // it will, when the bucket has been looked through
	size   int64  // of its file
	sum    uint32 // CRC of that
	buf    []byte // not written yet
}

const (
	keyLen   = 8
	entryLen = keyLen + queueid.Len

	// What is written at once, and what may wait for that.
	shelfBuffer = 4 << 10
	indexBuffer = 1 << 20
)

// key stands for a destination. Others may have the same one.
type key uint64

// anyKey stands for all destinations: so a message with very many of them has a
// single entry.
const anyKey key = 0

const maxKeys = 100

// keyOf returns the key of a domain, which is the same for all that are equal but
// for case (FNV-1a).
func keyOf(domain string) key {
	h := uint64(14695981039346656037)
	for _, r := range domain {
		least := r
		if 'a' <= r && r <= 'z' {
			least = r - 'a' + 'A'
		} else if r >= 0x80 {
			for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
				least = min(least, f)
			}
		}
		h = (h ^ uint64(least)) * 1099511628211
	}
	return key(max(h, 1))
}

// keysOf returns the keys of those who have not got the message.
func keysOf(q *queue.Message) (keys []key) {
	for i := range q.Recipients {
		if !q.Recipients[i].Pending() {
			continue
		}
		k := keyOf(q.Envelope.Recipients[i].Address.Domain())
		if n := len(keys); n > 0 && keys[n-1] == k || slices.Contains(keys, k) {
			continue
		}
		if len(keys) == maxKeys {
			return []key{anyKey}
		}
		keys = append(keys, k)
	}
	return keys
}

func (x *index) path(bucket string) string { return filepath.Join(x.dir, bucket) }

// prepare is called before a message is filed: a bucket that is not there yet will
// have nothing but what is added.
func (x *index) prepare(bucket string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.shelves[bucket]; ok {
		return
	}
	_, err := os.Lstat(filepath.Join(x.queues, bucket))
	x.shelves[bucket] = &shelf{whole: errors.Is(err, fs.ErrNotExist)}
}

// add enters a message that is being filed in a bucket.
func (x *index) add(bucket string, id queueid.ID, keys []key) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.shelves[bucket]
	if s == nil || !s.whole && !s.making {
		return
	}
	for _, k := range keys {
		e := wire.NewEncoder(s.buf)
		e.Int64(int64(k))
		e.Raw([]byte(id.String()))
		s.buf = e.Data()
		x.buffered += entryLen
	}
	if len(s.buf) >= shelfBuffer {
		x.write(bucket, s)
	}
	if x.buffered >= indexBuffer {
		x.writeAll()
	}
}

func (x *index) writeAll() {
	for name, s := range x.shelves {
		x.write(name, s)
	}
}

// write writes what waits for it. x.mu is held.
func (x *index) write(bucket string, s *shelf) {
	if len(s.buf) == 0 {
		return
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if s.size == 0 {
		flags |= os.O_TRUNC // an old one
	}
	err := x.struck("index")
	if err == nil {
		err = x.append(bucket, flags, s.buf)
	}
	if err == nil {
		s.size += int64(len(s.buf))
		s.sum = crc32.Update(s.sum, castagnoli, s.buf)
	} else {
		s.whole, s.making = false, false
		x.failed(err)
	}
	x.buffered -= len(s.buf)
	if s.buf = s.buf[:0]; x.buffered >= indexBuffer/2 || !s.whole {
		s.buf = nil
	}
}

func (x *index) append(bucket string, flags int, b []byte) error {
	f, err := os.OpenFile(x.path(bucket), flags, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// drop forgets a bucket that is gone, or will not be asked for.
func (x *index) drop(bucket string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.shelves[bucket]
	if s == nil {
		return
	}
	delete(x.shelves, bucket)
	x.buffered -= len(s.buf)
	if s.size > 0 {
		x.remove(bucket)
	}
}

func (x *index) remove(name string) {
	if err := os.Remove(x.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		x.failed(err)
	}
}

// begin starts to make the index of a bucket that is about to be looked through.
func (x *index) begin(bucket string) *shelf {
	x.mu.Lock()
	defer x.mu.Unlock()
	if old := x.shelves[bucket]; old != nil {
		x.buffered -= len(old.buf)
	}
	s := &shelf{making: true}
	x.shelves[bucket] = s
	return s
}

// end is told whether every message that was in the bucket has been added.
func (x *index) end(bucket string, s *shelf, all bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.shelves[bucket] == s { // nobody has begun again
		s.whole, s.making = all && s.making, false
	}
}

// sizes returns how much there is of each bucket of which the index is whole.
func (x *index) sizes() map[string]int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	sizes := make(map[string]int64)
	for name, s := range x.shelves {
		if s.whole {
			sizes[name] = s.size + int64(len(s.buf))
		}
	}
	return sizes
}

// find returns the messages of a bucket that may be for a destination, of those in
// the first octets of its index. It reports false where there may be others.
func (x *index) find(bucket string, size int64, want key) (ids []queueid.ID, whole bool) {
	x.mu.Lock()
	s := x.shelves[bucket]
	if s == nil || !s.whole {
		x.mu.Unlock()
		return nil, false
	}
	x.write(bucket, s)
	all, sum, whole := s.size, s.sum, s.whole
	x.mu.Unlock()
	if all == 0 || !whole {
		return nil, whole
	}
	seen := make(map[queueid.ID]bool)
	got, err := x.read(bucket, 0, all, func(at int64, k key, id queueid.ID) bool {
		if at < size && (k == want || k == anyKey) {
			seen[id] = true
		}
		return true
	})
	if err == nil && got != sum {
		err = errors.New("is damaged")
	}
	if err == nil {
		return slices.Collect(maps.Keys(seen)), true
	}
	x.distrust(bucket, s, err)
	return nil, false
}

func (x *index) distrust(bucket string, s *shelf, err error) {
	x.failed(fmt.Errorf("index of %s: %w", bucket, err))
	x.mu.Lock()
	defer x.mu.Unlock()
	s.whole = false
}

// size returns how much there is of the index of a bucket; 0 where that is not whole.
func (x *index) size(bucket string) int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s := x.shelves[bucket]; s != nil && s.whole {
		return s.size + int64(len(s.buf))
	}
	return 0
}

// after returns the first n messages of a bucket that have a key, of those from an
// offset in its index on, and the offset behind them.
func (x *index) after(bucket string, from int64, want key, n int) (ids []queueid.ID, next int64) {
	x.mu.Lock()
	s := x.shelves[bucket]
	if s != nil {
		x.write(bucket, s)
	}
	if s == nil || !s.whole {
		x.mu.Unlock()
		return nil, 0
	}
	size := s.size
	x.mu.Unlock()
	if from > size {
		from = 0 // it is another bucket of that name
	}
	_, err := x.read(bucket, from, size, func(at int64, k key, id queueid.ID) bool {
		if k == want {
			ids = append(ids, id)
		}
		next = at + entryLen
		return len(ids) < n
	})
	if err != nil {
		x.distrust(bucket, s, err)
	}
	return ids, max(from, next)
}

// read calls each for the entries between two offsets of a file, as long as it wants
// more, and returns the sum of what it has read.
func (x *index) read(bucket string, at, end int64, each func(at int64, k key, id queueid.ID) bool) (sum uint32, err error) {
	f, err := os.Open(x.path(bucket))
	if err != nil {
		return 0, err
	}
	defer f.Close() // opened for reading
	buf := make([]byte, min(end-at, 3000*entryLen))
	for at < end {
		b := buf[:min(end-at, int64(len(buf)))]
		if _, err := f.ReadAt(b, at); err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, castagnoli, b)
		for ; len(b) >= entryLen; b = b[entryLen:] {
			d := wire.NewDecoder(b[:entryLen])
			k := key(d.Int64())
			id, err := queueid.Parse(string(d.Raw()))
			if err != nil {
				return 0, err
			}
			if !each(at, k, id) {
				return sum, nil
			}
			at += entryLen
		}
	}
	return sum, nil
}
