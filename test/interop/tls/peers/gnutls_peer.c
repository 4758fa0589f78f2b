/* GnuTLS as a platform for one TLS connection.
 *
 *   gnutls_peer serve CERT KEY TRUST VERSION RESPONSE...
 *
 * It says "port N", and ends with "done VERSION SUITE TEXT" or with "failed" and
 * the reason. Each RESPONSE is stapled to the certificate that it is about: in
 * TLS 1.3 to any of the chain, in TLS 1.2 to the leaf, as this library has no
 * RFC 6961. gnutls-serv, which comes with it, speaks HTTP or repeats what it
 * gets, and listens on every address.
 */
#include <gnutls/gnutls.h>

#include "peer.h"

static void must(int ret, const char *what)
{
	if (ret >= 0)
		return;
	printf("failed %s: %s\n", what, gnutls_strerror(ret));
	exit(1);
}

static int take(void *s, char *b, int n) { return (int)gnutls_record_recv(s, b, n); }
static int give(void *s, const char *b, int n) { return (int)gnutls_record_send(s, b, n); }

int main(int argc, char **argv)
{
	gnutls_certificate_credentials_t cred;
	gnutls_session_t s;
	char priority[64];
	int i, fd, ret;
	peer p = {.read = take, .write = give};

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc < 6 || strcmp(argv[1], "serve") != 0) {
		fprintf(stderr, "usage: gnutls_peer serve CERT KEY TRUST VERSION RESPONSE...\n");
		return 2;
	}
	snprintf(priority, sizeof priority, "NORMAL:-VERS-ALL:+VERS-TLS%s", argv[5]);
	must(gnutls_certificate_allocate_credentials(&cred), "credentials");
	must(gnutls_certificate_set_x509_key_file(cred, argv[2], argv[3], GNUTLS_X509_FMT_PEM), "certificate");
	must(gnutls_certificate_set_x509_trust_file(cred, argv[4], GNUTLS_X509_FMT_PEM), "trust");
	for (i = 6; i < argc; i++)
		must(gnutls_certificate_set_ocsp_status_request_file2(cred, argv[i], 0, GNUTLS_X509_FMT_DER), argv[i]);
	must(gnutls_init(&s, GNUTLS_SERVER), "session");
	must(gnutls_priority_set_direct(s, priority, NULL), "version");
	must(gnutls_credentials_set(s, GNUTLS_CRD_CERTIFICATE, cred), "credentials");
	gnutls_certificate_server_set_request(s, GNUTLS_CERT_REQUIRE);
	gnutls_session_set_verify_cert(s, NULL, 0);
	fd = loopback(0);
	gnutls_transport_set_int(s, fd); /* a macro that uses it twice */
	do
		ret = gnutls_handshake(s);
	while (ret < 0 && !gnutls_error_is_fatal(ret));
	if (ret == GNUTLS_E_FATAL_ALERT_RECEIVED)
		printf("failed handshake: alert received %d\n", gnutls_alert_get(s));
	must(ret, "handshake");
	p.session = s;
	serve(&p, gnutls_protocol_get_name(gnutls_protocol_get_version(s)), gnutls_cipher_get_name(gnutls_cipher_get(s)));
	return 0;
}
