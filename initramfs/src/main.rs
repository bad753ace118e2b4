//! The command: packs what its arguments name into one file.
//! Promises: the output appears whole or not at all; an error names the path at fault and exits with 1 (2: usage).

mod elf;

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{
    Parser, ValueEnum,
    builder::{OsStringValueParser, PossibleValue, TypedValueParser},
};
use initramfs::{
    Tree, TreeError,
    compress::{Compression, LevelError, Method},
    erofs::{self, ErofsError},
    newc::{self, NewcError},
};

const ABOUT: &str = "Packs a program into an initramfs, reproducibly and without root";

const LONG_ABOUT: &str = "\
Packs a program into an initramfs that a Linux kernel boots from.

The image holds the program as /init (0755), the directories /dev /etc /proc /root /run /sys /tmp /var, the nodes /dev/console \
and /dev/null, and nothing else but what --add names. It is a newc archive, sorted, all of it owned by root and dated 0, so the \
same files give the same bytes, whoever packs them and when. The program must be static: the image has no loader.

With --format erofs it is a read-only filesystem for a disk instead, with the program as /sbin/vminitd; the kernel takes it with \
root=/dev/vda rootfstype=erofs ro init=/sbin/vminitd.";

const EXAMPLES: &str = "\
Examples:
  initramfs --init target/guest/vminitd -o initramfs.cpio.zst
  initramfs --init vminitd --add rootfs:/srv/rootfs --add motd:/etc/motd -o test.cpio.zst
  initramfs --init vminitd --format erofs -o root.erofs
  initramfs --init vminitd --compress none -o initramfs.cpio && cpio -tv <initramfs.cpio";

#[derive(Parser)]
#[command(version, about = ABOUT, long_about = LONG_ABOUT, after_help = EXAMPLES)]
struct Arguments {
    /// The program that becomes /init; a static binary
    #[arg(long, value_name = "FILE")]
    init: PathBuf,

    /// Add a file, link or directory (with all below it) at the absolute path DEST; repeatable
    ///
    /// Modes and links are kept as they are, owners become root, hard links become files of their own, parents are made (0755).
    /// DEST may be a directory of the image already: the content is added to it.
    /// Refused are "..", a path that is taken, and sockets, pipes and devices.
    #[arg(long, value_name = "SRC:DEST", value_parser = OsStringValueParser::new().try_map(Addition::parse))]
    add: Vec<Addition>,

    /// What to write
    #[arg(long, value_name = "FORMAT", default_value = "newc")]
    format: Format,

    /// How to compress a newc archive [default: zstd]
    #[arg(long, value_name = "HOW")]
    compress: Option<How>,

    /// How hard: 0-9 for gzip [default: 9], 1-22 for zstd [default: 19]; unpacking takes the same time
    #[arg(long, value_name = "N")]
    level: Option<u32>,

    /// The file to write; one that is there is replaced when all went well
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// An archive that the kernel unpacks: an initramfs
    Newc,
    /// A read-only filesystem; needs mkfs.erofs (erofs-utils 1.5 or later)
    Erofs,
}

/// One `--add`.
#[derive(Clone, Debug)]
struct Addition {
    source: PathBuf,
    dest: PathBuf,
}

#[derive(Clone, Copy)]
struct How(Compression);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Level(#[from] LevelError),
    #[error(transparent)]
    Newc(#[from] NewcError),
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    #[error("--compress and --level are for newc archives; leave them out with --format erofs")]
    ErofsCompressed,
    #[error("cannot write {}", path.display())]
    Output {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("initramfs: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let erofs = arguments.format == Format::Erofs;
    if erofs && (arguments.compress.is_some() || arguments.level.is_some()) {
        return Err(Error::ErofsCompressed);
    }
    let compression = arguments.compress.map_or(Compression::Zstd, |how| how.0);
    let method = Method::new(compression, arguments.level)?;
    let mut tree = if erofs { Tree::for_root } else { Tree::with_init }(&arguments.init)?;
    for Addition { source, dest } in &arguments.add {
        tree.add(source, dest)?;
    }
    if let Some(loader) = elf::loader(&arguments.init)
        && !holds(&tree, &loader)
    {
        let (init, loader) = (arguments.init.display(), loader.display());
        eprintln!(
            "initramfs: warning: {init} is not static: it needs {loader}, which is not in the image; the kernel will not start it"
        );
    }
    let output = &arguments.output;
    if erofs {
        return beside(output, |path| Ok(erofs::write(&tree, path)?));
    }
    write(&tree, method, output)
}

fn holds(tree: &Tree, path: &Path) -> bool {
    let name = path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes();
    tree.nodes().any(|(other, _)| other == name)
}

/// A regular file is written beside its place and moved there; anything else (/dev/null, a pipe) is written to as it is.
fn write(tree: &Tree, method: Method, output: &Path) -> Result<(), Error> {
    let error = |source| Error::Output { path: output.into(), source };
    let in_place = fs::metadata(output).is_ok_and(|data| !data.is_file());
    if in_place {
        let file = File::options().write(true).open(output).map_err(error)?;
        return pack(tree, method, file, output);
    }
    beside(output, |path| pack(tree, method, File::create(path).map_err(error)?, output))
}

/// Has a file written beside its place, and moves it there.
fn beside(output: &Path, write: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let mut name = output.as_os_str().to_owned();
    name.push(format!(".part{}", std::process::id()));
    let path = PathBuf::from(name);
    let error = |source| Error::Output { path: output.into(), source };
    let written = write(&path).and_then(|()| fs::rename(&path, output).map_err(error));
    if written.is_err() {
        // The first error is the one to tell; there may be nothing to remove.
        let _ = fs::remove_file(&path);
    }
    written
}

fn pack(tree: &Tree, method: Method, file: File, output: &Path) -> Result<(), Error> {
    let error = |source| Error::Output { path: output.into(), source };
    let mut packed = method.writer(BufWriter::new(file), newc::length(tree)).map_err(error)?;
    newc::write(tree, &mut packed).map_err(|cause| match cause {
        NewcError::Write(source) => error(source),
        other => Error::Newc(other),
    })?;
    packed.finish().map_err(error)?.flush().map_err(error)
}

/// The error and its causes, as `a: b: c`.
fn chain(error: &Error) -> String {
    let first: &dyn std::error::Error = error;
    let texts: Vec<_> = std::iter::successors(Some(first), |error| error.source())
        .map(ToString::to_string)
        .collect();
    texts.join(": ")
}

impl Addition {
    /// DEST begins at the last ":/", so that SRC may have a colon.
    fn parse(argument: OsString) -> Result<Self, String> {
        let bytes = argument.as_bytes();
        let colon = bytes.windows(2).rposition(|pair| pair == b":/");
        match colon {
            Some(0) | None => {
                Err("give SRC:DEST with an absolute DEST, as in motd:/etc/motd".into())
            }
            Some(colon) => Ok(Self {
                source: OsString::from_vec(bytes[..colon].to_vec()).into(),
                dest: OsString::from_vec(bytes[colon + 1..].to_vec()).into(),
            }),
        }
    }
}

impl ValueEnum for How {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [How; 4] = [
            How(Compression::None),
            How(Compression::Gzip),
            How(Compression::Zstd),
            How(Compression::Lz4),
        ];
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self.0 {
            Compression::None => "not at all",
            Compression::Gzip => "what every kernel takes",
            Compression::Zstd => "the smallest",
            Compression::Lz4 => "the quickest to unpack (legacy frame, as the kernel wants it)",
        };
        Some(PossibleValue::new(self.0.name()).help(help))
    }
}
