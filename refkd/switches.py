"""Variables of the environment that turn something on or off."""

from __future__ import annotations

import os

from refkd.errors import ConfigError

__all__ = ["switch"]


def switch(variable: str, *, default: bool) -> bool:
    """Return whether a variable of the environment is 1 and not 0; the default where it is empty.

    Raises
    ------
    ConfigError
        If it is anything else.
    """
    value = os.environ.get(variable, "").strip()
    if value not in ("", "0", "1"):
        raise ConfigError(f"{variable} must be 0 or 1, got {value!r}")
    return value == "1" if value else default
