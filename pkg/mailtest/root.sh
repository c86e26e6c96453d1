#!/bin/sh
# pkg/mailtest/root.sh SUITE: prints the path of a Debian root (bookworm, trixie) for tests, and builds it if it is not
# there. It holds systemd and what the tests talk to: swaks, Postfix's smtp-source and smtp-sink, Dovecot and
# systemd-userdbd (not started), and programs that send and sort mail. Packages that conflict with ours, or need a mail
# system, are in /opt and not installed.
# POSTHOUSE_TEST_CACHE=DIR   where roots are kept (default: /var/cache/posthouse-test)
# The mirror and the proxy are those of the host's apt. Nobody writes to a root: machines are overlays over it.
set -eu
[ $# -eq 1 ] || { sed -n '2,7s/^# //p' "$0" >&2; exit 64; }
suite=$1
cache=${POSTHOUSE_TEST_CACHE:-/var/cache/posthouse-test}
packages=systemd,systemd-sysv,systemd-userdbd,dbus,iproute2,procps,ca-certificates,strace,curl,openssl
packages=$packages,swaks,libnet-ssleay-perl,dovecot-imapd,dovecot-pop3d,dovecot-lmtpd
packages=$packages,at,cron,git-email,libmailtools-perl,maildrop,mutt,php-cli,procmail,rpm,s-nail

# mirror SUFFIX DEFAULT: where the host gets its own suite from.
mirror() {
	uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
		awk -v release="$host$1" '$2 == release && $3 == "main" {print $1; exit}')
	echo "${uri:-$2}"
}
host=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
debian=$(mirror '' http://deb.debian.org/debian/)
security=$(mirror -security http://security.debian.org/debian-security/)
sources="deb $debian $suite main
deb $debian $suite-updates main
deb $security $suite-security main"

# The same sources and the same script make the same root.
key=$({ echo "$sources"; cat "$0"; } | sha256sum | cut -c 1-12)
root=$cache/$suite-$key
mkdir -p "$cache"
exec 9>"$cache/$suite.lock"
flock 9
if [ -e "$root" ]; then
	echo "$root"
	exit 0
fi
command -v mmdebstrap >/dev/null || { echo "root.sh: no mmdebstrap: see setup.sh" >&2; exit 69; }
echo "root.sh: building $root" >&2

new=$root.new
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf --one-file-system "$new"
# How the host reaches its mirror.
apt-config dump | grep -E '^Acquire::(https?|ftp|Retries|Check-)' >"$work/options" || true
set --
while IFS= read -r option; do
	set -- "$@" --aptopt="$option"
done <"$work/options"

# Runs in the root. Postfix conflicts with our package, so that it is laid out in /opt/postfix, with what it needs from
# others. The package itself is there too, for machines that run Postfix, and in /opt what depends on a mail system.
cat >"$work/finish" <<'SCRIPT'
set -eu
export DEBIAN_FRONTEND=noninteractive
for unit in dovecot.service dovecot.socket systemd-userdbd.socket systemd-userdbd.service atd.service cron.service \
	courier-authdaemon.service; do
	systemctl disable -q $unit || true
done
mkdir -p /opt/postfix
cd /opt/postfix
chmod 777 .
apt-get -q download postfix
chmod 755 .
mv postfix_*.deb postfix.deb
chown root: postfix.deb
dpkg -x postfix.deb .
# needs FILE: what the package in it depends on, but for a mail system.
needs() { dpkg-deb -f "$1" Pre-Depends Depends | sed -n 's/, default-mta | mail-transport-agent//; s/default-mta | mail-transport-agent, //; s/^[^:]*: //p' | paste -sd ,; }
apt-get -q satisfy -y --no-install-recommends "$(needs postfix.deb)"
cd /opt
chmod 777 .
for package in bsd-mailx logwatch; do
	apt-get -q download $package
	mv ${package}_*.deb $package.deb
	chown root: $package.deb
	apt-get -q satisfy -y --no-install-recommends "$(needs $package.deb)"
done
chmod 755 .
for tool in smtp-source smtp-sink; do
	printf '#!/bin/sh\nLD_LIBRARY_PATH=/opt/postfix/usr/lib/postfix exec /opt/postfix/usr/sbin/%s "$@"\n' $tool >/usr/local/bin/$tool
	chmod 755 /usr/local/bin/$tool
done
# What costs time, and what changes under a test.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
	systemd-networkd.service systemd-networkd.socket systemd-network-generator.service \
	systemd-networkd-wait-online.service phpsessionclean.timer systemd-firstboot.service getty@.service console-getty.service; do
	ln -sf /dev/null /etc/systemd/system/$unit
done
printf '[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\n' >/etc/systemd/journald.conf.tmp
mkdir -p /etc/systemd/journald.conf.d
mv /etc/systemd/journald.conf.tmp /etc/systemd/journald.conf.d/test.conf
echo uninitialized >/etc/machine-id
printf '127.0.0.1\tlocalhost\n::1\tlocalhost\n' >/etc/hosts
rm -f /etc/hostname /etc/mailname
rm -f /etc/resolv.conf
: >/etc/resolv.conf
apt-get clean
rm -rf /var/lib/apt/lists /finish /usr/sbin/policy-rc.d
mkdir -p /var/lib/apt/lists/partial
SCRIPT
if ! echo "$sources" | mmdebstrap --mode=root --variant=minbase --format=directory --include="$packages" --skip=cleanup/apt/lists "$@" \
	--customize-hook="copy-in $work/finish /" --customize-hook='chroot "$1" sh /finish' \
	"$suite" "$new" - >"$work/log" 2>&1; then
	tail -n 30 "$work/log" >&2
	echo "root.sh: cannot build $root" >&2
	rm -rf --one-file-system "$new"
	exit 1
fi
rm -f "$new/etc/apt/apt.conf.d/99mmdebstrap"
# Those that another version made, unless a machine runs on them.
for old in "$cache/$suite"-*; do
	if [ -d "$old" ] && [ "$old" != "$new" ] && ! grep -q "lowerdir=$old," /proc/self/mounts; then
		rm -rf --one-file-system "$old"
	fi
done
mv "$new" "$root"
echo "$root"
