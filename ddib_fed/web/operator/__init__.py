"""The page of a node's operator: certificates, peers, queue, throughput, refusals, and what leaves."""
