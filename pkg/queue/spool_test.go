package queue

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"posthouse/pkg/queueid"
)

func TestBucket(t *testing.T) {
	for _, n := range []int64{0, 1, 59, 60, 61, 1790000000} {
		for _, nano := range []int64{0, 1} {
			at := time.Unix(n, nano)
			due, err := BucketDue(Bucket(at))
			if err != nil || due.Before(at) || due.Sub(at) > BucketTime {
				t.Errorf("%v is filed for %v, %v", at, due, err)
			}
		}
	}
	if Bucket(time.Unix(999999999, 0)) > Bucket(time.Unix(1790000000, 0)) {
		t.Error("names do not sort by time")
	}
	for _, name := range []string{"", ".", "1", "00000000x0", "-000000060", "+000000060"} {
		if _, err := BucketDue(name); err == nil {
			t.Errorf("%q is a bucket", name)
		}
	}
}

func TestDirectory(t *testing.T) {
	base := t.TempDir()
	var dirs []*Directory
	for _, name := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o700); err != nil {
			t.Fatal(err)
		}
		d, err := OpenDirectory(filepath.Join(base, name))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		dirs = append(dirs, d)
	}
	id := queueid.New(time.Unix(1790000000, 0), 1)
	f, err := dirs[0].Create(id)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := dirs[0].Create(id); !os.IsExist(err) {
		t.Errorf("second Create: %v", err)
	}
	if err := dirs[0].Move(id, dirs[1]); err != nil {
		t.Fatal(err)
	}
	if _, err := dirs[0].Open(id); !os.IsNotExist(err) {
		t.Errorf("still in a: %v", err)
	}
	seen := 0
	if err := dirs[1].Names(func(name string) error {
		if name == id.String() {
			seen++
		}
		return nil
	}); err != nil || seen != 1 {
		t.Errorf("%d names, %v", seen, err)
	}
	if err := dirs[1].Remove(id); err != nil {
		t.Error(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(base, "a", id.String())); err != nil {
		t.Fatal(err)
	}
	if _, err := dirs[0].Open(id); err == nil {
		t.Error("a link is followed")
	}
}
