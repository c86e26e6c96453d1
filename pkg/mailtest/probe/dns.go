package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"posthouse/pkg/dns/dnstest"
)

var behaviours = map[string]dnstest.Behaviour{
	"servfail": dnstest.ServFail, "refused": dnstest.Refused, "silent": dnstest.Silent, "truncate": dnstest.Truncate,
	"wrong-id": dnstest.WrongID, "wrong-question": dnstest.WrongQuestion, "garbage": dnstest.Garbage,
}

// names serves DNS, for ever, with what a script says of names:
//
//	NAME              it exists
//	NAME TYPE DATA    it has this record
//	NAME ! BEHAVIOUR  how the server is when it is asked for it
func names(address string, script io.Reader) error {
	s, err := dnstest.Start(address)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(script)
	for number := 1; lines.Scan(); number++ {
		name, rest, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if name == "" {
			continue
		}
		kind, data, _ := strings.Cut(rest, " ")
		b, known := behaviours[data]
		switch {
		case kind != "!":
			err = s.Add(name, kind, data)
		case known:
			s.Behave(name, b)
		default:
			err = fmt.Errorf("%q is no behaviour", data)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	fmt.Println("serves names")
	select {}
}
