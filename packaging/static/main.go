// Static fails when one of the programs that it is given is linked
// dynamically: such a program does not start in the root of the daemons, where
// there is no loader, and the error is a misleading "no such file".
package main

import (
	"debug/elf"
	"fmt"
	"os"
)

func main() {
	if err := check(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "static:", err)
		os.Exit(1)
	}
}

func check(paths []string) error {
	for _, path := range paths {
		f, err := elf.Open(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				f.Close()
				return fmt.Errorf("%s is not statically linked: build it with CGO_ENABLED=0", path)
			}
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}
