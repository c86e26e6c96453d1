package archtest

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

const module = "posthouse/"

// facts are statements, each with the place where it was found or its reason.
// What is true of the tree has to be in the table, and the other way round.
type facts map[string]string

func (f facts) add(where, format string, args ...any) { f[fmt.Sprintf(format, args...)] = where }

// source is a Go file, whatever its build constraints say.
type source struct {
	path, dir string
	test      bool
	imports   []string
	uses      []string // imports, and what else rules are about
	over      facts    // what is over budget
}

// fits says whether use is among patterns.
func fits(patterns, use string) bool {
	return slices.ContainsFunc(strings.Fields(patterns), func(p string) bool {
		ok, err := path.Match(p, use)
		return ok || err != nil // a malformed pattern fits everything, which is seen
	})
}

// read parses the tree, but for what the go command leaves out and for build/.
func read(tree fs.FS) (all []source, err error) {
	err = fs.WalkDir(tree, ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || p == ".":
			return err
		case d.IsDir() && (p == "build" || d.Name() == "testdata" || strings.ContainsAny(d.Name()[:1], "._")):
			return fs.SkipDir
		case d.IsDir() || path.Ext(p) != ".go":
			return nil
		}
		data, err := fs.ReadFile(tree, p)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, data, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		s := source{path: p, dir: path.Dir(p), test: strings.HasSuffix(p, "_test.go"), over: facts{}}
		if lines := bytes.Count(data, []byte("\n")); lines > maxLines {
			s.over.add(fmt.Sprintf("%d lines", lines), "%s is over budget", p)
		}
		s.inspect(fset, f)
		all = append(all, s)
		return nil
	})
	return all, err
}

// inspect finds what f uses. An imported package goes by the last element of its
// path, unless the import renames it.
func (s *source) inspect(fset *token.FileSet, f *ast.File) {
	names := map[string]string{}
	for _, spec := range f.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			p = spec.Path.Value // the parser has refused it already
		}
		s.imports = append(s.imports, p)
		name := path.Base(p)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		if name == "." {
			s.uses = append(s.uses, "dot")
		}
		names[name] = p
	}
	s.uses = append(s.uses, s.imports...)
	measure := func(name string, n ast.Node, t *ast.FuncType) {
		lines, params := fset.Position(n.End()).Line-fset.Position(n.Pos()).Line+1, t.Params.NumFields()
		if lines > maxFuncLines || params > maxParams {
			s.over.add(fmt.Sprintf("%s: %d lines, %d parameters", s.path, lines, params), "%s.%s is over budget", s.dir, name)
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			measure("func", n, n.Type)
		case *ast.FuncDecl:
			measure(n.Name.Name, n, n.Type)
			if n.Recv == nil && n.Name.Name == "init" {
				s.uses = append(s.uses, "init")
			}
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "panic" {
				s.uses = append(s.uses, "panic")
			}
		case *ast.BasicLit:
			if strings.Contains(n.Value, "/run/"+module) {
				s.uses = append(s.uses, "socket")
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && names[x.Name] != "" {
				s.uses = append(s.uses, names[x.Name]+"."+n.Sel.Name)
			}
		}
		return true
	})
}

// check compares tree with the table and returns where they differ.
func check(tree fs.FS, a architecture) (faults []string, err error) {
	all, err := read(tree)
	if err != nil {
		return nil, err
	}
	want, got := a.facts(), facts{}
	for _, s := range all {
		a.imports(got, s)
		a.reserved(got, s)
		a.protocols(got, s)
		if !s.test {
			maps.Copy(got, s.over)
		}
	}
	if err := units(got, tree); err != nil {
		return nil, err
	}
	for f, where := range got {
		if _, ok := want[f]; !ok {
			faults = append(faults, fmt.Sprintf("not in the table: %s (%s)", f, where))
		}
	}
	for f, why := range want {
		if _, ok := got[f]; !ok {
			faults = append(faults, fmt.Sprintf("only in the table: %s (%s)", f, why))
		}
	}
	slices.Sort(faults)
	return faults, nil
}

// facts are those that the table states.
func (a architecture) facts() facts {
	f := facts{}
	for _, l := range a.layers {
		for _, p := range strings.Fields(l.packages) {
			if first, twice := f["pkg/"+p+" exists"]; twice {
				f.add(first+", "+l.name, "pkg/%s is in two layers", p)
			}
			f.add(l.name, "pkg/%s exists", p)
		}
	}
	for _, r := range a.rules {
		for _, dir := range strings.Fields(r.by) {
			f.add(r.why, "%s uses %s", dir, r.uses)
		}
	}
	for at, s := range a.sockets {
		f.add("sockets", "%s serves %s", s.program, at)
		f.add("serves "+at, "%s speaks %s", s.program, s.protocol)
	}
	for name, p := range a.programs {
		f.add("programs", "%s exists", name)
		for _, protocol := range strings.Fields(p.asks) {
			f.add("asks", "%s speaks %s", name, protocol)
			f.add("asks", "%s asks %s", name, protocol)
		}
		if p.network {
			f.add("network", "%s takes part in the network", name)
		}
		for _, service := range strings.Fields(p.services) {
			a.serviceFacts(f, name, "posthouse-"+service+".service")
		}
	}
	for name, why := range a.excused {
		f.add(why, "%s is over budget", name)
	}
	return f
}

func (a architecture) serviceFacts(f facts, name, service string) {
	f.add("services", "%s runs %s", service, name)
	if a.programs[name].network {
		f.add("network", "%s has a network", service)
	}
	for at, s := range a.sockets {
		dir, base := path.Split(at)
		if dir == "private/" && fits(a.programs[name].asks, s.protocol) {
			f.add("asks "+s.protocol, "%s has the group _ph-to-%s", service, strings.TrimSuffix(base, "-%i"))
		}
	}
}

// layer is the number of dir's layer, -1 if it has none.
func (a architecture) layer(dir string) int {
	return slices.IndexFunc(a.layers, func(l layer) bool {
		return slices.Contains(strings.Fields(l.packages), strings.TrimPrefix(dir, "pkg/"))
	})
}

// imports finds that a folder exists, and what it imports or uses against the order of layers.
func (a architecture) imports(got facts, s source) {
	pkg, program, n := strings.HasPrefix(s.dir, "pkg/"), home(s.dir), a.layer(s.dir)
	switch {
	case pkg:
		got.add(s.path, "%s exists", s.dir)
	case program != "":
		got.add(s.path, "%s exists", program)
	}
	for _, im := range s.imports {
		first, _, _ := strings.Cut(im, "/")
		if strings.Contains(first, ".") && !slices.ContainsFunc(a.rules, func(r rule) bool { return fits(r.uses, im) }) {
			got.add(s.path, "%s, a module", im)
		}
		to, ours := strings.CutPrefix(im, module)
		m := a.layer(to)
		switch {
		case !ours:
		case !strings.HasPrefix(to, "pkg/"):
			if program == "" || !strings.HasPrefix(to, program+"/internal/") {
				got.add(s.path+"; not its own", "%s imports %s", s.dir, to)
			}
		case s.test: // may import all of pkg/
		case pkg && n >= 0 && m >= n, !pkg && m == len(a.layers)-1:
			got.add(s.path+"; not a lower layer, or for tests", "%s imports %s", s.dir, to)
		}
	}
	for _, u := range s.uses {
		if pkg && n >= 0 && !s.test && fits(a.layers[n].not, u) {
			got.add(s.path, "%s uses %s, not for %s", s.dir, u, a.layers[n].name)
		}
	}
}

// reserved finds what falls under a rule.
func (a architecture) reserved(got facts, s source) {
	for _, r := range a.rules {
		for _, u := range s.uses {
			if fits(r.uses, u) && (r.tests || !s.test) {
				got.add(s.path+": "+u+"; "+r.why, "%s uses %s", s.dir, r.uses)
			}
		}
	}
}

// protocols finds which protocols a program speaks, and of which it is the
// client: a client names the socket, by the Path of the protocol's package; a
// server gets it from systemd. And whether it makes use of a network.
func (a architecture) protocols(got facts, s source) {
	program := home(s.dir)
	for _, u := range s.uses {
		if s.test {
			return
		}
		if program != "" && fits(a.network, u) {
			got.add(s.path+": "+u, "%s takes part in the network", program)
		}
		use, ok := strings.CutPrefix(u, module+"pkg/protocol/")
		if !ok {
			continue
		}
		protocol, name, _ := strings.Cut(use, ".")
		if strings.HasSuffix(name, "Path") {
			got.add(s.path, "%s asks %s", cmp.Or(program, s.dir), protocol)
		}
		if program != "" {
			got.add(s.path, "%s speaks %s", program, protocol)
		}
	}
}

// home is the folder of the program that dir belongs to; "" outside daemons/.
func home(dir string) string {
	n, parts := 2, strings.Split(dir, "/")
	if parts[0] != "daemons" {
		return ""
	}
	if len(parts) > 1 && parts[1] == "commands" {
		n = 3
	}
	return strings.Join(parts[:min(n, len(parts))], "/")
}

// units finds who serves which socket, and the groups and networks of services.
func units(got facts, tree fs.FS) error {
	files, err := fs.Glob(tree, "units/posthouse-*.s*[et]") // .service, .socket
	if err != nil {
		return err
	}
	all := map[string]unit{}
	for _, f := range files {
		if all[path.Base(f)], err = readUnit(tree, f); err != nil {
			return err
		}
	}
	for name, u := range all {
		if at := u.first("ListenSequentialPacket"); at != "" {
			service := cmp.Or(u.first("Service"), strings.TrimSuffix(name, ".socket")+".service")
			got.add(name, "%s serves %s", all[service].program(), strings.TrimPrefix(at, "/run/"+module))
		}
		if path.Ext(name) == ".service" {
			got.add("units", "%s runs %s", name, u.program())
		}
		for _, g := range u["SupplementaryGroups"] {
			if strings.HasPrefix(g, "_ph-to-") {
				got.add("units", "%s has the group %s", name, g)
			}
		}
		if slices.ContainsFunc(u["RestrictAddressFamilies"], func(f string) bool { return strings.HasPrefix(f, "AF_INET") }) {
			got.add("units", "%s has a network", name)
		}
	}
	return nil
}

// unit has the words of all values of each key. Those that are looked at are
// lists, or stand in one place (a test in units/ says so).
type unit map[string][]string

// readUnit reads a unit with the drop-ins of its prefix.
func readUnit(tree fs.FS, file string) (unit, error) {
	parts, err := fs.Glob(tree, "units/posthouse-"+path.Ext(file)+".d/*.conf")
	if err != nil {
		return nil, err
	}
	u := unit{}
	for _, part := range append(parts, file) {
		data, err := fs.ReadFile(tree, part)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(data)) {
			if key, value, ok := strings.Cut(line, "="); ok { // no comment begins with a key that is asked for
				key = strings.TrimSpace(key)
				u[key] = append(u[key], strings.Fields(value)...)
			}
		}
	}
	return u, nil
}

// first is the value of a setting that has one.
func (u unit) first(key string) string { return strings.Join(u[key][:min(1, len(u[key]))], "") }

// program is the folder of what a service runs.
func (u unit) program() string { return "daemons/" + path.Base(u.first("ExecStart")) }
