"""Values in etcd: one byte that names the format, then the message's bytes."""

from __future__ import annotations

from shoal.master.model import KINDS, Fault, Key, Object, Record

PROTOBUF = b"\x01"


class Undecodable(Fault):
    """A stored value that this version cannot read."""


def clone(message: Object) -> Object:
    """A copy of one's own, without metadata.resourceVersion."""
    copy = type(message)()
    copy.CopyFrom(message)  # type: ignore[arg-type]
    if copy.metadata.resourceVersion:
        copy.metadata.ClearField("resourceVersion")
    return copy


def body_of(message: Object) -> bytes:
    """The message's bytes; equal messages have equal bytes."""
    return message.SerializeToString(deterministic=True)


def pack(body: bytes) -> bytes:
    """The value to store."""
    return PROTOBUF + body


def unpack(key: Key, value: bytes, revision: int, created: int) -> Record:
    """The record in a stored value. Raises Undecodable."""
    if value[:1] != PROTOBUF:
        raise Undecodable(
            f"{key}: stored in format {value[:1].hex() or 'none'}, this version reads 01; run the version that wrote it"
        )
    body = value[1:]
    try:
        message = KINDS[key.kind].FromString(body)
    except Exception as error:  # protobuf's DecodeError, by whichever implementation is in use
        raise Undecodable(f"{key}: its {len(body)} bytes are no {key.kind}: {error}") from error
    return Record(key, message, body, revision, created)
