"""What the server of child processes imports and runs once, so that no child has to: torch and a first numba kernel."""

import cv2
import numpy as np
import pandas  # noqa: F401
import pytest  # noqa: F401
from accelerate import Accelerator  # noqa: F401

import steel_seg.train  # noqa: F401
from steel_seg.jpeg_scan import jpeg_fault
from steel_seg.rle import rle_encode
from steel_seg.rle_fast import table_areas

table_areas([rle_encode(np.ones((2, 2), np.uint8))], (2, 2))
jpeg_fault(cv2.imencode(".jpg", np.ones((8, 8), np.uint8))[1].tobytes())
