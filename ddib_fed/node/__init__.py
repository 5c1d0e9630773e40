"""Everything that touches a socket, a disk or the GPU on behalf of a node or its client."""
