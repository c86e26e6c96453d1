// Package archtest holds the tree to its architecture: the layers of pkg/, who
// may use what, and who may talk to whom. This file is the table; its test reads
// every Go file and the units, and compares.
package archtest

// Lists in the table are words separated by blanks. What is used is named by
// patterns of [path.Match]: import paths ("os/exec"), names of imported packages
// ("os.Exit"), and the words "panic", "init", "dot" (an import with a dot) and
// "socket" (the literal path of one).

// architecture is the whole table.
type architecture struct {
	layers   []layer // of pkg/, lowest first; the last is for tests only
	rules    []rule
	sockets  map[string]socket  // by path below /run/posthouse/; private/X, and private/X-%i of a template, ask for the group _ph-to-X
	programs map[string]program // by folder
	network  string             // what only programs with a network may use
	excused  map[string]string  // functions over budget, with the reason
}

var posthouse = architecture{layers, rules, sockets, programs, dials + " posthouse/pkg/dns posthouse/pkg/smtpclient", excused}

// layer is a set of packages that may import those of the layers before it.
type layer struct {
	name     string
	packages string // below pkg/
	not      string // uses that are not for this layer
}

const (
	dials = "net.Dial* net.Lookup* net.Resolve* net.DefaultResolver"
	// Values do no I/O and do not know what time it is.
	impure = "os os/* io/fs net syscall time.Now time.Since time.Until time.After* time.Sleep time.New* math/rand* crypto/rand"
	// A protocol is values and IPC; it reads no files and has no opinions.
	opinions = "posthouse/pkg/activation posthouse/pkg/dns posthouse/pkg/durable posthouse/pkg/maillog " +
		"posthouse/pkg/config posthouse/pkg/table posthouse/pkg/users net io/fs os.Open* os.Create* os.Read* os.Write* os.Stat"
)

var layers = []layer{
	{"values", "addr dsn queueid", impure},
	{"encodings of values", "header wire", impure},
	{"envelope", "envelope", impure},
	{"system calls", "rawsock", ""},
	{"system", "account activation dns durable ipc maillog", ""},
	{"configuration", "config table", ""},
	{"users and aliases", "aliases users", ""},
	{"protocols", "protocol/arrival protocol/cleanup protocol/deliver protocol/delivery protocol/queuectl protocol/recipient protocol/resolve protocol/rewrite protocol/showq", opinions},
	{"protocols about deliveries", "protocol/bounce", opinions},
	{"mail system", "cli command config/reference daemon maildrop mailbox mailq queue smtpclient smtpserver", ""},
	{"delivery agents", "agent", ""},
	{"a double that a program of the tests uses", "dns/dnstest", ""},
	{"tests", "archtest durable/crashtest ipc/ipctest mailtest mailtest/crash mailtest/probe mailtest/system wire/wiretest", ""},
}

// rule reserves uses for those who need them. Who is listed and has no use for
// them is a fault, too.
type rule struct {
	uses  string
	why   string
	by    string // folders
	tests bool   // holds for test files, too
}

var rules = []rule{
	{"net/textproto net/smtp net/mail", "their leniency is not ours", "", true},
	{"encoding/gob plugin", "nothing that came from outside chooses types or code", "", true},
	{"C", "static programs", "", true},
	{"unsafe", "memory safety; rawsock: what recvmsg and sendmsg point to; crash: the structures of seccomp; settime: a clock that is set, for tests", "daemons/qmgr/internal/settime pkg/mailtest/crash pkg/rawsock", true},
	{"dot", "hides what is used", "", true},
	{"init", "nothing happens before main", "", false},
	{"panic", "not control flow; dsn: MustParse, of constants", "pkg/dsn", false},
	{"socket", "who wants a socket asks its protocol", "pkg/protocol/arrival pkg/protocol/bounce pkg/protocol/cleanup pkg/protocol/deliver pkg/protocol/delivery " +
		"pkg/protocol/queuectl pkg/protocol/recipient pkg/protocol/resolve pkg/protocol/rewrite pkg/protocol/showq", false},
	{"log.Fatal* log.Panic*", "ends the process behind everybody's back", "", false},
	{"os.Exit", "programs end in main", "daemons/commands/posthouse daemons/commands/sendmail daemons/deliver/deliver-as packaging/static pkg/daemon pkg/mailtest/probe", false},
	{"testing testing/*", "programs contain no tests", "pkg/ipc/ipctest pkg/mailtest pkg/wire/wiretest", false},

	{"os/exec", "daemons start nobody; posthouse: systemctl; command: what gets mail", "daemons/commands/posthouse daemons/deliver/internal/user pkg/command pkg/mailtest pkg/mailtest/probe", false},
	{"os.StartProcess syscall.StartProcess syscall.ForkExec syscall.Exec", "successors of daemons that slow clients keep; deliver: users", "daemons/deliver pkg/activation", false},
	{"os/user", "daemons know users by what the kernel says", "daemons/commands/posthouse daemons/commands/sendmail", false},
	{"syscall", "errno values, signals, flags of inherited descriptors, process groups, and who a process is",
		"daemons/cleanup daemons/commands/posthouse daemons/deliver daemons/deliver/internal/user daemons/pipe daemons/qmgr daemons/smtp " +
			"pkg/activation pkg/cli pkg/command pkg/daemon pkg/ipc pkg/mailtest/probe pkg/rawsock pkg/smtpclient", false},
	{"golang.org/x/sys/unix", "openat and its kin, statfs (cleanup, durable, maildrop, mailbox, queue, users); descriptors (ipc); capabilities, and who a thread is (deliver); process groups (command); sockets (maillog, rawsock); terminals (posthouse)",
		"daemons/cleanup daemons/commands/posthouse daemons/deliver/internal/become daemons/deliver/internal/files daemons/deliver/internal/user pkg/command pkg/durable pkg/ipc pkg/ipc/ipctest pkg/maildrop pkg/maillog pkg/mailbox pkg/mailtest pkg/mailtest/probe pkg/queue pkg/rawsock pkg/users", false},

	{"net", "connections: dialled (account, dns, ipc, smtp), inherited (activation, daemon, smtpd), served and used (smtpserver, smtpclient), read and written (rawsock)",
		"daemons/smtp daemons/smtpd pkg/account pkg/activation pkg/daemon pkg/dns pkg/dns/dnstest pkg/ipc pkg/ipc/ipctest pkg/mailtest/probe pkg/rawsock pkg/smtpclient pkg/smtpserver", false},
	{dials, "smtp: mail hosts; dns: name servers; ipc, account: sockets of the system", "daemons/smtp pkg/account pkg/dns pkg/ipc pkg/mailtest/probe", false},
	{"net.Listen net.Listen[A-Z]*", "systemd listens", "pkg/dns/dnstest pkg/ipc/ipctest pkg/mailtest/probe", false},
	{"crypto/tls", "nothing speaks TLS yet", "", false},
	{"math/rand math/rand/v2", "can be guessed; smtp: the order of equal MX hosts; qmgr: what failed at once comes back one by one", "daemons/qmgr daemons/smtp pkg/mailtest/probe", false},

	{"github.com/coreos/go-systemd/v22/*", "inherited sockets and sd_notify (activation), the journal (maillog)", "pkg/activation pkg/maillog", false},
	{"github.com/emersion/go-smtp github.com/emersion/go-sasl", "the other side in tests; the engines are ours", "", false},
	{"golang.org/x/crypto/argon2", "password hashes", "pkg/users", false},
	{"golang.org/x/net/dns/dnsmessage", "messages of DNS", "pkg/dns pkg/dns/dnstest", false},
	{"golang.org/x/net/idna", "names as they are asked for", "daemons/smtp pkg/dns", false},
	{"gopkg.in/yaml.v3", "the configuration only", "pkg/config", false},

	{"posthouse/pkg/activation", "one process takes the sockets over once", "pkg/daemon", false},
	{"posthouse/pkg/agent", "agents; qmgr logs recipients that no agent has seen", "daemons/local daemons/pipe daemons/qmgr daemons/smtp daemons/virtual", false},
	{"posthouse/pkg/cli posthouse/pkg/mailq", "for people", "daemons/commands/posthouse daemons/commands/sendmail", false},
	{"posthouse/pkg/config/reference", "the manual; daemons start without a parser of Go", "daemons/commands/posthouse", false},
	{"posthouse/pkg/command", "runs programs: deliver, for users; pipe", "daemons/deliver/internal/user daemons/pipe", false},
	{"posthouse/pkg/dns", "has a network", "daemons/dns daemons/smtp", false},
	{"posthouse/pkg/dns/dnstest", "lies", "pkg/mailtest/probe", false},
	{"posthouse/pkg/durable", "who acknowledges what it has written: the queue, mailboxes", "daemons/cleanup daemons/deliver daemons/virtual", false},
	{"posthouse/pkg/header", "who completes messages", "daemons/cleanup daemons/commands/sendmail", false},
	{"posthouse/pkg/maildrop", "who drops, and who takes it", "daemons/commands/sendmail daemons/pickup", false},
	{"posthouse/pkg/mailbox", "mailboxes have one owner: of virtual users, and each user; pipe and commands of users: the form of lines", "daemons/deliver daemons/deliver/internal/files daemons/deliver/internal/user daemons/pipe daemons/virtual", false},
	{"posthouse/pkg/queue", "writes incoming/ (cleanup), owns (qmgr), lists (showq); all others get descriptors; probe fills one", "daemons/cleanup daemons/qmgr daemons/showq pkg/mailtest/probe", false},
	{"posthouse/pkg/smtpclient", "has a network", "daemons/smtp", false},
	{"posthouse/pkg/smtpserver", "faces the network; sendmail: -bs", "daemons/commands/sendmail daemons/smtpd", false},
	{"posthouse/pkg/table", "who reads tables: rewrite; local what aliases include; posthouse checks them; the tables of users and of aliases", "daemons/commands/posthouse daemons/local daemons/rewrite pkg/aliases pkg/users", false},
	{"posthouse/pkg/aliases", "may name programs: local; posthouse checks it", "daemons/commands/posthouse daemons/local", false},
	{"posthouse/pkg/users", "has password hashes: who looks up, who edits", "daemons/commands/posthouse daemons/rewrite", false},
}

// socket is who serves a socket below /run/posthouse/, and what is spoken there.
type socket struct{ program, protocol string }

var sockets = map[string]socket{
	"private/bounce":    {"daemons/bounce", "bounce"},
	"private/cleanup":   {"daemons/cleanup", "cleanup"},
	"private/deliver":   {"daemons/deliver", "deliver"},
	"private/dns":       {"daemons/dns", "resolve"},
	"private/local":     {"daemons/local", "delivery"},
	"private/recipient": {"daemons/local", "recipient"},
	"private/qmgr":      {"daemons/qmgr", "arrival"},
	"private/queue":     {"daemons/qmgr", "queuectl"}, // group _ph-admin: its clients are people
	"private/rewrite":   {"daemons/rewrite", "rewrite"},
	"private/pipe-%i":   {"daemons/pipe", "delivery"},
	"private/smtp":      {"daemons/smtp", "delivery"},
	"private/virtual":   {"daemons/virtual", "delivery"},
	"public/showq":      {"daemons/showq", "showq"},
	"public/submit":     {"daemons/pickup", "cleanup"},
}

// program is what a program may do beyond serving its sockets.
type program struct {
	services string // its units; commands have none
	asks     string // protocols of which it is the client
	network  bool   // takes part in the network; smtpd does not: it is given its connections
}

var programs = map[string]program{
	"daemons/bounce":             {"bounce", "cleanup", false},
	"daemons/cleanup":            {"cleanup", "arrival rewrite", false},
	"daemons/commands/posthouse": {"", "queuectl showq", false},
	"daemons/commands/sendmail":  {"", "cleanup queuectl rewrite showq", false},
	"daemons/deliver":            {"deliver", "", false},
	"daemons/dns":                {"dns", "", true},
	"daemons/local":              {"local", "cleanup deliver", false},
	"daemons/pickup":             {"pickup", "cleanup", false},
	"daemons/pipe":               {"pipe@", "", false},
	"daemons/qmgr":               {"qmgr", "bounce delivery rewrite", false},
	"daemons/rewrite":            {"rewrite", "recipient", false},
	"daemons/showq":              {"showq", "", false},
	"daemons/smtp":               {"smtp", "", true},
	"daemons/smtpd":              {"smtpd submission", "cleanup resolve rewrite", false},
	"daemons/virtual":            {"virtual", "", false},
}

// Budgets of files that are not tests.
const (
	maxLines     = 600
	maxFuncLines = 70
	maxParams    = 4
)

var excused = map[string]string{
	"pkg/agent.Log": "a log line has five sources",
}
