package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"posthouse/pkg/addr"
	"posthouse/pkg/agent"
	"posthouse/pkg/config"
	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/queueid"
)

// address reads an address; "" is the null one.
func address(t testing.TB, s string) addr.Mailbox {
	t.Helper()
	if s == "" {
		return addr.Mailbox{}
	}
	m, err := addr.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const arrival = 1790000000

func job(t testing.TB, content, sender string, recipients ...string) *agent.Job {
	t.Helper()
	r := &delivery.Request{
		QueueID: queueid.New(time.Unix(arrival, 0), 7), Transport: "pipe-x", Nexthop: "Next.Example", Sender: address(t, sender), Arrival: time.Unix(arrival, 0),
	}
	for _, to := range recipients {
		r.Recipients = append(r.Recipients, envelope.Recipient{Address: address(t, to), Original: address(t, "orig+x@example.org")})
	}
	return &agent.Job{Request: r, Content: io.NewSectionReader(strings.NewReader(content), 0, int64(len(content)))}
}

// pipe returns a service whose instance x runs a shell script in an empty
// directory, and that directory.
func pipe(t testing.TB, p config.Pipe, script string, args ...string) (*service, string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", t.TempDir())
	p.Command = append([]string{"/bin/sh", "-c", strings.ReplaceAll(script, "$", "$$"), "sh"}, args...)
	p.Directory, p.Timeout, p.NullSender = dir, config.Duration(time.Hour), "MAILER-DAEMON"
	cfg := &config.Config{RecipientDelimiter: "+", Pipes: map[string]config.Pipe{"x": p}}
	return &service{config: func() *config.Config { return cfg }, name: "x", uid: 1, gid: 1}, dir
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// said are the statuses of an answer, and the text of the last one.
func said(v agent.Verdict) string {
	s := ""
	for i := range v.Outcomes {
		s += v.Outcomes[i].Status.String() + " "
	}
	return s + v.Outcomes[len(v.Outcomes)-1].Text
}

func TestFlags(t *testing.T) {
	const text = "A: b\r\n.dot\r\n\r\nFrom here\r\nend"
	date := time.Unix(arrival, 0).Local().Format(time.ANSIC)
	for flags, want := range map[string]string{
		"":      "A: b\n.dot\n\nFrom here\nend\n",
		"B":     "A: b\n.dot\n\nFrom here\nend\n\n",
		".":     "A: b\n..dot\n\nFrom here\nend\n",
		">":     "A: b\n.dot\n\n>From here\nend\n",
		"huqX":  "A: b\n.dot\n\nFrom here\nend\n",
		"F":     "From s@example.org  " + date + "\nA: b\n.dot\n\nFrom here\nend\n",
		"DORF.": "From s@example.org  " + date + "\nReturn-Path: <s@example.org>\nX-Original-To: orig+x@example.org\nDelivered-To: \"a b\"@Example.NET\nA: b\n..dot\n\nFrom here\nend\n",
	} {
		for _, eol := range []string{"lf", "crlf"} {
			s, dir := pipe(t, config.Pipe{Flags: flags, EOL: eol}, "cat >got")
			v := s.deliver(t.Context(), job(t, text, "s@example.org", `"a b"@Example.NET`))
			o := v.Outcomes[0]
			if o.Status.String() != "2.0.0" || o.Text != "delivered via pipe-x service" || o.Relay != "pipe-x" || o.Relayed == strings.Contains(flags, "X") || v.Hop != nil {
				t.Errorf("%s: %+v", flags, v)
			}
			want := want
			if eol == "crlf" {
				want = strings.ReplaceAll(want, "\n", "\r\n")
			}
			if got := read(t, dir+"/got"); got != want {
				t.Errorf("%s, %s: %q, want %q", flags, eol, got, want)
			}
		}
	}
	for sender, want := range map[string]string{"MAILER-DAEMON": "From MAILER-DAEMON  " + date + "\nReturn-Path: <MAILER-DAEMON>\n", "": "From MAILER-DAEMON  " + date + "\nReturn-Path: <>\n"} {
		s, dir := pipe(t, config.Pipe{Flags: "FR"}, "cat >got")
		p := s.config().Pipes["x"]
		p.NullSender = sender
		s.config().Pipes["x"] = p
		s.deliver(t.Context(), job(t, "x\r\n", "", "a@example.net"))
		if got := read(t, dir+"/got"); got != want+"x\n" {
			t.Errorf("%q: %q", sender, got)
		}
	}
}

func TestArguments(t *testing.T) {
	const sender = `"S S"@Sender.Example`
	all := []string{"User+Ext@Example.NET", "bob@example.com"}
	for _, tt := range []struct {
		flags string
		args  []string
		want  []string
	}{
		{"", []string{"-f", "${sender}", "--", "${recipient}"}, []string{"-f", "S S@Sender.Example", "--", "User+Ext@Example.NET", "bob@example.com"}},
		{"q", []string{"$sender"}, []string{sender}},
		{"", []string{"-u${user}", "-e${extension}", "$(mailbox)/$domain"}, []string{"-uUser", "-ubob", "-eExt", "-e", "User+Ext/Example.NET", "bob/example.com"}},
		{"u", []string{"$user", "$extension", "$mailbox", "$recipient", "$domain"},
			[]string{"user", "bob", "ext", "", "user+ext", "bob", "user+ext@Example.NET", "bob@example.com", "Example.NET", "example.com"}},
		{"h", []string{"$recipient", "$domain", "$nexthop"}, []string{"User+Ext@example.net", "bob@example.com", "example.net", "example.com", "next.example"}},
		{"hu", []string{"$recipient", "$sender"}, []string{"user+ext@example.net", "bob@example.com", "S S@Sender.Example"}},
		{"", []string{"$nexthop", "$size", "$queue_id", "$$5", "$original_recipient"},
			[]string{"Next.Example", "3", queueid.New(time.Unix(arrival, 0), 7).String(), "$5", "orig+x@example.org", "orig+x@example.org"}},
		{"", []string{"`id`", "$(user); ${user}|"}, []string{"`id`", "User; User|", "bob; bob|"}},
		{"", []string{"", "${extension}"}, []string{"", "Ext", ""}},
	} {
		s, dir := pipe(t, config.Pipe{Flags: tt.flags}, `for a; do printf '%s\n' "$a"; done >got`, tt.args...)
		if v := s.deliver(t.Context(), job(t, "x\r\n", sender, all...)); said(v) != "2.0.0 2.0.0 delivered via pipe-x service" {
			t.Errorf("%q: %s", tt.args, said(v))
		}
		if got, want := read(t, dir+"/got"), strings.Join(tt.want, "\n")+"\n"; got != want {
			t.Errorf("%q: %q, want %q", tt.args, got, want)
		}
	}
}

// What an address says is never more than one argument, or an option.
func TestHostileAddresses(t *testing.T) {
	for to, want := range map[string]string{
		`"$(touch ran)"@a.example`:         "$(touch ran)@a.example",
		`"${sender}$$"@a.example`:          "${sender}$$@a.example",
		"\"`touch ran`;|&<>*'\"@a.example": "`touch ran`;|&<>*'@a.example",
		`"a b \"c\\"@a.example`:            `a b "c\@a.example`,
		`{x}@a.example`:                    "{x}@a.example",
		`"-x"@a.example`:                   "",
		`--@a.example`:                     "",
		`-@a.example`:                      "",
	} {
		s, dir := pipe(t, config.Pipe{}, `printf '%s\n' $# "$@" >>got`, "x", "$recipient")
		v := s.deliver(t.Context(), job(t, "x\r\n", "s@example.org", to, "good@example.net"))
		count, status := "3", "2.0.0 2.0.0 delivered"
		if want == "" { // the other one gets the message all the same
			count, status = "2", "5.1.3 2.0.0 delivered"
		} else {
			want += "\n"
		}
		if got := read(t, dir+"/got"); got != count+"\nx\n"+want+"good@example.net\n" || !strings.HasPrefix(said(v), status) {
			t.Errorf("%s: %q, %s", to, got, said(v))
		}
		if _, err := os.Stat(dir + "/ran"); err == nil {
			t.Fatalf("%s was executed", to)
		}
	}
	for _, tt := range []struct{ arg, sender, to, want string }{
		{"$extension", "s@a.example", "bob+-x@a.example", "5.1.3 "},
		{"$extension-$user", "s@a.example", "bob@a.example", "5.1.3 "},
		{"-f$extension", "s@a.example", "bob+-x@a.example", "2.0.0 "},
		{"$sender", "-x@a.example", "bob@a.example", "5.1.7 the command could take \"-x@a.example\" for an option"},
		{"-f$sender", "-x@a.example", "bob@a.example", "2.0.0 "},
	} {
		s, dir := pipe(t, config.Pipe{}, "echo >ran", tt.arg)
		if v := s.deliver(t.Context(), job(t, "x\r\n", tt.sender, tt.to)); !strings.HasPrefix(said(v), tt.want) {
			t.Errorf("%+v: %s", tt, said(v))
		}
		if _, err := os.Stat(dir + "/ran"); (err == nil) != (tt.want == "2.0.0 ") {
			t.Errorf("%+v: has it run: %v", tt, err)
		}
	}
}

func TestVerdicts(t *testing.T) {
	for _, tt := range []struct {
		script, want string
		pipe         config.Pipe
	}{
		{"cat /dev/stdin >/dev/null; exit 75", "4.3.0 temporary failure", config.Pipe{}},
		{"exit 67", "5.1.1 ", config.Pipe{}},
		{"echo 4.2.2 over quota; exit 77", "4.2.2 permission denied. Command output: over quota", config.Pipe{}},
		{"kill -KILL $$", "4.3.0 command died: signal: killed", config.Pipe{}},
		{"true", "2.0.0 ", config.Pipe{Size: 30}},
		{"true", "5.2.3 message too large", config.Pipe{Size: 29}},
		{"true", "5.4.6 mail forwarding loop for LOOP@example.net", config.Pipe{Flags: "D"}},
		{"true", "2.0.0 ", config.Pipe{Flags: "OR"}},
	} {
		s, _ := pipe(t, tt.pipe, tt.script)
		v := s.deliver(t.Context(), job(t, "Delivered-To: loop@example.net", "s@example.org", "LOOP@example.net"))
		if !strings.HasPrefix(said(v), tt.want) || v.Hop != nil {
			t.Errorf("%s, %+v: %s", tt.script, tt.pipe, said(v))
		}
	}
	for _, flags := range []string{"D", "O"} {
		s, dir := pipe(t, config.Pipe{Flags: flags}, "echo >ran")
		if v := s.deliver(t.Context(), job(t, "x\r\n", "s@example.org", "a@example.net", "b@example.net")); !strings.HasPrefix(said(v), "4.3.5 4.3.5 ") {
			t.Errorf("%s for two: %s", flags, said(v))
		}
		if _, err := os.Stat(dir + "/ran"); err == nil {
			t.Errorf("%s for two: it has run", flags)
		}
	}
}

func TestTimeLimit(t *testing.T) {
	s, _ := pipe(t, config.Pipe{}, "sleep 1000; true")
	p := s.config().Pipes["x"]
	p.Timeout = config.Duration(100 * time.Millisecond)
	s.config().Pipes["x"] = p
	if v := s.deliver(t.Context(), job(t, "x\r\n", "s@example.org", "a@example.net")); said(v) != `4.3.0 command time limit exceeded: "/bin/sh"` {
		t.Error(said(v))
	}
}

// An instance that is not set up makes mail wait, and says so for all of it.
func TestInstance(t *testing.T) {
	for want, change := range map[string]func(*service, *agent.Job){
		"nothing is run as root: posthouse-pipe@x.service needs another User= and Group=": func(s *service, _ *agent.Job) { s.uid = 0 },
		"nothing is run as root: ":                          func(s *service, _ *agent.Job) { s.gid = 0 },
		"there is no entry x in pipes":                      func(s *service, _ *agent.Job) { delete(s.config().Pipes, "x") },
		"posthouse-pipe@x.service was asked for pipe-other": func(_ *service, j *agent.Job) { j.Transport = "pipe-other" },
	} {
		s, dir := pipe(t, config.Pipe{}, "echo >ran")
		j := job(t, "x\r\n", "s@example.org", "a@example.net")
		change(s, j)
		v := s.deliver(t.Context(), j)
		if !strings.HasPrefix(said(v), "4.3.5 "+want) || v.Hop == nil || v.Hop.Status.String() != "4.3.5" {
			t.Errorf("%s: %s, %v", want, said(v), v.Hop)
		}
		if _, err := os.Stat(dir + "/ran"); err == nil {
			t.Errorf("%s: it has run", want)
		}
	}
}

// What does not begin with a whole message does not begin.
func TestTrouble(t *testing.T) {
	one := func(t *testing.T, change func(s *service, j *agent.Job) context.Context) {
		t.Helper()
		s, dir := pipe(t, config.Pipe{}, "echo >ran")
		j := job(t, "x\r\n", "s@example.org", "a@example.net")
		if v := s.deliver(change(s, j), j); v.Outcomes[0].Status.Class() != dsn.Transient || v.Outcomes[0].Text == "" {
			t.Errorf("%s", said(v))
		}
		if _, err := os.Stat(dir + "/ran"); err == nil {
			t.Error("it has run")
		}
	}
	one(t, func(_ *service, j *agent.Job) context.Context {
		j.Content = io.NewSectionReader(broken{}, 0, 100_000)
		return t.Context()
	})
	one(t, func(*service, *agent.Job) context.Context {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		return ctx
	})
	one(t, func(*service, *agent.Job) context.Context {
		t.Setenv("TMPDIR", t.TempDir()+"/none") // or full
		return t.Context()
	})
}

// broken is a message that cannot be read after a while.
type broken struct{}

func (broken) ReadAt(p []byte, off int64) (int, error) {
	if off > 50_000 {
		return iotest.ErrReader(errors.New("EIO")).Read(p)
	}
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// The command has what is said here, and nothing of ours.
func TestWhatACommandHas(t *testing.T) {
	t.Setenv("SECRET", "x")
	t.Setenv("LANG", "C")
	s, dir := pipe(t, config.Pipe{}, "env >env; ls -l /proc/self/fd >fds; pwd >dir")
	if v := s.deliver(t.Context(), job(t, strings.Repeat("x\r\n", 100_000), "s@example.org", "a@example.net")); v.Outcomes[0].Status.Class() != dsn.Success {
		t.Fatal(said(v))
	}
	for line := range strings.Lines(read(t, dir+"/env")) {
		switch name, _, _ := strings.Cut(line, "="); name {
		case "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "PWD", "OLDPWD", "_", "SHLVL":
		default:
			t.Errorf("environment: %s", line)
		}
	}
	if got := read(t, dir+"/env"); !strings.Contains(got, "LANG=C\n") || !strings.Contains(got, "PATH=/usr/local/bin:/usr/bin") {
		t.Errorf("environment %q", got)
	}
	fds := read(t, dir+"/fds")
	if !strings.Contains(fds, " 0 -> "+os.Getenv("TMPDIR")+"/message-") || !strings.Contains(fds, "(deleted)") {
		t.Errorf("descriptors:\n%s", fds)
	}
	if got := read(t, dir+"/dir"); got != dir+"\n" {
		t.Errorf("directory %q", got)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// FuzzArguments: whatever the addresses are, each argument is what it would be
// without a shell, and none that a macro begins begins with a hyphen.
func FuzzArguments(f *testing.F) {
	for _, s := range []string{"a", "-x", "a b", "$(x)", "${user}", "a+-b", "+", "ä+ö", "a@b", `"\`} {
		f.Add(s, s, "qhu", "+")
		f.Add("x", s, "", "-")
	}
	f.Fuzz(func(t *testing.T, local, from, flags, delimiters string) {
		to, err := addr.New(local, "Example.NET")
		sender, err2 := addr.New(from, "Example.ORG")
		if err != nil || err2 != nil {
			return
		}
		var command []string
		for _, m := range []string{"sender", "recipient", "original_recipient", "user", "extension", "mailbox", "domain"} {
			command = append(command, "${"+m+"}", "x$"+m)
		}
		j := &agent.Job{Request: &delivery.Request{Sender: sender, Recipients: []envelope.Recipient{{Address: to, Original: to}}}}
		r := &request{Job: j, pipe: config.Pipe{Command: command, Flags: flags}, delimiters: delimiters}
		args, refused, err := r.arguments()
		if err != nil {
			t.Fatal(err)
		}
		if refused[0] != nil {
			if len(r.recipients) != 0 || !strings.Contains(local+from, "-") {
				t.Fatalf("%q from %q: %v", local, from, refused)
			}
			return
		}
		if len(args) != len(command) {
			t.Fatalf("%q", args)
		}
		for i := 0; i < len(args); i += 2 {
			if strings.HasPrefix(args[i], "-") || args[i+1] != "x"+args[i] {
				t.Fatalf("%q", args)
			}
		}
		if base, ext := to.SplitExtension(delimiters); !strings.ContainsAny(flags, "uh") && args[6] != base.Local() || !strings.ContainsAny(flags, "u") && args[8] != ext {
			t.Fatalf("%q of %q", args, fmt.Sprint(to))
		}
	})
}
