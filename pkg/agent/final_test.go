package agent

import (
	"io"
	"strings"
	"testing"
)

func TestDeliveredTo(t *testing.T) {
	long := strings.Repeat("x", 10000)
	for content, want := range map[string]bool{
		"Delivered-To: u@d\r\n\r\n":                    true,
		"DELIVERED-TO:u@D\r\n":                         true,
		"A: b\r\n\r\nDelivered-To: u@d\r\n":            false,
		"A: " + long + "Delivered-To: u@d\r\n\r\n":     false,
		"A: " + long + "\r\nDelivered-To: u@d\r\n\r\n": true,
		"A: b\r\n Delivered-To: u@d\r\n\r\n":           false,
		"":                                             false,
	} {
		found, err := (&Job{Content: io.NewSectionReader(strings.NewReader(content), 0, int64(len(content)))}).DeliveredTo()
		if err != nil || found["u@d"] != want {
			t.Errorf("%.60q: %v, %v", content, found, err)
		}
	}
}
