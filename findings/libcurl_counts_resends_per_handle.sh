#!/bin/bash
# Version: libcurl 7.88.1 (Debian's libcurl4 and libcurl4-openssl-dev
# 7.88.1-10+deb12u15), libssl as installed.
#
# Behaviour: when a kept connection turns out to be dead, libcurl sends the
# request again over a new one by itself, and gives up when it has done so five
# times.  It counts over the life of the easy handle, not over one request:
# curl_easy_perform() does not set the count back, curl_easy_reset() does.  So a
# handle that is used again and again, as the documentation recommends, fails
# now and then for no fault of the request's.
#
# Output seen: of 24 requests over one handle, to a server that closes every
# connection when it has read a second request, the 7th, the 14th and the 21st
# fail with "Connection died, tried 5 times before giving up"; with
# curl_easy_reset() before each request none fails.
#
# Why the obvious guess is wrong: the limit of five reads as if it were one
# request's, other state of a transfer is set back when the next one begins, and
# each of the requests before the one that fails met one dead connection, too,
# and succeeded.
#
# Needs Debian 12 (amd64), gcc and python3.  Listens on loopback.
set -euo pipefail

version=7.88.1-10+deb12u15
work=$(mktemp -d)
server= results=
trap '[[ $server ]] && kill "$server" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"

apt-get download -q "libcurl4=$version" "libcurl4-openssl-dev=$version" >apt.log 2>&1 ||
	{ cat apt.log; exit 1; }
for package in *.deb; do dpkg-deb -x "$package" root; done
lib=$(dirname "$(find root -name libcurl.so.4)")

# Answers the first request of a connection, reads the second one, and closes.
cat >server.py <<'END'
import socket, threading
def serve(s):
    data = b""
    for answer in (True, False):
        while b"\r\n\r\n" not in data:
            more = s.recv(65536)
            if not more:
                return s.close()
            data += more
        data = data.split(b"\r\n\r\n", 1)[1]
        if answer:
            s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    s.close()
l = socket.create_server(("127.0.0.1", 0))
print(l.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(l.accept()[0],), daemon=True).start()
END

cat >ask.c <<'END'
#include <curl/curl.h>
#include <stdio.h>
#include <string.h>

static size_t discard(char *p, size_t one, size_t n, void *arg) { return n; }

int main(int argc, char **argv)
{
	CURL *easy = curl_easy_init();
	int failed = 0;

	for (int i = 1; i <= 24; i++)
	{
		char error[CURL_ERROR_SIZE] = "";

		if (strcmp(argv[2], "reset") == 0)
			curl_easy_reset(easy);
		curl_easy_setopt(easy, CURLOPT_URL, argv[1]);
		curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, discard);
		curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, error);
		if (curl_easy_perform(easy) != CURLE_OK)
		{
			failed++;
			fprintf(stderr, "request %d: %s\n", i, error);
		}
	}
	printf("%s %d\n", curl_version_info(CURLVERSION_NOW)->version, failed);
	return 0;
}
END
gcc -o ask -Iroot/usr/include/x86_64-linux-gnu ask.c "$lib/libcurl.so.4" -Wl,-rpath,"$PWD/$lib"

exec {port_of}< <(exec python3 server.py)
server=$!
read -r -u "$port_of" port

for way in keep reset; do
	result=$(./ask "http://127.0.0.1:$port/" "$way" 2>"errors.$way")
	echo "one handle, $way: $result of 24 failed"
	cat "errors.$way"
	results+=$result,
done
[[ $results == '7.88.1 3,7.88.1 0,' ]] &&
	[[ $(grep -c 'tried 5 times' errors.keep) == 3 ]] ||
	{ echo "the behaviour has changed"; exit 1; }
