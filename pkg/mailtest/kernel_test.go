package mailtest

import "testing"

func TestSeccompRecord(t *testing.T) {
	const killed = `audit: type=1326 audit(1700000000.123:45): auid=4294967295 uid=998 gid=998 ses=4294967295 subj=unconfined pid=4711 comm="smtpd" exe="/libexec/smtpd" sig=31 arch=c000003e syscall=49 compat=0 ip=0x40 code=0x80000000`
	for _, c := range []struct {
		record string
		line   string
		ok     bool
	}{
		{"5,1234,5678,-;" + killed + "\n", killed, true},
		{"5,1234,5678,-;" + killed + "\n SUBSYSTEM=audit\n", killed, true},
		{"5,1234,5678,-;audit: type=1400 audit(1.2:3): apparmor=\"DENIED\"\n", "", false},
		{"6,1,2,-;a line; another\n", "", false},
		{"type=1326 without a prefix", "", false},
		{"", "", false},
	} {
		line, ok := seccompRecord([]byte(c.record))
		if ok != c.ok || ok && line != c.line {
			t.Errorf("%q: %q, %v", c.record, line, ok)
		}
	}
}
