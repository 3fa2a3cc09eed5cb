"""Constants on the Hounsfield scale, each defined once; imports nothing."""

from __future__ import annotations

# Range that a 12-bit scanner stores. Loaders clip to it; lower values are padding.
AIR_HU = -1024.0
HIGHEST_HU = 3071.0
HU_RANGE = (AIR_HU, HIGHEST_HU)

# Above this a voxel is tissue (fat begins at about -120), below it air or lung.
BODY_HU = -300.0

# Added to HU for a 16-bit PNG, which holds no negative values.
PNG_OFFSET_HU = 32768
