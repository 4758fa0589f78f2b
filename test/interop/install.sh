#!/usr/bin/env bash
# Installs the peers: python3-hl7 and OpenSSL from Debian, Medplum's packages from npm.
set -euo pipefail
cd "$(dirname "$0")"

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

need=()
/usr/bin/python3 -c 'import hl7' 2>/dev/null || need+=(python3-hl7)
command -v openssl >/dev/null || need+=(openssl)
command -v node >/dev/null || need+=(nodejs)
command -v npm >/dev/null || need+=(npm)
if [ ${#need[@]} -gt 0 ]; then
	as_root apt-get update -qq
	as_root apt-get install -y -qq --no-install-recommends "${need[@]}"
fi
[ -d medplum/node_modules/@medplum/hl7 ] || (cd medplum && npm install --no-audit --no-fund --no-package-lock --silent)
