/* wolfSSL as the other side of one TLS connection.
 *
 *   wolfssl_peer serve CERT KEY TRUST VERSION SUITES
 *   wolfssl_peer call  CERT KEY TRUST VERSION SUITES PORT HOST MESSAGE
 *
 * VERSION is 1.2 or 1.3, SUITES a list with colons or "-". serve says "port N"
 * and takes one connection; both end with "done VERSION SUITE TEXT" or with
 * "failed" and the reason. A device also says "hash N", the SHA-256 of the
 * platform's certificate. As a platform it fetches the responses for its chain
 * and staples them; as a device it demands those of RFC 6961 in TLS 1.2 and
 * that of the leaf in TLS 1.3, which is all that this library can. TRUST holds
 * the roots, and for a platform the issuing CA too.
 */
#include <wolfssl/options.h>
#include <wolfssl/ssl.h>
#include <wolfssl/wolfcrypt/sha256.h>

#include "peer.h"

static void fail(const char *what, WOLFSSL *ssl, int ret)
{
	char reason[160] = "";
	WOLFSSL_ALERT_HISTORY alerts;
	int code = wolfSSL_get_error(ssl, ret);

	memset(&alerts, 0, sizeof alerts);
	wolfSSL_get_alert_history(ssl, &alerts);
	wolfSSL_ERR_error_string((unsigned long)code, reason);
	printf("failed %s: %d %s; alert received %d, sent %d\n", what, code, reason, alerts.last_rx.code, alerts.last_tx.code);
	exit(1);
}

static void must(int ret, const char *what)
{
	if (ret != WOLFSSL_SUCCESS)
		give_up(what);
}

static WOLFSSL_CTX *context(char **arg, int server)
{
	int v13 = strcmp(arg[3], "1.3") == 0;
	WOLFSSL_METHOD *method = server ? (v13 ? wolfTLSv1_3_server_method() : wolfTLSv1_2_server_method())
	                                : (v13 ? wolfTLSv1_3_client_method() : wolfTLSv1_2_client_method());
	WOLFSSL_CTX *ctx = wolfSSL_CTX_new(method);

	if (ctx == NULL)
		give_up("context");
	must(wolfSSL_CTX_use_certificate_chain_file(ctx, arg[0]), "certificate");
	must(wolfSSL_CTX_use_PrivateKey_file(ctx, arg[1], SSL_FILETYPE_PEM), "key");
	must(wolfSSL_CTX_load_verify_locations(ctx, arg[2], NULL), "trust");
	wolfSSL_CTX_set_verify(ctx, WOLFSSL_VERIFY_PEER | WOLFSSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	if (strcmp(arg[4], "-") != 0)
		must(wolfSSL_CTX_set_cipher_list(ctx, arg[4]), "suites");
	must(wolfSSL_CTX_EnableOCSPStapling(ctx), "stapling");
	if (server)
		return ctx;
	must(wolfSSL_CTX_EnableOCSPMustStaple(ctx), "must staple");
	if (v13)
		must(wolfSSL_CTX_UseOCSPStapling(ctx, WOLFSSL_CSR_OCSP, 0), "status_request");
	else
		must(wolfSSL_CTX_UseOCSPStaplingV2(ctx, WOLFSSL_CSR2_OCSP_MULTI, 0), "status_request_v2");
	return ctx;
}

static int take(void *s, char *b, int n) { return wolfSSL_read(s, b, n); }
static int give(void *s, const char *b, int n) { return wolfSSL_write(s, b, n); }

static void hash(WOLFSSL *ssl)
{
	WOLFSSL_X509 *cert = wolfSSL_get_peer_certificate(ssl);
	const unsigned char *der;
	unsigned char sum[WC_SHA256_DIGEST_SIZE];
	int n, i;

	if (cert == NULL || (der = wolfSSL_X509_get_der(cert, &n)) == NULL || wc_Sha256Hash(der, (word32)n, sum) != 0)
		give_up("certificate of the peer");
	printf("hash ");
	for (i = 0; i < WC_SHA256_DIGEST_SIZE; i++)
		printf("%02x", sum[i]);
	printf("\n");
	wolfSSL_X509_free(cert);
}

static void call(peer *p, const char *file)
{
	static char message[MAX + 1];
	FILE *f = fopen(file, "rb");

	if (f == NULL)
		give_up("message");
	write_block(p, message, (int)fread(message, 1, MAX, f));
	read_block(p, message);
	done(wolfSSL_get_version(p->session), wolfSSL_get_cipher_name(p->session), message);
	hash(p->session);
	wolfSSL_shutdown(p->session);
}

int main(int argc, char **argv)
{
	int server = argc == 7 && strcmp(argv[1], "serve") == 0, ret;
	peer p = {.read = take, .write = give};
	WOLFSSL *ssl;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!server && !(argc == 10 && strcmp(argv[1], "call") == 0)) {
		fprintf(stderr, "usage: wolfssl_peer serve|call CERT KEY TRUST VERSION SUITES [PORT HOST MESSAGE]\n");
		return 2;
	}
	wolfSSL_Init();
	ssl = wolfSSL_new(context(argv + 2, server));
	if (ssl == NULL || wolfSSL_set_fd(ssl, loopback(server ? 0 : atoi(argv[7]))) != WOLFSSL_SUCCESS)
		give_up("session");
	if (!server)
		must(wolfSSL_check_domain_name(ssl, argv[8]), "host");
	ret = server ? wolfSSL_accept(ssl) : wolfSSL_connect(ssl);
	if (ret != WOLFSSL_SUCCESS)
		fail("handshake", ssl, ret);
	p.session = ssl;
	if (server)
		serve(&p, wolfSSL_get_version(ssl), wolfSSL_get_cipher_name(ssl));
	else
		call(&p, argv[9]);
	return 0;
}
