package account

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func write(t *testing.T, name, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const (
	passwd = "root:x:0:0:root:/root:/bin/bash\n" +
		"+nis::::::\n# comment\n\n" +
		"alice:x:1000:1001:Alice,,,:/home/alice/:/bin/zsh\n" +
		"alice:x:1:1::/:\n" +
		"homeless:x:1002:1002:::\n" +
		"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n" +
		"minus:x:-1:1::/:\n" +
		"large:x:4294967296:1::/:\n" +
		"nochange:x:4294967295:1::/:\n" +
		"nochange16:x:65535:1::/:\n" +
		"nogroup:x:5:4294967295::/:\n" +
		"relative:x:6:6::home:\n" +
		"short:x:7:7\n"
	group = "root:x:0:\n" +
		"mail:x:8:bob,alice\n" +
		"same:x:1001:alice\n" +
		"adm:x:4:alice\n" +
		"not:x:9:alice2,malice\n" +
		"broken:x:none:carol\n"
)

func TestFiles(t *testing.T) {
	s := sources{filepath.Join(t.TempDir(), "none"), write(t, "passwd", passwd+"carol:x:8:8::/:\n"), write(t, "group", group)}
	for name, want := range map[string]*Account{
		"root":     {"root", 0, 0, nil, "/root", "/bin/bash"},
		"alice":    {"alice", 1000, 1001, []uint32{4, 8}, "/home/alice", "/bin/zsh"},
		"homeless": {"homeless", 1002, 1002, nil, "/", ""},
		"nobody":   {"nobody", 65534, 65534, nil, "/nonexistent", "/usr/sbin/nologin"},
	} {
		got, err := s.lookup(t.Context(), name)
		if err != nil || got.Name != want.Name || got.UID != want.UID || got.GID != want.GID || got.Home != want.Home || got.Shell != want.Shell ||
			len(got.Groups)+len(want.Groups) > 0 && !reflect.DeepEqual(got.Groups, want.Groups) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
	}
	for _, name := range []string{"", "bob", "Alice", "short", "alice:x", "../root", "a\nb", "# comment", strings.Repeat("a", 300)} {
		if a, err := s.lookup(t.Context(), name); !errors.Is(err, ErrNone) {
			t.Errorf("%q: %+v, %v; want ErrNone", name, a, err)
		}
	}
	// Whether there is such an account is known, but nobody shall act as it.
	for _, name := range []string{"minus", "large", "nochange", "nochange16", "nogroup", "relative", "carol"} {
		if a, err := s.lookup(t.Context(), name); err == nil || errors.Is(err, ErrNone) {
			t.Errorf("%q: %+v, %v; want an error", name, a, err)
		}
	}
}

// Files that say nothing are not taken for files in which nobody is.
func TestBrokenFiles(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for what, s := range map[string]sources{
		"no passwd":    {none, none, write(t, "group", group)},
		"no group":     {none, write(t, "passwd", passwd), none},
		"empty passwd": {none, write(t, "passwd", ""), write(t, "group", group)},
		"empty group":  {none, write(t, "passwd", passwd), write(t, "group", "")},
		"no file":      {none, t.TempDir(), write(t, "group", group)},
	} {
		for _, name := range []string{"alice", "bob"} {
			a, err := s.lookup(t.Context(), name)
			if strings.HasSuffix(what, "group") && name == "bob" {
				continue // known not to be there
			}
			if err == nil || errors.Is(err, ErrNone) {
				t.Errorf("%s: %s: %+v, %v", what, name, a, err)
			}
		}
	}
}

// userdbd serves scripted answers: each question is answered by what the script
// has for a part of it. What has no NUL at its end is cut off.
func userdbd(t *testing.T, script map[string]string) sources {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for {
					q, err := in.ReadString(0)
					if err != nil {
						return
					}
					if !strings.Contains(q, `"service":"io.systemd.Multiplexer"`) {
						return
					}
					for part, a := range script {
						if strings.Contains(q, part) {
							if _, err := c.Write([]byte(a)); err != nil || !strings.HasSuffix(a, "\x00") {
								return
							}
						}
					}
				}
			}()
		}
	}()
	// The files must not be looked at.
	return sources{socket, socket, socket}
}

const (
	userRecord  = `{"parameters":{"record":{"userName":"alice","uid":1000,"gid":1001,"homeDirectory":"/home/alice","shell":"/bin/sh","x":[{}]},"incomplete":true}}` + "\x00"
	nothing     = `{"error":"io.systemd.UserDatabase.NoRecordFound","parameters":{}}` + "\x00"
	memberships = `{"parameters":{"userName":"alice","groupName":"mail"},"continues":true}` + "\x00" + `{"parameters":{"userName":"alice","groupName":"gone"}}` + "\x00"
	mailGroup   = `{"parameters":{"record":{"groupName":"mail","gid":8},"incomplete":false}}` + "\x00"
)

func TestUserdb(t *testing.T) {
	all := map[string]string{"GetUserRecord": userRecord, "GetMemberships": memberships, `"groupName":"mail"`: mailGroup, `"groupName":"gone"`: nothing}
	a, err := userdbd(t, all).lookup(t.Context(), "alice")
	if want := (&Account{"alice", 1000, 1001, []uint32{8}, "/home/alice", "/bin/sh"}); err != nil || !reflect.DeepEqual(a, want) {
		t.Errorf("%+v, %v", a, err)
	}
	alone := map[string]string{"GetUserRecord": strings.Replace(userRecord, `"homeDirectory":"/home/alice",`, "", 1), "GetMemberships": nothing}
	if a, err := userdbd(t, alone).lookup(t.Context(), "alice"); err != nil || len(a.Groups) != 0 || a.Home != "/home/alice" {
		t.Errorf("%+v, %v", a, err)
	}
	noGroup := map[string]string{"GetUserRecord": strings.Replace(userRecord, `"gid":1001,`, "", 1), "GetMemberships": nothing}
	if a, err := userdbd(t, noGroup).lookup(t.Context(), "alice"); err != nil || a.GID != 1000 {
		t.Errorf("without a gid: %+v, %v", a, err)
	}
	if a, err := userdbd(t, map[string]string{"GetUserRecord": nothing}).lookup(t.Context(), "alice"); !errors.Is(err, ErrNone) {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestNumber: userdbd has no user whose name is a number, and does not say so.
func TestNumber(t *testing.T) {
	for _, refusal := range []string{
		`{"error":"io.systemd.UserDatabase.ServiceNotAvailable","parameters":{}}`,                // 252
		`{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"userName"}}`, // 257
	} {
		s := userdbd(t, map[string]string{"GetUserRecord": refusal + "\x00"})
		s.passwd, s.group = write(t, "passwd", passwd+"4711:x:4711:4711::/:\n"), write(t, "group", group)
		if a, err := s.lookup(t.Context(), "12345"); !errors.Is(err, ErrNone) {
			t.Errorf("%+v, %v", a, err)
		}
		if a, err := s.lookup(t.Context(), "4711"); err != nil || a.UID != 4711 {
			t.Errorf("%+v, %v", a, err)
		}
		if a, err := s.lookup(t.Context(), "4711x"); err == nil || errors.Is(err, ErrNone) {
			t.Errorf("%+v, %v", a, err)
		}
	}
}

func TestUserdbTrouble(t *testing.T) {
	with := func(part, answer string) map[string]string {
		m := map[string]string{"GetUserRecord": userRecord, "GetMemberships": memberships, `"groupName":"mail"`: mailGroup, `"groupName":"gone"`: nothing}
		m[part] = answer
		return m
	}
	for what, script := range map[string]map[string]string{
		"end":              with("GetUserRecord", ""),
		"cut off":          with("GetUserRecord", userRecord[:len(userRecord)-1]),
		"another error":    with("GetUserRecord", `{"error":"io.systemd.UserDatabase.ServiceNotAvailable"}`+"\x00"),
		"no JSON":          with("GetUserRecord", "alice:x:0:0\x00"),
		"no record":        with("GetUserRecord", "{}\x00"),
		"somebody else":    with("GetUserRecord", strings.Replace(userRecord, "alice", "bob", 1)),
		"no uid":           with("GetUserRecord", strings.Replace(userRecord, `"uid":1000,`, "", 1)),
		"negative":         with("GetUserRecord", strings.Replace(userRecord, "1000", "-1", 1)),
		"too large":        with("GetUserRecord", strings.Replace(userRecord, "1000", "4294967296", 1)),
		"no change":        with("GetUserRecord", strings.Replace(userRecord, "1000", "4294967295", 1)),
		"a fraction":       with("GetUserRecord", strings.Replace(userRecord, "1000", "0.5", 1)),
		"relative home":    with("GetUserRecord", strings.Replace(userRecord, "/home/alice", "home", 1)),
		"home with a line": with("GetUserRecord", strings.Replace(userRecord, "/home/alice", `/home\n`, 1)),
		"shell with NUL":   with("GetUserRecord", strings.Replace(userRecord, "/bin/sh", `/\u0000`, 1)),
		"two records":      with("GetUserRecord", strings.Replace(userRecord, "}}\x00", "},\"continues\":true}\x00", 1)+userRecord),
		"endless":          with("GetUserRecord", strings.Repeat(" ", maxAnswer+5000)),
		"groups cut off":   with("GetMemberships", memberships[:len(memberships)-1]),
		"groups fail":      with("GetMemberships", `{"error":"x"}`+"\x00"),
		"too many groups":  with("GetMemberships", strings.Repeat(`{"parameters":{"groupName":"mail"},"continues":true}`+"\x00", maxGroups+1)),
		"group fails":      with(`"groupName":"mail"`, `{"error":"x"}`+"\x00"),
		"another group":    with(`"groupName":"mail"`, strings.Replace(mailGroup, "mail", "root", 1)),
		"group -1":         with(`"groupName":"mail"`, strings.Replace(mailGroup, "8", "4294967295", 1)),
	} {
		if a, err := userdbd(t, script).lookup(t.Context(), "alice"); err == nil || errors.Is(err, ErrNone) {
			t.Errorf("%s: %+v, %v", what, a, err)
		}
	}
	// A socket at which nobody listens, and a server that says nothing.
	dead := write(t, "s", "")
	if a, err := (sources{dead, write(t, "passwd", passwd), write(t, "group", group)}).lookup(t.Context(), "alice"); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("nobody listens: %+v, %v", a, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := userdbd(t, map[string]string{})
	go cancel()
	if a, err := s.lookup(ctx, "alice"); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("silence: %+v, %v", a, err)
	}
}

// FuzzUserdb: whatever is answered, an account that comes back is one to act as.
func FuzzUserdb(f *testing.F) {
	f.Add(userRecord + memberships + mailGroup + nothing)
	f.Fuzz(func(t *testing.T, answers string) {
		v := &varlink{io.Discard, bufio.NewReader(strings.NewReader(answers))}
		a, err := v.account("alice")
		if err == nil {
			err = a.check("alice")
		}
		if err != nil {
			return
		}
		if a.Name != "alice" || a.UID == noID || a.GID == noID || !filepath.IsAbs(a.Home) || filepath.Clean(a.Home) != a.Home ||
			strings.ContainsAny(a.Home+a.Shell, "\x00\n") || len(a.Groups) > maxGroups {
			t.Errorf("%+v", a)
		}
	})
}
