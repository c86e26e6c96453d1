package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"golang.org/x/net/idna"

	"posthouse/pkg/addr"
	"posthouse/pkg/config"
)

// nexthop is where qmgr wants a message to go.
type nexthop struct {
	key    string // what is the same for all messages that may share a connection
	text   string // as texts name it
	lmtp   bool
	socket string     // path of a UNIX socket; "" for TCP
	addr   netip.Addr // given as such; no DNS
	host   string     // in lower case, ASCII
	mx     bool       // host is a mail domain rather than a host
	port   uint16
}

// Ports where none is given.
const (
	portSMTP = 25
	portLMTP = 24
)

// detectsLoops reports whether it would be us who answer at our own address or
// by our own name.
func (n *nexthop) detectsLoops() bool { return !n.lmtp && n.socket == "" && n.port == portSMTP }

// parseNexthop reads the forms
//
//	unix:/path/of/socket
//	[inet:]host, [inet:]host:port      SMTP: the mail servers of the domain
//	[inet:][host], [inet:][host]:port  that host
//
// where a host in brackets may be an address, as 192.0.2.1, 2001:db8::1 or
// IPv6:2001:db8::1. With LMTP, and after inet:, a host is never a domain.
func parseNexthop(transport, s string) (*nexthop, error) {
	n := &nexthop{key: transport + ":" + strings.ToLower(s), lmtp: transport == "lmtp", port: portSMTP}
	n.mx = !n.lmtp
	if n.lmtp {
		n.port = portLMTP
	}
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if !filepath.IsAbs(path) || len(path) > maxSocketPath {
			return nil, fmt.Errorf("%q is not the path of a socket", path)
		}
		n.socket, n.text = path, path
		n.key = transport + ":" + s // paths have case
		return n, nil
	}
	rest, ok := strings.CutPrefix(s, "inet:")
	if ok {
		n.mx = false
	}
	host, port, bracketed, err := config.SplitNexthop(rest)
	if err != nil {
		return nil, err
	}
	if bracketed {
		n.mx = false
	}
	if port != 0 {
		n.port = port
	}
	return n, n.setHost(host)
}

// maxSocketPath is what fits an address of a UNIX socket, in octets.
const maxSocketPath = 107

func (n *nexthop) setHost(host string) error {
	n.text = host
	literal := host
	if len(host) > 5 && strings.EqualFold(host[:5], "IPv6:") {
		literal = host[5:]
	}
	if a, err := netip.ParseAddr(literal); err == nil && a.Zone() == "" {
		n.addr, n.host, n.mx = a.Unmap(), a.Unmap().String(), false
		return nil
	}
	ascii := strings.ToLower(strings.TrimSuffix(host, "."))
	if strings.Trim(ascii, asciiDomain) != "" {
		var err error
		if ascii, err = idna.Lookup.ToASCII(ascii); err != nil {
			return fmt.Errorf("%q is not a domain: %w", host, err)
		}
	}
	if err := addr.CheckDomain(ascii); err != nil || ascii[0] == '[' {
		return fmt.Errorf("%q is not a domain", host)
	}
	n.host = ascii
	return nil
}

const asciiDomain = "abcdefghijklmnopqrstuvwxyz0123456789-._"

// heloName is a name of ours as EHLO has it: nobody knows yet whether the server
// understands UTF-8 (RFC 6531, section 3.7.1).
func heloName(s string) string {
	if strings.Trim(strings.ToLower(s), asciiDomain) == "" {
		return s
	}
	ascii, err := idna.Lookup.ToASCII(s)
	if err != nil {
		return s // an address
	}
	return ascii
}
