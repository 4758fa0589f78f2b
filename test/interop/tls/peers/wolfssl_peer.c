/* wolfSSL as the other side of one TLS connection.
 *
 *   wolfssl_peer serve CERT KEY TRUST VERSION SUITES
 *   wolfssl_peer call  CERT KEY TRUST VERSION SUITES PORT HOST MESSAGE
 *
 * VERSION is 1.2 or 1.3, SUITES a list with colons or "-". serve says "port N"
 * and takes one connection; both end with "done VERSION SUITE TEXT" or with
 * "failed" and the reason. As a platform it fetches the responses for its chain
 * and staples them; as a device it demands those of RFC 6961 in TLS 1.2 and
 * that of the leaf in TLS 1.3, which is all that this library can. TRUST holds
 * the roots, and for a platform the issuing CA too.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <wolfssl/options.h>
#include <wolfssl/ssl.h>

enum { FIRST = 0x0b, LAST = 0x1c, MAX = 65536 };

static void fail(const char *what, WOLFSSL *ssl, int ret)
{
	char reason[160] = "";
	WOLFSSL_ALERT_HISTORY alerts;
	int code = ret;

	memset(&alerts, 0, sizeof alerts);
	if (ssl != NULL) {
		code = wolfSSL_get_error(ssl, ret);
		wolfSSL_get_alert_history(ssl, &alerts);
	}
	wolfSSL_ERR_error_string((unsigned long)code, reason);
	printf("failed %s: %d %s; alert received %d, sent %d\n", what, code, reason, alerts.last_rx.code, alerts.last_tx.code);
	exit(1);
}

static void must(int ret, const char *what)
{
	if (ret != WOLFSSL_SUCCESS)
		fail(what, NULL, ret);
}

static WOLFSSL_CTX *context(char **arg, int server)
{
	int v13 = strcmp(arg[3], "1.3") == 0;
	WOLFSSL_METHOD *method = server ? (v13 ? wolfTLSv1_3_server_method() : wolfTLSv1_2_server_method())
	                                : (v13 ? wolfTLSv1_3_client_method() : wolfTLSv1_2_client_method());
	WOLFSSL_CTX *ctx = wolfSSL_CTX_new(method);

	if (ctx == NULL)
		fail("context", NULL, 0);
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

static void write_block(WOLFSSL *ssl, const char *message, int n)
{
	char block[MAX + 3];

	block[0] = FIRST;
	memcpy(block + 1, message, n);
	block[n + 1] = LAST;
	block[n + 2] = '\r';
	if (wolfSSL_write(ssl, block, n + 3) != n + 3)
		fail("write", ssl, -1);
}

/* read_block leaves the message without its frame, ended by a zero. */
static int read_block(WOLFSSL *ssl, char *b)
{
	int n = 0;

	while (n < 2 || b[n - 2] != LAST || b[n - 1] != '\r') {
		int got = n < MAX ? wolfSSL_read(ssl, b + n, MAX - n) : 0;
		if (got <= 0)
			fail("read", ssl, got);
		n += got;
	}
	if (b[0] != FIRST)
		fail("no MLLP block begins", NULL, 0);
	memmove(b, b + 1, n - 3);
	b[n - 3] = 0;
	return n - 3;
}

/* acknowledge answers by the control ID, MSH-10. */
static void acknowledge(WOLFSSL *ssl, const char *message)
{
	char id[200] = "", ack[600];
	const char *field = message;
	int i;

	for (i = 0; i < 9 && field != NULL; i++)
		if ((field = strchr(field, '|')) != NULL)
			field++;
	if (field != NULL)
		snprintf(id, sizeof id, "%.*s", (int)strcspn(field, "|\r"), field);
	write_block(ssl, ack, snprintf(ack, sizeof ack, "MSH|^~\\&|WOLF||GW||20260101000000+0000||ACK^R01^ACK|A%s|P|2.6\rMSA|CA|%s\r", id, id));
}

static void done(WOLFSSL *ssl, char *text)
{
	char *c;

	for (c = text; *c != 0; c++)
		if (*c == '\r' || *c == '\n')
			*c = ' ';
	printf("done %s %s %s\n", wolfSSL_get_version(ssl), wolfSSL_get_cipher_name(ssl), text);
}

static WOLFSSL *session(WOLFSSL_CTX *ctx, int fd)
{
	struct timeval limit = {20, 0};
	WOLFSSL *ssl = wolfSSL_new(ctx);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (ssl == NULL || wolfSSL_set_fd(ssl, fd) != WOLFSSL_SUCCESS)
		fail("session", NULL, 0);
	return ssl;
}

static void serve(WOLFSSL_CTX *ctx)
{
	static char message[MAX + 1];
	struct sockaddr_in at = {.sin_family = AF_INET};
	socklen_t n = sizeof at;
	int l = socket(AF_INET, SOCK_STREAM, 0), ret;
	WOLFSSL *ssl;

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(l, (struct sockaddr *)&at, n) != 0 || listen(l, 1) != 0 || getsockname(l, (struct sockaddr *)&at, &n) != 0)
		fail("listen", NULL, 0);
	printf("port %d\n", ntohs(at.sin_port));
	ssl = session(ctx, accept(l, NULL, NULL));
	if ((ret = wolfSSL_accept(ssl)) != WOLFSSL_SUCCESS)
		fail("handshake", ssl, ret);
	read_block(ssl, message);
	acknowledge(ssl, message);
	done(ssl, message);
	wolfSSL_read(ssl, message, 1); /* the peer closes first */
}

static void call(WOLFSSL_CTX *ctx, char **arg)
{
	static char message[MAX + 1];
	struct sockaddr_in at = {.sin_family = AF_INET};
	int fd = socket(AF_INET, SOCK_STREAM, 0), ret, n;
	FILE *f = fopen(arg[7], "rb");
	WOLFSSL *ssl;

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	at.sin_port = htons(atoi(arg[5]));
	if (f == NULL || connect(fd, (struct sockaddr *)&at, sizeof at) != 0)
		fail("connect", NULL, 0);
	n = (int)fread(message, 1, MAX, f);
	ssl = session(ctx, fd);
	must(wolfSSL_check_domain_name(ssl, arg[6]), "host");
	if ((ret = wolfSSL_connect(ssl)) != WOLFSSL_SUCCESS)
		fail("handshake", ssl, ret);
	write_block(ssl, message, n);
	read_block(ssl, message);
	done(ssl, message);
	wolfSSL_shutdown(ssl);
}

int main(int argc, char **argv)
{
	int server = argc == 7 && strcmp(argv[1], "serve") == 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!server && !(argc == 10 && strcmp(argv[1], "call") == 0)) {
		fprintf(stderr, "usage: wolfssl_peer serve|call CERT KEY TRUST VERSION SUITES [PORT HOST MESSAGE]\n");
		return 2;
	}
	wolfSSL_Init();
	if (server)
		serve(context(argv + 2, 1));
	else
		call(context(argv + 2, 0), argv + 2);
	return 0;
}
