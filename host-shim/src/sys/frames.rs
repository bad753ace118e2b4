//! A datagram socket for Ethernet frames: unix(7), unix(4).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// A socket that is connected to the one at `path`. It has a name of its own, in a directory of its own below TMPDIR,
/// because answers come by name; both stay when the VM ends.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let own = tempfile::tempdir()?;
    let socket = UnixDatagram::bind(own.path().join("frames"))?;
    socket.connect(path)?;
    let _ = own.keep();
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_goes_both_ways() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("switch");
        let switch = UnixDatagram::bind(&path).unwrap();
        let ours = UnixDatagram::from(connect(&path).unwrap());
        ours.send(b"frame").unwrap();
        let (mut buffer, address) = {
            let mut buffer = [0; 16];
            let (length, address) = switch.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"frame");
            (buffer, address)
        };
        switch.send_to(b"back", address.as_pathname().unwrap()).unwrap();
        let length = ours.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"back");
        std::fs::remove_dir_all(address.as_pathname().unwrap().parent().unwrap()).unwrap();
    }
}
