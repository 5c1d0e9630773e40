"""The audit log: lines chained by digest, their verification, anchors held by peers, refusals at a bounded rate."""
