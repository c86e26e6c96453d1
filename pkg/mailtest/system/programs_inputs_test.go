//go:build system

package system

// inputs are what TestPrograms does, as users who have read what the manuals of
// these programs say.
var inputs = []input{
	// sendmail, as programs call it.
	{name: "sendmail", user: "ann", script: `printf 'Subject: x\n\nbody\nFrom here\n.\nnot this\n' | sendmail bob`},
	{name: "sendmail -t", user: "bob", script: `printf 'To: Ann <ann>, dora\nCc: carl@localhost\nBcc: bob\nSubject: x\n\n.\nbody' | sendmail -t -oi`},
	{name: "sendmail -G", user: "bob", script: `printf 'From: x\nTo: Ann <ann>\nBcc: bob\nSubject: x\n\nbody\n' | sendmail -G -i -f bob@example.org ann dora`},
	{name: "sendmail -G, empty", user: "bob", script: `printf '\nbody\n' | sendmail -G -i -F Name ann`},
	{name: "sendmail -F", user: "carl", script: `printf 'Subject: x\n\nbody\n' | sendmail -i -F 'Cron Daemon' -f bob@example.org -odi -B8BITMIME ann`},
	{name: "sendmail -F, special", user: "carl", script: `printf 'Subject: x\n\nbody\n' | sendmail -i -F 'A. "B" (C), D' ann`},
	{name: "sendmail -FName", user: "root", script: `printf 'To: ann\nX-Long: %01000d\n\nGröße\n' 1 | sendmail -FCronDaemon -i -odi -oem -B8BITMIME dora`},
	{name: "sendmail -r", user: "dora", script: `printf 'Subject: x\n\nx\n' | sendmail -oem -oi -r bob ann dora+x@example.org`},
	{name: "full name", user: "carl", script: `printf '\n' | sendmail ann`},
	{name: "full name &", user: "bob", script: `printf 'Subject: x\nno colon\nbody\n' | sendmail ann`},
	{name: "full name NAME", user: "bob", script: `printf 'Subject: x\n\nx\n' | NAME='Robert' sendmail ann`},
	{name: "null sender", user: "dora", script: `printf 'Subject: x\n\nx\n' | sendmail -f '<>' ann`},
	{name: "empty", user: "dora", script: `sendmail ann </dev/null`},
	{name: "body only", user: "dora", script: `printf '\nbody' | sendmail ann`},
	{name: "long line", user: "dora", script: `printf 'Subject: x\n\n%05000d\n' 1 | sendmail ann`},
	{name: "CRLF", user: "dora", script: `printf 'Subject: x\r\nTo: ann\r\n\r\nbody\r\nmore\nlone\rcr\r\n' | sendmail -t`},
	{name: "resent", user: "bob", script: `printf 'Resent-To: ann\nTo: bob\nFrom: x@far.example\nSubject: x\n\nx\n' | sendmail -t`},
	{name: "no recipient", user: "dora", script: `printf 'Subject: x\n\nx\n' | sendmail`},
	{name: "no recipient -t", user: "dora", script: `printf 'Subject: x\n\nx\n' | sendmail -t`},
	{name: "-t and arguments", user: "dora", script: `printf 'To: ann\nSubject: x\n\nx\n' | sendmail -t bob`},
	{name: "unknown option", user: "dora", script: `printf 'Subject: x\n\nx\n' | sendmail -W bob`},
	{name: "list in an argument", user: "dora", script: `printf 'Subject: x\n\nx\n' | sendmail -- 'ann, Bob <bob@localhost>'`},
	{name: "From_", user: "dora", script: `printf 'From dora today\nTo: ann\nSubject: x\n\nx\n' | sendmail -t`},
	{name: "odd fields", user: "dora", script: `printf 'To : "Ann, E." <ann>, friends: bob, carl;, dora\nReply-To:bob\n\t,dora\nSender: dora\nReturn-Path: <x@y>\nContent-Length: 5\nSubject:\n folded\n\nx\n' | sendmail -i ann`},
	{name: "unknown", user: "dora", script: `printf 'Subject: x\n\nx\n' | sendmail nosuch`},
	{name: "aliases", user: "dora", script: `printf 'Subject: x\n\nx\n' | sendmail team kept piped postmaster`},
	{name: "-bs", user: "ann", script: `swaks --silent 3 --pipe '/usr/sbin/sendmail -bs' --helo me.example.org --from ann@example.org --to bob@example.org,dora@example.org --header 'X-A: 1' --body 'x\n.y\n'`},
	{name: "port 25", user: "ann", script: `swaks --silent 3 --server 127.0.0.1 --helo me.example.org --from ann@example.org --to bob@example.org --header 'X-A: 1' --body 'x\n.y\n'`},

	// Programs.
	{name: "cron", user: "root", arrive: 3, script: `
		printf 'MAILTO=bob,ann\n@reboot carl echo Größe; echo .; echo "From here"\n' >/etc/cron.d/test
		printf '@reboot echo "$HOME"\n' | crontab -u dora -
		systemctl start cron`},
	{name: "at", user: "bob", arrive: 1, script: `echo 'echo Größe; echo .' | at -M now; echo 'echo Größe; echo .' | at -m now`},
	{name: "mdadm", user: "root", script: `printf 'From: mdadm monitoring <root>\nTo: root\nSubject: Fail event on /dev/md0:mail\n\nThis is an automatic message\n' | /usr/sbin/sendmail -t`},
	{name: "mail -s", user: "root", script: `echo 'A DegradedArray event' | mail -s 'DegradedArray event on /dev/md0:mail' root`},
	{name: "bsd-mailx", user: "ann", script: `printf 'Größe\n.\nlast\n' | bsd-mailx -s 'Grüße von Ann' -c carl -b dora -a 'X-Extra: 1' bob`},
	{name: "s-nail", user: "carl", script: `echo file >mail.txt; printf 'Größe\n.\nlast\n' | s-nail -S ttycharset=utf-8 -s 'Grüße' -a mail.txt -c 'Ann E. <ann>' bob`},
	{name: "s-nail -r", user: "carl", script: `echo x | s-nail -r 'Bob B. <bob@example.org>' -s x -b dora ann@example.org`},
	{name: "mutt", user: "dora", script: `echo file >mail.txt; printf 'Größe\nFrom here\n' | mutt -F /dev/null -e 'set from="Dora D. <dora@example.org>" use_envelope_from use_8bitmime' -s 'Grüße' -a mail.txt -c carl -b bob -- ann`},
	{name: "mutt, DSN", user: "dora", script: `echo x | mutt -F /dev/null -e 'set dsn_notify="success,failure" dsn_return=hdrs' -s 'notify' ann`},
	{name: "git send-email", user: "ann", script: patch + `git send-email --quiet --envelope-sender=auto --to bob --cc 'Cärl <carl@example.org>' 0001-x.patch`},
	{name: "git send-email by SMTP", user: "ann", script: patch + `git send-email --quiet --smtp-server=127.0.0.1 --smtp-domain=me.example.org --to dora@example.org 0001-x.patch`},
	{name: "php", user: "dora", script: `php -r 'exit(mail("bob@example.org, Ann <ann@example.org>", "Subject", "line\nsecond\r\nthird\n.\nend",
		"From: Dora <dora@example.org>\r\nBcc: carl\r\nX-Mailer: PHP", "-fann@example.org") ? 0 : 1);'`},
	{name: "php, bare", user: "dora", script: `php -r 'exit(mail("bob", "", "") ? 0 : 1);'`},
	{name: "logwatch", user: "root", script: `
		echo 'Nov  3 10:00:00 mail sshd[17]: Accepted password for ann from 192.0.2.1 port 1 ssh2' >/var/log/auth.log
		logwatch --output mail --mailto root --range all --service sshd`},

	// Programs that get mail.
	{name: ".forward", user: "ann", script: `printf 'Subject: x\n\nbody\n' | sendmail -f ann@example.org -i fred+some`},
	{name: "procmail, default", user: "ann", script: `printf 'Subject: x\n\nFrom here\n' | sendmail -i proc`},
	{name: "procmail, mbox", user: "ann", script: `printf 'Subject: mbox\n\nFrom here\n' | sendmail -i proc`},
	{name: "procmail, maildir", user: "ann", script: `printf 'Subject: maildir\n\nFrom here\n' | sendmail -i proc`},
	{name: "procmail, forward", user: "ann", script: `printf 'Subject: copy\n\nFrom here\n' | sendmail -i proc`},
	{name: "procmail, reply", user: "ann", script: `printf 'Subject: reply\n\nFrom here\n' | sendmail -i proc`},
	{name: "procmail, exit", user: "ann", script: `printf 'Subject: exit\n\nFrom here\n' | sendmail -i proc`},
	{name: "maildrop, default", user: "ann", script: `printf 'Subject: x\n\nFrom here\n' | sendmail -i drop`},
	{name: "maildrop, mbox", user: "ann", script: `printf 'Subject: mbox\n\nFrom here\n' | sendmail -i drop`},
	{name: "maildrop, maildir", user: "ann", script: `printf 'Subject: maildir\n\nFrom here\n' | sendmail -i drop`},
	{name: "maildrop, forward", user: "ann", script: `printf 'Subject: copy\n\nFrom here\n' | sendmail -i drop`},
	{name: "maildrop, exit", user: "ann", script: `printf 'Subject: exit\n\nFrom here\n' | sendmail -i drop`},
}

// patch makes what git send-email sends.
const patch = `git init -q repo; cd repo; git config user.name 'Ann Ä.'; git config user.email ann@example.org; echo Größe >file; git add file
	GIT_COMMITTER_DATE='2026-11-03 10:00:00 +0000' git commit -q --date='2026-11-03 10:00:00 +0000' -m x; git format-patch -q -1
	`

// dovecotInputs are done where Dovecot delivers.
var dovecotInputs = []input{
	{name: "Dovecot", user: "ann", script: `printf 'Subject: x\n\nbody\nFrom here\n.\n' | sendmail -i bob dora`},
	{name: "Dovecot, alias", user: "ann", script: `printf 'Subject: x\n\nbody\n' | sendmail -i team`},
	{name: "Dovecot, extension", user: "ann", script: `printf 'Subject: x\n\nbody\n' | sendmail -f dora -i carl+x`},
	{name: "Dovecot, unknown", user: "ann", script: `printf 'Subject: x\n\nbody\n' | sendmail -i nosuch`},
}

// programFiles are the files of both machines, by name: of whom they are, and
// what is in them.
var programFiles = map[string][2]string{
	"/etc/mailname": {"root", "example.org\n"},
	"/etc/aliases": {"root", `
root:	ann
postmaster: root
team:	ann, bob, carl+work
owner-team: bob
kept:	/home/nobody/mail/kept
piped:	"|id -un >/home/nobody/mail/piped; cat >>/home/nobody/mail/piped"
`},
	"/home/fred/.forward": {"fred", `\fred, ann, "|env | LC_ALL=C sort >$HOME/mail/env", ~/mail/file
`},
	"/home/proc/.forward": {"proc", `"|IFS=' ' && exec /usr/bin/procmail -f- || exit 75 #proc"`},
	"/home/proc/.procmailrc": {"proc", `MAILDIR=$HOME/mail
LOGFILE=$HOME/.procmail.log
:0:
* ^Subject: mbox
box
:0
* ^Subject: maildir
$HOME/Maildir/
:0 cw
* ^Subject: copy
! ann
:0 w
* ^Subject: reply
| (formail -rt -A "X-Loop: proc"; echo gone) | $SENDMAIL -oi -t
:0
* ^Subject: exit
{
	EXITCODE=67
	HOST
}
`},
	// Without a set-gid bit, which commands have no use for here, maildrop makes no
	// lock file in /var/mail.
	"/etc/maildroprc": {"root", `DEFAULT="$HOME/mail/default"
`},
	"/home/drop/.forward": {"drop", `|/usr/bin/maildrop
`},
	"/home/drop/.mailfilter": {"drop", `if (/^Subject: copy/)
{
	cc "!ann"
}
if (/^Subject: mbox/)
{
	to "$HOME/mail/box"
}
if (/^Subject: maildir/)
{
	to "$HOME/Maildir"
}
if (/^Subject: exit/)
{
	EXITCODE=77
	exit
}
`},
}
