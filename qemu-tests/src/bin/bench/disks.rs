//! Disks: what a hundred layers cost a Create, and what erofs costs a reader.
//!
//! Owns: the images. Promises: what is compared is of one VM and in turns, cold: the guest's caches are dropped before
//! each read; the host's have all of it since a round that does not count.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use host_shim::guest::unlimited;
use host_shim::images::image::Image;
use host_shim::images::pack::Packed;
use host_shim::vm::Disk;
use qemu_tests::images::{erofs, layer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use vminitd_protocol::pb::containerd::task::v3::CreateTaskRequest;
use vminitd_protocol::pb::containerd::types::Mount;

use crate::guest::{Bench, ms};
use crate::images::{Images, Medium};
use crate::{Failure, say, specs};

/// Of the large root filesystem.
const LAYERS: usize = 100;
/// Creates of each kind that count.
const CREATES: usize = 12;
/// Reads of each kind that count.
const READS: usize = 9;
/// Of a read.
const FILE_BYTES: usize = 256 << 20;
/// Of one read(2) or write(2); for file and device alike.
const BLOCK: usize = 1 << 20;

/// Disks' serials.
const LAYERS_DISK: &str = "layers";
const FILE_DISK: &str = "file";

/// `{creates: {plain_ms, layers_ms, kernel_us, ..}, reads: {erofs_us, raw_us, ..}}`, a list each; `host_ms` is what the
/// hypervisor computed meanwhile, for creates for the whole life, for reads in a container for its whole life as well.
pub async fn measure(images: &Images) -> Result<Value, Failure> {
    say("disks: packing a hundred layers and a large file");
    let directory = tempfile::Builder::new().prefix("vminitd-bench-disks-").tempdir()?;
    let (disks, _packed) = disks(images, &directory)?;
    let bench = Bench::boot_with(images, Medium::Erofs, disks).await?;
    say("disks: creates");
    let creates = creates(&bench).await?;
    say("disks: reads");
    let reads = reads(&bench).await?;
    bench.end().await;
    Ok(json!({ "layers": LAYERS, "file_bytes": FILE_BYTES, "creates": creates, "reads": reads }))
}

/// A line of samples of the guest's CPU, as [`crate::lives::profile`] has them, for each: creates on the layers, reads of
/// the file, reads of its disk. Before them what system calls a create on one layer and on all of them make.
pub async fn profile(images: &Images) -> Result<String, Failure> {
    let directory = tempfile::Builder::new().prefix("vminitd-bench-disks-").tempdir()?;
    let (disks, _packed) = disks(images, &directory)?;
    let bench = Bench::boot_with(images, Medium::Erofs, disks).await?;
    let mut lines = Vec::new();
    for layers in [1, LAYERS] {
        create(&bench, layers).await?;
        bench.drive("count").await?;
        create(&bench, layers).await?;
        lines.push(bench.drive("counted").await?);
    }
    bench.drive("profile").await?;
    for _ in 0..CREATES {
        create(&bench, LAYERS).await?;
    }
    lines.push(bench.drive("profiled").await?);
    for which in [Read::File, Read::Disk] {
        read(&bench, which).await?;
        bench.drive("profile").await?;
        for _ in 0..4 {
            read(&bench, which).await?;
        }
        lines.push(bench.drive("profiled").await?);
    }
    bench.end().await;
    Ok(lines.join("\n"))
}

async fn creates(bench: &Bench) -> Result<Value, Failure> {
    let (mut plain, mut layers, mut kernel) = (Vec::new(), Vec::new(), Vec::new());
    let mut host = [Vec::new(), Vec::new()];
    for round in 0..=CREATES {
        let begin = bench.hypervisor_ms();
        let one = create(bench, 1).await?;
        let middle = bench.hypervisor_ms();
        let all = create(bench, LAYERS).await?;
        let end = bench.hypervisor_ms();
        let command = format!("mount-layers {LAYERS_DISK} {LAYERS}");
        let took = bench.numbers(&command).await?[0];
        if round > 0 {
            plain.push(one);
            layers.push(all);
            kernel.push(took);
            host[0].extend(begin.zip(middle).map(|(begin, end)| end - begin));
            host[1].extend(middle.zip(end).map(|(begin, end)| end - begin));
        }
    }
    let [plain_host, layers_host] = host;
    Ok(json!({
        "plain_ms": plain, "layers_ms": layers, "kernel_us": kernel,
        "plain_life_host_ms": plain_host, "layers_life_host_ms": layers_host,
    }))
}

/// Create of a container on an overlay of so many layers with a tmpfs on top, as the host sees it.
async fn create(bench: &Bench, layers: usize) -> Result<f64, Failure> {
    let mut rootfs = vec![mount("tmpfs", "", Vec::new())];
    for number in 1..=layers {
        let source = format!("serial:{LAYERS_DISK}:{number}");
        rootfs.push(mount("erofs", &source, vec!["ro".to_owned()]));
    }
    let top = "{{ mount 0 }}";
    let options = vec![
        format!("X-containerd.mkdir.path={top}/upper:0755"),
        format!("X-containerd.mkdir.path={top}/work:0755"),
        format!("upperdir={top}/upper"),
        format!("workdir={top}/work"),
        format!("lowerdir={{{{ overlay {layers} 1 }}}}"),
    ];
    rootfs.push(mount("format/mkdir/overlay", "overlay", options));
    let id = bench.name();
    let spec = specs::on_own_rootfs(&["/bin/bench-guest", "exit"]);
    let bundle = bench.bundle(&id, &spec).await?;
    let request = CreateTaskRequest { id: id.clone(), bundle, rootfs, ..Default::default() };
    let begun = std::time::Instant::now();
    bench.guest.task().create(unlimited(), &request).await?;
    let took = ms(begun.elapsed());
    bench.start(&id, "").await?;
    bench.end_exited(&id).await?;
    Ok(took)
}

async fn reads(bench: &Bench) -> Result<Value, Failure> {
    let mut samples = [Vec::new(), Vec::new()];
    let mut host = [Vec::new(), Vec::new()];
    for round in 0..2 * (READS + 1) {
        // What drifts meets both.
        let which = (round + round / 2) % 2;
        let before = bench.hypervisor_ms();
        let took = read(bench, [Read::File, Read::Disk][which]).await?;
        let after = bench.hypervisor_ms();
        if round >= 2 {
            samples[which].push(took);
            host[which].extend(before.zip(after).map(|(before, after)| after - before));
        }
    }
    let [erofs, raw] = samples;
    let [erofs_host, raw_host] = host;
    Ok(json!({
        "block_bytes": BLOCK, "erofs_us": erofs, "raw_us": raw,
        "erofs_host_ms": erofs_host, "raw_host_ms": raw_host,
    }))
}

#[derive(Clone, Copy)]
enum Read {
    /// On erofs, by a container.
    File,
    /// The same bytes or so, by the driver.
    Disk,
}

/// With cold caches; in microseconds.
async fn read(bench: &Bench, which: Read) -> Result<u64, Failure> {
    bench.drive("drop-caches").await?;
    match which {
        Read::File => read_in_container(bench).await,
        Read::Disk => {
            let command = format!("read-disk {FILE_DISK} {FILE_BYTES} {BLOCK}");
            Ok(bench.numbers(&command).await?[0])
        }
    }
}

/// Microseconds, by the container's own clock.
async fn read_in_container(bench: &Bench) -> Result<u64, Failure> {
    let id = bench.name();
    let (bytes, block) = (FILE_BYTES.to_string(), BLOCK.to_string());
    let spec = specs::on_own_rootfs(&["/bin/bench-guest", "read", "/file", &bytes, &block]);
    let bundle = bench.bundle(&id, &spec).await?;
    let mut stream = bench.guest.stream(&format!("{id}-out")).await?;
    let stdout = format!("stream://{id}-out");
    let rootfs = vec![mount("erofs", &format!("serial:{FILE_DISK}"), vec!["ro".to_owned()])];
    let request =
        CreateTaskRequest { id: id.clone(), bundle, rootfs, stdout, ..Default::default() };
    bench.guest.task().create(unlimited(), &request).await?;
    bench.start(&id, "").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    bench.end_exited(&id).await?;
    Ok(text.trim().parse().map_err(|_| format!("a reader said {text:?}"))?)
}

fn mount(kind: &str, source: &str, options: Vec<String>) -> Mount {
    let (r#type, source) = (kind.to_owned(), source.to_owned());
    Mount { r#type, source, target: String::new(), options }
}

/// Those of the VM, and the file of one of them, which lives as long as its handle.
fn disks(images: &Images, directory: &TempDir) -> Result<(Vec<Disk>, Packed), Failure> {
    let packed = pack_layers(images, directory)?;
    let file = file_image(images, directory)?;
    let disk = |serial: &str, path: &Path| -> Result<Disk, Failure> {
        Ok(Disk { serial: serial.parse()?, path: path.to_owned(), read_only: true })
    };
    Ok((vec![disk(LAYERS_DISK, packed.path())?, disk(FILE_DISK, &file)?], packed))
}

/// The containers' root filesystem as the lowest layer, and a file each in the others.
fn pack_layers(images: &Images, directory: &TempDir) -> Result<Packed, Failure> {
    let mut layers = Vec::new();
    for number in 1..=LAYERS {
        let name = format!("layer{number}");
        let tree = match number {
            1 => images.rootfs(),
            _ => layer(directory.path(), &name, &[(&format!("layers/{number}"), "x")]),
        };
        let path = erofs(directory.path(), &name, &tree);
        layers.push(Image::examine(&path.display().to_string().parse()?)?);
    }
    let layers: Vec<_> = layers.iter().collect();
    Ok(Packed::make(&layers, directory.path())?)
}

/// The same root filesystem with a large file, of no two blocks alike, none of them empty.
fn file_image(images: &Images, directory: &TempDir) -> Result<std::path::PathBuf, Failure> {
    let tree = images.rootfs();
    let path = tree.join("file");
    let mut file = File::create_new(&path)?;
    let mut block = qemu_tests::noise(1, BLOCK);
    for number in 0..FILE_BYTES / BLOCK {
        for page in block.chunks_mut(4096) {
            page[..8].copy_from_slice(&(number as u64).to_le_bytes());
        }
        file.write_all(&block)?;
    }
    let image = erofs(directory.path(), "file", &tree);
    fs::remove_file(path)?;
    Ok(image)
}
