#!/bin/sh
# pkg/mailtest/machine.sh: boots Debian roots (root.sh) with systemd-nspawn, also on a host without systemd.
#   up NAME ROOT [NSPAWN-OPTION...]   boot NAME, on an overlay over ROOT
#   run NAME COMMAND...               run a command in it, as root; its exit status is ours
#   down NAME                         shut it down, and remove all of it
#   reap                              down for each machine whose owner (see OWNER) is gone
# STATE=DIR       what is known of machines (default: /run/posthouse-test)
# OVERLAY=DIR     where they write to; on a disk, so that fsync is what it is in life (default: /var/tmp)
# NETWORK=host    share the host's network; otherwise a machine has a loopback interface and nothing else
# NODENAME=NAME   its host name (default: mail.example.org)
# OWNER=PID       the process that needs it; without one, only down ends it
# Only processes that are on record with their start time are ever signalled.
set -eu
state=${STATE:-/run/posthouse-test}
boot_timeout=120 # seconds, as is the next
stop_timeout=30

die() { echo "machine.sh: $*" >&2; exit 1; }

# stamp PID: the process, so that no other one is taken for it. Nothing if there is none.
stamp() {
	# The name, in parentheses, may hold anything; the start time is field 22.
	set -- "$1" $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null)
	if [ $# -gt 21 ]; then echo "$1 ${21}"; fi
}

# alive FILE: whether the process on record runs.
alive() {
	[ -s "$1" ] || return 1
	read -r pid start <"$1"
	[ "$(stamp "$pid")" = "$pid $start" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null
}

signal() { if alive "$2"; then kill "-$1" "$pid" 2>/dev/null || true; fi; }

# gone FILE SECONDS: waits for the end of a process.
gone() {
	i=$(($2 * 20))
	while alive "$1"; do
		[ $i -gt 0 ] || return 1
		i=$((i - 1))
		sleep 0.05
	done
}

mounted() { grep -q " $1 " /proc/self/mounts; }

# A cgroup of its own. Without one, on a host without systemd, all machines share one, and stopping a service in one
# kills the services of the others.
cgroups() {
	if [ -d /run/systemd/system ]; then
		return # the host's systemd makes one
	elif [ -e /sys/fs/cgroup/cgroup.controllers ]; then
		echo "/sys/fs/cgroup/posthouse-$1"
	else
		for tree in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
			if [ -d $tree ]; then echo "$tree/posthouse-$1"; fi
		done
	fi
}

# leader DIR: records PID 1 of the machine, the child of nspawn that is in another PID namespace.
leader() {
	read -r nspawn start <"$1/nspawn"
	for child in $(cat "/proc/$nspawn/task/$nspawn/children" 2>/dev/null); do
		if [ "$(readlink "/proc/$child/ns/pid")" != "$(readlink /proc/self/ns/pid)" ]; then stamp "$child" >"$1/leader"; fi
	done
}

up() {
	name=$1 root=$2 dir=$state/$1
	shift 2
	case $name in '' | -* | *[!a-z0-9-]*) die "bad name $name" ;; esac
	[ -x "$root/usr/lib/systemd/systemd" ] || die "no systemd in $root"
	if alive "$dir/nspawn"; then die "$name is up"; fi
	down "$name"
	overlay=${OVERLAY:-/var/tmp}/posthouse-test.$name
	if mounted "$overlay/root"; then die "$overlay is in use by a machine that is not on record in $state"; fi
	rm -rf --one-file-system "$overlay"
	mkdir -p "$dir" "$overlay/upper" "$overlay/work" "$overlay/root"
	chmod 700 "$dir" "$overlay"
	echo "$overlay" >"$dir/overlay"
	if [ -n "${OWNER:-}" ]; then stamp "$OWNER" >"$dir/owner"; fi
	mount -t overlay "posthouse-$name" -o "lowerdir=$root,upperdir=$overlay/upper,workdir=$overlay/work" "$overlay/root"
	cgroups "$name" >"$dir/cgroups"
	while read -r cgroup; do mkdir -p "$cgroup"; done <"$dir/cgroups"

	if [ "${NETWORK:-}" = host ]; then
		set -- --resolv-conf=replace-host "$@"
	else
		# BPF, and the right to use it, make IPAddressDeny= effective.
		set -- --private-network --resolv-conf=off --capability=CAP_BPF,CAP_PERFMON,CAP_NET_ADMIN --system-call-filter=bpf "$@"
	fi
	if [ ! -d /run/systemd/system ]; then set -- --keep-unit "$@"; fi
	# The unified hierarchy, whatever the host has: systemd 256 does not boot without.
	SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 CGROUPS=$dir/cgroups setsid sh -c '
		while read -r cgroup; do echo $$ >"$cgroup/cgroup.procs"; done <"$CGROUPS"
		unset CGROUPS
		exec systemd-nspawn "$@"' nspawn --quiet --directory="$overlay/root" --machine="$name" --register=no --boot \
		--hostname="${NODENAME:-mail.example.org}" --console=pipe --link-journal=no --timezone=off --setenv=SYSTEMD_COLORS=0 "$@" \
		</dev/null >"$dir/console" 2>&1 &
	stamp $! >"$dir/nspawn"
	booted "$name"
}

# booted NAME: waits until all units that are to start have.
booted() {
	dir=$state/$1 i=$((boot_timeout * 20)) now=
	while [ $i -gt 0 ] && alive "$dir/nspawn"; do
		if alive "$dir/leader"; then
			now=$(run "$1" systemctl is-system-running 2>/dev/null || true)
			# Degraded is for the caller to judge.
			case $now in running | degraded) return 0 ;; esac
		else
			leader "$dir"
		fi
		i=$((i - 1))
		sleep 0.05
	done
	tail -n 30 "$dir/console" >&2
	down "$1"
	die "$1 did not boot: ${now:-not a word from its systemd}"
}

run() {
	alive "$state/$1/leader" || die "$1 is not up"
	shift
	term=dumb
	if [ -t 0 ]; then term=${TERM:-dumb}; fi
	# All namespaces and the root of PID 1. Commands end with the machine; they are not in a cgroup of its own.
	nsenter -t "$pid" -a -r -w -- env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		HOME=/root LANG=C.UTF-8 TERM="$term" SYSTEMD_PAGER= SYSTEMD_COLORS=0 "$@"
}

down() {
	dir=$state/$1
	[ -d "$dir" ] || return 0
	signal TERM "$dir/nspawn" # an orderly shutdown
	if ! gone "$dir/nspawn" $stop_timeout; then
		echo "machine.sh: $1 does not shut down, and is killed" >&2
		signal KILL "$dir/leader" # with it ends all that is in its PID namespace
		gone "$dir/nspawn" 5 || signal KILL "$dir/nspawn"
	fi
	signal KILL "$dir/leader"
	gone "$dir/nspawn" 5 && gone "$dir/leader" 5 || die "$1 does not end"
	if [ -s "$dir/overlay" ]; then
		overlay=$(cat "$dir/overlay")
		if mounted "$overlay/root"; then
			umount "$overlay/root" 2>/dev/null || { sleep 1; umount "$overlay/root"; } || umount -l "$overlay/root"
		fi
		rm -rf --one-file-system "$overlay"
	fi
	if [ -f "$dir/cgroups" ]; then
		while read -r cgroup; do
			if [ -d "$cgroup" ]; then find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null || true; fi
		done <"$dir/cgroups"
	fi
	rm -rf --one-file-system "$dir"
}

reap() {
	for dir in "$state"/*/; do
		if [ -s "$dir/owner" ] && ! alive "$dir/owner"; then down "$(basename "$dir")"; fi
	done
}

[ "$(id -u)" = 0 ] || die "needs root"
case ${1:-} in
up | run | down | reap) "$@" ;;
*) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
esac
