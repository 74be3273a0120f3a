"""A TLS server that refuses HTTP/2, in the way that its first argument names.

    http2_peer.py WAY CERTIFICATE KEY LOG

With "linger" it offers only HTTP/1.1, and answers one request on each connection,
which says that the connection is closed.  But it neither closes it nor notices
that the client does.  With "stray" it offers only HTTP/1.1, and after each reply
sends another one that nobody requested.

Otherwise it offers HTTP/2 and HTTP/1.1.  Over HTTP/1.1 it answers every request.  Over
HTTP/2 it answers them too, but

    answer   answers every request
    goaway   ends every connection at its first request, with GOAWAY and the
             error HTTP_1_1_REQUIRED
    require  answers every request with RST_STREAM and the error HTTP_1_1_REQUIRED
    refuse   answers the first request of every other connection with RST_STREAM
             and the error REFUSED_STREAM
    alternate
             likewise every other request, beginning with the first
    close    closes every connection at its first request
    long     closes every connection at a request whose headers have more than 8,000
             bytes, compressed, as nginx does with its defaults
    leave    closes every connection after its first reply

It prints its port, appends "h2", "http/1.1" or "none" to LOG for every connection,
"request" for every request and "stray" for every reply that nobody requested, "left"
for every connection that it closed after a reply, each with the time in seconds.  Each
line of its input is another way, which it prints and then follows, also on connections
that are open.  It ends when its input does.
"""
import itertools
import os
import socket
import ssl
import struct
import sys
import threading
import time

# Types and flags of frames, and codes of errors: RFC 9113, sections 6 and 7
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
REFUSED_STREAM, HTTP_1_1_REQUIRED = 7, 13

BODY = b'{"code": 200, "message": "Profile embedding", "data": {}}'
STRAY = b'{"code": 200, "message": "Profile embedding", "data": {"stray": 1}}'
TYPE = b"application/json"

# :status 200, and content-type without an entry in the table: RFC 7541
HPACK = b"\x88\x0f\x10" + bytes([len(TYPE)]) + TYPE

how, certificate, key, log = sys.argv[1:]
requests = itertools.count()


def note(what):
    with open(log, "a") as file:
        file.write(f"{what} {time.time():.3f}\n")


def receive(connection, length):
    data = b""
    while len(data) < length:
        piece = connection.recv(length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(
        ">BBI", kind, flags, stream) + payload


def leave(connection):
    time.sleep(0.05)
    connection.settimeout(0.05)
    try:
        connection.unwrap()                     # waits for the client to close, too
    except OSError:
        pass
    connection.close()
    note("left")


def serve_http2(connection, number):
    refuses = how == "refuse" and number % 2 == 0
    receive(connection, 24)                     # the preface
    connection.sendall(frame(SETTINGS, 0, 0))
    while True:
        head = receive(connection, 9)
        length = int.from_bytes(head[:3], "big")
        kind, flags = head[3], head[4]
        stream = int.from_bytes(head[5:], "big")
        payload = receive(connection, length)
        if kind == SETTINGS and not flags & ACK:
            connection.sendall(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            connection.sendall(frame(PING, ACK, 0, payload))
        elif kind == HEADERS:
            note("request")
            if how == "alternate":
                refuses = next(requests) % 2 == 0
            if how == "close" or how == "long" and length > 8000:
                return
            if how == "goaway":
                connection.sendall(frame(
                    GOAWAY, 0, 0, struct.pack(">II", 0, HTTP_1_1_REQUIRED)))
                return
            if refuses or how == "require":
                connection.sendall(frame(RST_STREAM, 0, stream, struct.pack(
                    ">I", REFUSED_STREAM if refuses else HTTP_1_1_REQUIRED)))
                refuses = False
                continue
            connection.sendall(
                frame(HEADERS, END_HEADERS, stream, HPACK) +
                frame(DATA, END_STREAM, stream, BODY))
            if how == "leave":
                leave(connection)
                return


def answer(connection, body):
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: " + TYPE +
        (b"\r\nConnection: close" if how == "linger" else b"") +
        b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def serve_http1(connection):
    head = b""
    while True:
        head += receive(connection, 1)
        if head.endswith(b"\r\n\r\n"):
            head = b""
            note("request")
            answer(connection, BODY)
            if how == "linger":
                threading.Event().wait()
            if how == "stray":
                time.sleep(0.05)
                answer(connection, STRAY)
                note("stray")


def serve(connection, number):
    try:
        with context.wrap_socket(connection, server_side=True) as secure:
            protocol = secure.selected_alpn_protocol()
            note(protocol or "none")
            if protocol == "h2":
                serve_http2(secure, number)
            else:
                serve_http1(secure)
    except (EOFError, OSError):
        pass


def accept():
    number = 0
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(
            target=serve, args=(connection, number), daemon=True).start()
        number += 1


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
context.set_alpn_protocols(["http/1.1"] if how in ("linger", "stray") else ["h2", "http/1.1"])
listener = socket.create_server(("127.0.0.1", 0), backlog=512)
threading.Thread(target=accept, daemon=True).start()
print(listener.getsockname()[1], flush=True)
for line in sys.stdin:
    how = line.strip()
    print(how, flush=True)
os._exit(0)
