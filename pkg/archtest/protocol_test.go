package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// TestProtocols: each protocol says whom it trusts with what, is bounded, has a
// golden encoding, and has a fuzz target for each decoder.
func TestProtocols(t *testing.T) {
	dirs, err := filepath.Glob("../protocol/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("%v, %v", dirs, err)
	}
	for _, dir := range dirs {
		name := filepath.Base(dir)
		p, err := readProtocol(dir)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(p.doc, "\nTrust: ") {
			t.Errorf("%s does not say whom it trusts with what", name)
		}
		if !p.bounded {
			t.Errorf("%s does not bound requests", name)
		}
		if golden, err := filepath.Glob(filepath.Join(dir, "testdata", "*.v*.hex")); err != nil || len(golden) == 0 {
			t.Errorf("%s has no golden encoding: %v", name, err)
		}
		if len(p.decoders) == 0 {
			t.Errorf("%s decodes nothing", name)
		}
		for _, d := range p.decoders {
			if !p.targets["Fuzz"+d] {
				t.Errorf("%s has no Fuzz%s", name, d)
			}
		}
	}
}

// protocol is what is promised of one.
type protocol struct {
	doc      string
	bounded  bool     // MaxRequest is set
	decoders []string // functions that take octets
	targets  map[string]bool
}

func readProtocol(dir string) (p protocol, err error) {
	p.targets = make(map[string]bool)
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return p, err
	}
	for _, path := range paths {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return p, err
		}
		p.doc += f.Doc.Text()
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.KeyValueExpr:
				id, ok := n.Key.(*ast.Ident)
				p.bounded = p.bounded || ok && id.Name == "MaxRequest"
			case *ast.FuncDecl:
				p.targets[n.Name.Name] = true
				if n.Recv == nil && strings.HasPrefix(n.Name.Name, "Decode") && takesOctets(n.Type) {
					p.decoders = append(p.decoders, n.Name.Name)
				}
			}
			return true
		})
	}
	return p, nil
}

func takesOctets(f *ast.FuncType) bool {
	if len(f.Params.List) == 0 {
		return false
	}
	list, ok := f.Params.List[0].Type.(*ast.ArrayType)
	if !ok {
		return false
	}
	elem, ok := list.Elt.(*ast.Ident)
	return ok && elem.Name == "byte"
}
