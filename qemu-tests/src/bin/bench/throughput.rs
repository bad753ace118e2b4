//! Blocks of 64 KiB: a container's standard output through a stream, and straight into a vsock connection, in turns.

use std::time::Instant;

use host_shim::guest::unlimited;
use host_shim::vmm::GuestStream;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use vminitd_protocol::pb::containerd::task::v3::CreateTaskRequest;

use crate::Failure;
use crate::guest::Bench;
use crate::specs;

const ROUNDS: usize = 9;
/// Of a round, of 64 KiB each.
const BLOCKS: usize = 512;
const PORT: u32 = 5000;

/// MiB/s of each round, the first one left out.
pub async fn measure(bench: &Bench) -> Result<Value, Failure> {
    let (mut stdout, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..=ROUNDS {
        stdout.push(through_stream(bench).await?);
        raw.push(through_vsock(bench).await?);
    }
    Ok(json!({
        "blocks": BLOCKS, "block_bytes": 64 * 1024, "stdout_mib_s": stdout[1..], "raw_vsock_mib_s": raw[1..],
    }))
}

/// A sample of the guest's CPU each, as [`crate::lives::profile`] has them, while output flows.
pub async fn profile(bench: &Bench) -> Result<String, Failure> {
    through_stream(bench).await?;
    bench.drive("profile").await?;
    through_stream(bench).await?;
    bench.drive("profiled").await
}

async fn through_stream(bench: &Bench) -> Result<f64, Failure> {
    let id = bench.name();
    let count = BLOCKS.to_string();
    let spec = specs::container(&["/bin/bench-guest", "pour", &count], "", None);
    let bundle = bench.bundle(&id, &spec).await?;
    let stream = bench.guest.stream(&format!("{id}-out")).await?;
    let stdout = format!("stream://{id}-out");
    let request = CreateTaskRequest { id: id.clone(), bundle, stdout, ..Default::default() };
    bench.guest.task().create(unlimited(), &request).await?;
    let reading = tokio::spawn(rate(stream));
    bench.start(&id, "").await?;
    let rate = reading.await??;
    bench.end_exited(&id).await?;
    Ok(rate)
}

async fn through_vsock(bench: &Bench) -> Result<f64, Failure> {
    match bench.drive(&format!("listen {PORT} {BLOCKS}")).await?.as_str() {
        "listening" => {}
        other => return Err(format!("the driver says {other:?}").into()),
    }
    let stream = bench.guest.dial(PORT).await?;
    let rate = rate(stream).await?;
    bench.answer().await?;
    Ok(rate)
}

/// From the first byte to the last, in MiB/s.
async fn rate(mut stream: GuestStream) -> Result<f64, Failure> {
    let mut buffer = vec![0; 256 * 1024];
    let mut bytes = stream.read(&mut buffer).await?;
    let (begun, first) = (Instant::now(), bytes);
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            read => bytes += read,
        }
    }
    let expected = BLOCKS * 64 * 1024;
    if bytes != expected {
        return Err(format!("{bytes} bytes came of {expected}").into());
    }
    Ok((bytes - first) as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64())
}
