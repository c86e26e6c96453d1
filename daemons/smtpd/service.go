package main

import (
	"context"
	"net"
	"net/netip"
	"time"

	"posthouse/pkg/config"
	"posthouse/pkg/maillog"
	"posthouse/pkg/smtpserver"
)

// logger is the mail log.
type logger interface {
	Info(fields maillog.Fields, format string, args ...any)
	Warn(fields maillog.Fields, format string, args ...any)
}

// service is what all sessions share.
type service struct {
	config   func() *config.Config
	stopping context.Context
	log      logger
	resolver resolver
	rewriter rewriter
	queue    queue
	places   places
}

// rules are what the clients of one socket are held to.
type rules struct {
	config.Smtpd
	socket     string
	room       int      // for so many clients, all told
	trusted    []string // who may send to any destination
	submission bool     // only they may send, and what they send is completed
}

// rulesFor returns the rules for a socket, in force now.
func rulesFor(cfg *config.Config, submission bool) rules {
	if !submission {
		return rules{Smtpd: cfg.Smtpd, socket: "smtp", room: cfg.Daemon("smtpd").MaxClients, trusted: cfg.Trusted}
	}
	c := &cfg.Submission
	return rules{
		Smtpd: config.Smtpd{
			ClientNames: c.ClientNames, HeloRequired: c.HeloRequired, BareNewline: c.BareNewline,
			CommandTimeout: c.CommandTimeout, SessionTimeout: c.SessionTimeout, SoftErrors: c.SoftErrors, HardErrors: c.HardErrors,
			ClientConnections: c.ClientConnections,
		},
		socket: "submission", room: cfg.Daemon("submission").MaxClients, trusted: c.Clients, submission: true,
	}
}

// session serves one client.
func (s *service) session(ctx context.Context, c net.Conn, submission bool) {
	cfg := s.config()
	p := &policy{service: s, ctx: ctx, rules: rulesFor(cfg, submission)}
	if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		p.ip, p.port = a.Addr().Unmap().WithZone(""), a.Port()
	}
	p.known = contains(config.Networks(p.rules.trusted), p.ip)
	p.sessions = s.places.enter(p.ip)
	defer s.places.leave(p.ip)
	// A stop does not wait for ever for a transaction: the client tries again.
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	stats := smtpserver.Serve(c, smtpserver.Config{
		Hostname:    cfg.Hostname,
		MessageSize: int64(cfg.Limits.MessageSize), Recipients: cfg.Limits.Recipients,
		SoftErrors: p.SoftErrors, HardErrors: p.HardErrors,
		CommandTimeout: time.Duration(p.CommandTimeout), SessionTimeout: time.Duration(p.SessionTimeout),
		HeloRequired: p.HeloRequired,
		BareNewline:  contains(config.Networks(p.BareNewline), p.ip),
		Crowded:      p.crowded,
		Stop:         s.stopping,
	}, p)
	fields := maillog.Fields{"CLIENT": p.ip.String()}
	switch {
	case stats.NotSMTP != "":
		s.log.Warn(fields, "non-SMTP command from %s: %.100s", p.client(), stats.NotSMTP)
	case stats.Cause != "":
		s.log.Info(fields, "%s after %s from %s", stats.Cause, stats.After, p.client())
	}
	s.log.Info(fields, "disconnect from %s %s", p.client(), stats.Summary())
}

// contains reports whether ip is in one of the networks.
func contains(networks []netip.Prefix, ip netip.Addr) bool {
	for _, n := range networks {
		if n.Contains(ip) {
			return true
		}
	}
	return false
}
