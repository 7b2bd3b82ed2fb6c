"""Who gets which arm of a split: the one rule, for a canary of knowledge as for any other trial of two releases.

Promises: the same user gets the same arm for as long as the trial has its name, on every server of a home and after any
restart; a larger share only adds users to an arm, and moves none from it. Two trials split independently.
"""

import hashlib
import re
from collections.abc import Mapping

COOKIE = "evergreen_session"
COOKIE_SECONDS = 30 * 86400
LOOKS_LIKE_A_SESSION = re.compile("[A-Za-z0-9_-]{8,64}")


def user_of(key: str, user: str, session: str) -> str:
    """Who counts as one user: the `user` that an API key names, else who has the page's cookie."""
    return f"user\0{key}\0{user}" if user else f"session\0{session}"


def arm_of(user: str, shares: Mapping[str, float], trial: str) -> str:
    """One of the arms of `shares`, which are fractions in a fixed order; the last takes what is left."""
    place = int.from_bytes(hashlib.sha256(f"{trial}\0{user}".encode("utf-8", "replace")).digest()[:8]) / 2**64
    for arm, share in shares.items():
        if place < share:
            return arm
        place -= share
    return [*shares][-1]


def session_of(cookie: str | None) -> str:
    """The session that a cookie names, "" for none or for what we have not made."""
    return cookie if cookie and LOOKS_LIKE_A_SESSION.fullmatch(cookie) else ""
