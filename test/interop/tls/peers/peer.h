/* What the peers in C share: a loopback socket, MLLP and an acknowledgement.
 * The TLS library comes in by two functions that read and write as read(2) and
 * write(2) do. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { FIRST = 0x0b, LAST = 0x1c, MAX = 65536 };

typedef struct {
	void *session;
	int (*read)(void *session, char *b, int n);
	int (*write)(void *session, const char *b, int n);
} peer;

static void give_up(const char *what)
{
	printf("failed %s\n", what);
	exit(1);
}

/* loopback connects to a port, or for port 0 says on which it listens and
 * takes one connection. */
static int loopback(int port)
{
	struct timeval limit = {20, 0};
	struct sockaddr_in at = {.sin_family = AF_INET};
	socklen_t n = sizeof at;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	at.sin_port = htons(port);
	if (port != 0) {
		if (connect(fd, (struct sockaddr *)&at, n) != 0)
			give_up("connect");
	} else {
		if (bind(fd, (struct sockaddr *)&at, n) != 0 || listen(fd, 1) != 0 || getsockname(fd, (struct sockaddr *)&at, &n) != 0)
			give_up("listen");
		printf("port %d\n", ntohs(at.sin_port));
		if ((fd = accept(fd, NULL, NULL)) < 0)
			give_up("accept");
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	return fd;
}

static void write_block(peer *p, const char *message, int n)
{
	static char block[MAX + 3];

	block[0] = FIRST;
	memcpy(block + 1, message, n);
	block[n + 1] = LAST;
	block[n + 2] = '\r';
	if (p->write(p->session, block, n + 3) != n + 3)
		give_up("write");
}

/* read_block leaves the message without its frame, ended by a zero. */
static void read_block(peer *p, char *b)
{
	int n = 0, got;

	while (n < 2 || b[n - 2] != LAST || b[n - 1] != '\r') {
		got = n < MAX ? p->read(p->session, b + n, MAX - n) : 0;
		if (got <= 0)
			give_up("read");
		n += got;
	}
	if (n < 3 || b[0] != FIRST)
		give_up("no MLLP block begins");
	memmove(b, b + 1, n - 3);
	b[n - 3] = 0;
}

/* acknowledge answers by the control ID, MSH-10. */
static void acknowledge(peer *p, const char *message)
{
	char id[200] = "", ack[600];
	const char *field = message;
	int i;

	for (i = 0; i < 9 && field != NULL; i++)
		if ((field = strchr(field, '|')) != NULL)
			field++;
	if (field != NULL)
		snprintf(id, sizeof id, "%.*s", (int)strcspn(field, "|\r"), field);
	write_block(p, ack, snprintf(ack, sizeof ack, "MSH|^~\\&|PEER||GW||20260101000000+0000||ACK^R01^ACK|A%s|P|2.6\rMSA|CA|%s\r", id, id));
}

static void done(const char *version, const char *suite, char *text)
{
	char *c;

	for (c = text; *c != 0; c++)
		if (*c == '\r' || *c == '\n')
			*c = ' ';
	printf("done %s %s %s\n", version, suite, text);
}

/* take one message and acknowledge it; the other side closes first. */
static void serve(peer *p, const char *version, const char *suite)
{
	static char message[MAX + 1];

	read_block(p, message);
	acknowledge(p, message);
	done(version, suite, message);
	p->read(p->session, message, 1);
}
