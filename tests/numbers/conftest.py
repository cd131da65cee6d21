"""What tests of numbers share with those of evaluators."""

from tests.evaluators.conftest import said

__all__ = ["said"]
