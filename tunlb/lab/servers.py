"""What a lab server runs: HTTP and echo services that say who they are and whom they saw.

    servers.py NAME --http 80 8080 --echo 7 7777

HTTP/1.0, closed by the server: `/` is the server's name, `/peer` its greeting, `/bytes/N` N bytes
of a fixed pattern. TCP echo: the greeting line first, then every byte back. UDP echo: the
greeting line and the datagram, in one datagram. A greeting is a line of JSON with `host`, `peer`
and `port` (the address of the peer as the server saw it).

Started by its path in an isolated interpreter and therefore made of the standard library only:
it is up in some 50 ms, whatever the environment holds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import socketserver
import threading

PATTERN = bytes(range(251))
MAX_BYTES = 1 << 28
_MAX_REQUEST = 8192
_UDP_BUFFER = 65535


def greeting(host: str, peer: tuple[object, ...]) -> bytes:
    """`peer` is an address as the socket module gives it; v4-mapped ones are shown as IPv4."""
    address = str(peer[0]).removeprefix("::ffff:")
    return json.dumps({"host": host, "peer": address, "port": peer[1]}).encode() + b"\n"


def pattern(size: int) -> bytes:
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def respond(host: str, peer: tuple[object, ...], request: bytes) -> bytes:
    """The whole answer to an HTTP request head."""
    words = request.split(b"\r\n", 1)[0].split()
    path = words[1].decode("ascii", "replace") if len(words) == 3 else ""
    status, body = "200 OK", b""
    if path == "/":
        body = host.encode() + b"\n"
    elif path == "/peer":
        body = greeting(host, peer)
    elif (count := path.removeprefix("/bytes/")) != path and count.isdigit():
        body = pattern(min(int(count), MAX_BYTES))
    else:
        status = "404 Not Found"
    head = f"HTTP/1.0 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


class _Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def __init__(
        self, host: str, port: int, handler: type[socketserver.BaseRequestHandler]
    ) -> None:
        self.host = host
        super().__init__(("::", port), handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is not worth a traceback."""


class _Http(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _MAX_REQUEST:
            data = self.request.recv(_MAX_REQUEST)
            if not data:
                return
            head += data
        self.request.sendall(respond(self.server.host, self.client_address, head))


class _Echo(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        self.request.sendall(greeting(self.server.host, self.client_address))
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


def _udp_socket(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.bind(("::", port))
    return sock


def _echo_udp(host: str, sock: socket.socket) -> None:
    """Answers from the address that was asked, which behind DR is the VIP on `lo`."""
    while True:
        with contextlib.suppress(OSError):
            data, control, _, peer = sock.recvmsg(_UDP_BUFFER, socket.CMSG_SPACE(20))
            # struct in6_pktinfo: address, then the interface index; 0 leaves it to the routes.
            source = [
                (level, kind, info[:16] + bytes(4))
                for level, kind, info in control
                if kind == socket.IPV6_PKTINFO
            ]
            sock.sendmsg([greeting(host, peer), data], source, 0, peer)


def main() -> None:
    parser = argparse.ArgumentParser(description="HTTP and echo services of a lab server")
    parser.add_argument("name")
    parser.add_argument("--http", type=int, nargs="*", default=[])
    parser.add_argument("--echo", type=int, nargs="*", default=[])
    args = parser.parse_args()
    servers = [_Server(args.name, port, _Http) for port in args.http]
    servers += [_Server(args.name, port, _Echo) for port in args.echo]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    threads += [
        threading.Thread(target=_echo_udp, args=(args.name, _udp_socket(port)))
        for port in args.echo
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
