#!/bin/bash
# Version: libcurl 7.88.1 (Debian's libcurl4 and libcurl4-openssl-dev
# 7.88.1-10+deb12u15), libssl as installed.
#
# Behaviour: when a transfer in a multi handle exceeds CURLOPT_TIMEOUT_MS while it
# waits for its HTTP/1.1 reply, libcurl closes the connection within
# curl_multi_perform(), before curl_multi_info_read() can report the transfer.  By
# then CURLINFO_ACTIVESOCKET is -1.  The function that CURLOPT_CLOSESOCKETFUNCTION
# sets is called while the socket is still open, but is not told which transfer
# used it, or that it has timed out.
#
# Output seen: a transfer that has succeeded is reported with its socket open, and
# CURLINFO_ACTIVESOCKET returns that socket.  A transfer that has timed out is
# reported with its socket closed.
#
# Why the obvious guess is wrong: CURLMSG_DONE tells an application that a transfer
# has ended, and after success its connection exists until the application removes
# the easy handle, and longer.  One expects the same after a failure, and asks the
# kernel then why there was no reply (TCP_INFO: did the peer acknowledge the
# request?).  For a transfer that has timed out, that is possible only in the
# callback that closes the socket.
#
# Needs Debian 12 (amd64), gcc and python3.  Listens on loopback.
set -euo pipefail

version=7.88.1-10+deb12u15
work=$(mktemp -d)
pid=
trap '[[ -z $pid ]] || kill "$pid" 2>/dev/null; wait; rm -rf "$work"' EXIT
cd "$work"

apt-get download -q "libcurl4=$version" "libcurl4-openssl-dev=$version" \
	libnghttp2-14 >apt.log 2>&1 || { cat apt.log; exit 1; }
for package in *.deb; do dpkg-deb -x "$package" root; done
lib=$PWD/$(dirname "$(find root -name libcurl.so.4)")

# Replies to /fast, and never to anything else.
cat >peer.py <<'END'
import socket, threading
def serve(s):
    data = b""
    while True:
        more = s.recv(65536)
        if not more:
            return s.close()
        data += more
        if data.startswith(b"GET /fast ") and data.endswith(b"\r\n\r\n"):
            data = b""
            s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
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

static int nclosed;

static size_t discard(char *p, size_t one, size_t n, void *arg) { return n; }

static int close_socket(void *arg, curl_socket_t s)
{
	nclosed++;
	return close(s);
}

int main(int argc, char **argv)
{
	CURLM *multi = curl_multi_init();
	CURL *easy = curl_easy_init();
	CURLMsg *message;
	curl_socket_t s;
	int running, left;

	curl_easy_setopt(easy, CURLOPT_URL, argv[1]);
	curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, 500L);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, discard);
	curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, close_socket);
	curl_multi_add_handle(multi, easy);
	do
	{
		if (curl_multi_perform(multi, &running) != CURLM_OK)
			exit(1);
		if (running > 0)
			curl_multi_poll(multi, NULL, 0, 1000, NULL);
	} while (running > 0);

	message = curl_multi_info_read(multi, &left);
	if (message == NULL || message->msg != CURLMSG_DONE)
		exit(1);
	curl_easy_getinfo(easy, CURLINFO_ACTIVESOCKET, &s);
	printf("result %d, sockets closed %d, active socket %s\n", (int) message->data.result,
		   nclosed, s == CURL_SOCKET_BAD ? "none" : "open");
	curl_multi_remove_handle(multi, easy);
	curl_easy_cleanup(easy);
	curl_multi_cleanup(multi);
	return 0;
}
END
gcc -o ask -Iroot/usr/include/x86_64-linux-gnu ask.c "$lib/libcurl.so.4" -Wl,-rpath,"$lib"

exec {port_of}< <(exec python3 peer.py)
pid=$!
read -r -u "$port_of" port

fast=$(./ask "http://127.0.0.1:$port/fast")
silent=$(./ask "http://127.0.0.1:$port/silent")
printf 'success:  %s\ntime-out: %s\n' "$fast" "$silent"
[[ $fast == 'result 0, sockets closed 0, active socket open' &&
	$silent == 'result 28, sockets closed 1, active socket none' ]] ||
	{ echo "the behaviour has changed"; exit 1; }
