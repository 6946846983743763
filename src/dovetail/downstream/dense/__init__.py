"""Evaluation of frozen feature maps: linear segmentation, retrieval, clusters, label propagation.

    scores = dense_scores(train, test, classes=21, options=DenseOptions(labels=(16, 1.0)))

`train` and `test` are labelled images as maps: `ArrayMaps` for maps in memory, `NetworkMaps` for a network and images.
"""

from dovetail.downstream.dense.bootstrap import difference
from dovetail.downstream.dense.maps import ArrayMaps, MapBatch, MapSource, NetworkMaps, resolve_taps
from dovetail.downstream.dense.options import DenseOptions, ImageProtocol, Protocol
from dovetail.downstream.dense.propagation import PropagationOptions, SequenceScores, propagate, sequence_scores
from dovetail.downstream.dense.scores import DenseScore, dense_scores

__all__ = [
    "ArrayMaps",
    "DenseOptions",
    "DenseScore",
    "ImageProtocol",
    "MapBatch",
    "MapSource",
    "NetworkMaps",
    "PropagationOptions",
    "Protocol",
    "SequenceScores",
    "dense_scores",
    "difference",
    "propagate",
    "resolve_taps",
    "sequence_scores",
]
