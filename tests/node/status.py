"""What a running node says of itself, with nothing in it."""

from ddib_fed.node.admin import NodeStatus, WorkersStatus


def status_of(state: str, **values: object) -> NodeStatus:
    nothing = {
        "institution": "north.example", "name": "node-1", "roles": ("source",), "version": "0.1.0", "model": None,
        "listen": "127.0.0.1:7441", "address": "localhost:7441", "peers": (), "jobs": {}, "uptime_s": 0.0,
        "certificate_expires": None, "active_streams": 0, "calibrations": (), "root_expires": None,
        "workers": WorkersStatus(executor="inline", wanted=0, ready=(), replaced=0, problem=""),
    }  # fmt: skip
    return NodeStatus(**{**nothing, "state": state, **values})
