#!/bin/sh
# Prints the linker's version script of a list of symbols: version-script.sh [include/lockstep.symbols]
#
# Each name is exported under the version it came in, LOCKSTEP_0.1.0 and so on, and nothing else is exported. A program
# that uses a newer function than the library it meets is then refused when it starts, with the version it lacks.
set -eu
symbols=${1:-$(dirname "$0")/../../include/lockstep.symbols}
grep '^lockstep_' "$symbols" | sort -s -V -k 2,2 | awk '
    $2 != version {
        if (version) print "}" before ";"
        before = version ? " LOCKSTEP_" version : ""
        version = $2
        print "LOCKSTEP_" version " {" (before ? "" : "\n    local: *;") "\n    global:"
    }
    { print "        " $1 ";" }
    END { print "}" before ";" }'
