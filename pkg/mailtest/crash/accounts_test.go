//go:build system

package crash

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/protocol/cleanup"
)

// someone is an account, and what it has before anything is delivered.
type someone struct {
	name    string
	mbox    string // in the spool of mailboxes; "": there is none
	forward string // the .forward file
	command bool   // which is a command, that writes into a file
}

const (
	earlier = "From x@y.example  Sat Jan  3 01:05:34 2026\nSubject: earlier\n\nThis was there before.\n>From then on.\n\n"
	// cut is what another program has left of a message.
	cut = earlier + "From x@y.example  Sat Jan  3 01:05:35 2026\nSubject: cut\n\nThis is all there"

	maildirName = "Maildir"
	boxName     = "box" // of the command
	forwarded   = "forwarded@virtual.example"
)

var someones = []someone{
	{name: "ann", mbox: earlier + earlier},
	{name: "bob", mbox: cut},
	{name: "new"},
	{name: "max", forward: "~/" + maildirName + "/\n"},
	{name: "fred", forward: forwarded + "\n"},
	{name: "cora", forward: `"|dd of=` + boxName + ` oflag=append conv=notrunc,fsync bs=1M"` + "\n", command: true},
}

// Users, and groups of the same numbers, from the first account on; who calls sendmail.
const (
	firstUser = 1001
	mailGroup = 8
	caller    = 2000
)

func address(name string) string { return name + "@" + host }

func writeAccounts() error {
	passwd, group := "root:x:0:0::/root:/bin/sh\n", fmt.Sprintf("root:x:0:\nmail:x:%d:\n", mailGroup)
	for i, a := range someones {
		passwd += fmt.Sprintf("%s:x:%d:%d::%s%s:/bin/sh\n", a.name, firstUser+i, firstUser+i, homeDir, a.name)
		group += fmt.Sprintf("%s:x:%d:\n", a.name, firstUser+i)
	}
	return errors.Join(os.WriteFile("/etc/passwd", []byte(passwd), 0o644), os.WriteFile("/etc/group", []byte(group), 0o644))
}

// makeHomes makes the homes and mailboxes as they are at first.
func makeHomes() error {
	errs := []error{os.RemoveAll(mboxDir), os.Mkdir(mboxDir, 0o755), os.Chown(mboxDir, 0, mailGroup), os.Chmod(mboxDir, 0o775|os.ModeSetgid)}
	for i, a := range someones {
		home, user := homeDir+a.name, firstUser+i
		errs = append(errs, os.RemoveAll(home), os.Mkdir(home, 0o700))
		files := map[string]string{home + "/.forward": a.forward, mboxDir + a.name: a.mbox}
		if a.command {
			files[home+"/"+boxName] = earlier
		}
		if strings.Contains(a.forward, maildirName) {
			for _, sub := range []string{"tmp", "cur", "new"} {
				errs = append(errs, os.MkdirAll(filepath.Join(home, maildirName, sub), 0o700))
			}
			files[filepath.Join(home, maildirName, "new/earlier")] = earlier
		}
		for path, text := range files {
			if text != "" {
				errs = append(errs, os.WriteFile(path, []byte(text), 0o600), os.Chown(path, user, user))
			}
		}
		errs = append(errs, filepath.WalkDir(home, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, user, user))
		}))
	}
	return errors.Join(errs...)
}

// heldLonger is longer than a lock of a mailbox is held where nothing is the matter.
const heldLonger = 300 * time.Millisecond

// ageLocks lets the time go by after which lock files count no more that nobody has
// removed for so long.
func ageLocks(held time.Duration) {
	for _, path := range glob(mboxDir + "*.lock") {
		info, err := os.Lstat(path)
		if err == nil && time.Since(info.ModTime()) > held {
			old := time.Now().Add(-time.Hour)
			_ = os.Chtimes(path, old, old) // it may have gone, or the disk
		}
	}
}

// endUsers ends all processes of users, and those that are about to become theirs, which
// run deliver, or deliver-as in the same directory.
func endUsers(deliver string) error {
	for found := true; found; {
		found = false
		for _, path := range glob("/proc/[0-9]*") {
			b, err := os.ReadFile(path + "/status")
			if err != nil {
				continue // it has ended
			}
			_, rest, _ := strings.Cut(string(b), "\nUid:\t")
			real, _, _ := strings.Cut(rest, "\t")
			uid, _ := strconv.Atoi(real)
			exe, _ := os.Readlink(path + "/exe")
			if (uid < firstUser || uid >= firstUser+len(someones)) && exe != deliver && exe != filepath.Join(filepath.Dir(deliver), child) {
				continue
			}
			pid, err := strconv.Atoi(filepath.Base(path))
			if err != nil {
				return err
			}
			found = true
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				return fmt.Errorf("end %d: %w", pid, err)
			}
			// Its parent has ended, or will: then it is one of this process, which is the first here.
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	}
	return nil
}

// sendmail has a user send a message by the command.
func (w *world) sendmail(m *message) {
	input := fmt.Sprintf("/var/message%d", m.mark)
	err := os.WriteFile(input, []byte(m.content), 0o644)
	if err != nil {
		w.fail("%v", err)
		return
	}
	f, err := os.Open(input)
	if err != nil {
		w.fail("%v", err)
		return
	}
	defer f.Close()
	u := w.unit(command)
	defer time.AfterFunc(stepTime, func() { u.kill(unix.SIGKILL) }).Stop()
	state, err := u.execute(w, &os.ProcAttr{
		Dir: "/", Env: []string{"PATH=/nowhere"}, Files: []*os.File{f, w.out, w.out},
		Sys: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: caller, Gid: caller}},
	}, append([]string{"-i", "-f", sender, "--"}, m.rcpts...)...)
	if err != nil {
		w.fail("sendmail: %v", err)
		return
	}
	m.accepted, m.refused = state.Success(), state.Exited() && !state.Success()
}

// dropped has a user send a message while the mail system is off.
func (w *world) dropped(m *message) {
	m.dropped = true
	// One that is not resident is started by what is in the directory.
	w.unit("pickup").kill(unix.SIGTERM)
	const away = cleanup.SubmitPath + ".away"
	if err := os.Rename(cleanup.SubmitPath, away); err != nil {
		w.fail("%v", err)
	}
	w.sendmail(m)
	if err := os.Rename(away, cleanup.SubmitPath); err != nil {
		w.fail("%v", err)
	}
}

// accountDay has messages come by sendmail, and go to accounts.
func (w *world) accountDay() []*message {
	each := newMessage(1, 10, address("ann"), address("max"), address("fred"), address("cora"))
	big := newMessage(2, 500, address("bob"), address("new"))
	dropped := newMessage(3, 3, address("ann"), address("cora"))
	w.follow([]step{
		{"delivery", func() { w.sendmail(each) }, w.isEmpty},
		{"a big one", func() { w.sendmail(big) }, w.isEmpty},
		{"the maildrop", func() { w.dropped(dropped) }, w.isEmpty},
	})
	return []*message{each, big, dropped}
}

// has returns what an account has got, and finds what it had before and has no more.
func (w *world) has(name string) (list [][]byte) {
	var who someone
	for _, a := range someones {
		if a.name == name {
			who = a
		}
	}
	home := homeDir + name
	switch {
	case who.command:
		list = w.messages(home+"/"+boxName, earlier, "")
	case strings.Contains(who.forward, maildirName):
		for _, path := range glob(filepath.Join(home, maildirName, "new/*")) {
			b, err := os.ReadFile(path)
			if err != nil {
				w.fail("I1: %v", err)
			}
			list = append(list, b)
		}
		before := len(list)
		for i := range list {
			if string(list[i]) == earlier {
				list = append(list[:i], list[i+1:]...)
				break
			}
		}
		if len(list) != before-1 {
			w.fail("I1: an earlier message of %s is lost", name)
		}
	case who.forward != "":
		return w.copies(forwarded)
	default:
		for _, b := range w.messages(mboxDir+name, who.mbox, "\n") {
			list = append(list, bytes.ReplaceAll(b, []byte("\n>From "), []byte("\nFrom ")))
		}
	}
	return list
}

// broken reports whether a command of a user's may have been ended while it wrote.
func (w *world) broken() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.struck != nil && errnos[w.point.Fault] == 0
}

// messages returns the messages in a mailbox file, without the lines that begin and, in
// a mailbox, end them. Before them is what was there before, as it was. A command, whose
// file has no such end, may have been ended while it wrote: that is its own business.
func (w *world) messages(path, before, end string) (list [][]byte) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && before == "" {
		return nil
	}
	if err != nil {
		w.fail("I1: %v", err)
		return nil
	}
	rest, ok := bytes.CutPrefix(b, []byte(before))
	if !ok {
		w.fail("I1: %s does not begin with what was there: %.500q", path, b)
		return nil
	}
	if len(before) > 0 && len(rest) > 0 && !strings.HasSuffix(before, "\n\n") {
		if rest, ok = bytes.CutPrefix(rest, []byte("\n\n")); !ok && !w.parts {
			w.fail("I4: %s: no end of what was there: %.100q", path, rest)
		}
	}
	begin := []byte("From " + sender + "  ")
	for i, piece := range bytes.Split(rest, begin) {
		if i == 0 {
			if len(piece) > 0 && !w.parts && (end != "" || !w.broken()) {
				w.fail("I4: %s: something between: %.200q", path, piece)
			}
			continue
		}
		_, text, _ := bytes.Cut(piece, []byte("\n"))
		if i := bytes.Index(text, []byte(lastWords+end)); w.parts && end != "" && i >= 0 {
			// Behind its end may be the first letters of the next, and NULs for the rest.
			text = text[:i+len(lastWords)+len(end)]
		}
		text, whole := bytes.CutSuffix(text, []byte(end))
		switch whole = whole && bytes.HasSuffix(text, []byte(lastWords)); {
		case whole:
			list = append(list, text)
		case end != "" && !w.parts || end == "" && !w.broken():
			w.fail("I4: %s: a part of a message: %.200q ... %q", path, piece, piece[max(0, len(piece)-100):])
		}
	}
	return list
}
