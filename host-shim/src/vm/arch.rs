//! The architecture of a guest.
//! Promises: one name per architecture, the same in directories, on command lines and in messages.
//! Never: knows how a hypervisor runs it.

use std::fmt;
use std::str::FromStr;

/// Whose instructions a guest executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// x86_64.
    X86_64,
    /// arm64, which Rust calls aarch64.
    Arm64,
}

/// No architecture of ours. The caller's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are no guests of architecture {name:?}; give x86_64 or arm64")]
pub struct ArchError {
    /// What was given.
    pub name: String,
}

impl Arch {
    /// What this program was built for: guests of it run without emulation where the machine can.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::X86_64 };

    /// All of them.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Arm64];

    /// As our directories call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "arm64",
        }
    }

    /// What its kernel's file is called: the form that is booted without unpacking anything.
    pub fn kernel_file(self) -> &'static str {
        match self {
            Self::X86_64 => "vmlinux",
            Self::Arm64 => "Image",
        }
    }
}

impl Default for Arch {
    fn default() -> Self {
        Self::HOST
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = ArchError;

    /// Takes what `uname -m` says too.
    fn from_str(name: &str) -> Result<Self, ArchError> {
        match name {
            "aarch64" => Ok(Self::Arm64),
            _ => Self::ALL
                .into_iter()
                .find(|arch| arch.name() == name)
                .ok_or_else(|| ArchError { name: name.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written_and_others_are_refused() {
        for arch in Arch::ALL {
            assert_eq!(arch.to_string().parse(), Ok(arch));
        }
        assert_eq!("aarch64".parse(), Ok(Arch::Arm64));
        for name in ["", "ARM64", "arm", "riscv64"] {
            let error = name.parse::<Arch>().unwrap_err().to_string();
            assert!(error.contains("x86_64 or arm64"), "{error}");
        }
    }
}
