#!/bin/sh
# pkg/mailtest/run.sh start             boot a machine with the package, smtpd on 127.0.0.1:2525 of this host, and send
#                                       mail through it; if it runs, install the package anew
# pkg/mailtest/run.sh shell [COMMAND]   a shell, or a command, in it
# pkg/mailtest/run.sh stop              end it
# What is known of it is in build/run. It shares the host's network, and can send mail to the world as the host can.
set -eu
cd "$(dirname "$0")/../.."
export STATE=build/run NETWORK=host
name=posthouse-run
listen=127.0.0.1:2525
user=alice@example.net
new=/var/vmail/example.net/alice/Maildir/new
machine() { pkg/mailtest/machine.sh "$@"; }
inside() { machine run "$name" "$@"; }
log() { inside sh -c 'journalctl --sync; journalctl -F SYSLOG_IDENTIFIER | sed -n "s,^posthouse/,-t&,p" |
	xargs -r journalctl --no-pager -q -b -o short-iso -n 40'; }

fail() {
	echo "run.sh: $*" >&2
	{ log; inside journalctl --no-pager -q -b -n 40 -u 'posthouse*'; } >&2 || true
	echo "run.sh: the machine is left as it is: $0 shell, make stop" >&2
	exit 1
}

# arrived SUBJECT: the file with it.
arrived() { inside grep -rlsF "Subject: $1" "$new"; }

start() {
	set -- build/posthouse_*.deb
	if [ $# -ne 1 ] || [ ! -f "$1" ]; then
		echo "run.sh: there has to be one package build/posthouse_*.deb: make deb" >&2
		exit 66
	fi
	package=$1
	mkdir -p build/run
	if ! inside true 2>/dev/null; then
		if [ -n "$(ss -Htln "src $listen")" ]; then
			echo "run.sh: something else listens on $listen" >&2
			exit 69
		fi
		machine up "$name" "$(pkg/mailtest/root.sh bookworm)"
	fi

	inside sh -euc 'mkdir -p /etc/posthouse/conf.d /etc/systemd/system/posthouse-smtpd.socket.d
		printf "domains:\n  virtual:\n    example.net: {}\n" >/etc/posthouse/conf.d/run.yaml
		printf "[Socket]\nListenStream=\nListenStream=%s\n" "$1" >/etc/systemd/system/posthouse-smtpd.socket.d/run.conf
		cat >/root/posthouse.deb' sh "$listen" <"$package"
	inside dpkg --install /root/posthouse.deb >build/run/log 2>&1 || { cat build/run/log >&2; fail "cannot install $package"; }
	inside sh -euc 'posthouse user list | grep -qF "$1" || posthouse user add --no-password "$1"' sh "$user" || fail "cannot add $user"
	inside systemctl enable --quiet --now posthouse-smtpd.socket || fail "smtpd's socket does not listen"

	by_smtp="by SMTP, $(date +%s)-$$" by_sendmail="by sendmail, $(date +%s)-$$"
	inside swaks --server "$listen" --from sender@example.org --to "$user" --header "Subject: $by_smtp" --body 'Sent by SMTP.' ||
		fail "smtpd did not take the message"
	printf 'Subject: %s\nTo: %s\n\nSent by sendmail.\n' "$by_sendmail" "$user" | inside sendmail "$user" ||
		fail "sendmail did not take the message"
	i=300
	until files=$(arrived "$by_smtp") && files="$files $(arrived "$by_sendmail")"; do
		[ $i -gt 0 ] || fail "the messages did not arrive within a minute"
		i=$((i - 1))
		sleep 0.2
	done

	for file in $files; do
		printf '\n== %s\n' "$file"
		inside cat "$file"
	done
	printf '\n== Journal\n'
	log
	cat <<-USE

		Posthouse runs, and takes mail for $user at $listen. It goes on until make stop.
		  $0 shell            a shell in the machine
		  $0 shell ls $new
		  $0 shell swaks --server $listen --to $user
		  $0 shell journalctl -f
		  curl smtp://$listen --mail-from me@example.org --mail-rcpt $user -T FILE
	USE
}

case ${1:-} in
start) start ;;
shell)
	shift
	if [ $# -eq 0 ]; then set -- bash -l; fi
	inside "$@"
	;;
stop) if [ -d build/run ]; then machine down "$name"; fi ;;
*) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
esac
