"""This process among those that train with it."""

from onward.world.world import ALONE, World

__all__ = ["ALONE", "World"]
