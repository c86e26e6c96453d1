package main

import (
	"errors"
	"fmt"
	"strings"

	"posthouse/pkg/dsn"
	"posthouse/pkg/envelope"
	"posthouse/pkg/queueid"
)

// mode is what the command is asked to do.
type mode uint8

const (
	submitMode  mode = iota
	queueMode        // -bp, mailq
	nothingMode      // -bi, newaliases: tables need no compiling; -bh, -bH: there is no host status
	flushMode        // -q, -qI
	siteMode         // -qR
	sessionMode      // -bs
	verifyMode       // -bv
)

// options are what the command line says.
type options struct {
	mode       mode
	sender     *string // -f; nil where not given
	name       string  // -F
	extract    bool    // -t
	ignoreDots bool    // -i
	notify     dsn.Notify
	ret        dsn.Return
	envID      string
	body       envelope.Body
	verbose    bool
	gateway    bool // -G: the header is not for us to complete
	recipients []string
	flush      []queueid.ID // -qI; none for all
	site       string       // -qR
}

// Options that take a value, behind them or as the next argument; all others
// are single letters, which may be joined.
const withValue = "ABCFNORVXbefhLopqrd"

// optional are those of withValue whose value is never the next argument.
const optional = "qd"

// parseOptions reads the command line as Sendmail's callers have written it for
// forty years: what asks for something harmless that does not exist here is
// accepted and ignored, what is dangerous or unknown is refused.
func parseOptions(program string, args []string) (*options, error) {
	o := &options{}
	switch program {
	case "mailq":
		o.mode = queueMode
	case "newaliases":
		o.mode = nothingMode
	}
	for len(args) > 0 {
		arg := args[0]
		if arg == "--" {
			o.recipients = append(o.recipients, args[1:]...)
			return o, nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			o.recipients = append(o.recipients, arg)
			args = args[1:]
			continue
		}
		rest, err := o.argument(arg[1:], args[1:])
		if err != nil {
			return nil, err
		}
		args = rest
	}
	return o, nil
}

// argument reads one argument without its dash; next are those behind it.
func (o *options) argument(letters string, next []string) (rest []string, err error) {
	for letters != "" {
		c := letters[0]
		letters = letters[1:]
		if strings.IndexByte(withValue, c) < 0 {
			if err := o.letter(c); err != nil {
				return nil, err
			}
			continue
		}
		value := letters
		if value == "" && strings.IndexByte(optional, c) < 0 {
			if len(next) == 0 {
				return nil, fmt.Errorf("option -%c needs a value", c)
			}
			value, next = next[0], next[1:]
		}
		return next, o.value(c, value)
	}
	return next, nil
}

func (o *options) letter(c byte) error {
	switch c {
	case 't':
		o.extract = true
	case 'i':
		o.ignoreDots = true
	case 'I':
		o.mode = nothingMode
	case 'v':
		o.verbose = true
	case 'G':
		o.gateway = true
	case 'c', 'm', 'n', 's', 'U', 'x':
		// Nothing here depends on them.
	default:
		return fmt.Errorf("unknown option -%c", c)
	}
	return nil
}

func (o *options) value(c byte, value string) (err error) {
	switch c {
	case 'b':
		return o.setMode(value)
	case 'f', 'r':
		o.sender = &value
	case 'F':
		o.name = value
	case 'N':
		o.notify, err = dsn.ParseNotify(value)
	case 'R':
		o.ret, err = dsn.ParseReturn(value)
	case 'V':
		if len(value) > dsn.MaxEnvID || dsn.CheckText(value) != nil {
			return errors.New("-V: not an envelope ID")
		}
		o.envID = value
	case 'B':
		switch strings.ToUpper(value) {
		case "7BIT":
			o.body = envelope.Body7Bit
		case "8BITMIME":
			o.body = envelope.Body8BitMIME
		default:
			return fmt.Errorf("-B: unknown body type %.20q", value)
		}
	case 'q':
		return o.queueRun(value)
	case 'o':
		if value == "i" {
			o.ignoreDots = true
		}
	case 'C', 'D', 'X', 'd':
		return fmt.Errorf("option -%c is not supported: it would read or write files, or change the program", c)
	case 'A', 'e', 'h', 'L', 'O', 'p':
		// Accepted for the sake of callers, without effect.
	}
	return err
}

func (o *options) setMode(value string) error {
	switch value {
	case "m":
	case "p":
		o.mode = queueMode
	case "i", "h", "H":
		o.mode = nothingMode
	case "d", "l", "D":
		return errors.New("daemons are started by systemd: systemctl enable --now posthouse-smtpd.socket")
	case "s":
		o.mode = sessionMode
	case "v":
		o.mode = verifyMode
	default:
		return fmt.Errorf("unknown mode -b%.10s", value)
	}
	return nil
}

// queueRun reads what is behind -q. A time between runs is for daemons, and
// ours need none.
func (o *options) queueRun(value string) error {
	switch {
	case value == "":
		o.mode = flushMode
	case value[0] >= '0' && value[0] <= '9':
		o.mode = nothingMode
	case value[0] == 'I':
		id, err := queueid.Parse(value[1:])
		if err != nil {
			return fmt.Errorf("-q%.50s: %w", value, err)
		}
		o.mode, o.flush = flushMode, append(o.flush, id)
	case value[0] == 'R' && len(value) > 1:
		o.mode, o.site = siteMode, strings.TrimPrefix(value[1:], "@")
	default:
		return fmt.Errorf("-q%.20s is not supported: use posthouse queue retry", value)
	}
	return nil
}
