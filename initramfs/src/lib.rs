//! Packs a reproducible initramfs.
