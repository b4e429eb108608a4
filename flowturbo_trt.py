"""Flow-matching checkpoints and their FlowTurbo refiner, compiled to engines and run without torch."""

import os as _os

# One module stands for the whole package, so that the tree, an editable install and the wheel share one
# import name: the folders beside this file are its subpackages.
__path__ = [_os.path.dirname(_os.path.abspath(__file__))]
__package__ = __name__
if __spec__ is not None:
    __spec__.submodule_search_locations = __path__
