#!/bin/sh
# pkg/mailtest/setup.sh check|deb|rpm|lint|crash|test|run|bench: installs by apt what the host lacks for that target of the
# Makefile, and nothing that is there. Go itself has to be there.
set -eu

# PACKAGE=PROOF: a command, or with a slash a file, that is there when the package is.
check='gcc=gcc libc6-dev=/usr/include/stdlib.h git=git make=make systemd=systemd-analyze zsh=zsh'
# The first is what dpkg-checkbuilddeps wants to see.
deb='build-essential=/usr/share/doc/build-essential debhelper=dh dpkg-dev=dpkg-buildpackage fakeroot=fakeroot'
rpm='rpm=rpmbuild'
lint='lintian=lintian rpmlint=rpmlint'
# File systems whose power is cut.
crash='e2fsprogs=mkfs.ext4 xfsprogs=mkfs.xfs mount=mount'
# Containers. What runs in them only (Dovecot, swaks, smtp-source) is installed there, see root.sh.
boot='systemd-container=systemd-nspawn mmdebstrap=mmdebstrap debian-archive-keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	iproute2=ip util-linux=nsenter'

case ${1:-} in
check) want=$check ;;
deb) want=$deb ;;
rpm) want=$rpm ;;
lint) want=$lint ;;
crash) want=$crash ;;
test) want="$crash $boot" ;;
run | bench) want=$boot ;;
*) sed -n '2,3s/^# //p' "$0" >&2; exit 64 ;;
esac

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
missing=
for pair in $want; do
	proof=${pair#*=}
	case $proof in
	/*) [ -e "$proof" ] && continue ;;
	*) command -v "$proof" >/dev/null && continue ;;
	esac
	missing="$missing ${pair%%=*}"
done
if [ -n "$missing" ]; then
	if ! command -v apt-get >/dev/null; then
		echo "setup.sh: make $1 needs$missing (Debian's names), and there is no apt-get to install them with" >&2
		exit 69
	fi
	if [ "$(id -u)" != 0 ]; then
		echo "setup.sh: make $1 needs root, or an administrator who runs: apt-get install$missing" >&2
		exit 77
	fi
	echo "setup.sh: installing$missing" >&2
	export DEBIAN_FRONTEND=noninteractive
	log=$(mktemp)
	trap 'rm -f "$log"' EXIT
	# Unquoted: a list.
	if ! { apt-get -q update && apt-get -q install -y --no-install-recommends $missing; } </dev/null >"$log" 2>&1; then
		tail -n 20 "$log" >&2
		echo "setup.sh: cannot install$missing" >&2
		exit 69
	fi
fi
case $1 in
crash | test | run | bench)
	if [ "$(id -u)" != 0 ]; then
		echo "setup.sh: make $1 mounts file systems or boots containers, and needs root" >&2
		exit 77
	fi
	;;
esac
if ! command -v go >/dev/null; then
	echo "setup.sh: no go in PATH: see https://go.dev/dl/" >&2
	exit 69
fi
