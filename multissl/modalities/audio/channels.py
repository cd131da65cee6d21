"""Which channel of a recording is heard: the mean of all, or one by name or number.

State: none.
"""

from __future__ import annotations

NUMBERS = {"left": 0, "first": 0, "right": 1}
"""Channels by name; stereo files hold left and right in this order."""


def check_channel(channel: str) -> None:
    """Raise a ValueError where an option names no channel."""
    if channel != "mean" and channel not in NUMBERS and not channel.isdecimal():
        raise ValueError(
            f"modality.channel={channel!r}: want mean, left, right, first, or a number from 0 on"
        )


def channel_of(channel: str, count: int) -> int | None:
    """Return the place of a channel among `count`, None for the mean of all.

    Left and right of a recording of one channel are that one. Raises a ValueError where there is no such channel.
    """
    if channel == "mean":
        return None
    place = int(channel) if channel.isdecimal() else NUMBERS[channel]
    if count == 1 and channel in NUMBERS:
        return 0
    if place >= count:
        has = "1 channel" if count == 1 else f"{count} channels"
        raise ValueError(
            f"has {has}, modality.channel={channel} is number {place + 1}: mean hears all there are"
        )
    return place
