"""Values at rest: serialized protobuf messages of the public contract, read back as domain values.

A node's record is a cluster.v1.Node without what changes (inventory, join time, whether its stream is alive), its report a
cluster.v1.JoinRequest without the inventory, the wish to empty it a cluster.v1.DrainNodeRequest; the leader's replica id and the store's
name are texts. What cannot be read was written by another version: RecordError names it.
"""

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from paceline.cluster.v1 import cluster_pb2
from paceline.placement.v1 import placement_pb2
from paceline_services.codec import from_proto, to_proto
from paceline_services.domain.instances import Assignment, InstanceSpec
from paceline_services.domain.models import KnownModel
from paceline_services.domain.nodes import DrainRequest, Node, NodeReport
from paceline_services.errors import InternalError, InvalidRequestError

V = TypeVar("V")


class RecordError(InternalError):
    """A value in the store that this version cannot read."""


def encode_node(node: Node) -> bytes:
    return to_proto(node, cluster_pb2.Node).SerializeToString()


def decode_node(value: bytes) -> Node:
    return _decode(value, cluster_pb2.Node, Node)


def encode_report(report: NodeReport) -> bytes:
    return to_proto(report, cluster_pb2.JoinRequest).SerializeToString()


def decode_report(value: bytes) -> NodeReport:
    return _decode(value, cluster_pb2.JoinRequest, NodeReport)


def encode_spec(spec: InstanceSpec) -> bytes:
    return to_proto(spec, placement_pb2.InstanceSpec).SerializeToString()


def decode_spec(value: bytes) -> InstanceSpec:
    return _decode(value, placement_pb2.InstanceSpec, InstanceSpec)


def encode_assignment(assignment: Assignment) -> bytes:
    return to_proto(assignment, placement_pb2.Assignment).SerializeToString()


def decode_assignment(value: bytes) -> Assignment:
    return _decode(value, placement_pb2.Assignment, Assignment)


def encode_model(model: KnownModel) -> bytes:
    return to_proto(model, placement_pb2.KnownModel).SerializeToString()


def decode_model(value: bytes) -> KnownModel:
    return _decode(value, placement_pb2.KnownModel, KnownModel)


def encode_drain(wish: DrainRequest) -> bytes:
    return to_proto(wish, cluster_pb2.DrainNodeRequest).SerializeToString()


def decode_drain(value: bytes) -> DrainRequest:
    return _decode(value, cluster_pb2.DrainNodeRequest, DrainRequest)


def _decode(value: bytes, message_type: type[Message], value_type: Callable[..., V]) -> V:
    try:
        return from_proto(message_type.FromString(value), value_type)
    except (DecodeError, InvalidRequestError) as error:
        raise RecordError(f"the store holds a {message_type.DESCRIPTOR.name} that cannot be read: {error}") from error
