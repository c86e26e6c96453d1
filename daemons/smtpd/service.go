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
}

// session serves one client.
func (s *service) session(ctx context.Context, c net.Conn, submission bool) {
	cfg := s.config()
	p := &policy{service: s, ctx: ctx, cfg: cfg, submission: submission}
	if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		p.ip, p.port = a.Addr().Unmap().WithZone(""), a.Port()
	}
	p.trusted = contains(config.Networks(cfg.Trusted), p.ip)
	// A stop does not wait for ever for a transaction: the client tries again.
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	stats := smtpserver.Serve(c, smtpserver.Config{
		Hostname:    cfg.Hostname,
		MessageSize: int64(cfg.Limits.MessageSize), Recipients: cfg.Limits.Recipients,
		SoftErrors: cfg.Smtpd.SoftErrors, HardErrors: cfg.Smtpd.HardErrors,
		CommandTimeout: time.Duration(cfg.Smtpd.CommandTimeout), SessionTimeout: time.Duration(cfg.Smtpd.SessionTimeout),
		HeloRequired: cfg.Smtpd.HeloRequired,
		BareNewline:  contains(config.Networks(cfg.Smtpd.BareNewline), p.ip),
		Stop:         s.stopping,
	}, p)
	fields := maillog.Fields{"CLIENT": p.ip.String()}
	if stats.Cause != "" {
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
