package main

import "testing"

// What is switched off is called by its unit.
func TestSocketUnit(t *testing.T) {
	for transport, want := range map[string]string{
		"smtp": "posthouse-smtp.socket", "relay": "posthouse-smtp.socket", "virtual": "posthouse-virtual.socket",
		"pipe-mailman": "posthouse-pipe@mailman.socket", "pipe-a-b": "posthouse-pipe@a-b.socket",
	} {
		if got := socketUnit(program(transport)); got != want {
			t.Errorf("%s: %s, want %s", transport, got, want)
		}
	}
}
