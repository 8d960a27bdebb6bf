"""Types of the numberings that planning and removal use; mypy keeps them apart.

A type is named for what its numbers count, whatever they are indexed by. To the interpreter each is the
plain int, array or tensor.
"""

from __future__ import annotations

from typing import NewType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# Nodes of a trace, from 1: a position along a dimension of a weight, or a column of an input.
NodeIds = NewType("NodeIds", NDArray[np.int64])
# Classes of nodes that the trace joined: the connected components, from 0.
ClassId = NewType("ClassId", int)
ClassIds = NewType("ClassIds", NDArray[np.int64])
# Units of one unit set, from 0; -1 where there is none.
UnitId = NewType("UnitId", int)
UnitIds = NewType("UnitIds", Tensor)
# Groups of one group set, from 0; -1 where there is none.
GroupIds = NewType("GroupIds", Tensor)
# Positions along one dimension of one tensor, from 0.
Positions = NewType("Positions", Tensor)
