#!/bin/sh
# Installs into a folder, moves it, and uses it as a stranger would: a C program built through
# pkg-config and one through CMake, run where no Swift is. The last line is "N passed, N failed".
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

sed -n 's/^ \*     //p; /^ \* The promises/q' "$root/include/lockstep.h" > "$work/example.c"
version=$(sed -n 's/^#define LOCKSTEP_VERSION_[A-Z]* //p' "$root/include/lockstep.h" | paste -s -d .)

check "make install PREFIX= DESTDIR=" make --no-print-directory -C "$root" install PREFIX=/opt/here DESTDIR="$work/stage"
mv "$work/stage/opt/here" "$work/moved"
check "the files are where they belong" exists "$work/moved/include/lockstep.h" \
    "$work/moved/include/lockstep/module.modulemap" "$work/moved/lib/liblockstep.so" \
    "$work/moved/lib/liblockstep.so.1" "$work/moved/lib/liblockstep.so.1.$version" \
    "$work/moved/lib/pkgconfig/lockstep.pc" "$work/moved/lib/cmake/lockstep/lockstepConfig.cmake" \
    "$work/moved/lib/cmake/lockstep/lockstepConfigVersion.cmake"
names_no_folder() { ! grep -rIl -e "$root" -e "$work" -e /opt/here "$work/moved"; }
check "nothing installed names a folder of the build" names_no_folder

export PKG_CONFIG_PATH="$work/moved/lib/pkgconfig"
has_version() { [ "$(pkg-config --modversion lockstep)" = "$version" ]; }
check "pkg-config knows version $version" has_version
with_pkg_config() {
    # The flags are several words.
    # shellcheck disable=SC2046
    gcc -std=c99 "$work/example.c" -o "$work/with-pkg-config" $(pkg-config --cflags --libs lockstep)
}
check "a C program builds with pkg-config" with_pkg_config
check "it runs without Swift" prints_example "$work/with-pkg-config"

if command -v cmake > /dev/null; then
    mkdir "$work/project"
    cp "$work/example.c" "$work/project"
    cat > "$work/project/CMakeLists.txt" << END
cmake_minimum_required(VERSION 3.16)
project(example C)
find_package(lockstep ${version%.*} REQUIRED)
add_executable(example example.c)
target_link_libraries(example PRIVATE lockstep::lockstep)
END
    with_cmake() {
        cmake -S "$work/project" -B "$work/cmake" -DCMAKE_PREFIX_PATH="$work/moved" && cmake --build "$work/cmake"
    }
    check "a C program builds with CMake" with_cmake
    check "it runs without Swift" prints_example "$work/cmake/example"
    refuses_newer() {
        sed "s/find_package(lockstep [^ ]*/find_package(lockstep 999.0/" "$work/project/CMakeLists.txt" > "$work/newer.txt"
        cp "$work/newer.txt" "$work/project/CMakeLists.txt"
        ! cmake -S "$work/project" -B "$work/newer" -DCMAKE_PREFIX_PATH="$work/moved"
    }
    check "CMake refuses a version that is not there" refuses_newer
else
    echo "skip a C program builds with CMake: there is no cmake on PATH"
    skipped=3
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

mkdir -p "$work/stage/opt/here"
cp -a "$work/moved/." "$work/stage/opt/here/"
check "make uninstall" make --no-print-directory -C "$root" uninstall PREFIX=/opt/here DESTDIR="$work/stage"
nothing_left() { [ -z "$(find "$work/stage" -type f -o -type l)" ]; }
check "nothing is left" nothing_left

echo "$passed passed, $failed failed$([ $skipped = 0 ] || echo ", $skipped skipped")"
[ $failed = 0 ]
