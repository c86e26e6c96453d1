# Sourced by run.sh: work that is not so many messages through, but what a queue is like to live with. Each ends
# with a line of results: how much was done, and how long it took.

# until_files MTA N SECONDS: until no more than N messages are in the queue.
until_files() {
	limit=$(($(now) + $3 * 1000000000))
	until [ "$(files $(queue "$1"))" -le "$2" ]; do # unquoted: a list
		if [ "$(now)" -gt "$limit" ]; then
			machine run "bench-$1" mailq | tail -n 20 >&2
			die "$1: $(files $(queue "$1")) messages are in the queue after $3 seconds"
		fi
		sleep 0.05
	done
}

# sink MTA PORT [OPTION...]: one more place for mail to go to, until unsink.
sink() {
	mta=$1 port=$2
	shift 2
	machine run "bench-$mta" sh -c 'echo $$ >"/run/sink.$1"; shift; exec smtp-sink -u nobody "$@"' sh "$port" "$@" "127.0.0.1:$port" 200 >/dev/null 2>&1 &
	i=100
	until [ -n "$(machine run "bench-$mta" ss -Htln "sport = $port")" ]; do
		[ $i -gt 0 ] || die "$mta: no sink at port $port"
		i=$((i - 1))
		sleep 0.1
	done
}
unsink() { machine run "bench-$1" sh -c 'kill $(cat "/run/sink.$1")' sh "$2" || true; }

# clear MTA: an empty queue.
clear() {
	case $1 in
	postfix) machine run bench-postfix postsuper -d ALL >/dev/null 2>&1 ;;
	posthouse) machine run bench-posthouse posthouse queue delete --all >/dev/null ;;
	esac
	until_files "$1" 0 60
}

# timed MTA WORK SESSIONS COUNT COMMAND...: how long COMMAND takes, and what it costs.
timed() {
	mta=$1 what=$2 clients=$3 n=$4
	shift 4
	cpu=$(cpu "$mta") flushes=$(flushes) switches=$(switches "$mta") start=$(now)
	"$@" || die "$mta: $what failed"
	end=$(now)
	note "$what" "$clients" "$mta" "$n" $((end - start)) $(($(cpu "$mta") - cpu)) $(($(flushes) - flushes)) $(($(switches "$mta") - switches))
}

# submit: 500 messages by sendmail, 10 at a time, until all are in the Maildir.
submit() {
	before=$(files "$disk/$1/vmail")
	timed "$1" submit 10 500 sendmails "$1"
	[ $(($(files "$disk/$1/vmail") - before)) = 500 ] || die "$1 submit: not all 500 messages have arrived"
}
sendmails() {
	machine run "bench-$1" sh -c 'yes "" | head -n 500 | xargs -P 10 -d "\n" -n 1 sh -c "exec sendmail -oi -f sender@example.org alice@example.net <\"\$0\"" /var/tmp/message' || return
	until_files "$1" 0 60
}

# single: one message after the other, each from the connect to a file in the Maildir.
single() { timed "$1" single 1 100 machine run "bench-$1" /usr/local/bin/probe latency 127.0.0.1:25 sender@example.org alice@example.net /var/vmail/example.net/alice/Maildir/new 100 >/dev/null; }

# list: one message to 10,000 recipients in 100 domains, until the sink has all. A rate of recipients.
list() { timed "$1" list 1 10000 relayed "$1" /usr/local/bin/probe list 127.0.0.1:25 sender@example.org 10000 100; }
relayed() {
	machine run "bench-$@" || return
	until_files "$1" 0 120
}

# fast: 1,000 messages to a sink; beside: the same while 5,000 wait for one that never answers. The table of results
# has both, and what matters is how the second compares with the first.
fast() { timed "$1" fast 10 1000 relayed "$1" smtp-source -s 10 -m 1000 -l 4096 -f sender@example.org -t x@sink.example 127.0.0.1:25; }
beside() {
	sink "$1" 2602 -w 1000
	machine run "bench-$1" smtp-source -s 10 -m 5000 -l 4096 -f other@example.org -t x@slow.example 127.0.0.1:25 || die "$1: smtp-source failed"
	timed "$1" beside 10 1000 besides "$1"
	unsink "$1" 2602
	clear "$1"
}
besides() {
	machine run "bench-$1" smtp-source -s 10 -m 1000 -l 4096 -f sender@example.org -t x@sink.example 127.0.0.1:25 || return
	until_files "$1" 5000 120
}

# backlog: messages that wait for a host that is down. Then: restart until new mail arrives, mailq and its first line,
# and how fast they go when the host is back.
backlog() {
	machine run "bench-$1" smtp-source -s 20 -m "$backlog" -l 4096 -f sender@example.org -t x@dead.example 127.0.0.1:25 || die "$1: smtp-source failed"
	until [ "$(files $(fresh "$1"))" = 0 ]; do sleep 0.5; done # unquoted: a list
	timed "$1" restart 1 1 restarted "$1"
	timed "$1" mailq 1 1 machine run "bench-$1" sh -c 'mailq >/dev/null'
	timed "$1" mailq-1 1 1 machine run "bench-$1" sh -c 'mailq | head -n 2 >/dev/null'
	sink "$1" 2601
	timed "$1" flush 1 "$backlog" flushed "$1"
	unsink "$1" 2601
}
fresh() {
	case $1 in
	postfix) echo "$disk/postfix/spool/postfix/incoming $disk/postfix/spool/postfix/active" ;;
	posthouse) echo "$disk/posthouse/spool/posthouse/incoming $disk/posthouse/spool/posthouse/active" ;;
	esac
}
restarted() {
	case $1 in
	postfix) machine run bench-postfix systemctl restart postfix ;;
	posthouse) machine run bench-posthouse sh -c 'systemctl stop posthouse.target && systemctl start posthouse.target posthouse-smtpd.socket' ;;
	esac
	machine run "bench-$1" /usr/local/bin/probe latency 127.0.0.1:25 sender@example.org alice@example.net /var/vmail/example.net/alice/Maildir/new 1 >/dev/null
}
flushed() {
	case $1 in
	postfix) machine run bench-postfix postqueue -f ;;
	posthouse) machine run bench-posthouse posthouse queue retry --all >/dev/null ;;
	esac
	until_files "$1" 0 600
}
