package cli

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func example(got *[]string) *Command {
	var loud bool
	return &Command{Name: "tool", Summary: "do things", Subs: []*Command{{
		Name: "queue", Summary: "the queue", Subs: []*Command{{
			Name: "hold", Args: "ID...", Summary: "set aside", Description: "First.\n\n.dotted -x",
			Flags: func(f *flag.FlagSet) { f.BoolVar(&loud, "loud", false, "shout") },
			Run: func(_ context.Context, _ Streams, args []string) int {
				*got = args
				if loud {
					*got = append(*got, "LOUD")
				}
				return 7
			},
		}},
	}, {
		Name: "status", Summary: "how it is", Run: func(_ context.Context, std Streams, _ []string) int {
			fmt.Fprintln(std.Out, "well")
			return OK
		},
	}}}
}

func TestMain_(t *testing.T) {
	for _, tt := range []struct {
		args   string
		status int
		got    string
		out    string
	}{
		{args: "queue hold a b", status: 7, got: "a b"},
		{args: "queue hold a --loud b", status: 7, got: "a b LOUD"},
		{args: "queue hold -- --loud", status: 7, got: "--loud"},
		{args: "queue hold --quiet", status: Usage, out: "not defined: -quiet"},
		{args: "queue hld", status: Usage, out: `no command "hld"`},
		{args: "queue", status: Usage, out: "set aside"},
		{args: "status", status: OK, out: "well"},
		{args: "status deferred", status: Usage, out: `tool status takes no arguments, and "deferred" is one`},
		{args: "queue hold --help", status: OK, out: "--loud"},
		{args: "help", status: OK, out: "the queue"},
	} {
		var got []string
		var out bytes.Buffer
		status := example(&got).Main(t.Context(), Streams{nil, &out, &out}, strings.Fields(tt.args))
		if status != tt.status || strings.Join(got, " ") != tt.got || !strings.Contains(out.String(), tt.out) {
			t.Errorf("%s: status %d, args %q, output %q", tt.args, status, got, out.String())
		}
	}
}

type broken struct{ error }

func (b broken) Write([]byte) (int, error) { return 0, b.error }

// TestOutput: who redirects the output to a full disk learns of it.
func TestOutput(t *testing.T) {
	for err, want := range map[error]int{syscall.ENOSPC: IOErr, syscall.EPIPE: OK} {
		for _, arg := range []string{"status", "--help"} {
			var errs bytes.Buffer
			status := example(new([]string)).Main(t.Context(), Streams{nil, broken{err}, &errs}, []string{arg})
			if status != want || (errs.Len() > 0) != (want == IOErr) {
				t.Errorf("%s, %v: status %d, %q", arg, err, status, errs.String())
			}
		}
	}
}

func TestMan(t *testing.T) {
	var out bytes.Buffer
	c := example(new([]string))
	c.Sections = []Section{{"SEE ALSO", "say \"x\"\ttry it\nlast\n  .as is"}}
	c.Man(&out, 8)
	for _, want := range []string{
		".SH SEE ALSO\n.TP\n.B say \\(dqx\\(dq\ntry it\nlast\n  .as is\n",
		".TH TOOL 8", "\n\\&.dotted \\-x\n", "tool queue hold [options] ID...", "\\-\\-loud"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestFish(t *testing.T) {
	var out bytes.Buffer
	example(new([]string)).Fish(&out)
	for _, want := range []string{"-n 'true; and __fish_seen_subcommand_from queue; and not __fish_seen_subcommand_from hold' -a hold -d 'set aside'",
		"-n 'true; and not __fish_seen_subcommand_from queue status' -a status", "__fish_seen_subcommand_from hold' -l loud -d 'shout'"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

// TestBash runs the completion in the shells themselves; that of zsh is the same.
func TestBash(t *testing.T) {
	for _, shell := range []string{"bash", "zsh"} {
		t.Run(shell, func(t *testing.T) { completes(t, shell) })
	}
	var script bytes.Buffer
	example(new([]string)).Bash(&script)
	for _, foreign := range []string{"mapfile", ":COMP_CWORD", "[COMP_CWORD]"} {
		if strings.Contains(script.String(), foreign) {
			t.Errorf("zsh does not know %s", foreign)
		}
	}
	script.Reset()
	example(new([]string)).Zsh(&script, "/x/tool")
	if !strings.Contains(script.String(), "source /x/tool\n_bash_complete -F _tool") {
		t.Errorf("the first question has no answer: %s", &script)
	}
}

func completes(t *testing.T, shell string) {
	program, err := exec.LookPath(shell)
	if err != nil {
		t.Skipf("no %s here: make check installs it", shell)
	}
	var script bytes.Buffer
	want := "--loud\nqueue\n"
	if shell == "zsh" { // which chooses from what it gets
		want = "--loud --help\nqueue status --help\n"
		script.WriteString("autoload -U +X compinit && compinit -u -D; autoload -U +X bashcompinit && bashcompinit; emulate sh\n")
	}
	example(new([]string)).Bash(&script)
	script.WriteString(`COMP_WORDS=(tool queue hold --l); COMP_CWORD=3; _tool; echo "${COMPREPLY[*]}"
COMP_WORDS=(tool q); COMP_CWORD=1; _tool; echo "${COMPREPLY[*]}"
`)
	file := filepath.Join(t.TempDir(), "c")
	if err := os.WriteFile(file, script.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, file)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()} // no locale that is not there, nor files of whoever runs this
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != want {
		t.Errorf("%q, %v", out, err)
	}
}
