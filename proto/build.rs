//! Generates the services' clients and servers. Needs `protoc` (Debian: `apt install protobuf-compiler`).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure().compile_protos(&["cri.proto"], &["."])?;
    Ok(())
}
