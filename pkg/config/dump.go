package config

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Setting is one setting that is in force.
type Setting struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Source string `json:"source"` // file and line, or "default"
}

// Settings returns all that is in force, in the order of the manual. Entries of
// maps are settings of their own.
func (c *Config) Settings() []Setting {
	var all []Setting
	c.collect(reflect.ValueOf(*c), "", &all)
	return all
}

func (c *Config) collect(v reflect.Value, path string, all *[]Setting) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if name := v.Type().Field(i).Tag.Get("yaml"); name != "" {
				c.collect(v.Field(i), strings.TrimPrefix(path+"."+name, "."), all)
			}
		}
		if v.NumField() == 0 {
			*all = append(*all, Setting{path, struct{}{}, c.sourceOf(path)})
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			c.collect(v.MapIndex(k), path+"."+k.String(), all)
		}
	default:
		value := v.Interface()
		if s, ok := value.(fmt.Stringer); ok {
			value = s.String()
		}
		*all = append(*all, Setting{path, value, c.sourceOf(path)})
	}
}

func (c *Config) sourceOf(path string) string {
	if s := c.sources[path]; s != "" {
		return s
	}
	return "default"
}

// reference is what the manual says of one setting.
type reference struct {
	key, text string
	tag       reflect.StructTag
	typ       string
}

// Reference writes the manual of all settings, in roff.
func Reference(w io.Writer) error {
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

func (r reference) describe() string {
	text := strings.Join(strings.Fields(r.text), " ")
	var facts []string
	if d, ok := r.tag.Lookup("default"); ok && d != "" {
		facts = append(facts, "default "+d)
	}
	if choice := r.tag.Get("choice"); choice != "" {
		facts = append(facts, "one of "+choice)
	}
	if r.tag.Get("min") != "" {
		facts = append(facts, r.tag.Get("min")+" to "+r.tag.Get("max"))
	}
	if len(facts) > 0 {
		text += " (" + strings.Join(facts, "; ") + ")"
	}
	return text
}

// declarations returns the struct types of this package's source, by name.
func declarations() (map[string]*ast.StructType, error) {
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", source, parser.ParseComments)
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
func walk(structs map[string]*ast.StructType, name, path string) []reference {
	var list []reference
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
		list = append(list, reference{key, f.Doc.Text(), tag, typ})
		if structs[typ] != nil {
			list = append(list, walk(structs, typ, key)...)
		}
	}
	return list
}
