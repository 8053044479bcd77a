//! Generates the services' clients and servers. Needs `protoc` (Debian: `apt install protobuf-compiler`).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Bytes of blobs are passed on, not copied.
    tonic_prost_build::configure()
        .bytes(".larder.peers.v1.Data")
        .compile_protos(&["cri.proto", "peers.proto"], &["."])?;
    tonic_prost_build::configure().build_client(false).compile_protos(&["snapshots.proto"], &["."])?;
    Ok(())
}
