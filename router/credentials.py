"""Who is asking: the tenant's organization id from HTTP Basic credentials.

The router reads the user name to find the tenant's cell. It never checks the password, the API
key: only the cell holds its hash.
"""

import binascii
from typing import Final

from control_plane.routing import OrganizationId

USER_NAME_BYTES_MAX: Final = 128
"""Organization ids are UUIDs; anything much longer is not one, and is not worth a look-up."""


def organization_of(authorization: bytes) -> OrganizationId | None:
    """The user name of an `Authorization: Basic` value; None if it is garbled."""
    scheme, _, encoded = authorization.partition(b" ")
    if scheme != b"Basic" and scheme.lower() != b"basic":
        return None
    try:
        decoded = binascii.a2b_base64(encoded.strip(b" "), strict_mode=True)
    except binascii.Error:
        return None
    user_name, colon, _ = decoded.partition(b":")
    if not colon or not user_name or len(user_name) > USER_NAME_BYTES_MAX:
        return None
    try:
        return OrganizationId(user_name.decode("ascii"))
    except UnicodeDecodeError:
        return None
