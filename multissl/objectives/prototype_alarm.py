"""What goes wrong where a teacher sorts views and tokens into prototypes, as the record says (DINO and its kin)."""

from __future__ import annotations

from collections.abc import Mapping

from multissl.contract.alarms import History, no_choice, one_point, one_prototype

WHOSE = {"": "", "ibot_": " of the hidden tokens"}
"""Whose targets a figure is of, by what its name begins with."""


def alarm_of(
    kind: str,
    history: History,
    prototypes: Mapping[str, int],
    temperatures: tuple[float, float],
    ways: tuple[str, str],
    centered: bool,
) -> str | None:
    """Return what is wrong, and the options to change: uniform targets, few prototypes, features in one point.

    `kind` is the objective's name, `prototypes` their number by the beginning of figures' names, `temperatures` the
    teacher's and the student's, `ways` what to do about few prototypes and about features in one point.
    """
    teacher, student = temperatures
    for prefix, count in prototypes.items():
        whose = WHOSE[prefix]
        if (level := no_choice(history, count, f"stats/{prefix}teacher")) is not None:
            way = "lower objective.teacher_temperature or objective.center_momentum"
            if teacher >= student:
                way = "set objective.teacher_temperature to 0.04 to 0.07"
            return (
                f"{kind}: the teacher's targets{whose} are uniform (entropy {level:.3f} of log K): {way}, "
                f"teacher_temperature={teacher:g} does not sharpen beside student_temperature={student:g}"
            )
        if (use := one_prototype(history, f"stats/{prefix}prototype_use")) is not None:
            way = "objective.centering=none lets it; set it to sinkhorn or ema"
            if centered:
                way = f"raise objective.teacher_temperature, or {ways[0]}"
            return f"{kind}: a few prototypes take every sample{whose} (share in use {use:.3f}): {way}"
    if (std := one_point(history)) is not None:
        return f"{kind}: features have become one point (std {std:.3f} of 1): {ways[1]}"
    return None
