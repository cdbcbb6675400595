"""The messages of AIOS's `BlockInferenceService`, as its adhoc-inference-server numbers them.

They are built at run time, since generated code works with one version of protobuf only. The AIOS
instance SDK numbers `AIOSPacket` otherwise (data 3, ts 4, …); servers for clients from outside use
these numbers.
"""

from collections.abc import Mapping
from typing import Any

from embedding_pipelines.extras import need

METHOD = "/BlockInferenceService/infer"

# The number and type of each field; a type that is not a scalar is a repeated message of that name.
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


def message_classes() -> dict[str, Any]:
    """The class of each message by name, e.g. `message_classes()["AIOSPacket"](data="{}")`."""
    # In our own pool: the common one may hold other messages of these names.
    pool = need("google.protobuf.descriptor_pool", "aios").DescriptorPool()
    descriptors = need("google.protobuf.descriptor_pb2", "aios")
    factory = need("google.protobuf.message_factory", "aios")
    kinds = descriptors.FieldDescriptorProto
    file = descriptors.FileDescriptorProto(name="aios_service.proto", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            repeated = kind in MESSAGES
            scalar = "MESSAGE" if repeated else kind.upper()
            message.field.add(
                name=field,
                number=number,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
                type=kinds.Type.Value(f"TYPE_{scalar}"),
                type_name=f".{kind}" if repeated else None,
            )
    pool.Add(file)
    return {name: factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in MESSAGES}
