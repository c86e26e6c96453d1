package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	osuser "os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"posthouse/pkg/config"
)

// What root can read daemons may not: they have users of their own, and of all that root
// sees they see the configuration's directory.

// reader is a daemon as the modes of files know it. The zero value stands for all of
// them, who are neither owner nor group.
type reader struct {
	uid  string
	gids []string
}

// newReader returns the daemon of a user, with groups of its unit.
func newReader(login string, groups ...string) (r reader) {
	if u, err := osuser.Lookup(login); err == nil {
		r.uid = u.Uid
	}
	for _, name := range groups {
		if g, err := osuser.LookupGroup(name); err == nil {
			r.gids = append(r.gids, g.Gid)
		}
	}
	return r
}

// readable reports files of the configuration, and tables, that those who need them
// cannot read.
func readable(dir string, cfg *config.Config, add func(error)) {
	look := func(r reader, path string) {
		if err := r.follow(dir, path); err != nil {
			add(err)
		}
	}
	files, err := config.Files(dir)
	if err != nil {
		add(err)
	}
	for _, path := range append(files, filepath.Join(dir, "conf.d")) {
		look(reader{}, path)
	}
	names := []string{"users", "virtual_aliases", "transport"}
	for _, d := range cfg.Domains.Relay {
		if d.Recipients != "" {
			names = append(names, d.Recipients)
		}
	}
	rewrite := newReader("_ph-rewrite", "_ph-rewrite", "_ph-users")
	for _, name := range names {
		look(rewrite, filepath.Join(config.TablesDir(dir), name))
	}
	local := newReader("_ph-local", "_ph-local")
	for _, path := range cfg.Local.Aliases {
		if within(dir, path) {
			look(local, path)
		}
	}
}

// checkAliases reports files of aliases that local does not see, or cannot read: of the
// system it sees /etc, and what its unit says besides.
func checkAliases(dir string, cfg *config.Config, add func(error)) {
	const unit = "posthouse-local.service"
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := systemctl(ctx, "show", "--property=LoadState,BindPaths,BindReadOnlyPaths", "--", unit)
	if err != nil || !strings.Contains(out, "LoadState=loaded") {
		return // there is no such system
	}
	local, source := newReader("_ph-local", "_ph-local"), cfg.SourceOf("local.aliases")
	for _, path := range cfg.Local.Aliases {
		target, err := filepath.EvalSymlinks(path)
		switch {
		case within(dir, path): // see readable
		case errors.Is(err, fs.ErrNotExist) && source == "default":
		case err != nil:
			add(fmt.Errorf("%s: local.aliases: %w", source, err))
		case !bound(out, path) || !bound(out, target):
			if bound(out, path) {
				path = target // a link out
			}
			add(fmt.Errorf("%s: local.aliases: %s does not see %s: it needs a drop-in with BindReadOnlyPaths=%s", source, unit, path, filepath.Dir(path)))
		case within("/etc", path) && within("/etc", target):
			if err := local.follow("/etc", path); err != nil {
				add(err)
			}
		}
	}
}

// bound reports whether path is in one of the binds, SOURCE:TARGET:OPTIONS, that systemctl
// shows.
func bound(properties, path string) bool {
	for line := range strings.Lines(properties) {
		_, binds, _ := strings.Cut(line, "=")
		for bind := range strings.FieldsSeq(binds) {
			if f := strings.Split(bind, ":"); len(f) > 1 && within(f[1], path) {
				return true
			}
		}
	}
	return false
}

func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// maxLinks is how many links the kernel follows.
const maxLinks = 40

// follow reports that r cannot read what is at name, or does not find it: for it nothing
// is there but dir. What is missing is no fault.
func (r reader) follow(dir, name string) error {
	path := name
	for range maxLinks {
		rel, err := filepath.Rel(dir, path)
		if err != nil || !filepath.IsLocal(rel) {
			return fmt.Errorf("%s: leads to %s, and daemons see nothing outside of %s", name, path, dir)
		}
		next, err := r.walk(dir, rel)
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != name:
			return fmt.Errorf("%s: leads to %s: %w", name, path, err)
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil || next == "":
			return err
		}
		path = next
	}
	return fmt.Errorf("%s: more than %d links", name, maxLinks)
}

// walk goes from dir to rel. If there is a link on the way, or at its end, it returns the
// path by which that goes on.
func (r reader) walk(dir, rel string) (next string, err error) {
	info, err := os.Stat(dir) // a link itself or not: systemd mounts what is there
	at, rest := dir, strings.Split(rel, "/")
	for {
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(at)
			if err == nil && !filepath.IsAbs(target) {
				target = filepath.Join(filepath.Dir(at), target)
			}
			return filepath.Join(append([]string{target}, rest...)...), err
		}
		if err := r.may(at, info, len(rest) > 0); err != nil || len(rest) == 0 {
			return "", err
		}
		at, rest = filepath.Join(at, rest[0]), rest[1:]
		info, err = os.Lstat(at)
	}
}

// may reports that r cannot read the file at path, or list the directory there, or, with
// through, get to what is in it.
func (r reader) may(path string, info fs.FileInfo, through bool) error {
	need := fs.FileMode(4)
	switch {
	case info.IsDir() && through:
		need = 1
	case info.IsDir():
		need = 5
	}
	if whose, ok := r.has(path, info, need); !ok {
		return fmt.Errorf("%s: daemons cannot read it: %s", path, whose)
	}
	return nil
}

// has reports whether r has the rights need with the file at path, and whose it is.
func (r reader) has(path string, info fs.FileInfo, need fs.FileMode) (whose string, ok bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if n, err := syscall.Getxattr(path, "system.posix_acl_access", nil); !ok || err == nil && n > 0 {
		return "", true // who may is in a list of its own
	}
	mode := info.Mode().Perm()
	switch {
	case strconv.Itoa(int(st.Uid)) == r.uid:
		mode >>= 6
	case slices.Contains(r.gids, strconv.Itoa(int(st.Gid))):
		mode >>= 3
	}
	return fmt.Sprintf("mode %04o, owner %d, group %d", info.Mode().Perm(), st.Uid, st.Gid), mode&need == need
}

// checkStore reports that the agent for virtual users cannot make their mailboxes, as
// where the directory is a new disk, or was another's before.
func checkStore(cfg *config.Config, r reader, add func(error)) {
	if r.uid == "" || len(cfg.Domains.Virtual) == 0 || !strings.HasPrefix(cfg.Routes.Virtual, "virtual:") {
		return
	}
	info, err := os.Stat(cfg.Virtual.Base)
	if err != nil {
		add(fmt.Errorf("%s: virtual.base: %w", cfg.SourceOf("virtual.base"), err))
		return
	}
	if whose, ok := r.has(cfg.Virtual.Base, info, 7); !ok {
		add(fmt.Errorf("%s: virtual.base: %s: %s: the mail of virtual users waits; chown _ph-virtual: gives it to their agent", cfg.SourceOf("virtual.base"), cfg.Virtual.Base, whose))
	}
}
