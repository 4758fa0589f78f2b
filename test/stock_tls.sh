#!/usr/bin/env bash
# Runs the tests of crypto/tls with the stock package and with the overlay and
# compares: every test must end the same way in both. (Some need the internet
# and fail in both where there is none.)
set -euo pipefail
overlay=$(realpath "$1")
: "${GO:=go}"
out=$(dirname "$overlay")
cd "$("$GO" env GOROOT)/src/crypto/tls"
results() { grep -E '^ *--- (PASS|FAIL|SKIP): ' | sed -E 's/ \([0-9.]+s\)//' | grep -v 'Ext' | sort; }
export GOFLAGS=
"$GO" test -v . 2>&1 | results >"$out/stock.txt" || true
"$GO" test -v -overlay "$overlay" . 2>&1 | tee "$out/overlay.log" | results >"$out/overlay.txt" || true
diff "$out/stock.txt" "$out/overlay.txt"
grep -E '^--- FAIL: (Test|Fuzz)Ext' "$out/overlay.log" && exit 1
ours=$(grep -cE '^--- PASS: (Test|Fuzz)Ext' "$out/overlay.log")
[ "$ours" -ge 10 ] || { echo "only $ours of our tests ran inside crypto/tls"; exit 1; }
echo "crypto/tls: $(wc -l <"$out/stock.txt") results, the same with and without the overlay; $ours tests of ours passed"
