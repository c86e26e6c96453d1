// Package mailtest boots Posthouse's packages under a real systemd, in
// containers, for tests of the whole.
//
// A machine is a Debian (root.sh) on a throw-away overlay, booted by
// systemd-nspawn (machine.sh), with a loopback interface of its own and no
// other network. It has swaks, smtp-source, smtp-sink, curl, strace and
// Dovecot, which is not started, and Postfix's package, /opt/postfix/postfix.deb,
// which installs without a network. The host needs root and what setup.sh
// installs; its own PID 1 may be anything.
//
// Methods that have no error in their results fail the test instead. They are
// to be called from the goroutine of the test.
package mailtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// CommandTimeout bounds a command in a machine, so that one that hangs ends
// the test and not the test run.
const CommandTimeout = 10 * time.Minute

// Options says which machine to boot. The zero value is a Debian 12 with the
// package that make deb has made.
type Options struct {
	// Suite is the Debian release: bookworm (the default) or trixie.
	Suite string

	// Hostname is its host name; the default is mail.example.org.
	Hostname string

	// Package is the path of the Debian package to install; the default is the
	// one in build/.
	Package string

	// Bare leaves the package out.
	Bare bool

	// Binds are directories of the host that it shares, as HOST:PATH.
	Binds []string
}

// Machine is a booted container. It ends with the test.
type Machine struct {
	// Name is its name, unique on this host.
	Name string

	t      testing.TB
	script string // machine.sh
	kernel *KernelLog
}

// Result is what became of a command.
type Result struct {
	Stdout, Stderr string
	Code           int // exit status
}

// booted numbers the machines of this process; names have to differ.
var booted atomic.Int64

// Boot boots a machine, installs the package in it, and removes it at the end
// of the test. A failed test shows its journal.
func Boot(t testing.TB, o Options) *Machine {
	t.Helper()
	top, err := Top()
	if err != nil {
		t.Fatal(err)
	}
	if o.Suite == "" {
		o.Suite = "bookworm"
	}
	kernel, err := OpenKernelLog()
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{
		Name:   fmt.Sprintf("t%d-%d", os.Getpid(), booted.Add(1)),
		t:      t,
		script: filepath.Join(top, "pkg/mailtest/machine.sh"),
		kernel: kernel,
	}
	t.Cleanup(func() {
		if err := kernel.Close(); err != nil {
			t.Error(err)
		}
	})

	root := strings.TrimSpace(host(t, nil, filepath.Join(top, "pkg/mailtest/root.sh"), o.Suite))
	host(t, nil, m.script, "reap") // what a killed test left
	env := []string{fmt.Sprintf("OWNER=%d", os.Getpid())}
	if o.Hostname != "" {
		env = append(env, "NODENAME="+o.Hostname)
	}
	// Before it is up: up may fail half way.
	t.Cleanup(m.down)
	up := []string{m.script, "up", m.Name, root}
	for _, b := range o.Binds {
		up = append(up, "--bind="+b)
	}
	host(t, env, up...)
	if !o.Bare {
		m.InstallPackage(o.Package)
	}
	return m
}

func (m *Machine) down() {
	if m.t.Failed() {
		if r, err := m.Try("journalctl", "--no-pager", "-b", "-o", "short-iso", "-n", "300"); err == nil && r.Code == 0 {
			m.t.Logf("journal of %s:\n%s", m.Name, r.Stdout)
		}
		// Last, where it is seen, for the lines above may have been after the trouble.
		if r, err := m.Try("journalctl", "--no-pager", "-b", "-o", "short-iso", "-p", "notice"); err == nil && r.Code == 0 {
			m.t.Logf("what is notable in the journal of %s:\n%s", m.Name, r.Stdout)
		}
	}
	if out, err := exec.Command(m.script, "down", m.Name).CombinedOutput(); err != nil {
		m.t.Errorf("down %s: %v\n%s", m.Name, err, out)
	}
}

// Top returns the top of the source tree that the test runs in.
func Top() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("top of the source: %w", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		switch _, err := os.Stat(filepath.Join(dir, "go.mod")); {
		case err == nil:
			return dir, nil
		case dir == "/":
			return "", errors.New("top of the source: no go.mod above this directory")
		}
	}
}

// DebianPackage returns the path of the package in build/, of which there has
// to be one.
func DebianPackage() (string, error) {
	top, err := Top()
	if err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(top, "build/posthouse_*.deb"))
	if err != nil {
		return "", fmt.Errorf("find the package: %w", err)
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d packages build/posthouse_*.deb, not one: run make deb", len(found))
	}
	return found[0], nil
}

// InstallPackage installs a Debian package of the host, or the one in build/ if
// file is empty, and waits until no unit is being started.
func (m *Machine) InstallPackage(file string) {
	m.t.Helper()
	if file == "" {
		var err error
		if file, err = DebianPackage(); err != nil {
			m.t.Fatal(err)
		}
	}
	m.CopyTo(file, "/root/package.deb")
	m.Run("dpkg", "--install", "/root/package.deb")
	m.Settle()
}

// Settle waits until systemd has no jobs in its queue.
func (m *Machine) Settle() {
	m.t.Helper()
	m.WaitFor("an end of systemd's jobs", time.Minute, func() bool {
		return m.Run("systemctl", "list-jobs", "--no-legend") == ""
	})
}

// host runs a command on the host and returns its output.
func host(t testing.TB, env []string, command ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, &stderr)
	}
	return stdout.String()
}

// Try runs a command as root, without input. A status other than 0 is no error.
func (m *Machine) Try(command ...string) (Result, error) {
	return m.TryInput(nil, command...)
}

// TryInput is Try with standard input.
func (m *Machine) TryInput(input []byte, command ...string) (Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), CommandTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, m.script, append([]string{"run", m.Name}, command...)...)
	cmd.Stdin = bytes.NewReader(input)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// What the command has started may hold the output open.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		err = nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("does not end in %v", CommandTimeout)
	}
	if err != nil {
		return r, fmt.Errorf("%s: %s: %w", m.Name, strings.Join(command, " "), err)
	}
	return r, nil
}

// Run runs a command as root and returns its standard output. The test fails
// if the command does.
func (m *Machine) Run(command ...string) string {
	m.t.Helper()
	return m.RunInput(nil, command...)
}

// RunInput is Run with standard input.
func (m *Machine) RunInput(input []byte, command ...string) string {
	m.t.Helper()
	r, err := m.TryInput(input, command...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s: %s: status %d", m.Name, strings.Join(command, " "), r.Code)
	}
	if err != nil {
		m.t.Fatalf("%v\n%s%s", err, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// Script runs lines of shell, up to the first one that fails, and returns their
// standard output. The test fails if one does.
func (m *Machine) Script(text string) string {
	m.t.Helper()
	return m.Run("bash", "-euo", "pipefail", "-c", text)
}

// Start starts a command in the background, as a unit NAME.service of its own:
// Journal("-u", NAME) has its output, Stop(NAME) ends it.
func (m *Machine) Start(name string, command ...string) {
	m.t.Helper()
	m.Run(append([]string{"systemd-run", "--quiet", "--collect", "--unit", name, "--"}, command...)...)
}

// Stop stops units. A client, or a timer, that would have one start just now cancels that
// (systemctl says so), and it is stopped again.
func (m *Machine) Stop(units ...string) {
	m.t.Helper()
	m.WaitFor("units to stop", CommandTimeout, func() bool {
		r, err := m.Try(append([]string{"systemctl", "stop"}, units...)...)
		if err != nil || r.Code != 0 && !strings.Contains(r.Stderr, " canceled") {
			m.t.Fatalf("systemctl stop %s: %+v, %v", units, r, err)
		}
		return r.Code == 0
	})
	m.Settle() // what is part of a target stops after it
}

// WriteFile writes a file, and makes the directories above it.
func (m *Machine) WriteFile(file, content string, mode os.FileMode) {
	m.t.Helper()
	m.RunInput([]byte(content), "sh", "-euc", `mkdir -p "$(dirname "$1")"; cat >"$1"; chmod "$2" "$1"`, "sh", file, fmt.Sprintf("%o", mode.Perm()))
}

// ReadFile returns a file.
func (m *Machine) ReadFile(file string) string {
	m.t.Helper()
	return m.Run("cat", "--", file)
}

// CopyTo copies a file or a directory of the host to a path in the machine.
func (m *Machine) CopyTo(from, to string) {
	m.t.Helper()
	info, err := os.Stat(from)
	if err != nil {
		m.t.Fatal(err)
	}
	if info.IsDir() {
		archive := host(m.t, nil, "tar", "-C", from, "-cf", "-", ".")
		m.RunInput([]byte(archive), "sh", "-euc", `mkdir -p "$1"; tar -C "$1" --no-same-owner -xf -`, "sh", to)
		return
	}
	content, err := os.ReadFile(from)
	if err != nil {
		m.t.Fatal(err)
	}
	m.WriteFile(to, string(content), info.Mode())
}

// CopyFrom copies a file or a directory of the machine into a directory of the
// host, which has to be there.
func (m *Machine) CopyFrom(from, dir string) {
	m.t.Helper()
	archive := m.Run("tar", "-C", path.Dir(from), "-cf", "-", "--", path.Base(from))
	cmd := exec.Command("tar", "-C", dir, "--no-same-owner", "-xf", "-")
	cmd.Stdin = strings.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("copy %s: %v\n%s", from, err, out)
	}
}

// Journal returns the journal since boot, as messages with time and identifier,
// filtered by arguments of journalctl: "-u", "posthouse-qmgr", or "-t",
// "posthouse/qmgr". The last lines of a process that ended at once may lack the
// unit, and have the identifier.
func (m *Machine) Journal(match ...string) string {
	m.t.Helper()
	m.Run("journalctl", "--sync")
	return m.Run(append([]string{"journalctl", "--no-pager", "--quiet", "-b", "-o", "short-iso"}, match...)...)
}

// MailLog returns the journal of all of Posthouse's programs.
func (m *Machine) MailLog() string {
	m.t.Helper()
	m.Run("journalctl", "--sync")
	return m.Script(`journalctl -F SYSLOG_IDENTIFIER | sed -n 's,^posthouse/,-t&,p' | sort |
		xargs -r journalctl --no-pager --quiet -b -o short-iso`)
}

// WaitFor asks until cond holds. The test fails if it does not within timeout,
// which is to be generous: it bounds the test and asserts nothing.
func (m *Machine) WaitFor(what string, timeout time.Duration, cond func() bool) {
	m.t.Helper()
	for end := time.Now().Add(timeout); !cond(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("%s: waited %v for %s", m.Name, timeout, what)
		}
	}
}

// SeccompKills returns the kernel's lines about Posthouse's programs that made
// a system call which their units forbid, since the machine was booted. All
// machines of the host share the kernel's log.
func (m *Machine) SeccompKills() []string {
	m.t.Helper()
	lines, err := m.kernel.Seccomp("/libexec/", "/usr/bin/posthouse", "/usr/sbin/sendmail")
	if err != nil {
		m.t.Fatal(err)
	}
	return lines
}
