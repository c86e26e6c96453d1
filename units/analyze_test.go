package units_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// tree is a root for systemd-analyze: the units, and stubs of what they refer to.
type tree struct {
	t           *testing.T
	root, units string // units is where they are
}

func (r tree) write(path, content string, mode os.FileMode) {
	r.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		r.t.Fatal(err)
	}
}

// unit writes a stub of a unit of the system.
func (r tree) unit(name string, lines ...string) {
	r.t.Helper()
	r.write(filepath.Join(r.units, name), strings.Join(lines, "\n")+"\n", 0o644)
}

// enable has target want a unit.
func (r tree) enable(target, name string) {
	r.t.Helper()
	dir := filepath.Join(r.units, target+".wants")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Symlink("../"+name, filepath.Join(dir, name)); err != nil {
		r.t.Fatal(err)
	}
}

// verify has systemd read units, and is what it says of them, and of what they pull in.
func (r tree) verify(units ...string) string {
	r.t.Helper()
	out, err := exec.Command("systemd-analyze", append([]string{"--root=" + r.root, "--man=no", "verify"}, units...)...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v\n%s", err, out)
	}
	return string(out)
}

// newTree skips the test where systemd-analyze is not installed. ours are the units.
func newTree(t *testing.T) (r tree, ours []string) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	r = tree{t: t, root: t.TempDir()}
	r.units = filepath.Join(r.root, "usr/lib/systemd/system")
	for _, f := range slices.Concat(glob(t, "posthouse*.*"), glob(t, "posthouse*/*.conf")) {
		if fi, err := os.Stat(f); err != nil {
			t.Fatal(err)
		} else if fi.Mode().IsRegular() {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			r.unit(f, string(data))
			if !strings.Contains(f, "/") {
				ours = append(ours, f)
			}
		}
	}
	// As systemd has them, and what they order: sockets are there before services.
	for _, u := range []string{"paths", "shutdown", "slices", "sockets", "sysinit", "timers"} {
		r.unit(u+".target", "[Unit]", "DefaultDependencies=no")
	}
	r.unit("basic.target", "[Unit]", "Requires=sysinit.target", "Wants=sockets.target timers.target paths.target slices.target", "After=sysinit.target sockets.target paths.target slices.target")
	r.unit("multi-user.target", "[Unit]", "Requires=basic.target", "After=basic.target")
	// What they start, in the root that they start it in.
	r.write(filepath.Join(r.root, "bin/kill"), "", 0o755)
	r.write(filepath.Join(r.root, "bin/sh"), "", 0o755) // deliver's
	for _, u := range load(t, "service") {
		r.write(filepath.Join(r.root, "libexec", u.program()), "", 0o755)
		if start, _ := u.get("ExecStart"); !strings.HasPrefix(start, "/libexec/") {
			start, _, _ = strings.Cut(start, " ")
			r.write(filepath.Join(r.root, start), "", 0o755)
		}
	}
	return r, ours
}

// systemd's own opinion: no unknown setting, and the exposure levels that the design allows.
func TestSystemdAnalyze(t *testing.T) {
	r, ours := newTree(t)
	if out := r.verify(ours...); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	limits := map[string]float64{"virtual": 0.7, "smtp": 1.4, "dns": 1.4, "deliver": 2.0}
	for name, u := range load(t, "service") {
		limit, ok := limits[u.word()]
		if !ok {
			limit = 0.5
		}
		out, err := exec.Command("systemd-analyze", "--root="+r.root, "--offline=true", "--no-pager", "security", name).CombinedOutput()
		m := regexp.MustCompile(`exposure level for \S+: ([0-9.]+)`).FindSubmatch(out)
		if err != nil || m == nil {
			t.Errorf("systemd-analyze security %s: %v\n%s", name, err, out)
			continue
		}
		var level float64
		if _, err := fmt.Sscan(string(m[1]), &level); err != nil || level > limit {
			t.Errorf("%s: exposure level %s, want at most %.1f", name, m[1], limit)
		}
	}
}

// A machine boots with all that is mail on a file server: a mount waits for the network, which waits for sockets.target
// and paths.target, so that what is before these must not wait for the mount. systemd would leave sockets out.
func TestMailOnAFileServer(t *testing.T) {
	r, ours := newTree(t)
	for path := range strings.FieldsSeq("/home /var/mail /var/spool/posthouse /var/vmail") {
		r.unit(strings.ReplaceAll(path[1:], "/", "-")+".mount", "[Mount]", "What=server:"+path, "Where="+path, "Type=nfs")
	}
	for _, u := range []string{"network", "network-online", "nss-lookup", "remote-fs", "remote-fs-pre"} {
		r.unit(u+".target", "[Unit]", "Description="+u)
	}
	r.unit("network.service", "[Unit]", "Wants=network.target nss-lookup.target", "Before=network.target network-online.target nss-lookup.target", "[Service]", "ExecStart=/bin/sh")
	r.enable("network-online.target", "network.service")
	r.enable("multi-user.target", "posthouse.target")
	for _, name := range ours {
		if data, err := os.ReadFile(name); err != nil {
			t.Fatal(err)
		} else if strings.Contains(string(data), "\nWantedBy=posthouse.target") && !strings.Contains(name, "@") {
			r.enable("posthouse.target", name)
		}
	}
	// Services, too, as if somebody had connected already.
	services := slices.DeleteFunc(ours, func(name string) bool { return filepath.Ext(name) != ".service" })
	if out := r.verify(append(services, "multi-user.target")...); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	// It does find what would be wrong.
	r.unit("other.socket", "[Unit]", "RequiresMountsFor=/var/vmail", "[Socket]", "ListenStream=/run/other")
	r.unit("other.service", "[Service]", "ExecStart=/bin/sh")
	r.enable("multi-user.target", "other.socket")
	if out := r.verify("multi-user.target"); !strings.Contains(out, "ordering cycle") {
		t.Errorf("no cycle with the usual dependencies: %s", out)
	}
}
