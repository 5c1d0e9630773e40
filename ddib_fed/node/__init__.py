"""Everything that touches a socket, a disk or the GPU on behalf of a node or its client.

The rule: TLS 1.3 only. grpcio has no option for it, and reads this variable once, before its first
credentials: a suite that neither side can use leaves none for TLS 1.2, while those of TLS 1.3 are not
affected. It stands here because importing any module of this package runs this line first.

grpc's C core writes to stderr past Python's logging, at INFO each time that a handshake fails: it is off unless the
environment asks for it, and off in a node whatever the environment says (`ddib_fed.server.logs`).
"""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-CHACHA20-POLY1305"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
