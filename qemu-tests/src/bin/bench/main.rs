//! `./dev bench`: measures the guest against yardsticks of the same run, and says which limits hold.
//!
//! Each figure's way is told in docs/benchmarks.md. Nothing here is compared with a figure of another run: the machine,
//! its load and its emulator are in both sides of every ratio.
//!
//! Owns: the VMs that it boots. Promises: what is compared is measured in turns, within one VM where it can be; every
//! sample is kept in the record. Never: fails for a limit that is missed (it is shown), only for a figure that it could
//! not take.

mod baseline;
mod boot;
mod disks;
mod guest;
mod images;
mod lives;
mod memory;
mod report;
mod specs;
mod stats;
mod throughput;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use self::guest::Bench;
use self::images::{Images, Medium};

/// What an error is, whoever made it: the run ends with it.
type Failure = Box<dyn Error + Send + Sync>;

const HELP: &str = "\
bench: measures the guest; run it with `./dev bench`, which builds what it needs

  --json FILE      also write the figures as one JSON object
  --record FILE    also write every sample and parameter
  --lives N        lives to measure on each medium [default: 40]
  --boots N        boots of each kind to measure [default: 12]
  --baseline DIR   an older build (its initramfs.cpio.zst) to boot in turns with this one; without it those are left out
  --revision NAME  what that build is called
  --crun FILE      a static crun to measure against; without it those figures are left out
  --profile FILE   sample the guest's CPU during 40 lives of ours on the erofs root, with --only exec during 40 execs,
                   with --only throughput while output flows, or with --only disks what disks::profile says, and measure
                   nothing else
  --only PART      boot, baseline, disks, latency (or its half erofs or initramfs), memory or throughput alone; the other
                   figures are null
  --help           print this
";

/// How much is measured.
#[derive(Clone, Debug)]
struct Arguments {
    json: Option<PathBuf>,
    record: Option<PathBuf>,
    crun: Option<PathBuf>,
    baseline: Option<PathBuf>,
    revision: String,
    profile: Option<PathBuf>,
    only: Option<String>,
    lives: usize,
    boots: usize,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Self>, Failure> {
        let mut parsed = Self {
            json: None,
            record: None,
            crun: None,
            baseline: None,
            revision: String::new(),
            profile: None,
            only: None,
            lives: 40,
            boots: 12,
        };
        while let Some(word) = words.next() {
            if word == "--help" || word == "-h" {
                return Ok(None);
            }
            let value = words.next().ok_or_else(|| format!("{word} wants a value"))?;
            match word.as_str() {
                "--json" => parsed.json = Some(value.into()),
                "--record" => parsed.record = Some(value.into()),
                "--crun" => parsed.crun = Some(value.into()),
                "--baseline" => parsed.baseline = Some(value.into()),
                "--revision" => parsed.revision = value,
                "--profile" => parsed.profile = Some(value.into()),
                "--only" => parsed.only = Some(value),
                "--lives" => parsed.lives = value.parse()?,
                "--boots" => parsed.boots = value.parse()?,
                _ => return Err(format!("no such flag: {word}").into()),
            }
        }
        Ok(Some(parsed))
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == part)
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("bench: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let images = Images::make(arguments.crun.as_deref(), arguments.baseline.as_deref())?;
    if let Some(path) = &arguments.profile {
        let bench = Bench::boot(&images, Medium::Erofs).await?;
        let samples = match arguments.only.as_deref() {
            Some("throughput") => throughput::profile(&bench).await?,
            Some("disks") => disks::profile(&images).await?,
            Some("exec") => lives::profile_execs(&bench).await?,
            _ => lives::profile(&bench).await?,
        };
        std::fs::write(path, samples + "\n")?;
        bench.end().await;
        return Ok(());
    }
    let mut record = json!({
        "parameters": { "lives": arguments.lives, "boots": arguments.boots, "cpus": 1, "memory": guest::MEMORY },
        "size_bytes": images.sizes()?,
    });
    if arguments.wants("boot") {
        record["boot"] = boot::measure(&images, arguments.boots).await?;
    }
    if arguments.wants("baseline") && arguments.baseline.is_some() {
        record["baseline"] =
            baseline::measure(&images, arguments.boots, &arguments.revision).await?;
    }
    if arguments.wants("disks") {
        record["disks"] = disks::measure(&images).await?;
    }
    for (medium, name) in [(Medium::Erofs, "erofs"), (Medium::Initramfs, "initramfs")] {
        if arguments.wants("latency") || arguments.only.as_deref() == Some(name) {
            say(&format!("lives on the {name}"));
            let bench = Bench::boot(&images, medium).await?;
            let lives = arguments.lives.div_ceil(if medium == Medium::Erofs { 1 } else { 2 });
            record[name] = lives::measure(&bench, lives, images.has_crun()).await?;
            record["accelerator"] = bench.accelerator().into();
            bench.end().await;
        }
    }
    if arguments.wants("throughput") {
        say("throughput");
        let bench = Bench::boot(&images, Medium::Erofs).await?;
        record["throughput"] = throughput::measure(&bench).await?;
        bench.end().await;
    }
    if arguments.wants("memory") {
        say("memory, and a hundred containers");
        let bench = Bench::boot(&images, Medium::Erofs).await?;
        record["memory"] = memory::measure(&bench).await?;
        bench.end().await;
    }
    let figures = report::figures(&record);
    print!("{}", report::table(&figures, &record));
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&figures)? + "\n")?;
    }
    if let Some(path) = &arguments.record {
        record["figures"] = figures;
        keep(path, &record)?;
    }
    Ok(())
}

/// A record is never overwritten.
fn keep(path: &std::path::Path, record: &Value) -> Result<(), Failure> {
    use std::io::Write as _;
    let mut file = std::fs::File::create_new(path)?;
    file.write_all(serde_json::to_string(record)?.as_bytes())?;
    Ok(())
}

fn say(text: &str) {
    eprintln!("    {text}");
}
