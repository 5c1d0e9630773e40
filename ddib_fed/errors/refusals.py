"""Refusals of an identity, by policy, or of a latent."""

from __future__ import annotations

from ddib_fed.errors.tree import DdibError, ExitCode


class RefusedError(DdibError):
    """The caller is not permitted to do this."""

    reason = "REFUSED"
    status = "PERMISSION_DENIED"
    exit_code = ExitCode.REFUSED
    sentence = "refused"


class Unauthenticated(RefusedError):
    """No certificate that the node can use."""

    reason = "UNAUTHENTICATED"
    status = "UNAUTHENTICATED"
    sentence = "no usable certificate was presented"


class PeerUnknown(RefusedError):
    """A certificate of an identity that is not admitted."""

    reason = "PEER_UNKNOWN"
    sentence = "this node has not admitted this identity"


class PeerSuspended(RefusedError):
    """An admitted peer that the operator of one of the two nodes has suspended for now."""

    reason = "PEER_SUSPENDED"
    sentence = "the peer is suspended until an operator resumes it"


class PolicyDenied(RefusedError):
    """The node's policy does not allow the call."""

    reason = "POLICY_DENIED"
    sentence = "the policy of this node does not allow this"


class LatentNotGaussian(RefusedError):
    """A latent that no encoder produces: a picture's is not white noise, or a point's is out of reach of N(0, I)."""

    reason = "LATENT_NOT_GAUSSIAN"
    sentence = "the latent is not one that an encoder makes"
