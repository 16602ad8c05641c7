#!/bin/sh
# Installs the header, the library and its pkg-config and CMake files, or removes them:
#
#     [PREFIX=/usr/local] [DESTDIR=] install.sh install|uninstall
#
# What is installed is relocatable: the folder may be moved as a whole afterwards.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
prefix=${DESTDIR:-}${PREFIX:-/usr/local}

# The version has one source: the header.
number() { sed -n "s/^#define LOCKSTEP_VERSION_$1 //p" "$root/include/lockstep.h"; }
version=$(number MAJOR).$(number MINOR).$(number PATCH)
# The soname has one too: build-library.sh. It is the number of the ABI, not of the release.
soname=$(sed -n 's/^soname=//p' "$root/bindings/c/build-library.sh")
library=$soname.$version

case ${1:-} in
install)
    mkdir -p "$prefix/include/lockstep" "$prefix/lib/pkgconfig" "$prefix/lib/cmake/lockstep"
    install -m 644 "$root/include/lockstep.h" "$prefix/include"
    # In a folder of its own: include/module.modulemap would be one file for all libraries.
    sed 's|"lockstep.h"|"../lockstep.h"|' "$root/include/module.modulemap" \
        > "$prefix/include/lockstep/module.modulemap"
    chmod 644 "$prefix/include/lockstep/module.modulemap"
    install -m 755 "$root/build/$soname" "$prefix/lib/$library"
    ln -sf "$library" "$prefix/lib/$soname"
    ln -sf "$soname" "$prefix/lib/liblockstep.so"
    for template in lockstep.pc lockstepConfig.cmake lockstepConfigVersion.cmake; do
        case $template in
        *.pc) folder=lib/pkgconfig ;;
        *) folder=lib/cmake/lockstep ;;
        esac
        sed -e "s/@VERSION@/$version/g" -e "s/@SONAME@/$soname/g" -e "s/@LIBRARY@/$library/g" \
            "$root/bindings/c/$template.in" > "$prefix/$folder/$template"
        chmod 644 "$prefix/$folder/$template"
    done
    ;;
uninstall)
    rm -f "$prefix/include/lockstep.h" "$prefix/include/lockstep/module.modulemap" \
        "$prefix/lib/$library" "$prefix/lib/$soname" "$prefix/lib/liblockstep.so" \
        "$prefix/lib/pkgconfig/lockstep.pc" "$prefix/lib/cmake/lockstep/lockstepConfig.cmake" \
        "$prefix/lib/cmake/lockstep/lockstepConfigVersion.cmake"
    # Folders that others use too stay, unless they are empty now.
    for folder in include/lockstep lib/cmake/lockstep lib/cmake lib/pkgconfig; do
        rmdir "$prefix/$folder" 2> /dev/null || true
    done
    ;;
*)
    echo "usage: [PREFIX=/usr/local] [DESTDIR=] install.sh install|uninstall" >&2
    exit 2
    ;;
esac
