package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"posthouse/pkg/cli"
	"posthouse/pkg/config"
)

func generateCommand() *cli.Command {
	return &cli.Command{
		Name: "generate", Args: "DIRECTORY", Summary: "write the manual pages and the shell completion, for packages",
		Run: func(_ context.Context, std cli.Streams, args []string) int {
			if len(args) != 1 {
				return std.Errorf(cli.Usage, "give one directory")
			}
			for name, write := range generated() {
				if err := writeFile(filepath.Join(args[0], name), write); err != nil {
					return std.Errorf(cli.IOErr, "%v", err)
				}
			}
			return cli.OK
		},
	}
}

// generated are the files, by name.
func generated() map[string]func(io.Writer) {
	c := command()
	return map[string]func(io.Writer){
		"man/posthouse.1":                 func(w io.Writer) { c.Man(w, 1) },
		"man/posthouse.yaml.5":            configManual,
		"completions/bash/posthouse":      c.Bash,
		"completions/zsh/_posthouse":      func(w io.Writer) { c.Zsh(w, "/usr/share/bash-completion/completions/posthouse") },
		"completions/fish/posthouse.fish": c.Fish,
	}
}

func configManual(w io.Writer) {
	fmt.Fprint(w, `.TH POSTHOUSE.YAML 5 "" Posthouse
.SH NAME
posthouse.yaml \- configuration of the mail system
.SH DESCRIPTION
/etc/posthouse/posthouse.yaml, and after it the files /etc/posthouse/conf.d/*.yaml in the order of their names, hold the
settings below; later files override. No setting is needed. Sizes are given as 50MiB or 10KB, time spans as 5d, 4h or 30s.
A dot stands for nesting: queue.retry.min is the key min in retry in queue.
.PP
A change needs no restart. posthouse check verifies it; a broken one leaves the old one in force for daemons that run.
.SH SETTINGS
`)
	if err := config.Reference(w); err != nil {
		fmt.Fprintf(w, "%v\n", err)
	}
	fmt.Fprint(w, ".SH SEE ALSO\nposthouse(1)\n")
}

func writeFile(path string, write func(io.Writer)) error {
	var b bytes.Buffer
	write(&b)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}
