#!/bin/sh
# pkg/mailtest/bench/run.sh: Postfix (Debian's package, tuned) and Posthouse, each in a machine of its own on this host,
# take turns at the same work: 4 KB messages by smtp-source over loopback, queues and Maildirs on the same disk.
#   accept    until the last 250; nothing is delivered
#   session   the same, all messages of a client over one connection
#   relay     until smtp-sink has all
#   deliver   until all are in a Maildir of a virtual user
#   mbox      until all are in mailboxes of 100 UNIX accounts, in /var/mail
#   maildir   the same, in Maildirs in their homes
#   submit, single, list, fast, beside, restart, mailq, mailq-1, flush: see queue.sh
# Prints the median of each, the ratio of the two, and what a message costs: CPU of the whole machine, journald and systemd
# included but not the load generator, flushes of the disk (with those of everyone else on this host), and switches from
# one process or thread to another; and the memory (PSS) of all its daemons after each kind of work.
# BENCH_SESSIONS='1 10 50'   clients at once
# BENCH_ROUNDS=3             runs of each
# BENCH_MESSAGES=3000        messages of a run; a third of that from a single client
# BENCH_WORK='accept session relay deliver mbox maildir submit single list fast beside backlog'
# BENCH_BACKLOG=100000       messages that wait
set -eu
cd "$(dirname "$0")/../../.."
sessions=${BENCH_SESSIONS:-1 10 50} rounds=${BENCH_ROUNDS:-3} messages=${BENCH_MESSAGES:-3000}
work=${BENCH_WORK:-accept session relay deliver mbox maildir submit single list fast beside backlog}
backlog=${BENCH_BACKLOG:-100000}
accounts=100
export STATE=${STATE:-/run/posthouse-test} OVERLAY=${OVERLAY:-/var/tmp} OWNER=$$
disk=$OVERLAY/posthouse-bench.$$
results=$disk/results
machine() { pkg/mailtest/machine.sh "$@"; }
. pkg/mailtest/bench/queue.sh
die() {
	echo "bench: $*" >&2
	for mta in postfix posthouse; do machine run bench-$mta journalctl --no-pager -q -p warning -n 20 >&2 || true; done
	exit 1
}

finish() {
	for mta in postfix posthouse; do
		machine run bench-$mta sh -c 'kill $(cat /run/sink)' 2>/dev/null || true
		machine down bench-$mta
	done
	rm -rf --one-file-system "$disk"
}
trap finish EXIT
trap 'exit 130' INT TERM

# boot MTA: a machine whose queue and mail are on the disk itself and not on an overlay.
boot() {
	for dir in spool vmail done mail home; do mkdir -p "$disk/$1/$dir"; done
	chown root:mail "$disk/$1/mail"
	chmod 2775 "$disk/$1/mail"
	machine up "bench-$1" "$root" --bind="$disk/$1/spool:/var/spool" --bind="$disk/$1/vmail:/var/vmail" \
		--bind="$disk/$1/mail:/var/mail" --bind="$disk/$1/home:/home"
	machine run "bench-$1" sh -euc 'for i in $(seq "$1"); do useradd --create-home "user$i"; done' sh $accounts
	machine run "bench-$1" sh -c 'cat >/usr/local/bin/probe; chmod 755 /usr/local/bin/probe' <"$disk/probe"
	machine run "bench-$1" sh -c '(echo "Subject: by sendmail"; echo; yes "$(printf %76s | tr " " x)" | head -n 50) >/var/tmp/message'
	machine run "bench-$1" sh -eu >"$disk/$1/log" 2>&1 || { tail -n 20 "$disk/$1/log" >&2; die "cannot set up $1"; }
	# Not a unit of the machine, so that its CPU does not count.
	machine run "bench-$1" sh -c 'echo $$ >/run/sink; exec smtp-sink -u nobody 127.0.0.1:2600 200' >/dev/null 2>&1 &
}

set -- build/posthouse_*.deb
[ $# -eq 1 ] && [ -f "$1" ] || die "there has to be one package build/posthouse_*.deb: make deb"
root=$(pkg/mailtest/root.sh bookworm)
mkdir -p "$disk"
CGO_ENABLED=0 go build -o "$disk/probe" ./pkg/mailtest/probe
echo "bench: booting Postfix and Posthouse" >&2

boot postfix <<'SETUP'
export DEBIAN_FRONTEND=noninteractive
mkdir -p /var/log/postfix
dpkg --install /opt/postfix/postfix.deb
postconf -e myhostname=mail.example.org mydestination=local.example mailbox_command= 'mynetworks=127.0.0.0/8' inet_protocols=ipv4 \
	in_flow_delay=0 default_process_limit=200 default_destination_concurrency_limit=50 initial_destination_concurrency=20 \
	'smtp_connection_cache_destinations=[127.0.0.1]:2600' qmgr_message_active_limit=50000 max_use=10000 \
	smtpd_tls_security_level=none smtp_tls_security_level=none smtpd_peername_lookup=no maillog_file=/var/log/postfix/log \
	virtual_mailbox_domains=example.net virtual_mailbox_base=/var/vmail virtual_mailbox_maps=static:example.net/alice/Maildir/ \
	virtual_uid_maps=static:5000 virtual_gid_maps=static:5000 relay_domains=sink.example,slow.example,dead.example,list.example \
	smtpd_recipient_limit=20000 "transport_maps=inline:{sink.example=smtp:[127.0.0.1]:2600, slow.example=smtp:[127.0.0.1]:2602, $(:
		)dead.example=smtp:[127.0.0.1]:2601, .list.example=smtp:[127.0.0.1]:2600}" \
	'smtpd_recipient_restrictions=check_recipient_access inline:{hold@example.net=HOLD}'
chown 5000:5000 /var/vmail
systemctl restart postfix
SETUP

mkdir -p "$disk/posthouse/spool"
cp "$1" "$disk/posthouse/spool/posthouse.deb"
boot posthouse <<'SETUP'
dpkg --install /var/spool/posthouse.deb
chown _ph-virtual: /var/vmail # the disk that is mounted there
cat >/etc/posthouse/conf.d/bench.yaml <<'YAML'
hostname: mail.example.org
domains:
  local: [local.example]
  virtual: {example.net: {}}
  relay:
    sink.example: {to: "smtp:[127.0.0.1]:2600"}
    slow.example: {to: "smtp:[127.0.0.1]:2602"}
    dead.example: {to: "smtp:[127.0.0.1]:2601"}
LIST
limits: {recipients: 20000}
queue: {active_messages: 50000}
transports:
  smtp: {deliveries: 200, concurrency: 50, initial_concurrency: 20}
  virtual: {deliveries: 200, concurrency: 50, initial_concurrency: 20}
  local: {deliveries: 200}
YAML
for i in $(seq 0 99); do echo "    d$i.list.example: {to: \"smtp:[127.0.0.1]:2600\"}"; done >/var/tmp/list
sed -i -e '/^LIST$/ { r /var/tmp/list
d; }' /etc/posthouse/conf.d/bench.yaml
posthouse check
systemctl stop 'posthouse-*.service' # those that run since they were installed
posthouse user add --no-password alice@example.net
posthouse user add --no-password hold@example.net
systemctl enable --now posthouse-smtpd.socket
SETUP

queue() {
	case $1 in
	postfix) echo "$disk/postfix/spool/postfix/incoming $disk/postfix/spool/postfix/active $disk/postfix/spool/postfix/deferred" ;;
	posthouse) for each in incoming active deferred hold corrupt; do echo "$disk/posthouse/spool/posthouse/$each"; done ;;
	esac
}
files() { find "$@" -type f ! -path '*/spare/*' 2>/dev/null | wc -l; }
cpu() { while read -r g; do if [ -f "$g/cpu.stat" ]; then sed -n 's/^usage_usec //p' "$g/cpu.stat"; fi; done <"$STATE/bench-$1/cgroups"; }
flushes() { awk -v major="$(stat -c %Hd "$disk")" -v minor="$(stat -c %Ld "$disk")" '$1 == major && $2 == minor {print $19}' /proc/diskstats; }
now() { date +%s%N; }
# processes MTA: the PIDs of its daemons.
processes() {
	case $1 in postfix) group='*/system-postfix.slice/*' ;; posthouse) group='*/posthouse.slice/*' ;; esac
	machine run "bench-$1" sh -c 'find /sys/fs/cgroup -path "$1" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u' sh "$group"
}
# sum MTA PATTERN FILE: sums up the lines that match, over a file of every daemon or of all their threads.
sum() {
	machine run "bench-$1" sh -c 'cat $(for p in $2; do echo "/proc/$p/$3"; done) </dev/null 2>/dev/null | awk -v pattern="$1" "\$0 ~ pattern {n += \$2} END {print n + 0}"' \
		sh "$2" "$(processes "$1")" "$3"
}
switches() { sum "$1" ctxt_switches: 'task/*/status'; }
memory() { sum "$1" ^Pss: smaps_rollup; } # KiB
note() { echo "$1 $2 $3 $4 $5 $6 $7 $8 $(memory "$3")" >>"$results"; } # WORK SESSIONS MTA COUNT NANOSECONDS CPU FLUSHES SWITCHES

# home MTA MAILBOX: where accounts get their mail, below their home; nothing stands for /var/mail.
home() {
	[ "$2" != "$(cat "$disk/$1/format" 2>/dev/null)" ] || return 0
	case $1 in
	postfix) machine run bench-postfix sh -euc 'postconf -e "home_mailbox=$1"; systemctl restart postfix' sh "$2" 2>/dev/null ;;
	posthouse) machine run bench-posthouse sh -euc 'echo "local: {mailbox: \"$1\"}" >/etc/posthouse/conf.d/local.yaml; posthouse check >/dev/null; systemctl stop posthouse-local.service 2>/dev/null' sh "$2" ;;
	esac
	echo "$2" >"$disk/$1/format"
}

# run MTA WORK SESSIONS MESSAGES: one line of results. What has arrived stays, or is put away: an ext4 without a journal
# looks, for every new file, at the inodes of all that were deleted in the minutes before.
run() {
	mta=$1 what=$2 clients=$3 n=$4
	set -- smtp-source -s "$clients" -m "$n" -l 4096 -f sender@example.org
	case $what in
	accept) set -- "$@" -t hold@example.net 127.0.0.1:25 ;;
	session) set -- "$@" -d -t hold@example.net 127.0.0.1:25 ;;
	relay) set -- "$@" -t x@sink.example 127.0.0.1:25 ;;
	deliver) set -- "$@" -t alice@example.net 127.0.0.1:25 ;;
	mbox | maildir)
		if [ $what = mbox ]; then home "$mta" ''; else home "$mta" Maildir/; fi
		set -- /usr/local/bin/probe spread 127.0.0.1:25 sender@example.org "$n" "$clients" "$accounts" local.example # a process for each account would take as long as its messages
		;;
	esac
	held="$disk/$mta/spool/postfix/hold"
	if [ $mta = posthouse ]; then held=$disk/posthouse/spool/posthouse/incoming; fi
	case $what in accept | session)
		if [ $mta = posthouse ]; then
			machine run bench-posthouse systemctl stop posthouse-qmgr.timer posthouse-qmgr.socket posthouse-qmgr-wake.socket posthouse-queue.socket posthouse-qmgr.service
		fi ;;
	esac
	before=$(files "$disk/$mta/vmail") cpu=$(cpu $mta) flushes=$(flushes) switches=$(switches $mta) start=$(now)
	machine run "bench-$mta" "$@" || die "$mta: smtp-source failed"
	case $what in relay | deliver | mbox | maildir)
		# Unquoted: a list.
		until [ "$(files $(queue $mta))" = 0 ]; do
			if [ $(($(now) - start)) -gt 120000000000 ]; then
				machine run "bench-$mta" mailq | tail -n 20 >&2
				die "$mta $what: the queue is not empty after two minutes"
			fi
			sleep 0.02
		done ;;
	esac
	end=$(now)
	note $what $clients $mta $n $((end - start)) $(($(cpu $mta) - cpu)) $(($(flushes) - flushes)) $(($(switches $mta) - switches))
	case $what in
	accept | session)
		[ "$(files "$held")" = "$n" ] || die "$mta $what: $(files "$held") of $n messages are in the queue"
		find "$held" -type f -exec mv -t "$disk/$mta/done" {} +
		if [ $mta = posthouse ]; then
			machine run bench-posthouse systemctl start posthouse-qmgr.timer posthouse-qmgr.socket posthouse-qmgr-wake.socket posthouse-queue.socket
		fi
		;;
	deliver)
		delivered=$(($(files "$disk/$mta/vmail") - before))
		[ $delivered = "$n" ] || die "$mta $what: $delivered of $n messages are in the Maildir"
		;;
	mbox)
		delivered=$(find "$disk/$mta/mail" -type f -exec cat {} + | grep -c '^From ')
		[ $delivered = "$n" ] || die "$mta $what: $delivered of $n messages are in mailboxes"
		mv --backup=numbered -t "$disk/$mta/done" "$disk/$mta/mail"/*
		;;
	maildir)
		delivered=$(files "$disk/$mta/home"/*/Maildir/new)
		[ $delivered = "$n" ] || die "$mta $what: $delivered of $n messages are in Maildirs"
		find "$disk/$mta/home"/*/Maildir/new -type f -exec mv -t "$disk/$mta/done" {} +
		;;
	esac
}

# Names that run and what it calls do not use.
for one in postfix posthouse; do run $one deliver 1 1; done # makes the Maildir that others look into
for each in $work; do # warm up
	case $each in
	accept | session | relay | deliver | mbox | maildir) for one in postfix posthouse; do run $one $each 10 300; done ;;
	backlog) ;;
	*) for one in postfix posthouse; do $each $one; done ;;
	esac
done
: >"$results"
for each in $work; do
	case $each in
	accept | session | relay | deliver | mbox | maildir)
		for width in $sessions; do
			count=$messages
			if [ "$width" = 1 ]; then count=$((messages / 3)); fi
			for round in $(seq "$rounds"); do
				echo "bench: $each, $width sessions, run $round of $rounds" >&2
				for one in postfix posthouse; do run $one "$each" "$width" "$count"; done
			done
		done
		;;
	*)
		for round in $(seq "$rounds"); do
			echo "bench: $each, run $round of $rounds" >&2
			for one in postfix posthouse; do $each $one; done
			if [ $each = backlog ]; then break; fi
		done
		;;
	esac
done

echo "Medians of $rounds alternating runs; 4 KB messages; Postfix $(machine run bench-postfix postconf -h mail_version), tuned; $(nproc) processors."
echo "The rates are of this machine and this hour; the ratios are what counts."
awk '
function median(s,   a, n, i, j, t) {
	n = split(s, a, " ")
	for (i = 2; i <= n; i++) for (j = i; j > 1 && a[j-1] + 0 > a[j] + 0; j--) {t = a[j]; a[j] = a[j-1]; a[j-1] = t}
	return n % 2 ? a[(n+1)/2] : (a[n/2] + a[n/2+1]) / 2
}
{
	key = $1 " " $2
	if (!(key in seen)) {seen[key]; order[++keys] = key}
	rate[key, $3] = rate[key, $3] " " $4 / ($5 / 1e9)
	cpu[key, $3] = cpu[key, $3] " " $6 / 1000 / $4
	flush[key, $3] = flush[key, $3] " " $7 / $4
	swap[key, $3] = swap[key, $3] " " ($8 > 0 ? $8 / $4 : 0)
	mem[key, $3] = mem[key, $3] " " $9 / 1024
}
# Three digits that count.
function short(x) {return x < 10 ? sprintf("%.2f", x) : x < 100 ? sprintf("%.1f", x) : sprintf("%.0f", x)}
function both(of, k) {return sprintf(" | %6s %6s", short(median(of[k, "postfix"])), short(median(of[k, "posthouse"])))}
END {
	print "Of each pair the first is Postfix: things per second, ratio; then for each thing CPU in ms, flushes, switches; memory in MB."
	printf "%-8s %8s | %6s %6s %6s | %13s | %13s | %13s | %13s\n", "", "sessions", "rate", "", "ratio", "CPU", "flushes", "switches", "memory"
	for (i = 1; i <= keys; i++) {
		k = order[i]; split(k, w, " ")
		a = median(rate[k, "postfix"]); b = median(rate[k, "posthouse"])
		printf "%-8s %8s | %6s %6s %6.2f%s%s%s%s\n", w[1], w[2], short(a), short(b), b / a, both(cpu, k), both(flush, k), both(swap, k), both(mem, k)
	}
}' "$results"
