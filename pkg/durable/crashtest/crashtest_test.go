package crashtest

import (
	"errors"
	"testing"
)

// TestFaults writes a file in two pieces and commits it, and looks what is left
// for each fault at each operation.
func TestFaults(t *testing.T) {
	for _, fault := range Faults() {
		for n := 1; n <= 5; n++ {
			d := New(fault, n)
			err := scenario(d)
			if d.Struck() != (n <= 4) || (err == nil) != (n == 5) {
				t.Fatalf("fault %d at %d: %v, struck %v", fault, n, err, d.Struck())
			}
			d.Reboot()
			data, ok := d.Read("a")
			want, wantOK := expected(fault, n)
			if string(data) != want || ok != wantOK {
				t.Errorf("fault %d at %d: %q, %v, want %q, %v", fault, n, data, ok, want, wantOK)
			}
		}
	}
}

func scenario(d *Disk) error {
	f, err := d.Create("a")
	if err == nil {
		_, err = f.Write([]byte("one"))
	}
	if err == nil {
		_, err = f.Write([]byte("two"))
	}
	if err == nil {
		err = d.Commit(f)
	}
	return err
}

func expected(fault Fault, n int) (string, bool) {
	switch {
	case n == 5:
		return "onetwo", true
	case n == 1, fault == OneError, fault == LoseNames:
		return "", false
	case fault == KeepNames:
		return "", true
	case fault == KeepAll:
		return "onetwo"[:3*(n-2)], true
	}
	return []string{"", "one", "\x00\x00\x00two"}[n-2], true
}

// TestFailedCommit: the commit after one that failed is a lie.
func TestFailedCommit(t *testing.T) {
	d := New(OneError, 3)
	f, err := d.Create("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(f); !errors.Is(err, ErrDisk) {
		t.Fatal(err)
	}
	if err := d.Commit(f); err != nil {
		t.Fatal(err)
	}
	d.Reboot()
	if names := d.Names(); len(names) != 0 {
		t.Errorf("%q survived", names)
	}
}
