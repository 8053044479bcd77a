//! The gRPC services that Larder speaks, generated from their .proto files.
