"""The messages of AIOS's `BlockInferenceService`, as its adhoc-inference-server numbers them.

They are built at run time: generated code would be bound to one version of protobuf. The AIOS
instance SDK numbers `AIOSPacket` otherwise (data 3, ts 4, …); a server that is reached from outside
speaks this one.
"""

import functools
from collections.abc import Mapping
from typing import Any

from embedding_pipelines.extras import need

METHOD = "/BlockInferenceService/infer"

# Field: number and type; a type that is no scalar is a repeated message of that name.
MESSAGES: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "FileInfo": {"metadata": (1, "string"), "file_data": (2, "bytes")},
    "BlockInferencePacket": {
        "block_id": (1, "string"),
        "session_id": (3, "string"),
        "seq_no": (4, "uint64"),
        "frame_ptr": (5, "bytes"),
        "data": (6, "string"),
        "query_parameters": (7, "string"),
        "ts": (8, "double"),
        "files": (9, "FileInfo"),
        "output_ptr": (10, "string"),
    },
    "AIOSPacket": {
        "session_id": (1, "string"),
        "seq_no": (2, "uint64"),
        "data": (4, "string"),
        "ts": (5, "double"),
        "output_ptr": (6, "string"),
        "files": (7, "FileInfo"),
    },
}


@functools.cache
def message(name: str) -> Any:
    """The class of one message, e.g. `message("AIOSPacket")(data="{}")`."""
    message_factory = need("google.protobuf.message_factory", "aios")
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))


@functools.cache
def _pool() -> Any:
    """A pool of our own: names without a package may be taken in the common one."""
    descriptor_pb2 = need("google.protobuf.descriptor_pb2", "aios")
    descriptor_pool = need("google.protobuf.descriptor_pool", "aios")
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="aios_service.proto", syntax="proto3")
    for name, fields in MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            if kind in MESSAGES:
                described.field.add(
                    name=field,
                    number=number,
                    label=kinds.LABEL_REPEATED,
                    type=kinds.TYPE_MESSAGE,
                    type_name=f".{kind}",
                )
            else:
                scalar = kinds.Type.Value(f"TYPE_{kind.upper()}")
                described.field.add(
                    name=field, number=number, label=kinds.LABEL_OPTIONAL, type=scalar
                )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool
