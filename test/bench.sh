#!/usr/bin/env bash
# Prints the figures of doc/performance.md. Ratios are within one run; the
# machine's speed cancels out there and nowhere else.
set -euo pipefail
time=${1:-1s}
: "${GO:=go}"
# A count in place of a time (20x) is a quick look that everything runs.
case $time in *x) rounds=3x messages=100x ;; *) rounds=15x messages=1000x ;; esac
bench() { "$GO" test -run '^$' -bench "$2" -benchmem -benchtime "$time" "$1" | grep -E '^(Benchmark|---|FAIL|panic)'; }

echo "== decode, translate, parse, frame"
bench ./drivers/intellivue .
bench ./drivers 'Session'
bench ./pcd .
bench ./hl7 .
bench ./mllp .
echo "== make durable, beside a bare write and fdatasync"
"$GO" test -run '^$' -bench . -benchtime "$rounds" ./spool | grep -E '^(Benchmark|---|FAIL|panic)'
echo "== revocation verdicts"
bench ./revocation .
echo "== a full handshake with three staples verified, beside bare crypto/tls"
bench ./tlspolicy Handshake
echo "== Interface A: handshakes with our server, beside OpenSSL's; Interface B with CAs of P-384 and RSA"
bench ./test/bench Interface
echo "== a key in a TPM (swtpm), beside package tpm2 alone and beside a key in a file"
bench ./test/bench 'TPM(Signature|Handshake)'
"$GO" test -run '^$' -bench TPMReconnectStorm -benchtime 3x ./test/bench | grep -E '^(Benchmark|---|FAIL|panic)'
echo "== the tunnel, beside HAProxy in tcp mode"
"$GO" test -run '^$' -bench . -benchtime "$time" ./tunnel | grep -E '^(Benchmark|---|FAIL|panic)'
echo "== the whole gateway"
"$GO" test -run '^$' -bench ByteToAcknowledgement -benchtime "$messages" ./test/bench | grep -E '^(Benchmark|---|FAIL)'
"$GO" test -run '^$' -bench EightPorts -benchtime 1x ./test/bench | grep -E '^(Benchmark|---|FAIL)'
CGO_ENABLED=0 GOOS=linux GOARCH=arm64 GOFLAGS="${GOFLAGS/-tags=development/}" "$GO" build -trimpath -ldflags '-s -w' -o bin/arm64/gatewayd ./cmd/gatewayd
echo "gatewayd for arm64, stripped: $(stat -c %s bin/arm64/gatewayd | awk '{printf "%.1f MiB", $1/1048576}')"
