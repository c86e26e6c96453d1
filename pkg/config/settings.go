package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Setting is one setting that is in force.
type Setting struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Source string `json:"source"` // file and line, what else says it, or "default"
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
			*all = append(*all, Setting{path, struct{}{}, c.SourceOf(path)})
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
		*all = append(*all, Setting{path, value, c.SourceOf(path)})
	}
}

// Known reports whether there are settings that are called path, or begin with it.
func Known(path string) bool { return known(reflect.TypeFor[Config](), path) }

func known(t reflect.Type, path string) bool {
	if path == "" {
		return true
	}
	switch t.Kind() {
	case reflect.Map:
		return true // a name may have dots
	case reflect.Struct:
		name, rest, _ := strings.Cut(path, ".")
		for i := range t.NumField() {
			if t.Field(i).Tag.Get("yaml") == name {
				return known(t.Field(i).Type, rest)
			}
		}
	}
	return false
}

// SourceOf returns file and line of a setting, or what else says it.
func (c *Config) SourceOf(path string) string {
	if s := c.sources[path]; s != "" {
		return s
	}
	return "default"
}
