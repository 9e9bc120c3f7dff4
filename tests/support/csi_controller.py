"""A controller that csi-sanity needs to get volumes for its tests of nodes; luxfuse has none. See tests/README.md.

python -m tests.support.csi_controller SOCKET
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf import message_factory

from luxfuse.csi.api import csi_pb2
from tests.support.fast_s3 import FastS3


def main(socket: str) -> None:
    """Serve until killed."""
    with FastS3() as s3:
        context = {"source": "s3://bucket", "endpoint_url": s3.endpoint, "storage_options": "anon=on\nallow_http=on"}
        rpc = csi_pb2.ControllerServiceCapability.RPC
        offered = [csi_pb2.ControllerServiceCapability(rpc=rpc(type=rpc.CREATE_DELETE_VOLUME))]
        answers = {
            "CreateVolume": lambda request, _: csi_pb2.CreateVolumeResponse(
                volume=csi_pb2.Volume(volume_id=f"volume-{request.name}", volume_context=context)
            ),
            "DeleteVolume": lambda *_: csi_pb2.DeleteVolumeResponse(),
            "ControllerGetCapabilities": lambda *_: csi_pb2.ControllerGetCapabilitiesResponse(capabilities=offered),
        }
        handlers = {}
        for method in csi_pb2.DESCRIPTOR.services_by_name["Controller"].methods:
            if method.name in answers:
                parse = message_factory.GetMessageClass(method.input_type).FromString
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                    answers[method.name], parse, lambda answer: answer.SerializeToString()
                )
        server = grpc.server(ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("csi.v1.Controller", handlers)])
        server.add_insecure_port(f"unix:{socket}")
        server.start()
        server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1])
