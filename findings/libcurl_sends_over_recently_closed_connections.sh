#!/bin/bash
# Version: libcurl 8.22.0 (Debian's libcurl4t64 and libcurl4-openssl-dev 8.22.0-1),
# and its libraries as installed.
#
# Behaviour: before libcurl sends a request over a kept connection, it checks whether
# the server has closed the connection, unless the connection was in use within the
# last second.  The request then goes out over a connection whose FIN arrived long
# before.  libcurl notices that afterwards, and sends the request again over a new
# connection, even if it is a POST.
#
# Output seen: a server answers a POST and closes the connection 0.1 s later.  The
# next POST over the same handle is sent twice if it follows after 0.4 s, and once
# if it follows after 1.5 s.
#
# Why the obvious guess is wrong: that the server has closed the connection can be
# read from the socket at any time without waiting, and with 7.88.1 and 8.14.1 the
# same program sends each POST once (it prints 1 1).  So one takes it that libcurl
# does not send over a connection that it could know to be closed.  An application
# that must not send a POST twice relies on that: CURLOPT_PREREQFUNCTION tells it that
# the POST is about to be sent again, and it refuses, since the server may have
# processed the first one.  With this version such a POST fails, although it was lost
# only because libcurl did not look.
#
# Needs Debian testing (amd64), gcc and python3.  Listens on loopback.
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

# Answers one request on each connection, and closes it 0.1 s later.
cat >server.py <<'END'
import socket, threading, time
def serve(s):
    data = b""
    while not data.endswith(b"\r\n\r\nbody"):
        more = s.recv(65536)
        if not more:
            return s.close()
        data += more
    s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    time.sleep(0.1)
    s.close()
l = socket.create_server(("127.0.0.1", 0))
print(l.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(l.accept()[0],), daemon=True).start()
END

cat >ask.c <<'END'
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static size_t discard(char *p, size_t one, size_t n, void *arg) { return n; }

static int count(void *sent, char *remote, char *local, int remote_port, int local_port)
{
	++*(int *) sent;
	return CURL_PREREQFUNC_OK;
}

/* Post; return how many times the request was sent. */
static int post(CURL *easy)
{
	int sent = 0;
	CURLcode code;

	curl_easy_setopt(easy, CURLOPT_PREREQDATA, &sent);
	code = curl_easy_perform(easy);
	if (code != CURLE_OK)
	{
		fprintf(stderr, "%s\n", curl_easy_strerror(code));
		exit(1);
	}
	return sent;
}

int main(int argc, char **argv)
{
	useconds_t pauses[] = {400000, 1500000};

	printf("%s", curl_version_info(CURLVERSION_NOW)->version);
	for (int i = 0; i < 2; i++)
	{
		CURL *easy = curl_easy_init();

		curl_easy_setopt(easy, CURLOPT_URL, argv[1]);
		curl_easy_setopt(easy, CURLOPT_POSTFIELDS, "body");
		curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, count);
		curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, discard);
		if (post(easy) != 1)
			return 1;
		usleep(pauses[i]);
		printf(" %d", post(easy));
		curl_easy_cleanup(easy);
	}
	printf("\n");
	return 0;
}
END
gcc -o ask -Iroot/usr/include/x86_64-linux-gnu ask.c "$lib/libcurl.so.4" -Wl,-rpath,"$lib"

exec {port_of}< <(exec python3 server.py)
pid=$!
read -r -u "$port_of" port

result=$(./ask "http://127.0.0.1:$port/")
echo "libcurl, times that a POST was sent after 0.4 s and after 1.5 s: $result"
[[ $result == '8.22.0 2 1' ]] || { echo "the behaviour has changed"; exit 1; }
