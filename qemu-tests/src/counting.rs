//! A QEMU that counts: each instruction of the guest takes a nanosecond of its time (`-icount shift=0`), so that what
//! the guest's clock says does not depend on what else the host does. It is emulated then, whatever the machine offers.
//!
//! How: small scripts before QEMU and before the VMM; nothing that is shipped knows of it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The program that is to be started instead of `vmm`; the scripts are made in `directory` if they are not there.
pub fn vmm(directory: &Path, vmm: &Path) -> io::Result<PathBuf> {
    let qemu = host_shim::locate::qemu(crate::vm::arch()).map_err(io::Error::other)?;
    // Instructions are counted on one thread only.
    let qemu = format!(
        "for word do shift; [ \"$word\" != tcg,thread=multi ] || word=tcg; set -- \"$@\" \"$word\"; done\n\
         exec '{}' -icount shift=0,sleep=off \"$@\"",
        qemu.display()
    );
    let qemu = script(directory, "qemu", &qemu)?;
    let (variable, qemu) = (host_shim::locate::QEMU_VARIABLE, qemu.display());
    script(directory, "vmm", &format!("{variable}='{qemu}' exec '{}' \"$@\"", vmm.display()))
}

fn script(directory: &Path, name: &str, text: &str) -> io::Result<PathBuf> {
    let path = directory.join(name);
    if !path.exists() {
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(path)
}
