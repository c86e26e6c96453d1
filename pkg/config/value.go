package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of octets: "50MiB", "10KB", "4096".
type Size int64

var sizeUnits = []struct {
	suffix string
	factor int64
}{
	{"PiB", 1 << 50}, {"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"PB", 1e15}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"kB", 1e3}, {"B", 1}, {"", 1},
}

// ParseSize reads a number of octets.
func ParseSize(s string) (Size, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/u.factor {
			return 0, fmt.Errorf("%q is not a size such as 50MiB", s)
		}
		return Size(n * u.factor), nil
	}
	return 0, nil
}

// String returns the shortest exact form.
func (s Size) String() string {
	for _, u := range sizeUnits[:5] {
		if s != 0 && int64(s)%u.factor == 0 {
			return strconv.FormatInt(int64(s)/u.factor, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Duration is a time span: "5d", "4h", "1h30m", "100ms".
type Duration time.Duration

// ParseDuration reads a time span. Besides the units of Go there are d and w.
func ParseDuration(s string) (Duration, error) {
	for _, u := range []struct {
		suffix string
		unit   time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		if digits, ok := strings.CutSuffix(s, u.suffix); ok {
			n, err := strconv.ParseInt(digits, 10, 64)
			if err != nil || n < 0 || n > int64(math.MaxInt64/u.unit) {
				return 0, fmt.Errorf("%q is not a time span such as 5d", s)
			}
			return Duration(time.Duration(n) * u.unit), nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a time span such as 5d, 4h or 30s", s)
	}
	return Duration(d), nil
}

// String returns the form that people write.
func (d Duration) String() string {
	const day = 24 * time.Hour
	if t := time.Duration(d); t >= day && t%day == 0 {
		return strconv.FormatInt(int64(t/day), 10) + "d"
	}
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Route is where mail goes.
type Route struct{ Transport, Nexthop string }

// ParseRoute reads TRANSPORT:NEXTHOP.
func ParseRoute(s string) (Route, error) {
	transport, nexthop, ok := strings.Cut(s, ":")
	if !ok || transport == "" || strings.Trim(transport, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.ContainsAny(nexthop, "\r\n\x00") {
		return Route{}, fmt.Errorf("%q is not a route such as smtp:[relay.example.org]:587", s)
	}
	return Route{transport, nexthop}, nil
}

// ports are those that have names here. LMTP has none of its own: 24 is for "any private
// mail system".
var ports = map[string]uint16{"smtp": 25, "lmtp": 24, "submission": 587}

// SplitNexthop cuts host, host:port, [host] or [host]:port. Port 0: none is given.
func SplitNexthop(s string) (host string, port uint16, bracketed bool, err error) {
	host, text, found := strings.Cut(s, ":")
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, rest, ok = strings.Cut(rest, "]")
		text, found = strings.CutPrefix(rest, ":")
		if bracketed = true; !ok || !found && rest != "" {
			return "", 0, false, fmt.Errorf("%q is not of the form [host]:port", s)
		}
	}
	if !found {
		return host, 0, bracketed, nil
	}
	if port, found = ports[text]; found {
		return host, port, bracketed, nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, false, fmt.Errorf("%q is not a port", text)
	}
	return host, uint16(n), bracketed, nil
}

// ParseFeedback reads by how much an outcome changes a concurrency: a number from
// 0 to 1, or such a number divided by the concurrency, 1/concurrency.
func ParseFeedback(s string) (step float64, divided bool, err error) {
	number, divided := strings.CutSuffix(s, "/concurrency")
	step, err = strconv.ParseFloat(number, 64)
	if err != nil || !(step >= 0 && step <= 1) {
		return 0, false, fmt.Errorf("%q is neither a number from 0 to 1 nor one such as 1/concurrency", s)
	}
	return step, divided, nil
}
