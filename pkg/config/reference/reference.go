// Package reference writes the manual of the configuration, of what its source
// says of each setting. It is for posthouse(1): daemons shall not start with a
// parser of Go in them.
package reference

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"reflect"
	"strconv"
	"strings"

	"posthouse/pkg/config"
)

// setting is what the manual says of one setting.
type setting struct {
	key, text string
	tag       reflect.StructTag
	typ       string
}

// Write writes the manual of all settings, in roff.
func Write(w io.Writer) error {
	structs, err := declarations()
	if err != nil {
		return err
	}
	for _, r := range walk(structs, "Config", "") {
		if _, err := fmt.Fprintf(w, ".TP\n.B %s\n%s\n", roff(r.key), roff(r.describe())); err != nil {
			return err
		}
	}
	return nil
}

func roff(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\e`), "-", `\-`)
}

func (s setting) describe() string {
	text := strings.Join(strings.Fields(s.text), " ")
	var facts []string
	if d, ok := s.tag.Lookup("default"); ok && d != "" {
		facts = append(facts, "default "+d)
	}
	if choice := s.tag.Get("choice"); choice != "" {
		facts = append(facts, "one of "+choice)
	}
	if s.tag.Get("min") != "" {
		facts = append(facts, s.tag.Get("min")+" to "+s.tag.Get("max"))
	}
	if len(facts) > 0 {
		text += " (" + strings.Join(facts, "; ") + ")"
	}
	return text
}

// declarations returns the struct types of the configuration's source, by name.
func declarations() (map[string]*ast.StructType, error) {
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", config.Source, parser.ParseComments)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	structs := make(map[string]*ast.StructType)
	ast.Inspect(file, func(n ast.Node) bool {
		if t, ok := n.(*ast.TypeSpec); ok {
			if s, ok := t.Type.(*ast.StructType); ok {
				structs[t.Name.Name] = s
			}
		}
		return true
	})
	return structs, nil
}

// walk lists the settings of a struct type; NAME stands for a key of a map.
func walk(structs map[string]*ast.StructType, name, path string) []setting {
	var list []setting
	for _, f := range structs[name].Fields.List {
		if f.Tag == nil {
			continue
		}
		text, err := strconv.Unquote(f.Tag.Value)
		tag := reflect.StructTag(text)
		if err != nil || tag.Get("yaml") == "" {
			continue
		}
		key := strings.TrimPrefix(path+"."+tag.Get("yaml"), ".")
		typ := ""
		switch t := f.Type.(type) {
		case *ast.Ident:
			typ = t.Name
		case *ast.MapType:
			if v, ok := t.Value.(*ast.Ident); ok {
				typ = v.Name
			}
			key += ".NAME"
		}
		list = append(list, setting{key, f.Doc.Text(), tag, typ})
		if structs[typ] != nil {
			list = append(list, walk(structs, typ, key)...)
		}
	}
	return list
}
