package smtpclient

import "testing"

// TestNobodyThenAgain: a server that asked for data without having accepted a
// recipient, and refuses that there is none, may keep the envelope all the same: the
// next message does not meet it.
func TestNobodyThenAgain(t *testing.T) {
	client, wait := dial(t, Options{}, script(pipelined,
		"C: MAIL FROM:<s@a.example> SIZE=3", "C: RCPT TO:<u@b.example>", "C: DATA", "S: 250 ok", "S: 550 no", "S: 354 go", "C: .", "S: 554 no recipients",
		"C: RSET", "C: MAIL FROM:<s@a.example> SIZE=3", "C: RCPT TO:<v@b.example>", "C: DATA", "S: 250 ok", "S: 250 ok", "S: 250 ok", "S: 354 go", "D", "S: 250 two")...)
	hello(t, client)
	if got := show(client.Send(t.Context(), message(t, "x\r\n", "u@b.example"))); got != "5.0.0 host mx[192.0.2.1] said: 550 no (in reply to RCPT TO command)\n" {
		t.Error(got)
	}
	if got := show(client.Send(t.Context(), message(t, "x\r\n", "v@b.example"))); got != "2.0.0 250 two\n" {
		t.Error(got)
	}
	wait()
}
