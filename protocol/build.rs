//! Generates messages and ttrpc bindings from `proto/` with `protoc`.
//! Never: reaches for a file outside this crate, so that a vendored build works.

use std::path::{Path, PathBuf};

use ttrpc_codegen_prost::{Codegen, Customize};

fn main() {
    let mut inputs = Vec::new();
    collect(Path::new("proto"), &mut inputs);
    inputs.sort();
    println!("cargo:rerun-if-changed=proto");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    Codegen::new()
        .out_dir(out)
        .inputs(&inputs)
        .include("proto")
        .prost()
        .customize(Customize { async_all: true, gen_mod: true, ..Default::default() })
        .run()
        .expect("protoc failed; is protobuf-compiler installed? `./dev build` installs it");
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("protocol/proto is part of the crate") {
        let path = entry.expect("readable directory entry").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "proto") {
            found.push(path);
        }
    }
}
