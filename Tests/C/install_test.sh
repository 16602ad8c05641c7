#!/bin/sh
# Installs into a folder, moves it, and uses it as a stranger would: C programs built through pkg-config and through CMake,
# with the shared library and with the archive, run where no Swift is. Then uninstalls. The last line is "N passed, N failed".
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0
check() { # description, command...
    description=$1
    shift
    if "$@" > "$work/log" 2>&1; then
        echo "ok   $description"
        passed=$((passed + 1))
    else
        echo "FAIL $description"
        sed 's/^/       /' "$work/log"
        failed=$((failed + 1))
    fi
}
# Only what any system has: no Swift, no Python, nothing of this repository.
bare() { env -i PATH=/usr/bin:/bin LD_LIBRARY_PATH="$work/moved/lib" "$@"; }
prints_example() { [ "$(bare "$1")" = "-0.440190 -0.001006" ]; }
exists() { for path in "$@"; do [ -e "$path" ] || { echo "$path is missing"; return 1; }; done; }
quietly_make() { make --no-print-directory -C "$root" "$@"; }

sed -n 's/^ \*     //p; /^ \* The promises/q' "$root/include/lockstep.h" > "$work/example.c"
version=$(sed -n 's/^#define LOCKSTEP_VERSION_[A-Z]* //p' "$root/include/lockstep.h" | paste -s -d .)
major=${version%%.*}
text=$(sed -n 's/.*versionString: StaticString = "\(.*\)"/\1/p' "$root/Sources/Lockstep/Version.swift")

check "make install PREFIX= DESTDIR= STATIC=1" quietly_make install PREFIX=/opt/here DESTDIR="$work/stage" STATIC=1
mv "$work/stage/opt/here" "$work/moved"
check "the files are where they belong" exists "$work/moved/include/lockstep.h" \
    "$work/moved/include/lockstep/module.modulemap" "$work/moved/lib/liblockstep.so" \
    "$work/moved/lib/liblockstep.so.1" "$work/moved/lib/liblockstep.so.1.$version" "$work/moved/lib/liblockstep.a" \
    "$work/moved/lib/pkgconfig/lockstep.pc" "$work/moved/lib/pkgconfig/lockstep-static.pc" \
    "$work/moved/lib/cmake/lockstep/lockstepConfig.cmake" \
    "$work/moved/lib/cmake/lockstep/lockstepConfigVersion.cmake"
names_no_folder() { ! grep -rIl -e "$root" -e "$work" -e /opt/here "$work/moved"; }
check "nothing installed names a folder of the build" names_no_folder

export PKG_CONFIG_PATH="$work/moved/lib/pkgconfig"
has_version() {
    [ "$(pkg-config --modversion lockstep)" = "$version" ] && [ "$(pkg-config --modversion lockstep-static)" = "$version" ]
}
check "pkg-config knows version $version" has_version
build() { # program, flags of the compiler...
    program=$1
    shift
    gcc -std=c99 "$work/example.c" -o "$work/$program" "$@"
}
# The flags are several words.
# shellcheck disable=SC2046
check "a C program builds with pkg-config" build with-pkg-config $(pkg-config --cflags --libs lockstep)
check "it runs without Swift" prints_example "$work/with-pkg-config"

needs_no_lockstep() { ! readelf -d "$1" | grep 'NEEDED.*lockstep'; }
# shellcheck disable=SC2046
check "a C program with the archive builds with pkg-config" build archived $(pkg-config --cflags --libs lockstep-static)
check "it runs" prints_example "$work/archived"
check "it needs no library of ours" needs_no_lockstep "$work/archived"
# shellcheck disable=SC2046
check "a static program builds with pkg-config --static" build static -static $(pkg-config --static --cflags --libs lockstep)
check "it runs" prints_example "$work/static"
archive_names() {
    nm --extern-only --defined-only "$work/moved/lib/liblockstep.a" | sed -n 's/.* [A-Za-z] //p' | sort > "$work/has"
    sed -n 's/^\(lockstep_[a-z0-9_]*\) .*/\1/p' "$root/include/lockstep.symbols" | sort | diff - "$work/has"
}
check "the archive's names are those of lockstep.symbols" archive_names
# The runtime's sections have names of our own, so that another Swift runtime in the program finds its own only.
own_sections() {
    readelf -S -W "$work/moved/lib/liblockstep.a" > "$work/sections"
    grep -q ' lockstep_swift5_' "$work/sections" && ! grep ' swift5_' "$work/sections"
}
check "the archive shares no section with another Swift runtime" own_sections

same_bits() {
    # shellcheck disable=SC2046
    gcc -std=c99 "$root/Tests/C/abi/first/program.c" -o "$work/shared-bits" $(pkg-config --cflags --libs lockstep) &&
        gcc -std=c99 "$root/Tests/C/abi/first/program.c" -o "$work/archive-bits" $(pkg-config --cflags --libs lockstep-static) &&
        bare "$work/shared-bits" > "$work/shared-out" && bare "$work/archive-bits" > "$work/archive-out" &&
        diff "$work/shared-out" "$work/archive-out"
}
check "library and archive give the same bits" same_bits
swift=${SWIFT:-swift}
if command -v "${swift}c" > /dev/null; then
    cat > "$work/main.swift" << 'END'
import CLockstep
protocol Named { var name: String { get } }
struct Here: Named { let name = "found" }
let value: Any = Here()
print(String(cString: lockstep_version_string()), (value as? Named)?.name ?? "not found")
END
    with_swift() {
        # shellcheck disable=SC2046
        "${swift}c" -static-stdlib -I "$work/moved/include/lockstep" "$work/main.swift" -o "$work/with-swift" \
            $(pkg-config --libs lockstep-static | sed 's/-Wl,--gc-sections//; s/-pthread/-lpthread/') &&
            [ "$("$work/with-swift")" = "$text found" ]
    }
    check "a program with a Swift runtime of its own holds the archive too" with_swift
else
    echo "skip a program with a Swift runtime of its own: there is no ${swift}c on PATH"
    skipped=1
fi

if command -v cmake > /dev/null; then
    mkdir "$work/project" "$work/versions"
    cp "$work/example.c" "$work/project"
    cat > "$work/project/CMakeLists.txt" << END
cmake_minimum_required(VERSION 3.16)
project(example C)
find_package(lockstep ${version%.*} REQUIRED)
add_executable(example example.c)
target_link_libraries(example PRIVATE lockstep::lockstep)
add_executable(archived example.c)
target_link_libraries(archived PRIVATE lockstep::lockstep_static)
END
    with_cmake() {
        cmake -S "$work/project" -B "$work/cmake" -DCMAKE_PREFIX_PATH="$work/moved" && cmake --build "$work/cmake"
    }
    check "C programs build with CMake" with_cmake
    check "the one with the library runs without Swift" prints_example "$work/cmake/example"
    check "the one with the archive runs" prints_example "$work/cmake/archived"
    check "it needs no library of ours" needs_no_lockstep "$work/cmake/archived"
    echo 'cmake_minimum_required(VERSION 3.16)
project(versions C)
find_package(lockstep ${WANTED} REQUIRED)' > "$work/versions/CMakeLists.txt"
    cmake_finds() { cmake -S "$work/versions" -B "$work/versions/build" -DCMAKE_PREFIX_PATH="$work/moved" "-DWANTED=$1"; }
    refuses() { ! cmake_finds "$1"; }
    check "CMake finds version $version" cmake_finds "$version;EXACT"
    check "CMake finds any version" cmake_finds ""
    check "CMake finds it where $major is asked for" cmake_finds "$major"
    check "CMake refuses a version that is not there" refuses "$major.999"
    check "CMake refuses another major version" refuses "$((major + 1)).0"
    check "CMake refuses another exact version" refuses "${version%.*}.999;EXACT"
else
    echo "skip C programs build with CMake: there is no cmake on PATH"
    skipped=$((skipped + 10))
fi

cat > "$work/unload.c" << 'END'
/* Loads the library, makes its threads work, unloads it: they must not run into missing code. */
#include <dlfcn.h>
#include <lockstep.h>
#include <stdio.h>
#include <unistd.h>
int main(int count, char **arguments) {
    static float logits[64 * 4096];
    static float log_probs[64];
    static int32_t targets[64];
    int64_t matrix[2] = {64, 4096};
    lockstep_tensor x = lockstep_tensor_of(logits, LOCKSTEP_FLOAT32, 2, matrix);
    lockstep_tensor y = lockstep_tensor_of(targets, LOCKSTEP_INT32, 1, matrix);
    lockstep_tensor out = lockstep_tensor_of(log_probs, LOCKSTEP_FLOAT32, 1, matrix);
    lockstep_log_probs_options options = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
    options.threads = 4;
    for (int i = 0; i < 3 && count == 2; i++) {
        void *library = dlopen(arguments[1], RTLD_NOW);
        lockstep_status (*call)(const lockstep_tensor *, const lockstep_tensor *, const lockstep_tensor *,
                                const lockstep_tensor *, const lockstep_tensor *, const lockstep_tensor *,
                                const lockstep_log_probs_options *);
        if (library == NULL) return 1;
        *(void **)&call = dlsym(library, "lockstep_log_probs");
        if (call == NULL || call(&out, NULL, NULL, NULL, &x, &y, &options) != LOCKSTEP_OK) return 2;
        dlclose(library);
        usleep(20000);
    }
    return log_probs[0] < 0 ? 0 : 3;
}
END
unloads() {
    gcc -std=c99 -D_DEFAULT_SOURCE -I "$work/moved/include" "$work/unload.c" -o "$work/unload" -ldl &&
        bare "$work/unload" "$work/moved/lib/liblockstep.so.1"
}
check "loading and unloading while its threads live" unloads

# What is there before, or is put there by others, stays; what install made goes, folders too.
check "make uninstall" quietly_make uninstall PREFIX="$work/moved"
is_gone() { [ ! -e "$1" ] || { find "$1"; return 1; }; }
check "nothing is left, not the folder" is_gone "$work/moved"
mkdir -p "$work/shared/include" "$work/shared/lib"
echo "of others" > "$work/shared/include/others.h"
(cd "$work/shared" && find . | sort) > "$work/before"
check "make install where others are" quietly_make install PREFIX="$work/shared"
echo "of an old version" > "$work/shared/lib/liblockstep.so.1.0.0.1"
echo "lib/liblockstep.so.1.0.0.1" >> "$work/shared/lib/cmake/lockstep/installed.txt"
check "make install over an older one" quietly_make install PREFIX="$work/shared"
check "what only the older one had is gone" is_gone "$work/shared/lib/liblockstep.so.1.0.0.1"
check "without STATIC=1 there is no archive" is_gone "$work/shared/lib/liblockstep.a"
check "make uninstall" quietly_make uninstall PREFIX="$work/shared"
as_before() { (cd "$work/shared" && find . | sort) | diff "$work/before" -; }
check "what was there before is there, and nothing else" as_before
check "make uninstall where nothing is installed" quietly_make uninstall PREFIX="$work/shared"

echo "$passed passed, $failed failed$([ $skipped = 0 ] || echo ", $skipped skipped")"
[ $failed = 0 ]
