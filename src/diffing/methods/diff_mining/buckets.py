"""Positions in buckets that double in width: 0, 1, 2, 3–4, 5–8, 9–16, …"""

import numpy as np


def bucket_of(position_N: np.ndarray) -> np.ndarray:
    """Number of each position's bucket."""
    position_N = np.asarray(position_N, dtype=np.int64)
    doubling_N = np.ceil(np.log2(np.maximum(position_N, 1))).astype(np.int64) + 1
    return np.where(position_N <= 2, position_N, doubling_N)


def bounds(bucket: int) -> tuple[int, int]:
    """First and last position of a bucket."""
    return (bucket, bucket) if bucket <= 2 else (2 ** (bucket - 2) + 1, 2 ** (bucket - 1))


def bucket_name(bucket: int) -> str:
    """A bucket as people write it."""
    first, last = bounds(bucket)
    return str(first) if first == last else f"{first}–{last}"
