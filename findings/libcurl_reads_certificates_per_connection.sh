#!/bin/bash
# Version: libcurl 8.22.0 (Debian's libcurl4t64 and libcurl4-openssl-dev 8.22.0-1),
# and its libraries as installed.
#
# Behaviour: transfers of one multi handle that verify the server with a file of
# certificate authorities (CURLOPT_CAINFO, with CURLOPT_CAPATH set to NULL) read and
# parse that file again for each new connection.  CURLOPT_CA_CACHE_TIMEOUT, at its
# default of a day or set explicitly, does not change that.
#
# Output seen: eight transfers, one after another, each over a connection of its own,
# read the bundle of certificates 8 times.
#
# Why the obvious guess is wrong: the documentation of CURLOPT_CA_CACHE_TIMEOUT says
# that the certificate store is kept in memory, and that this saves the time to load
# it for each connection, for as long as the file and path do not change.  With
# 7.88.1, 8.14.1 and 8.23.0 the same program reads the bundle once.  Parsing a bundle
# of 140 certificates takes OpenSSL 3 about 20 ms, so a client that opens many
# connections at once spends its time there.
#
# Needs Debian testing (amd64), gcc, openssl and python3.  Listens on loopback.
set -euo pipefail

version=8.22.0-1
work=$(mktemp -d)
pid=
trap '[[ $pid ]] && kill "$pid" 2>/dev/null; wait; rm -rf "$work"' EXIT
cd "$work"

apt-get download -q "libcurl4t64=$version" "libcurl4-openssl-dev=$version" \
	>apt.log 2>&1 || { cat apt.log; exit 1; }
for package in *.deb; do dpkg-deb -x "$package" root; done
lib=$PWD/$(dirname "$(find root -name libcurl.so.4)")

# The bundle: the certificate of the server, and 140 that verify nothing here
openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 \
	-subj /CN=localhost -addext subjectAltName=DNS:localhost 2>openssl.log
cp cert.pem bundle.pem
for i in {1..140}; do
	openssl req -x509 -key key.pem -out other.pem -days 2 -subj "/CN=authority $i"
	cat other.pem >>bundle.pem
done

# Answers one request on each connection, and closes it.
cat >server.py <<'END'
import socket, ssl, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("cert.pem", "key.pem")
def serve(plain):
    s = context.wrap_socket(plain, server_side=True)
    data = b""
    while b"\r\n\r\n" not in data:
        data += s.recv(65536)
    s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    s.close()
l = socket.create_server(("127.0.0.1", 0), backlog=512)
print(l.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(l.accept()[0],), daemon=True).start()
END

cat >ask.c <<'END'
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>

static size_t discard(char *p, size_t one, size_t n, void *arg) { return n; }

/* Number of bytes that this process has read. */
static long bytes_read(void)
{
	FILE *f = fopen("/proc/self/io", "r");
	long n;

	if (f == NULL || fscanf(f, "rchar: %ld", &n) != 1)
		exit(2);
	fclose(f);
	return n;
}

int main(int argc, char **argv)
{
	CURLM *multi;
	long before, size = atol(argv[2]);

	curl_global_init(CURL_GLOBAL_ALL);
	multi = curl_multi_init();
	before = bytes_read();
	for (int i = 0; i < 8; i++)
	{
		CURL *easy = curl_easy_init();
		CURLMsg *message;
		int running, left;

		curl_easy_setopt(easy, CURLOPT_URL, argv[1]);
		curl_easy_setopt(easy, CURLOPT_CAINFO, "bundle.pem");
		curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
		curl_easy_setopt(easy, CURLOPT_CA_CACHE_TIMEOUT, 86400L);
		curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
		curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, discard);
		curl_multi_add_handle(multi, easy);
		do
		{
			curl_multi_perform(multi, &running);
			curl_multi_poll(multi, NULL, 0, 100, NULL);
		} while (running);
		message = curl_multi_info_read(multi, &left);
		if (message == NULL || message->data.result != CURLE_OK)
		{
			fprintf(stderr, "transfer %d failed: %s\n", i + 1,
					message ? curl_easy_strerror(message->data.result) : "no message");
			return 2;
		}
		curl_multi_remove_handle(multi, easy);
		curl_easy_cleanup(easy);
	}
	printf("%ld\n", (bytes_read() - before) / size);
	return 0;
}
END
gcc -o ask -Iroot/usr/include/x86_64-linux-gnu ask.c "$lib/libcurl.so.4" -Wl,-rpath,"$lib"

exec 3< <(exec python3 server.py 2>server.log)
pid=$!
read -r port <&3
seen=$(./ask "https://localhost:$port/" "$(stat -c %s bundle.pem)")
echo "times the bundle was read by 8 transfers: $seen"
[[ $seen == 8 ]] || { echo "the behaviour has changed" >&2; exit 1; }
