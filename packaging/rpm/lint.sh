#!/bin/sh
# packaging/rpm/lint.sh VERSION: rpmlint over the package and the finished spec; what it may find is in rpmlint.toml, with reasons.
set -eu
cd "$(dirname "$0")/../.."
rpmlint --strict --config packaging/rpm/rpmlint.toml "${BUILD:-build}/posthouse-$1.rpm" "${BUILD:-build}/rpm/posthouse.spec"
