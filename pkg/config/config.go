// Package config reads the configuration: one YAML file and its drop-ins.
//
// Every setting is declared once, here: its name, default and bounds are struct
// tags, for machines; its comment is for people, and becomes the manual.
package config

import (
	_ "embed"
	"time"
)

// Source is this file, from which the manual takes the comments.
//
//go:embed config.go
var Source string

// Config is the whole configuration. A zero Config is not a working one: Load
// fills in the defaults.
type Config struct {
	// The name of this mail system: in the greeting, in Received fields, in
	// Message-Ids. The default is the name of the machine.
	Hostname string `yaml:"hostname" kind:"domain"`

	// The domain that completes an address which has none. The default is the
	// first line of /etc/mailname, or else the host name.
	Origin string `yaml:"origin" kind:"domain"`

	// The clients that may relay to any destination, as networks.
	Trusted []string `yaml:"trusted" default:"127.0.0.0/8 ::1/128" kind:"network"`

	// The characters that separate a user name from an extension, as in
	// user+extension@example.org; "" for none. Letters, digits, dots and what needs quotes
	// are not for that.
	RecipientDelimiter string `yaml:"recipient_delimiter" default:"+" kind:"delimiter"`

	// Which domains are handled here, and how.
	Domains Domains `yaml:"domains"`

	// Where mail goes that is not for this machine.
	Routes Routes `yaml:"routes"`

	// What a message and a machine may need at most.
	Limits LimitsConfig `yaml:"limits"`

	// The SMTP server, port 25.
	Smtpd Smtpd `yaml:"smtpd"`

	// The message submission server, port 587. How many clients it serves is in
	// daemons.submission.
	Submission Submission `yaml:"submission"`

	// The mail that local users submit with sendmail.
	Pickup Pickup `yaml:"pickup"`

	// The SMTP and LMTP client.
	Smtp Smtp `yaml:"smtp"`

	// The queue.
	Queue Queue `yaml:"queue"`

	// Limits for each transport, by its name: smtp, relay, lmtp, virtual, local, pipe-NAME.
	Transports map[string]Transport `yaml:"transports"`

	// Commands that get mail, each by a name of small letters, digits and hyphens. The
	// one called NAME is the transport pipe-NAME, as in a route "pipe-NAME:". It is off until
	// posthouse-pipe@NAME.socket is enabled; its user, and what it may reach, are set by a
	// drop-in of posthouse-pipe@NAME.service.
	Pipes map[string]Pipe `yaml:"pipes" kind:"pipe"`

	// Delivery status notifications.
	Bounce Bounce `yaml:"bounce"`

	// The delivery agent for virtual users.
	Virtual Virtual `yaml:"virtual"`

	// The delivery agent for UNIX accounts.
	Local Local `yaml:"local"`

	// How many clients a daemon serves and when it goes away, by the NAME of its
	// posthouse-NAME.service.
	Daemons map[string]DaemonLimits `yaml:"daemons" kind:"daemon"`

	sources map[string]string
}

// daemonNames are what may have an entry in daemons: NAME of posthouse-NAME.service.
const daemonNames = "bounce cleanup deliver dns local pickup pipe qmgr rewrite showq smtp smtpd submission virtual"

// Domains says which domains are handled here.
type Domains struct {
	// Domains of UNIX accounts and aliases. The default is the host name,
	// localhost, and the origin.
	Local []string `yaml:"local" kind:"domain"`

	// Domains of virtual users, who are in the table users.
	Virtual map[string]VirtualDomain `yaml:"virtual" kind:"domain"`

	// Domains that have nothing but aliases, in the table virtual_aliases.
	Alias []string `yaml:"alias" kind:"domain"`

	// Domains of others for which mail is taken from anywhere. A subdomain has an entry of
	// its own.
	Relay map[string]RelayDomain `yaml:"relay" kind:"domain"`
}

// VirtualDomain is a domain of virtual users.
type VirtualDomain struct{}

// RelayDomain is a domain of others for which mail is taken.
type RelayDomain struct {
	// Where its mail goes, as any route: "smtp:[192.0.2.5]:25" or "smtp:[mail.example.org]"
	// is that host, "smtp:" asks DNS for the mail servers of the domain, "lmtp:host:port"
	// is an LMTP server. The default is routes.default.
	To string `yaml:"to" kind:"route"`

	// The table of its recipients, in the tables directory. Without one every
	// recipient is taken.
	Recipients string `yaml:"recipients" kind:"file"`
}

// Routes says where mail goes, as TRANSPORT:NEXTHOP.
type Routes struct {
	// For domains that are not handled here: "smtp:" finds the mail servers of
	// the domain, "smtp:[relay.example.org]:587" is a smarthost.
	Default string `yaml:"default" default:"smtp:" kind:"route"`

	// For virtual users: "virtual:", or the LMTP server of an IMAP server, such
	// as "lmtp:unix:/run/dovecot/lmtp".
	Virtual string `yaml:"virtual" default:"virtual:" kind:"route"`

	// For UNIX accounts and aliases: "local:", or where all of their mail goes
	// instead. See also local.mailbox_transport.
	Local string `yaml:"local" default:"local:" kind:"route"`
}

// LimitsConfig bounds messages.
type LimitsConfig struct {
	// The largest message, in octets.
	MessageSize Size `yaml:"message_size" default:"50MiB" min:"1KiB" max:"1TiB"`

	// The recipients of a message that comes by SMTP.
	Recipients int `yaml:"recipients" default:"1000" min:"1" max:"50000"`

	// The header of a message, in octets.
	HeaderSize Size `yaml:"header_size" default:"100KiB" min:"1KiB" max:"16MiB"`

	// The mail systems that a message may have passed through.
	Hops int `yaml:"hops" default:"50" min:"1" max:"1000"`

	// How many addresses an alias may stand for.
	Expansion int `yaml:"expansion" default:"50000" min:"1" max:"50000"`

	// The space that must be free for the queue, in octets. It is never less than one
	// and a half times the largest message.
	FreeSpace Size `yaml:"free_space" default:"0" min:"0" max:"1PiB"`
}

// Smtpd configures the SMTP server.
type Smtpd struct {
	// Whether to look up the names of clients.
	ClientNames bool `yaml:"client_names" default:"true"`

	// Whether a client must say EHLO or HELO first.
	HeloRequired bool `yaml:"helo_required" default:"false"`

	// Networks whose clients may end lines with a bare LF, as broken programs
	// do. Others are refused, for that is how mail is smuggled.
	BareNewline []string `yaml:"bare_newline" kind:"network"`

	// How many connections a client may have at once, that is an IPv4 address or an
	// IPv6 network of 64 bits; 0: as many as it likes. Those that may send anywhere
	// have no limit.
	ClientConnections int `yaml:"client_connections" default:"50" min:"0" max:"100000"`

	// How long a client may take for a command, or for a message: 500 octets of it
	// give a second back.
	CommandTimeout Duration `yaml:"command_timeout" default:"5m" min:"1s" max:"1h"`

	// How long a session may take as a whole.
	SessionTimeout Duration `yaml:"session_timeout" default:"1h" min:"1m" max:"24h"`

	// After how many errors replies are delayed.
	SoftErrors int `yaml:"soft_errors" default:"10" min:"1" max:"1000"`

	// After how many errors a client is disconnected.
	HardErrors int `yaml:"hard_errors" default:"20" min:"1" max:"1000"`
}

// Submission configures the message submission server. Nothing of it is taken
// from Smtpd: who talks to the one is nobody that talks to the other.
type Submission struct {
	// The clients that may send, as networks, and to any destination. The default
	// is what trusted says.
	Clients []string `yaml:"clients" kind:"network"`

	// Whether to look up the names of clients.
	ClientNames bool `yaml:"client_names" default:"true"`

	// Whether a client must say EHLO or HELO first.
	HeloRequired bool `yaml:"helo_required" default:"false"`

	// Networks whose clients may end lines with a bare LF, as broken programs
	// do. Others are refused.
	BareNewline []string `yaml:"bare_newline" kind:"network"`

	// How many connections a client may have at once, that is an IPv4 address or an
	// IPv6 network of 64 bits; 0: as many as it likes. Those that may send anywhere
	// have no limit.
	ClientConnections int `yaml:"client_connections" default:"50" min:"0" max:"100000"`

	// How long a client may take for a command, or for a message: 500 octets of it
	// give a second back.
	CommandTimeout Duration `yaml:"command_timeout" default:"5m" min:"1s" max:"1h"`

	// How long a session may take as a whole.
	SessionTimeout Duration `yaml:"session_timeout" default:"1h" min:"1m" max:"24h"`

	// After how many errors replies are delayed.
	SoftErrors int `yaml:"soft_errors" default:"10" min:"1" max:"1000"`

	// After how many errors a client is disconnected.
	HardErrors int `yaml:"hard_errors" default:"20" min:"1" max:"1000"`
}

// Pickup configures the mail that local users submit.
type Pickup struct {
	// Users by their number, as id -u prints it; "*" are all who have no entry. Without one a
	// user may send, and as whom he likes. Root always may.
	Users map[string]LocalUser `yaml:"users" kind:"uid"`
}

// LocalUser is what a local user may do.
type LocalUser struct {
	// Whom the user may send as (sendmail -f): addresses, which may have an extension then;
	// names, which have the domain in origin; "@example.org" for all of a domain, "<>" for
	// none, as in notifications, and "*" for any. With an empty list the user may not send.
	Senders []string `yaml:"senders" default:"*" kind:"sender"`
}

// Smtp configures the SMTP and LMTP client.
type Smtp struct {
	// The name in EHLO; the default is the host name.
	Helo string `yaml:"helo" kind:"domain"`

	// How many addresses of a destination are tried in one attempt.
	Addresses int `yaml:"addresses" default:"5" min:"1" max:"100"`

	// How long a connection may take to come about.
	ConnectTimeout Duration `yaml:"connect_timeout" default:"30s" min:"1s" max:"10m"`

	// How long an idle connection is kept for the next message.
	KeepTime Duration `yaml:"keep_time" default:"2s" min:"0s" max:"5m"`

	// How long a connection is used at most.
	ReuseTime Duration `yaml:"reuse_time" default:"5m" min:"0s" max:"1h"`

	// Which addresses to use: any, ipv4 or ipv6.
	Protocols string `yaml:"protocols" default:"any" choice:"any ipv4 ipv6"`

	// The longest line that is sent, in octets; longer ones are folded. 0: any.
	LineLength int `yaml:"line_length" default:"998" min:"0" max:"1000000"`
}

// Queue configures the queue.
type Queue struct {
	// How long delivery is tried.
	Lifetime Duration `yaml:"lifetime" default:"5d" min:"0s" max:"365d"`

	// How long delivery of a notification is tried.
	BounceLifetime Duration `yaml:"bounce_lifetime" default:"5d" min:"0s" max:"365d"`

	// When delivery is tried again.
	Retry Retry `yaml:"retry"`

	// After what time the sender is told that a message is still on its way. 0:
	// never.
	DelayWarning Duration `yaml:"delay_warning" default:"0s" min:"0s" max:"365d"`

	// How many messages are looked after at once.
	ActiveMessages int `yaml:"active_messages" default:"20000" min:"1" max:"1000000"`

	// How many recipients are looked after at once.
	ActiveRecipients int `yaml:"active_recipients" default:"20000" min:"1" max:"1000000"`

	// Which percentage of those the mail for one destination may take; the mail of one
	// sender may take half of what is above that, too. Several take less each. What there
	// is beyond it waits outside, so that it does not hold up others.
	ActiveShare int `yaml:"active_share" default:"50" min:"1" max:"100"`

	// Transports whose mail waits (status 4.3.2) until the administrator has it retried,
	// or it is its time to be tried and its transport is not listed any more.
	DeferTransports []string `yaml:"defer_transports" kind:"transport"`

	// How messages are made durable: fsync syncs each file, syncfs syncs the
	// file system once for many messages, auto does what fits the load. syncfs
	// is no good where others write much to the same file system.
	Sync string `yaml:"sync" default:"auto" choice:"auto fsync syncfs"`
}

// Retry bounds the time between two attempts, which grows with a message's age.
// Up to a quarter is added or taken off at random, so that what failed at once does
// not come back at once.
type Retry struct {
	// The shortest time.
	Min Duration `yaml:"min" default:"5m" min:"1s" max:"24h"`

	// The longest time.
	Max Duration `yaml:"max" default:"4h" min:"1s" max:"7d"`
}

// Transport limits what one transport does at once.
type Transport struct {
	// Deliveries at once, to all destinations.
	Deliveries int `yaml:"deliveries" default:"100" min:"1" max:"10000"`

	// Deliveries at once to one destination. For local that is an account, and the
	// default is 2.
	Concurrency int `yaml:"concurrency" default:"20" min:"1" max:"10000"`

	// Deliveries at once to a destination of which nothing is known yet. From there on
	// they become more with deliveries that reach it, and fewer with those that do not.
	InitialConcurrency int `yaml:"initial_concurrency" default:"5" min:"1" max:"10000"`

	// By how much a delivery that reaches its destination adds to the deliveries at
	// once: a number from 0 to 1, or one divided by their number, as "1/concurrency".
	PositiveFeedback string `yaml:"positive_feedback" default:"1" kind:"feedback"`

	// By how much a delivery that does not reach its destination takes from them, in the
	// same form.
	NegativeFeedback string `yaml:"negative_feedback" default:"1" kind:"feedback"`

	// How many times as many deliveries as there are at once have to fail to reach a
	// destination, with none between that does, until its mail waits for
	// queue.retry.min. 0: it is always tried.
	FailedCohorts int `yaml:"failed_cohorts" default:"1" min:"0" max:"1000"`

	// The pause behind each delivery to a destination, which gets one at a time then.
	// 0: none.
	DestinationDelay Duration `yaml:"destination_delay" default:"0s" min:"0s" max:"24h"`

	// The pause between the beginnings of two deliveries, to whatever destinations.
	// 0: none.
	Delay Duration `yaml:"delay" default:"0s" min:"0s" max:"24h"`

	// When a message with few recipients passes one of the same sender that has
	// many and came before it: for every so many deliveries that one gets, it lets one
	// of another message go first. 0 or 1: never.
	SlotCost int `yaml:"slot_cost" default:"5" min:"0" max:"1000"`

	// How many deliveries it lets go first before it got that many itself.
	SlotLoan int `yaml:"slot_loan" default:"3" min:"0" max:"1000"`

	// The percentage of the deliveries of the other message that it need not have
	// earned when that one starts, and gets back afterwards.
	SlotDiscount int `yaml:"slot_discount" default:"50" min:"0" max:"100"`

	// A message is not passed that lets fewer deliveries than this go first.
	MinimumSlots int `yaml:"minimum_slots" default:"3" min:"0" max:"1000"`

	// Recipients of one delivery. The default is 1 for local and for commands, which
	// may take long, or fail, for one of several.
	Recipients int `yaml:"recipients" default:"50" min:"1" max:"1000"`
}

// Bounce configures delivery status notifications.
type Bounce struct {
	// The largest message that is given back whole; of others it is the header.
	SizeLimit Size `yaml:"size_limit" default:"50000" min:"1000" max:"16MiB"`

	// Who is told of a notification that cannot be delivered; "" for nobody
	// but the log.
	DoubleBounceRecipient string `yaml:"double_bounce_recipient" default:"" kind:"address"`
}

// Virtual configures the delivery agent for virtual users.
type Virtual struct {
	// The mail store. The daemon sees /var/vmail and no other: for one in /DIR, which has to
	// belong to the user _ph-virtual, posthouse-virtual.service needs a drop-in with
	// BindPaths=/DIR and NoExecPaths=+/DIR in [Service], and posthouse-virtual.socket one with
	// RequiresMountsFor=/DIR in [Unit].
	Base string `yaml:"base" default:"/var/vmail" kind:"path"`
}

// Local configures the delivery agent for UNIX accounts.
type Local struct {
	// The files with the aliases of the system; the first that has a name counts.
	// The daemon sees what is in /etc; for files elsewhere, those of :include: too, its unit
	// needs BindReadOnlyPaths=.
	Aliases []string `yaml:"aliases" default:"/etc/aliases" kind:"path"`

	// The mailbox of an account: "Maildir/" with a slash at its end is a Maildir in
	// the home directory, "mbox" a file in the home directory, "" the file of that
	// name in local.spool. The mail of root is always there.
	Mailbox string `yaml:"mailbox" default:"" kind:"mailbox"`

	// A command that gets the mail of accounts instead of their mailboxes, as the account:
	// "procmail -a \"$EXTENSION\"", "/usr/lib/dovecot/dovecot-lda". It is run as one in a .forward
	// file is, which counts before it. The mail of root goes to the mailbox.
	MailboxCommand string `yaml:"mailbox_command" default:"" kind:"text"`

	// The directory with a mailbox file for each account. Mail is written below /home,
	// /var/mail and /var/spool/mail only: for /DIR elsewhere posthouse-deliver.service needs a
	// drop-in with ReadWritePaths=/DIR in [Service].
	Spool string `yaml:"spool" default:"/var/mail" kind:"path"`

	// The size up to which a mailbox file may grow, in octets. 0: any.
	MailboxSize Size `yaml:"mailbox_size" default:"0" min:"0" max:"1PiB"`

	// How long a command in an alias or a .forward file may take.
	CommandTimeout Duration `yaml:"command_timeout" default:"1000s" min:"1s" max:"1h"`

	// Whether accounts may forward their mail with .forward and .forward+extension
	// in their home directories.
	Forward bool `yaml:"forward" default:"true"`

	// A route for the mail of accounts, such as "lmtp:unix:/run/dovecot/lmtp",
	// instead of their mailboxes. Aliases count before it, .forward files do not. Who
	// is an alias of himself, or is written \user in one, has his mailbox here.
	MailboxTransport string `yaml:"mailbox_transport" kind:"route"`

	// A route for the mail of local names for which there is neither an alias nor
	// an account.
	FallbackTransport string `yaml:"fallback_transport" kind:"route"`

	// Who gets the mail of local names for which there is neither an alias nor an
	// account, where there is no fallback_transport; "" for nobody: it is refused.
	LuserRelay string `yaml:"luser_relay" default:"" kind:"address"`
}

// Pipe is a command that gets mail, as in Postfix's pipe(8).
type Pipe struct {
	// The program, with an absolute path, and its arguments. There is no shell. In
	// arguments stand ${recipient}, ${original_recipient}, ${user}, ${extension}, ${mailbox} and
	// ${domain} for the recipient or parts of it, with one argument for each recipient,
	// and ${sender}, ${nexthop}, ${queue_id} and ${size}; $$ is a dollar sign. A recipient or sender
	// that would make an argument begin with a hyphen is refused.
	Command []string `yaml:"command" kind:"argument"`

	// Flags, each a character. Before the message stand, with F, a line "From sender
	// date", with R, D and O the fields Return-Path, Delivered-To and X-Original-To. D also returns
	// mail that has been here before. B puts an empty line behind the message, > a > before
	// lines that begin with "From ", and . a dot before lines that begin with one. In
	// arguments, u has the local-part in small letters, h the domain and the next hop, and q has
	// local-parts quoted. X says that the command is the final delivery, in notifications
	// of success.
	Flags string `yaml:"flags" kind:"flags"`

	// What stands for the sender of notifications, who is none.
	NullSender string `yaml:"null_sender" default:"MAILER-DAEMON" kind:"text"`

	// The largest message, in octets; larger ones are returned. 0: any.
	Size Size `yaml:"size" default:"0" min:"0" max:"1PiB"`

	// The directory that the command starts in.
	Directory string `yaml:"directory" default:"/" kind:"path"`

	// What ends a line of the message.
	EOL string `yaml:"eol" default:"lf" choice:"lf crlf"`

	// How long the command may take. One that takes longer is killed, and tried again
	// later.
	Timeout Duration `yaml:"timeout" default:"1000s" min:"1s" max:"1h"`
}

// DaemonLimits bounds one daemon.
type DaemonLimits struct {
	// Clients at once. The default is 500 for smtpd and submission, and more for
	// cleanup, deliver and delivery agents where their clients may be more.
	MaxClients int `yaml:"max_clients" default:"200" min:"1" max:"100000"`

	// Requests after which the daemon goes away and is started anew. 0: any, as
	// for qmgr; the default is 10000 for smtpd and submission.
	MaxUse int `yaml:"max_use" default:"100000" min:"0" max:"1000000000"`

	// Time without a request after which the daemon goes away. The default is 60s for
	// smtpd and submission.
	MaxIdle Duration `yaml:"max_idle" default:"100s" min:"10ms" max:"24h"`
}

// smtpdLimits are the defaults of daemons whose clients are the network.
var smtpdLimits = DaemonLimits{MaxClients: 500, MaxUse: 10000, MaxIdle: Duration(time.Minute)}

// Limits are the limits of one daemon, ready for use.
type Limits struct {
	MaxClients, MaxUse int
	MaxIdle            time.Duration
}

// LongestSession is how long a message from the network may take to come in.
func (c *Config) LongestSession() time.Duration {
	return time.Duration(max(c.Smtpd.SessionTimeout, c.Submission.SessionTimeout))
}

// Daemon returns the limits of the daemon name.
func (c *Config) Daemon(name string) Limits {
	l, ok := c.Daemons[name]
	if !ok {
		l = daemonDefaults(name)
	}
	return Limits{l.MaxClients, l.MaxUse, time.Duration(l.MaxIdle)}
}

// Transport returns the limits of the transport name.
func (c *Config) Transport(name string) Transport {
	if t, ok := c.Transports[name]; ok {
		return t
	}
	return transportDefaults(name)
}
