/*
 * main.c
 *		Options, the certificate, startup and shutdown.
 */
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "standin.h"

Options		options = {
	.keys = {"askr_0123456789abcdef0123456789abcdef"},
	.dim = 1024,
	.link_ttl = 1200,
	.rate_seconds = 60,
	.quota = -1,
	.log = 200000,
	.memory = 524288
};

static const struct option long_options[] = {
	{"http", required_argument, NULL, 'h'},
	{"https", required_argument, NULL, 's'},
	{"dir", required_argument, NULL, 'd'},
	{"key", required_argument, NULL, 'k'},
	{"dim", required_argument, NULL, 'n'},
	{"link-ttl", required_argument, NULL, 't'},
	{"latency", required_argument, NULL, 'l'},
	{"link-base", required_argument, NULL, 'b'},
	{"quota", required_argument, NULL, 'q'},
	{"rate", required_argument, NULL, 'r'},
	{"free-refusals", no_argument, NULL, 'f'},
	{"retry-after", required_argument, NULL, 'a'},
	{"rate-headers", required_argument, NULL, 'H'},
	{"serve", required_argument, NULL, 'S'},
	{"memory", required_argument, NULL, 'm'},
	{"close", no_argument, NULL, 'c'},
	{"log", required_argument, NULL, 'o'},
	{"stdin", no_argument, NULL, 'i'},
	{NULL, 0, NULL, 0}
};

/* Create a CA, and a certificate for this machine's own names. */
static bool
make_certificate(void)
{
	char		command[4096];

	snprintf(command, sizeof(command),
			 "cd '%s' && { "
			 "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30"
			 " -subj '/CN=stand-in CA' -keyout ca.key -out ca.pem"
			 " -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign && "
			 "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
			 " -subj '/CN=localhost' -keyout server.key -out server.csr && "
			 "printf 'subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1,DNS:*.store.example\\n' >server.ext && "
			 "openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -set_serial 1"
			 " -days 30 -extfile server.ext -out server.pem; } >openssl.log 2>&1",
			 options.dir);
	return system(command) == 0;
}

static char *
read_file(const char *name)
{
	char		path[4096];
	char	   *text = calloc(1, 65536);
	FILE	   *file;

	snprintf(path, sizeof(path), "%s/%s", options.dir, name);
	file = fopen(path, "r");
	if (file == NULL || fread(text, 1, 65535, file) == 0)
	{
		fprintf(stderr, "hrflow-api: cannot read %s\n", path);
		exit(1);
	}
	fclose(file);
	return text;
}

/* Parse a rate: "N" per minute, or "N/SECONDS". */
static void
parse_rate(const char *text)
{
	char	   *end;

	options.rate = strtol(text, &end, 10);
	if (*end == '/')
		options.rate_seconds = strtod(end + 1, &end);
	if (*end != '\0' || options.rate < 1 || options.rate_seconds <= 0)
	{
		fprintf(stderr, "hrflow-api: --rate is N or N/SECONDS\n");
		exit(2);
	}
}

static void
parse_options(int argc, char **argv, bool *watch_stdin)
{
	int			c;

	while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1)
	{
		switch (c)
		{
			case 'h':
				options.http_port = atoi(optarg);
				break;
			case 's':
				options.https_port = atoi(optarg);
				break;
			case 'd':
				options.dir = optarg;
				break;
			case 'k':
				if (options.nkeys < (int) (sizeof(options.keys) / sizeof(options.keys[0])))
					options.keys[options.nkeys++] = optarg;
				break;
			case 'n':
				options.dim = atoi(optarg);
				break;
			case 't':
				options.link_ttl = atoi(optarg);
				break;
			case 'l':
				options.latency = atoi(optarg);
				break;
			case 'b':
				options.link_base = optarg;
				break;
			case 'q':
				options.quota = atol(optarg);
				break;
			case 'r':
				parse_rate(optarg);
				break;
			case 'f':
				options.free_refusals = true;
				break;
			case 'a':
				options.retry_after = optarg;
				break;
			case 'H':
				options.rate_headers = optarg;
				break;
			case 'S':
				options.serve = atoi(optarg);
				break;
			case 'm':
				options.memory = atol(optarg);
				break;
			case 'c':
				options.close = true;
				break;
			case 'o':
				options.log = atol(optarg);
				break;
			case 'i':
				*watch_stdin = true;
				break;
			default:
				exit(2);
		}
	}
	if (options.nkeys == 0)
		options.nkeys = 1;
	if (options.dim < 1 || options.dim > 2048)
	{
		fprintf(stderr, "hrflow-api: --dim is 1 to 2048\n");
		exit(2);
	}
}

int
main(int argc, char **argv)
{
	char		made[] = "/tmp/hrflow-api.XXXXXX";
	char		command[4200];
	bool		own_dir;
	bool		watch_stdin = false;
	sigset_t	signals;
	struct timespec tick = {0, 200000000};

	parse_options(argc, argv, &watch_stdin);
	own_dir = options.dir == NULL;
	if (own_dir)
		options.dir = mkdtemp(made);
	if (options.dir == NULL || !make_certificate())
	{
		fprintf(stderr, "hrflow-api: could not make a certificate with openssl\n");
		return 1;
	}

	/*
	 * Block the signals before threads are started, which inherit the mask, so
	 * that sigtimedwait() below receives them.
	 */
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	signal(SIGPIPE, SIG_IGN);

	log_start();
	if (!serve_start(read_file("server.pem"), read_file("server.key")))
	{
		fprintf(stderr, "hrflow-api: could not listen\n");
		return 1;
	}
	printf("http %d\nhttps %d\nca %s/ca.pem\nready\n", serve_http_port(),
		   serve_https_port(), options.dir);
	fflush(stdout);

	for (;;)
	{
		struct pollfd input = {0, POLLIN, 0};
		char		byte;

		if (sigtimedwait(&signals, NULL, &tick) > 0)
			break;
		if (watch_stdin && poll(&input, 1, 0) > 0 && read(0, &byte, 1) == 0)
			break;
	}

	serve_stop();
	if (own_dir)
	{
		snprintf(command, sizeof(command), "rm -rf '%s'", options.dir);
		if (system(command) != 0)
			return 1;
	}
	/* Do not wait for connections that hang. */
	_exit(0);
}
