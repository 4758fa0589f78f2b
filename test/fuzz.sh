#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time each.
set -euo pipefail
time=${1:-10s}
: "${GO:=go}"

# Fuzzing that ends at its deadline with a run under way sometimes reports that
# as a failure. A real one names its input.
fuzz() {
	local log
	log=$(mktemp)
	for try in 1 2 3; do
		"$GO" test -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 5s "$1" </dev/null >"$log" 2>&1 && break
		if [ "$try" = 3 ] || grep -qE 'Failing input|panic|--- FAIL.*seed' "$log" || ! grep -q 'context deadline exceeded' "$log"; then
			cat "$log"
			return 1
		fi
	done
	grep -v '^fuzz: elapsed' "$log"
	rm -f "$log"
}
grep -rl --exclude-dir='_*' --exclude-dir=node_modules --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do
	grep -ho '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | cut -d' ' -f2 | while read -r target; do
		echo "$dir $target"
		fuzz "$dir" "$target" || exit 1
	done
done

# The targets inside crypto/tls, under the overlay with our tests in it.
overlay=$PWD/_build/tls-tests/overlay.json
GOFLAGS= "$GO" run ./tlsoverlay/gen -tests -out "$(dirname "$overlay")"
export GOFLAGS=-overlay=$overlay
targets=$(grep -ho '^func Fuzz[A-Za-z0-9_]*' tlsoverlay/_tls/*_test.go | cut -d' ' -f2)
cd "$("$GO" env GOROOT)/src/crypto/tls"
for target in $targets; do
	echo "crypto/tls $target"
	fuzz . "$target" || exit 1
done
