// Package cli describes commands once: what they do, their options and their
// sub-commands. Help, manual pages and shell completion come from that.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// Exit statuses, from sysexits(3), which mail programs have always used.
const (
	OK          = 0
	Usage       = 64
	DataErr     = 65
	NoUser      = 67
	Unavailable = 69
	IOErr       = 74
	TempFail    = 75
	NoPerm      = 77
	Config      = 78
)

// Command is one command, or a group of them.
type Command struct {
	Name    string
	Args    string // as shown behind the name: "ID..."
	Summary string // one line
	// Description is the text of the manual, in paragraphs.
	Description string
	// Sections are further sections of the manual.
	Sections []Section
	// Flags declares the options; nil where there are none.
	Flags func(*flag.FlagSet)
	Subs  []*Command
	// Run does the work and returns the exit status; nil for a group.
	Run func(ctx context.Context, io Streams, args []string) int
}

// Section is a section of the manual. In its text, which is in paragraphs, a line
// "term<tab>meaning" is an item of a list; one that begins with blanks stays as
// it is.
type Section struct{ Title, Text string }

// Streams are where a command reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Std are the streams of the process.
func Std() Streams { return Streams{os.Stdin, os.Stdout, os.Stderr} }

// Errorf writes a message for people, and returns status.
func (s Streams) Errorf(status int, format string, args ...any) int {
	fmt.Fprintf(s.Err, format+"\n", args...)
	return status
}

func (c *Command) flagSet(prefix string) *flag.FlagSet {
	set := flag.NewFlagSet(prefix, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	if c.Flags != nil {
		c.Flags(set)
	}
	return set
}

func (c *Command) sub(name string) *Command {
	for _, s := range c.Subs {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Main runs the command that args name and returns the exit status. Options may
// stand before and behind the arguments; "--" ends them. What could not be written is an
// error, unless nobody reads it any more.
func (c *Command) Main(ctx context.Context, std Streams, args []string) int {
	out := &writer{Writer: std.Out}
	std.Out = out
	status := c.run(ctx, std, c.Name, args)
	if status == OK && out.err != nil && !errors.Is(out.err, syscall.EPIPE) {
		return std.Errorf(IOErr, "%s: %v", c.Name, out.err)
	}
	return status
}

// writer knows the first error.
type writer struct {
	io.Writer
	err error
}

func (w *writer) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	if w.err == nil {
		w.err = err
	}
	return n, err
}

func (c *Command) run(ctx context.Context, std Streams, prefix string, args []string) int {
	if len(c.Subs) > 0 && len(args) > 0 {
		if s := c.sub(args[0]); s != nil {
			return s.run(ctx, std, prefix+" "+s.Name, args[1:])
		}
	}
	set := c.flagSet(prefix)
	rest, err := parse(set, args)
	switch {
	case errors.Is(err, flag.ErrHelp) || err == nil && len(rest) == 1 && rest[0] == "help" && c.Run == nil:
		c.help(std.Out, prefix)
		return OK
	case err != nil:
		return std.Errorf(Usage, "%s: %v\nTry: %s --help", prefix, err, prefix)
	case c.Run == nil && len(rest) > 0:
		return std.Errorf(Usage, "%s: there is no command %q\nTry: %s --help", prefix, rest[0], prefix)
	case c.Run == nil:
		c.help(std.Err, prefix)
		return Usage
	case c.Args == "" && len(rest) > 0:
		return std.Errorf(Usage, "%s takes no arguments, and %q is one\nTry: %s --help", prefix, rest[0], prefix)
	}
	return c.Run(ctx, std, rest)
}

func parse(set *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		if err := set.Parse(args); err != nil {
			return nil, err
		}
		left := set.Args()
		ended := len(args) > len(left) && args[len(args)-len(left)-1] == "--"
		if len(left) == 0 || ended {
			return append(rest, left...), nil
		}
		rest = append(rest, left[0])
		args = left[1:]
	}
}

func (c *Command) synopsis(prefix string) string {
	s := prefix
	if c.Flags != nil {
		s += " [options]"
	}
	if len(c.Subs) > 0 {
		s += " COMMAND"
	}
	if c.Args != "" {
		s += " " + c.Args
	}
	return s
}

func (c *Command) help(w io.Writer, prefix string) {
	fmt.Fprintf(w, "%s: %s\n\nUsage: %s\n", prefix, c.Summary, c.synopsis(prefix))
	if c.Description != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(c.Description))
	}
	if len(c.Subs) > 0 {
		fmt.Fprintf(w, "\nCommands:\n")
		for _, s := range c.Subs {
			fmt.Fprintf(w, "  %-10s %s\n", s.Name, s.Summary)
		}
	}
	if c.Flags != nil {
		fmt.Fprintf(w, "\nOptions:\n")
		c.flagSet(prefix).VisitAll(func(f *flag.Flag) {
			name, usage := flag.UnquoteUsage(f)
			fmt.Fprintf(w, "  %-22s %s\n", strings.TrimSpace("--"+f.Name+" "+name), usage)
		})
	}
}

// Man writes the manual page of c and of all its sub-commands, in roff.
func (c *Command) Man(w io.Writer, section int) {
	fmt.Fprintf(w, ".TH %s %d \"\" Posthouse\n.SH NAME\n%s \\- %s\n.SH SYNOPSIS\n", strings.ToUpper(c.Name), section, roff(c.Name), roff(c.Summary))
	c.manSynopsis(w, c.Name)
	if c.Description != "" {
		fmt.Fprintf(w, ".SH DESCRIPTION\n%s\n", roff(strings.TrimSpace(c.Description)))
	}
	if c.Flags != nil {
		fmt.Fprintf(w, ".SH OPTIONS\n")
		c.manOptions(w)
	}
	if len(c.Subs) > 0 {
		fmt.Fprintf(w, ".SH COMMANDS\n")
		c.manCommands(w, c.Name)
	}
	for _, s := range c.Sections {
		s.Man(w)
	}
}

// Man writes the section in roff.
func (s Section) Man(w io.Writer) {
	fmt.Fprintf(w, ".SH %s\n", roff(s.Title))
	for line := range strings.Lines(strings.TrimSpace(s.Text)) {
		line = strings.TrimSuffix(line, "\n")
		if term, meaning, ok := strings.Cut(line, "\t"); ok {
			fmt.Fprintf(w, ".TP\n.B %s\n", strings.ReplaceAll(roff(term), `"`, `\(dq`))
			line = meaning
		}
		fmt.Fprintln(w, roff(line))
	}
}

func (c *Command) manSynopsis(w io.Writer, prefix string) {
	if c.Run != nil {
		fmt.Fprintf(w, ".B %s\n.br\n", roff(c.synopsis(prefix)))
	}
	for _, s := range c.Subs {
		s.manSynopsis(w, prefix+" "+s.Name)
	}
}

func (c *Command) manOptions(w io.Writer) {
	c.flagSet(c.Name).VisitAll(func(f *flag.Flag) {
		name, usage := flag.UnquoteUsage(f)
		fmt.Fprintf(w, ".TP\n.B %s\n%s\n", roff(strings.TrimSpace("--"+f.Name+" "+name)), roff(usage))
	})
}

func (c *Command) manCommands(w io.Writer, prefix string) {
	for _, s := range c.Subs {
		if s.Run != nil {
			fmt.Fprintf(w, ".SS %s\n%s.\n", roff(s.synopsis(prefix+" "+s.Name)), roff(s.Summary))
			if s.Description != "" {
				fmt.Fprintf(w, ".PP\n%s\n", roff(strings.TrimSpace(s.Description)))
			}
			s.manOptions(w)
		}
		s.manCommands(w, prefix+" "+s.Name)
	}
}

// roff escapes text. A paragraph ends with an empty line, as in Go comments.
func roff(s string) string {
	s = strings.ReplaceAll(s, `\`, `\e`)
	s = strings.ReplaceAll(s, "-", `\-`)
	var out []string
	for line := range strings.SplitSeq(s, "\n") {
		switch {
		case line == "":
			line = ".PP"
		case line[0] == '.' || line[0] == '\'':
			line = `\&` + line
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// Bash writes completion for bash, of which zsh understands all, too: it has no mapfile.
func (c *Command) Bash(w io.Writer) {
	name := c.function()
	fmt.Fprintf(w, "# bash completion for %s\n%s() {\n\tlocal words\n\tcase \"${COMP_WORDS[*]:0:$COMP_CWORD}\" in\n", c.Name, name)
	c.bashCases(w, c.Name)
	fmt.Fprintf(w, "\t*) words=\"\" ;;\n\tesac\n\tCOMPREPLY=($(compgen -W \"$words\" -- \"${COMP_WORDS[$COMP_CWORD]}\"))\n}\ncomplete -F %s %s\n", name, c.Name)
}

func (c *Command) function() string { return "_" + strings.ReplaceAll(c.Name, "-", "_") }

// bashCases writes the most special case first.
func (c *Command) bashCases(w io.Writer, prefix string) {
	for _, s := range c.Subs {
		s.bashCases(w, prefix+" "+s.Name)
	}
	fmt.Fprintf(w, "\t\"%s\"*) words=\"%s\" ;;\n", prefix, strings.Join(c.words(), " "))
}

func (c *Command) words() []string {
	words := []string{}
	for _, s := range c.Subs {
		words = append(words, s.Name)
	}
	c.flagSet(c.Name).VisitAll(func(f *flag.Flag) { words = append(words, "--"+f.Name) })
	return append(words, "--help")
}

// Zsh writes completion for zsh, through the one for bash.
func (c *Command) Zsh(w io.Writer, bashFile string) {
	fmt.Fprintf(w, "#compdef %s\nautoload -U +X bashcompinit && bashcompinit\nsource %s\n_bash_complete -F %s # this time, too\n", c.Name, bashFile, c.function())
}

// Fish writes completion for fish.
func (c *Command) Fish(w io.Writer) {
	name := c.Name
	var walk func(c *Command, path []string)
	walk = func(c *Command, path []string) {
		cond := "true"
		for _, p := range path {
			cond += "; and __fish_seen_subcommand_from " + p
		}
		var names []string
		for _, s := range c.Subs {
			names = append(names, s.Name)
		}
		for _, s := range c.Subs {
			fmt.Fprintf(w, "complete -c %s -f -n '%s; and not __fish_seen_subcommand_from %s' -a %s -d '%s'\n",
				name, cond, strings.Join(names, " "), s.Name, strings.ReplaceAll(s.Summary, "'", ""))
			walk(s, append(path[:len(path):len(path)], s.Name))
		}
		c.flagSet(name).VisitAll(func(f *flag.Flag) {
			arg, usage := flag.UnquoteUsage(f)
			fmt.Fprintf(w, "complete -c %s -f -n '%s' -l %s%s -d '%s'\n", name, cond, f.Name, choose(arg != "", " -r", ""), strings.ReplaceAll(usage, "'", ""))
		})
	}
	walk(c, nil)
}

func choose(cond bool, yes, no string) string {
	if cond {
		return yes
	}
	return no
}
