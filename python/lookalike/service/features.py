"""Campaign features as messages, and back. Knows the protos only, so that the client may use it too."""

from __future__ import annotations

from lookalike.schema import FeatureValue
from lookalike.v1 import campaign_pb2


def feature_message(value: FeatureValue) -> campaign_pb2.FeatureValue:
    """A feature's value; `feature_value` is its inverse, but that truth becomes text, as a column of it reads.

    Raises:
        TypeError, ValueError: nothing that a feature can be.
    """
    match value:
        case None:
            return campaign_pb2.FeatureValue()
        case bool():
            return campaign_pb2.FeatureValue(text=str(value).lower())
        case str():
            return campaign_pb2.FeatureValue(text=value)
        case int():
            return campaign_pb2.FeatureValue(integer=value)
        case float():
            return campaign_pb2.FeatureValue(number=value)
        case _:
            items = [_item(item) for item in value]
            return campaign_pb2.FeatureValue(list=campaign_pb2.FeatureValues(items=items))


def feature_value(message: campaign_pb2.FeatureValue) -> FeatureValue:
    """The value; None for a missing one."""
    kind = message.WhichOneof("kind")
    if kind is None:
        return None
    if kind == "list":
        items = [(item, item.WhichOneof("kind")) for item in message.list.items]
        return [getattr(item, kind) for item, kind in items if kind is not None]
    single: str | int | float = getattr(message, kind)
    return single


def _item(value: str | int) -> campaign_pb2.FeatureItem:
    if isinstance(value, str):
        return campaign_pb2.FeatureItem(text=value)
    return campaign_pb2.FeatureItem(integer=value)
