package reference

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestWrite(t *testing.T) {
	var b strings.Builder
	if err := Write(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{".B queue.retry.min\n", ".B domains.relay.NAME.to\n", "default 5m; 1s to 24h", "Where its mail goes, as any route: \"smtp:["} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

// TestPlaces: who wants mail elsewhere learns what else has to be said in units: all
// that they say of the default.
func TestPlaces(t *testing.T) {
	structs, err := declarations()
	if err != nil {
		t.Fatal(err)
	}
	texts := make(map[string]string)
	for _, s := range walk(structs, "Config", "") {
		texts[s.key] = s.describe()
	}
	for _, tt := range []struct{ unit, place, key string }{
		{"posthouse-virtual.service", "/var/vmail", "virtual.base"},
		{"posthouse-virtual.socket", "/var/vmail", "virtual.base"},
		{"posthouse-deliver.service", "/var/mail", "local.spool"},
	} {
		b, err := os.ReadFile("../../../units/" + tt.unit)
		if err != nil {
			t.Fatal(err)
		}
		lines := regexp.MustCompile(`(?m)^(\w+=)(\+?).*`+tt.place+`\b`).FindAllStringSubmatch(string(b), -1)
		if len(lines) == 0 {
			t.Errorf("%s says nothing of %s", tt.unit, tt.place)
		}
		for _, m := range lines {
			if want := m[1] + m[2] + "/DIR"; !strings.Contains(texts[tt.key], tt.unit) || !strings.Contains(texts[tt.key], want) {
				t.Errorf("%s: no %s of %s in %s", tt.key, want, tt.unit, texts[tt.key])
			}
		}
	}
}
