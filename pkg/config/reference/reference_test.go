package reference

import (
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
