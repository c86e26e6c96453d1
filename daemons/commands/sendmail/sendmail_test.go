package main

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"posthouse/pkg/addr"
)

func TestOptions(t *testing.T) {
	tests := []struct {
		args string
		want func(*options) bool
	}{
		{"-t -i", func(o *options) bool { return o.extract && o.ignoreDots }},
		{"-ti", func(o *options) bool { return o.extract && o.ignoreDots }},
		{"-oi -f a@b c@d", func(o *options) bool {
			return o.ignoreDots && *o.sender == "a@b" && reflect.DeepEqual(o.recipients, []string{"c@d"})
		}},
		{"-fa@b -oem -odb -om x", func(o *options) bool { return *o.sender == "a@b" && reflect.DeepEqual(o.recipients, []string{"x"}) }},
		{"-i -- -t", func(o *options) bool { return !o.extract && reflect.DeepEqual(o.recipients, []string{"-t"}) }},
		{"x -i y", func(o *options) bool { return o.ignoreDots && reflect.DeepEqual(o.recipients, []string{"x", "y"}) }},
		{"-bp", func(o *options) bool { return o.mode == queueMode }},
		{"-q", func(o *options) bool { return o.mode == flushMode }},
		{"-q15m", func(o *options) bool { return o.mode == aliasMode }},
		{"-Fname -N failure,delay -R hdrs -V id -B 8bitmime x", func(o *options) bool {
			return o.name == "name" && o.notify.String() == "FAILURE,DELAY" && o.ret.String() == "HDRS" && o.envID == "id"
		}},
		{"-h 3 -L tag -O opt -A c -G -n -U -v x", func(o *options) bool { return reflect.DeepEqual(o.recipients, []string{"x"}) }},
	}
	for _, tt := range tests {
		o, err := parseOptions("sendmail", strings.Fields(tt.args))
		if err != nil || !tt.want(o) {
			t.Errorf("%s: %+v, %v", tt.args, o, err)
		}
	}
	for _, args := range []string{"-bt", "-bs", "-bd", "-Z", "-C /etc/x", "-X /tmp/log", "-Dx", "-d9", "-f", "-qS", "-B 9bit", "-N sometimes", "-be"} {
		if o, err := parseOptions("sendmail", strings.Fields(args)); err == nil {
			t.Errorf("%s: %+v", args, o)
		}
	}
	if o, err := parseOptions("mailq", nil); err != nil || o.mode != queueMode {
		t.Errorf("%+v, %v", o, err)
	}
}

// text reads all lines of a message.
func text(in *input) (string, error) {
	var b strings.Builder
	for {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			return b.String(), nil
		}
		if err != nil {
			return "", err
		}
		b.Write(line)
	}
}

func TestInput(t *testing.T) {
	long := strings.Repeat("x", 100000)
	for _, tt := range []struct {
		in, want   string
		ignoreDots bool
	}{
		{in: "a\nb\n", want: "a\r\nb\r\n"},
		{in: "a\r\nb", want: "a\r\nb\r\n"},
		{in: "a\n.\nb\n", want: "a\r\n"},
		{in: "a\n.\nb\n", want: "a\r\n.\r\nb\r\n", ignoreDots: true},
		{in: "a\n.", want: "a\r\n"},
		{in: "..\n", want: "..\r\n"},
		{in: "From x\n>From y\nSubject: z\n\nFrom me\n", want: "Subject: z\r\n\r\nFrom me\r\n"},
		{in: "a\rb\n", want: "a b\r\n"},
		{in: long + "\n.\n", want: long + "\r\n"},
		{in: "", want: ""},
	} {
		for _, r := range []io.Reader{strings.NewReader(tt.in), iotest.OneByteReader(strings.NewReader(tt.in))} {
			if got, err := text(newInput(r, tt.ignoreDots)); err != nil || got != tt.want {
				t.Errorf("%.40q: %.60q, %v", tt.in, got, err)
			}
		}
	}
	if _, err := text(newInput(iotest.ErrReader(errors.New("broken")), false)); err == nil {
		t.Error("a broken input is a whole message")
	}
}

func TestReadHead(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		from     bool
	}{
		{in: "From: me@x\nTo: a@b, C <c@d>\nBcc: e@f\nSubject: x\n\nTo: no@no\n", want: "a@b c@d e@f", from: true},
		{in: "To: a@b\nResent-To: r@s\nResent-Bcc: t@u\n\n", want: "r@s t@u"},
		{in: "To: a@b,\n c@d\n", want: "a@b c@d"},
		{in: "To: friends: a@b, c@d;\n\n", want: "a@b c@d"},
		{in: "no header\n", want: ""},
	} {
		in := newInput(strings.NewReader(tt.in), false)
		h, err := readHead(in, true)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		var list []string
		for _, m := range h.recipients {
			list = append(list, m.String())
		}
		rest, err := text(in)
		if err != nil || strings.Join(list, " ") != tt.want || h.hasFrom != tt.from {
			t.Errorf("%q: %q, %v", tt.in, list, h.hasFrom)
		}
		if got := string(h.raw) + rest; got != strings.ReplaceAll(tt.in, "\n", "\r\n") {
			t.Errorf("%q became %q", tt.in, got)
		}
	}
	if _, err := readHead(newInput(strings.NewReader("To: <a@b\n\n"), false), true); err == nil {
		t.Error("half an address is taken")
	}
	if _, err := readHead(newInput(bytes.NewReader(bytes.Repeat([]byte("X-Y: z\n"), 1<<20)), false), true); err == nil {
		t.Error("an endless header is taken")
	}
}

func TestFromField(t *testing.T) {
	m, err := addr.Parse("me@example.org")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"":                  "From: me@example.org\r\n",
		"A B":               "From: \"A B\" <me@example.org>\r\n",
		"x\r\nBcc: evil@x":  "From: \"xBcc: evil@x\" <me@example.org>\r\n",
		`quote " and \ esc`: "From: \"quote \\\" and \\\\ esc\" <me@example.org>\r\n",
	} {
		if got := fromField(name, m); got != want {
			t.Errorf("%q: %q", name, got)
		}
	}
}
