#!/bin/sh
# packaging/deb/lint.sh VERSION: lintian over the package; what it may find is in posthouse.lintian-overrides, with reasons.
set -eu
cd "$(dirname "$0")/../.."
lintian --fail-on error,warning --allow-root --tag-display-limit 0 "${BUILD:-build}/posthouse_$1_"*.deb
