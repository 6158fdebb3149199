"""Errors of a verification, beside those of the cell that is verified.

VerificationError
├── VerificationStopped    it was told to stop, or its deadline passed; nothing is known
└── VerificationBusy       as many run already as this control plane lets run at once
"""

from control_plane.errors import ControlPlaneError


class VerificationError(ControlPlaneError):
    """A verification has no result."""

    code = "verification_failed"


class VerificationStopped(VerificationError):
    """The verification was stopped before its end."""

    code = "verification_stopped"
    status = 503


class VerificationBusy(VerificationError):
    """Too many verifications run already."""

    code = "verification_busy"
    status = 429
    retryable = True
