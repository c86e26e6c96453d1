#!/bin/sh
# packaging/deb/build.sh VERSION: build/posthouse_VERSION_ARCH.deb from what make build and make docs have made.
# BUILD=DIR   where that is, and where the package goes (default: build)
set -eu
cd "$(dirname "$0")/../.."
version=$1
export BUILD="${BUILD:-$PWD/build}"
export SOURCE="$PWD"
stage=$BUILD/deb/posthouse-$version
rm -rf "$BUILD/deb"
mkdir -p "$stage/debian/source"
for file in control copyright rules posthouse.lintian-overrides; do
	cp "packaging/deb/$file" "$stage/debian/"
done
for script in postinst postrm prerm; do
	cp "packaging/deb/$script" "$stage/debian/posthouse.$script"
done
echo '3.0 (native)' >"$stage/debian/source/format"
cat >"$stage/debian/changelog" <<EOF
posthouse ($version) unstable; urgency=medium

  * Release $version; see CHANGELOG.md.

 -- Posthouse maintainers <maintainers@posthouse.example>  $(date -R -u -d "@${SOURCE_DATE_EPOCH:-0}")
EOF
(cd "$stage" && dpkg-buildpackage --unsigned-changes --unsigned-buildinfo --build=binary)
mv "$BUILD/deb/posthouse_${version}_"*.deb "$BUILD/"
