"""Torch and Pyro, imported first and without looking for garbage.

An import makes hundreds of thousands of objects that all stay, and each of the
collections that they set off walks through them: a sixth of the time of `import torch`.
"""

import gc

_collects = gc.isenabled()
gc.disable()
try:
    import pyro
    import torch
finally:
    if not gc.get_freeze_count():
        # To the oldest generation with them, where collections seldom go.
        gc.freeze()
        gc.unfreeze()
    if _collects:
        gc.enable()

__all__ = ["pyro", "torch"]
