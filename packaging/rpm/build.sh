#!/bin/sh
# packaging/rpm/build.sh VERSION: build/posthouse-VERSION.rpm from what make build and make docs have made.
# BUILD=DIR   where that is, and where the package goes (default: build)
set -eu
cd "$(dirname "$0")/../.."
version=$1
export BUILD="${BUILD:-$PWD/build}"
stage=$BUILD/rpm
rm -rf "$stage"
mkdir -p "$stage"

# The file list of the spec, from packaging/files.
unitdir=$(rpm --eval '%{?_unitdir}')
UNITS=${unitdir:-/usr/lib/systemd/system} DOC=$(rpm --eval %_docdir)/posthouse ZSH=/usr/share/zsh/site-functions packaging/install.sh --list |
	awk '
	function own(dir) { # a directory of ours, with those above it
		if (dir !~ /\/posthouse/ || dir in owned) return
		owned[dir] = 1
		print "%dir %attr(0755,root,root) " dir
		sub(/\/[^\/]*$/, "", dir)
		own(dir)
	}
	{ above = $3; sub(/\/[^\/]*$/, "", above); own(above) }
	$1 == "dir" { own($3); next }
	$3 ~ /^\/usr\/(lib\/sendmail|bin\/mailq|bin\/newaliases)$/ { print "%ghost " $3; next }
	$3 == "/usr/sbin/sendmail" { print "%ghost " $3; $3 = $3 ".posthouse" }
	$3 ~ /\/(sendmail|mailq|newaliases)\.1$/ { sub(/\.1$/, ".posthouse.1", $3) }
	$3 ~ /\/man\/man/ { $3 = $3 ".gz" }
	$1 == "link" { print $3; next }
	# Onto these systemd mounts. A file in place of one takes the mount away, also from daemons that run: %post makes them.
	$1 == "empty" { print "%ghost %attr(" $2 ",root,root) " $3; next }
	{ mark = "" }
	$1 == "conf" { mark = "%config(noreplace) " }
	$1 == "doc" { mark = "%doc " }
	{ print mark "%attr(" $2 ",root,root) " $3 }
	' >"$stage/list"
cat >>"$stage/list" <<'EOF'
%dir /usr/share/licenses/posthouse
%license /usr/share/licenses/posthouse/LICENSE
EOF
enabled=$(sed -n 's/^enable \(posthouse-.*\)/\1/p' units/system-preset/50-posthouse.preset | tr '\n' ' ')
units=$(cd units && echo posthouse-*.socket posthouse-*.timer)
empty=$(awk '$1 == "empty" {print $3}' packaging/files | tr '\n' ' ')
services=$(cd units && echo posthouse-*.service | sed 's/@\./@*./') # of a template, all instances
spec=$stage/posthouse.spec
sed -e "s|@VERSION@|$version|; s|@SOURCE@|$PWD|; s|@ENABLED@|$enabled|; s|@SERVICES@|$services|" \
	-e "s|@UNITS@|$units|; s|@LIST@|$stage/list|; s|@EMPTY@|$empty|" packaging/rpm/posthouse.spec >"$spec"
cat >>"$spec" <<EOF

%changelog
* $(LC_ALL=C date -u -d "@${SOURCE_DATE_EPOCH:-0}" '+%a %b %d %Y') Posthouse maintainers <maintainers@posthouse.example> - $version-1
- Release $version; see CHANGELOG.md.
EOF
rpmbuild -bb --quiet \
	--define "_topdir $stage" --define "_build_id_links none" \
	--define "_binary_payload w19.zstdio" --define "use_source_date_epoch_as_buildtime 1" --define "clamp_mtime_to_source_date_epoch 1" --define "_buildhost localhost" \
	"$spec"
mv "$stage/RPMS"/*/"posthouse-$version"-1*.rpm "$BUILD/posthouse-$version.rpm"
