#!/usr/bin/env bash
# Installs the peers: python3-hl7, OpenSSL, GnuTLS, wolfSSL, Java, an emulated TPM with its tools, haproxy and a
# reader of QR codes from Debian, Medplum's packages from npm.
set -euo pipefail
cd "$(dirname "$0")"

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

need=()
/usr/bin/python3 -c 'import hl7' 2>/dev/null || need+=(python3-hl7)
command -v openssl >/dev/null || need+=(openssl)
command -v node >/dev/null || need+=(nodejs)
command -v npm >/dev/null || need+=(npm)
command -v gnutls-cli >/dev/null || need+=(gnutls-bin)
[ -f /usr/include/gnutls/gnutls.h ] || need+=(libgnutls28-dev)
[ -f /usr/include/wolfssl/ssl.h ] || need+=(libwolfssl-dev)
command -v cc >/dev/null || need+=(gcc libc6-dev)
command -v javac >/dev/null || need+=(default-jdk-headless)
command -v swtpm >/dev/null || need+=(swtpm)
command -v swtpm_setup >/dev/null || need+=(swtpm-tools)
command -v tpm2 >/dev/null || need+=(tpm2-tools)
[ -n "$(find /usr/lib -name tpm2.so -path '*ossl-modules*' 2>/dev/null)" ] || need+=(tpm2-openssl)
command -v zbarimg >/dev/null || need+=(zbar-tools)
command -v haproxy >/dev/null || need+=(haproxy)
if [ ${#need[@]} -gt 0 ]; then
	as_root apt-get update -qq
	as_root apt-get install -y -qq --no-install-recommends "${need[@]}"
fi
[ -d medplum/node_modules/@medplum/hl7 ] || (cd medplum && npm install --no-audit --no-fund --no-package-lock --silent)
