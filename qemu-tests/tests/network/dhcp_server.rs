//! An Ethernet network with nobody on it but a VM and a DHCP server that does as the test says.
//!
//! QEMU connects to a Unix socket of ours and sends each frame behind its length.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What the server does with each question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Answers, with leases of so many seconds.
    Honest(u32),
    /// Answers with everything that is wrong, then honestly.
    Liar(u32),
    /// Offers, and then refuses.
    Refusing,
    /// Says nothing.
    Silent,
}

/// A question that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// DHCPDISCOVER (1) or DHCPREQUEST (3).
    pub kind: u8,
    /// The guest has an address already.
    pub has_address: bool,
}

/// The address that it gives.
pub const ADDRESS: [u8; 4] = [10, 5, 0, 9];
const SERVER: [u8; 4] = [10, 5, 0, 1];
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub struct Server {
    socket: PathBuf,
    mood: Arc<Mutex<Mood>>,
    questions: Arc<Mutex<Vec<Question>>>,
    _directory: tempfile::TempDir,
}

impl Server {
    pub fn start(mood: Mood) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("switch");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let (mood, questions) = (Arc::new(Mutex::new(mood)), Arc::default());
        let (for_server, asked) = (Arc::clone(&mood), Arc::clone(&questions));
        // Ends with the VM, or with the test's process.
        std::thread::spawn(move || serve(&listener, &for_server, &asked));
        Self { socket, mood, questions, _directory: directory }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn set(&self, mood: Mood) {
        *self.mood.lock().expect("no panic with it") = mood;
    }

    /// Questions so far.
    pub fn questions(&self) -> Vec<Question> {
        self.questions.lock().expect("no panic with it").clone()
    }
}

fn serve(listener: &UnixListener, mood: &Mutex<Mood>, questions: &Mutex<Vec<Question>>) {
    let Ok((mut stream, _)) = listener.accept() else { return };
    let (mut refused, mut length) = (false, [0; 4]);
    while stream.read_exact(&mut length).is_ok() {
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        if stream.read_exact(&mut frame).is_err() {
            return;
        }
        // Who has the server's address?
        if frame.len() >= 42
            && frame[12..14] == [8, 6]
            && frame[20..22] == [0, 1]
            && frame[38..42] == SERVER
        {
            let mut answer =
                [&frame[6..12], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &MAC, &SERVER].concat();
            answer.extend(&frame[22..32]);
            let length = (answer.len() as u32).to_be_bytes();
            if stream.write_all(&[&length, answer.as_slice()].concat()).is_err() {
                return;
            }
        }
        // Ethernet 14, IPv4 20, UDP 8: from port 68 to port 67.
        let is_question =
            frame.len() > 42 + 240 && frame[12..14] == [8, 0] && frame[34..38] == [0, 68, 0, 67];
        if !is_question {
            continue;
        }
        let dhcp = frame[42..].to_vec();
        let kind = option(&dhcp, 53).map_or(0, |value| value[0]);
        let has_address = dhcp[12..16] != [0; 4];
        questions.lock().expect("no panic with it").push(Question { kind, has_address });
        let mood = *mood.lock().expect("no panic with it");
        let good = if kind == 1 { 2 } else { 5 };
        let reply = |kind, seconds| Reply {
            kind,
            seconds,
            address: ADDRESS,
            server: SERVER,
            xid: 0,
            mac: 0,
        };
        let replies = match mood {
            Mood::Silent => vec![],
            Mood::Honest(seconds) => vec![reply(good, seconds)],
            Mood::Refusing if kind == 1 => vec![reply(good, 3600)],
            Mood::Refusing => vec![reply(6, 3600)],
            Mood::Liar(seconds) => {
                let honest = reply(good, seconds);
                let mut lies = vec![
                    Reply { xid: 1, address: [10, 6, 6, 6], ..honest },
                    Reply { mac: 1, address: [10, 6, 6, 6], ..honest },
                    Reply { address: [224, 0, 0, 1], ..honest },
                    Reply { address: [10, 5, 0, 255], ..honest },
                    Reply { seconds: 0, address: [10, 6, 6, 6], ..honest },
                    Reply { server: [0; 4], address: [10, 6, 6, 6], ..honest },
                ];
                if kind == 3 {
                    lies.push(Reply { server: [10, 5, 0, 66], address: [10, 6, 6, 6], ..honest });
                    lies.push(Reply { server: [10, 5, 0, 66], kind: 6, ..honest });
                    lies.push(Reply { address: [10, 5, 0, 77], ..honest });
                    // And once its own offer is taken back.
                    if !std::mem::replace(&mut refused, true) {
                        lies.push(Reply { kind: 6, ..honest });
                    }
                }
                lies.push(honest);
                lies
            }
        };
        for reply in replies {
            let frame = reply.frame(&dhcp);
            let length = (frame.len() as u32).to_be_bytes();
            if stream.write_all(&[&length, frame.as_slice()].concat()).is_err() {
                return;
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Reply {
    kind: u8,
    seconds: u32,
    address: [u8; 4],
    server: [u8; 4],
    /// Bits that are wrong.
    xid: u8,
    mac: u8,
}

impl Reply {
    fn frame(&self, question: &[u8]) -> Vec<u8> {
        let mut dhcp = vec![0; 240];
        dhcp[..3].copy_from_slice(&[2, 1, 6]);
        dhcp[4..8].copy_from_slice(&question[4..8]);
        dhcp[4] ^= self.xid;
        if self.kind != 6 {
            dhcp[16..20].copy_from_slice(&self.address);
        }
        dhcp[28..34].copy_from_slice(&question[28..34]);
        dhcp[33] ^= self.mac;
        dhcp[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        dhcp.extend([53, 1, self.kind, 54, 4]);
        dhcp.extend(self.server);
        dhcp.extend([1, 4, 255, 255, 255, 0, 51, 4]);
        dhcp.extend(self.seconds.to_be_bytes());
        // To 10.77/16 by 10.5.0.2, to everything by the server.
        dhcp.extend([121, 12, 16, 10, 77, 10, 5, 0, 2, 0, 10, 5, 0, 1]);
        dhcp.extend([6, 4, 10, 5, 0, 3, 15, 9]);
        dhcp.extend(b"test.site");
        dhcp.extend([26, 2, 5, 120, 255]);
        let mut udp = vec![0, 67, 0, 68];
        udp.extend((8 + dhcp.len() as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(dhcp);
        let mut ip = vec![0x45, 0];
        ip.extend((20 + udp.len() as u16).to_be_bytes());
        ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        ip.extend(SERVER);
        ip.extend([255; 4]);
        let sum: u32 =
            ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = vec![0xff; 6];
        frame.extend(MAC);
        frame.extend([8, 0]);
        frame.extend(ip);
        frame.extend(udp);
        frame
    }
}

fn option(dhcp: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = dhcp.get(240..)?;
    while let [code, length, tail @ ..] = rest {
        let value = tail.get(..usize::from(*length))?;
        if *code == wanted && !value.is_empty() {
            return Some(value);
        }
        rest = &tail[usize::from(*length)..];
    }
    None
}
