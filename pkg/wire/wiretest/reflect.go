package wiretest

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// Complete checks that each exported field, at any depth, is set in at least one
// of values: one that is not might be missing in the encoding.
func Complete(t *testing.T, values ...any) {
	t.Helper()
	set := map[string]bool{}
	for _, v := range values {
		fields(set, fmt.Sprintf("%T", v), reflect.ValueOf(v))
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if !set[name] {
			t.Errorf("%s is nowhere set", name)
		}
	}
}

// fields notes whether v, and what is in it, is set. Structs without exported
// fields are values like any other.
func fields(set map[string]bool, name string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			fields(set, name, v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			fields(set, name+"[]", v.Index(i))
		}
	case reflect.Struct:
		opaque := true
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				opaque = false
				fields(set, name+"."+f.Name, v.Field(i))
			}
		}
		if !opaque {
			return
		}
	}
	set[name] = set[name] || !v.IsZero()
}

// Constants returns the values of the constants of a type that are declared in
// the package in dir.
func Constants(t *testing.T, dir, typ string) []uint8 {
	t.Helper()
	list, err := constants(dir, typ)
	if err != nil || len(list) == 0 {
		t.Fatalf("constants of %s: %v, %v", typ, list, err)
	}
	return list
}

func constants(dir, typ string) ([]uint8, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, p := range paths {
		if strings.HasSuffix(p, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, p, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	// What is imported is not known here, and matters to no constant.
	conf := types.Config{Error: func(error) {}}
	pkg, _ := conf.Check(dir, fset, files, nil)
	var list []uint8
	for _, name := range pkg.Scope().Names() {
		c, ok := pkg.Scope().Lookup(name).(*types.Const)
		if !ok {
			continue
		}
		named, ok := c.Type().(*types.Named)
		if !ok || named.Obj().Name() != typ {
			continue
		}
		n, exact := constant.Uint64Val(c.Val())
		if !exact || n > 255 {
			return nil, fmt.Errorf("%s is %v", name, c.Val())
		}
		list = append(list, uint8(n))
	}
	return list, nil
}
