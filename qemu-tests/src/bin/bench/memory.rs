//! What init and agent hold, and what a container adds; and whether the hundredth is made as fast as the tenth.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Failure;
use crate::guest::Bench;
use crate::specs;

/// Containers at which memory is looked at.
const FEW: usize = 20;
const MANY: usize = 100;

/// PSS in KiB, creates in milliseconds. The driver runs all the time: idle is with one container.
pub async fn measure(bench: &Bench) -> Result<Value, Failure> {
    let spec = specs::container(&["/bin/bench-guest", "sleep"], "", None);
    let idle = pss(bench).await?;
    let mut record = json!({ "idle_kib": { "init": idle[0], "agent": idle[1] } });
    record["idle_mappings"] = bench.drive("mappings").await?.into();
    let (mut names, mut creates) = (Vec::new(), Vec::new());
    for count in 1..=MANY {
        let id = bench.name();
        let bundle = bench.bundle(&id, &spec).await?;
        creates.push(bench.create(&id, &bundle).await?);
        bench.start(&id, "").await?;
        names.push(id);
        if count == FEW || count == MANY {
            let pss = pss(bench).await?;
            record[format!("with_{count}_kib")] = json!({ "init": pss[0], "agent": pss[1] });
        }
    }
    for id in &names {
        bench.end_container(id).await?;
    }
    let after = pss(bench).await?;
    record["after_kib"] = json!({ "init": after[0], "agent": after[1] });
    record["creates_ms"] = json!(creates);
    Ok(record)
}

async fn pss(bench: &Bench) -> Result<Vec<u64>, Failure> {
    // What was just done may still be freed; a thread that waits for blocking work ends.
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.numbers("memory").await
}
