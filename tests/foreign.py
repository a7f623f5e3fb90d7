"""Arrays of other libraries."""

import numpy as np


class Exchanged:
    """An array that speaks DLPack, and nothing else."""

    def __init__(self, array):
        self.array = np.asarray(array)

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()
