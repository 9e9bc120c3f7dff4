"""The messages of the Container Storage Interface: `csi_pb2` is generated from csi.proto, which says how."""
