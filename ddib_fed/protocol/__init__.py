"""gRPC calls: TLS 1.3 only, the mapping of errors, checked answers, addresses.

grpcio has no option for TLS 1.3 only and reads the variable below once, before its first credentials: a cipher suite
that neither side can use leaves none for TLS 1.2, and those of TLS 1.3 are not affected. Each package with modules that
import grpc imports this one first (a test checks it); a node also probes its own port with TLS 1.2 at start.
"""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-CHACHA20-POLY1305"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
