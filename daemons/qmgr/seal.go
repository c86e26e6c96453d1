package main

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"posthouse/pkg/queue"
	"posthouse/pkg/wire"
)

// sealed is what a process leaves to the next one: of each bucket with an index
// that is whole, what both looked like.
type sealed struct {
	bucket  string
	changed int64 // modification time of the bucket, in nanoseconds
	size    int64 // of the index
	sum     uint32
}

const (
	sealName  = "sealed" // no bucket has that name
	sealMagic = "PHINDEX1"
	maxSealed = 1 << 20 // buckets
)

func encodeSeal(list []sealed) []byte {
	var e wire.Encoder
	e.String(sealMagic)
	e.Uint32(uint32(len(list)))
	for _, s := range list {
		e.String(s.bucket)
		e.Int64(s.changed)
		e.Int64(s.size)
		e.Uint32(s.sum)
	}
	e.Uint32(crc32.Checksum(e.Data(), castagnoli))
	return e.Data()
}

func decodeSeal(b []byte) ([]sealed, error) {
	d := wire.NewListDecoder(b)
	if magic := d.String(len(sealMagic)); magic != sealMagic {
		d.Fail(errors.New("another format"))
	}
	var list []sealed
	for range d.Count(maxSealed) {
		s := sealed{d.String(20), d.Int64(), d.Int64(), d.Uint32()}
		if _, err := queue.BucketDue(s.bucket); err != nil {
			d.Fail(err)
		}
		if s.size < 0 || s.size%entryLen != 0 {
			d.Fail(fmt.Errorf("index of %d octets", s.size))
		}
		if d.Err() != nil {
			break
		}
		list = append(list, s)
	}
	if sum := d.Uint32(); d.Err() == nil && sum != crc32.Checksum(b[:len(b)-4], castagnoli) {
		d.Fail(errors.New("is damaged"))
	}
	if err := d.End(); err != nil {
		return nil, fmt.Errorf("%s: %w", sealName, err)
	}
	return list, nil
}

// openIndex returns the index in dir of the buckets in queues. Of what was left
// it takes what fits to the buckets, and removes the rest. failed hears of what
// does not work; the index then knows less.
func openIndex(dir, queues string, failed func(error), struck func(string) error) *index {
	x := &index{dir: dir, queues: queues, failed: failed, struck: struck, shelves: make(map[string]*shelf)}
	b, err := os.ReadFile(x.path(sealName))
	var list []sealed
	if err == nil {
		list, err = decodeSeal(b)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		failed(err)
	}
	for _, s := range list {
		info, err := os.Lstat(filepath.Join(queues, s.bucket))
		if err != nil || !info.IsDir() || info.ModTime().UnixNano() != s.changed {
			continue
		}
		if info, err = os.Lstat(x.path(s.bucket)); s.size == 0 && errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().IsRegular() && info.Size() == s.size {
			x.shelves[s.bucket] = &shelf{whole: true, size: s.size, sum: s.sum}
		}
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		failed(err)
	}
	for _, n := range names {
		if x.shelves[n.Name()] == nil && n.Name() != sealName {
			x.remove(n.Name())
		}
	}
	return x
}

// seal leaves the index to the next process. Nothing is flushed: what the power
// takes away does not fit afterwards.
func (x *index) seal() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.writeAll()
	var list []sealed
	for name, s := range x.shelves {
		info, err := os.Lstat(filepath.Join(x.queues, name))
		if s.whole && err == nil && len(list) < maxSealed {
			list = append(list, sealed{name, info.ModTime().UnixNano(), s.size, s.sum})
		}
	}
	if len(list) == 0 { // mostly: qmgr goes when the queue is empty
		x.remove(sealName)
		return
	}
	tmp := x.path(sealName + ".new")
	err := os.WriteFile(tmp, encodeSeal(list), 0o600)
	if err == nil {
		err = os.Rename(tmp, x.path(sealName))
	}
	if err != nil {
		x.failed(err)
	}
}
