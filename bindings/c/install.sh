#!/bin/sh
# Installs the header, the library and its pkg-config and CMake files, or removes them:
#
#     [PREFIX=/usr/local] [DESTDIR=] [STATIC=1] install.sh install|uninstall
#
# STATIC=1 adds build/liblockstep.a. What is installed is relocatable: the folder may be moved as a whole afterwards. A list
# of the files, and of the folders that had to be made, is installed too: uninstall, or another install, removes just those.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
prefix=${DESTDIR:-}${PREFIX:-/usr/local}
list=lib/cmake/lockstep/installed.txt

# The version has one source: the header.
number() { sed -n "s/^#define LOCKSTEP_VERSION_$1 //p" "$root/include/lockstep.h"; }
version=$(number MAJOR).$(number MINOR).$(number PATCH)
# The soname has one too: build-library.sh. It is the number of the ABI, not of the release.
soname=$(sed -n 's/^soname=//p' "$root/bindings/c/build-library.sh")
library=$soname.$version

folder() { # path: makes it and what is above it, and lists what was not there
    [ ! -d "$prefix/$1" ] || return 0
    case $1 in
    */*) folder "${1%/*}" ;;
    .) ;;
    *) folder . ;;
    esac
    mkdir -p "$prefix/${1#.}"
    listed="$listed$1/
"
}
place() { # mode, source, path: copies a file and lists it
    folder "${3%/*}"
    install -m "$1" "$2" "$prefix/$3"
    listed="$listed$3
"
}
name() { # path, target: makes a symbolic link and lists it
    ln -sf "$2" "$prefix/$1"
    listed="$listed$1
"
}
uninstall() {
    [ -f "$prefix/$list" ] || return 0
    # The folders come before what is in them: backwards they are empty, unless others use them too.
    sed -n '1!G;h;$p' "$prefix/$list" | while read -r path; do
        case $path in
        */) rmdir "$prefix/${path#./}" 2> /dev/null || true ;;
        *) rm -f "$prefix/$path" ;;
        esac
    done
}

case ${1:-} in
install)
    uninstall
    listed=
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    folder lib/cmake/lockstep
    # Listed first, so that it is removed last, before its folder.
    listed="$listed$list
"
    place 644 "$root/include/lockstep.h" include/lockstep.h
    # In a folder of its own: include/module.modulemap would be one file for all libraries.
    sed 's|"lockstep.h"|"../lockstep.h"|' "$root/include/module.modulemap" > "$work/module.modulemap"
    place 644 "$work/module.modulemap" include/lockstep/module.modulemap
    place 755 "$root/build/$soname" "lib/$library"
    name "lib/$soname" "$library"
    name lib/liblockstep.so "$soname"
    templates="lockstep.pc lockstepConfig.cmake lockstepConfigVersion.cmake"
    if [ -n "${STATIC:-}" ]; then
        place 644 "$root/build/liblockstep.a" lib/liblockstep.a
        templates="$templates lockstep-static.pc"
    fi
    for template in $templates; do
        case $template in
        *.pc) where=lib/pkgconfig ;;
        *) where=lib/cmake/lockstep ;;
        esac
        sed -e "s/@VERSION@/$version/g" -e "s/@SONAME@/$soname/g" -e "s/@LIBRARY@/$library/g" \
            "$root/bindings/c/$template.in" > "$work/$template"
        place 644 "$work/$template" "$where/$template"
    done
    printf %s "$listed" > "$work/installed.txt"
    install -m 644 "$work/installed.txt" "$prefix/$list"
    ;;
uninstall)
    uninstall
    ;;
*)
    echo "usage: [PREFIX=/usr/local] [DESTDIR=] [STATIC=1] install.sh install|uninstall" >&2
    exit 2
    ;;
esac
