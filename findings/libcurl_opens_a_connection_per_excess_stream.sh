#!/bin/bash
# Version: libcurl 7.88.1 (Debian's libcurl4 and libcurl4-openssl-dev
# 7.88.1-10+deb12u15), nghttpx (nghttp2-proxy 1.52.0-1+deb12u3), libssl as
# installed.
#
# Behaviour: a server allows 100 concurrent streams on an HTTP/2 connection.  If
# an application starts more transfers than that in a multi handle, each of those
# that do not fit on the first connection opens a connection of its own, although
# CURLOPT_PIPEWAIT is set for all of them, and although the server allows 100
# streams on each of these connections, too.
#
# Output seen: after one request, by which libcurl has learnt the limit, 100
# transfers that are started together open no further connection, and 128 open
# 28, each of which carries one request.
#
# Why the obvious guess is wrong: CURLOPT_PIPEWAIT says that a transfer waits for
# a connection that can be multiplexed rather than open another one, and
# CURLINFO_HTTP_VERSION is 2 for all transfers.  One expects a second connection
# that the 28 share, or that they wait for a stream of the first.  Transfers wait
# only for a connection of which it is not known yet whether it can be
# multiplexed; here a full connection is known to be one, so that each of the 28
# opens its own at once.  CURLMOPT_MAX_HOST_CONNECTIONS limits them.
#
# Needs Debian 12 (amd64), gcc, openssl and python3.  Listens on loopback.
set -euo pipefail

version=7.88.1-10+deb12u15
work=$(mktemp -d)
pids=() results=
trap 'for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done; wait; rm -rf "$work"' EXIT
cd "$work"

apt-get download -q "libcurl4=$version" "libcurl4-openssl-dev=$version" \
	nghttp2-proxy=1.52.0-1+deb12u3 libnghttp2-14 libev4 libjemalloc2 libc-ares2 \
	>apt.log 2>&1 || { cat apt.log; exit 1; }
for package in *.deb; do dpkg-deb -x "$package" root; done
lib=$PWD/$(dirname "$(find root -name libcurl.so.4)")
openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 \
	-subj /CN=localhost 2>openssl.log

# Answers each request after half a second.
cat >slow.py <<'END'
import socket, threading, time
def serve(s):
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            more = s.recv(65536)
            if not more:
                return s.close()
            data += more
        data = data.split(b"\r\n\r\n", 1)[1]
        time.sleep(0.5)
        s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
l = socket.create_server(("127.0.0.1", 0), backlog=512)
free = socket.create_server(("127.0.0.1", 0))
port = free.getsockname()[1]
free.close()
print(l.getsockname()[1], port, flush=True)
while True:
    threading.Thread(target=serve, args=(l.accept()[0],), daemon=True).start()
END

cat >ask.c <<'END'
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>

static size_t discard(char *p, size_t one, size_t n, void *arg) { return n; }

/* Perform n transfers together; return how many connections they opened. */
static long ask(CURLM *multi, const char *url, int n)
{
	CURL **easy = calloc(n, sizeof(*easy));
	long sum = 0;
	int running;

	for (int i = 0; i < n; i++)
	{
		easy[i] = curl_easy_init();
		curl_easy_setopt(easy[i], CURLOPT_URL, url);
		curl_easy_setopt(easy[i], CURLOPT_SSL_VERIFYPEER, 0L);
		curl_easy_setopt(easy[i], CURLOPT_SSL_VERIFYHOST, 0L);
		curl_easy_setopt(easy[i], CURLOPT_PIPEWAIT, 1L);
		curl_easy_setopt(easy[i], CURLOPT_WRITEFUNCTION, discard);
		curl_multi_add_handle(multi, easy[i]);
	}
	do
	{
		if (curl_multi_perform(multi, &running) != CURLM_OK)
			exit(1);
		curl_multi_poll(multi, NULL, 0, 1000, NULL);
	} while (running > 0);
	for (int i = 0; i < n; i++)
	{
		long connects = 0, http = 0;

		curl_easy_getinfo(easy[i], CURLINFO_NUM_CONNECTS, &connects);
		curl_easy_getinfo(easy[i], CURLINFO_HTTP_VERSION, &http);
		if (http != CURL_HTTP_VERSION_2_0)
			fprintf(stderr, "transfer %d did not use HTTP/2\n", i);
		sum += connects;
		curl_multi_remove_handle(multi, easy[i]);
		curl_easy_cleanup(easy[i]);
	}
	free(easy);
	return sum;
}

int main(int argc, char **argv)
{
	CURLM *multi = curl_multi_init();
	long first = ask(multi, argv[1], 1);

	printf("%s %ld %ld\n", curl_version_info(CURLVERSION_NOW)->version, first,
		   ask(multi, argv[1], atoi(argv[2])));
	return 0;
}
END
gcc -o ask -Iroot/usr/include/x86_64-linux-gnu ask.c "$lib/libcurl.so.4" -Wl,-rpath,"$lib"

exec {ports_of}< <(exec python3 slow.py)
pids+=($!)
read -r -u "$ports_of" backend port
LD_LIBRARY_PATH=$lib root/usr/sbin/nghttpx --conf=/dev/null -f127.0.0.1,"$port" \
	-b127.0.0.1,"$backend" key.pem cert.pem >nghttpx.log 2>&1 &
pids+=($!)
for _ in {1..50}; do
	(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
	sleep 0.1
done

for n in 100 128; do
	result=$(./ask "https://127.0.0.1:$port/" "$n" 2>"errors.$n")
	echo "$n transfers: libcurl, connections of the first request and of these: $result"
	cat "errors.$n"
	results+=$result,
done
[[ $results == '7.88.1 1 0,7.88.1 1 28,' && ! -s errors.100 && ! -s errors.128 ]] ||
	{ echo "the behaviour has changed"; exit 1; }
