#!/bin/sh
# packaging/install.sh DESTDIR        install what packaging/files lists below DESTDIR
# packaging/install.sh --list         print KIND MODE PATH of each instead, for a packaging's own file list
# BUILD=DIR   where the programs and generated documentation are (default: build)
# UNITS=DIR   where units go (default: /usr/lib/systemd/system)
# DOC=DIR     where documentation goes (default: /usr/share/doc/posthouse)
# ZSH=DIR     where completions for zsh go (default: /usr/share/zsh/vendor-completions)
set -eu
top=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
build=${BUILD:-$top/build}
units=${UNITS:-/usr/lib/systemd/system}
zsh=${ZSH:-/usr/share/zsh/vendor-completions}
doc=${DOC:-/usr/share/doc/posthouse}
[ $# -eq 1 ] || { sed -n '2,7s/^# //p' "$0" >&2; exit 64; }
dest=$1

# put KIND MODE SOURCE PATH: one file, directory or link
put() {
	if [ "$dest" = --list ]; then
		echo "$1 $2 $4"
		return
	fi
	case $1 in
	dir) install -d -m "$2" "$dest$4" ;;
	empty) install -D -m "$2" /dev/null "$dest$4" ;;
	link) install -d "$(dirname "$dest$4")" && ln -sf "$3" "$dest$4" ;;
	*) install -D -m "$2" "$3" "$dest$4" ;;
	esac
}

umask 022
while read -r kind mode path source; do
	case $kind in
	'' | '#'*) continue ;;
	file | conf | doc) ;;
	dir | empty | link) put "$kind" "$mode" "${source:-}" "$path"; continue ;;
	*) echo "packaging/files: unknown kind $kind" >&2; exit 1 ;;
	esac
	case $path in
	@UNITS@*) path=$units${path#@UNITS@} ;;
	@ZSH@*) path=$zsh${path#@ZSH@} ;;
	@DOC@*) path=$doc${path#@DOC@} ;;
	esac
	case $source in build/*) source=$build${source#build} ;; *) source=$top/$source ;; esac
	for file in $source; do # unquoted: a pattern
		[ -f "$file" ] || { echo "packaging/files: nothing matches $source" >&2; exit 1; }
		case $path in
		*/) put "$kind" "$mode" "$file" "$path${file##*/}" ;;
		*) put "$kind" "$mode" "$file" "$path" ;;
		esac
	done
done <"$top/packaging/files"
