"""Generated protobuf modules of API version v1; see the .proto files beside them."""
