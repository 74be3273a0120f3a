#!/bin/bash
# Version: libcurl 8.14.1 (Debian's libcurl4t64 and libcurl4-openssl-dev
# 8.14.1-2+deb13u7), and its command's libraries as installed.
#
# Behaviour: a connection that must not be reused is closed gracefully: libcurl
# sends a TLS close_notify and waits for that of the server, for up to two seconds.
# Meanwhile the socket stays open, and belongs to the multi handle.
# CURLOPT_FORBID_REUSE, CURLMOPT_MAXCONNECTS and the removal and cleanup of all easy
# handles do not change that.
#
# Output seen: 20 transfers with CURLOPT_FORBID_REUSE, from a server that does not
# close connections, are complete and their easy handles gone.  Sockets that are
# still open: 20 at once, 20 after one second, 0 after three seconds.
#
# Why the obvious guess is wrong: the documentation of CURLOPT_FORBID_REUSE says
# that libcurl explicitly closes the connection when it is done with the transfer,
# and libcurl 7.88.1 has closed all sockets by then (this program prints 0 0 0 with
# it).  So an application with few descriptors that forbids reuse, and waits for one
# transfer before it starts the next, expects to need one socket; it needs as many
# as it makes requests in two seconds.  Only curl_multi_cleanup() closes them at
# once.
#
# Needs Debian 13 (amd64), gcc, openssl and python3.  Listens on loopback.
set -euo pipefail

version=8.14.1-2+deb13u7
work=$(mktemp -d)
pid=
trap '[[ $pid ]] && kill "$pid" 2>/dev/null; wait; rm -rf "$work"' EXIT
cd "$work"

apt-get download -q "libcurl4t64=$version" "libcurl4-openssl-dev=$version" \
	>apt.log 2>&1 || { cat apt.log; exit 1; }
for package in *.deb; do dpkg-deb -x "$package" root; done
lib=$PWD/$(dirname "$(find root -name libcurl.so.4)")
openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 \
	-subj /CN=localhost 2>openssl.log

# Answers one request on each connection, which it leaves open.
cat >server.py <<'END'
import socket, ssl, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("cert.pem", "key.pem")
kept = []
def serve(plain):
    s = context.wrap_socket(plain, server_side=True)
    kept.append(s)
    data = b""
    while b"\r\n\r\n" not in data:
        data += s.recv(65536)
    s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
l = socket.create_server(("127.0.0.1", 0), backlog=512)
print(l.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(l.accept()[0],), daemon=True).start()
END

cat >ask.c <<'END'
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#define N 20

static size_t discard(char *p, size_t one, size_t n, void *arg) { return n; }

static int count_sockets(void)
{
	struct stat st;
	int n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
	return n;
}

/* Let libcurl work until a time in seconds. */
static void work(CURLM *multi, double until)
{
	struct timespec now;
	int running;

	do
	{
		if (curl_multi_perform(multi, &running) != CURLM_OK)
			exit(1);
		curl_multi_poll(multi, NULL, 0, 100, NULL);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (running > 0 || now.tv_sec + now.tv_nsec / 1e9 < until);
}

int main(int argc, char **argv)
{
	CURLM *multi = curl_multi_init();
	CURL *easy[N];
	struct timespec end;
	int before, at_once, after_one;

	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, 1L);
	for (int i = 0; i < N; i++)
	{
		easy[i] = curl_easy_init();
		curl_easy_setopt(easy[i], CURLOPT_URL, argv[1]);
		curl_easy_setopt(easy[i], CURLOPT_SSL_VERIFYPEER, 0L);
		curl_easy_setopt(easy[i], CURLOPT_SSL_VERIFYHOST, 0L);
		curl_easy_setopt(easy[i], CURLOPT_FORBID_REUSE, 1L);
		curl_easy_setopt(easy[i], CURLOPT_WRITEFUNCTION, discard);
	}
	before = count_sockets();
	for (int i = 0; i < N; i++)
		curl_multi_add_handle(multi, easy[i]);
	work(multi, 0);
	for (int i = 0; i < N; i++)
	{
		long status = 0;

		curl_easy_getinfo(easy[i], CURLINFO_RESPONSE_CODE, &status);
		if (status != 200)
			return 1;
		curl_multi_remove_handle(multi, easy[i]);
		curl_easy_cleanup(easy[i]);
	}
	at_once = count_sockets() - before;
	clock_gettime(CLOCK_MONOTONIC, &end);
	work(multi, end.tv_sec + 1);
	after_one = count_sockets() - before;
	work(multi, end.tv_sec + 4);
	printf("%s %d %d %d\n", curl_version_info(CURLVERSION_NOW)->version, at_once,
		   after_one, count_sockets() - before);
	return 0;
}
END
gcc -o ask -Iroot/usr/include/x86_64-linux-gnu ask.c "$lib/libcurl.so.4" -Wl,-rpath,"$lib"

exec {port_of}< <(exec python3 server.py)
pid=$!
read -r -u "$port_of" port

result=$(./ask "https://127.0.0.1:$port/")
echo "libcurl, sockets at once, after 1 s and after 3 s: $result"
[[ $result == '8.14.1 20 20 0' ]] || { echo "the behaviour has changed"; exit 1; }
