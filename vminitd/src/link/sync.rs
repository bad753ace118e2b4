//! Init's end of the link: never blocks, sends in order, keeps what does not fit yet.
//!
//! Owns: init's end of the socketpair and the messages that wait for room in it.
//! Promises: messages arrive in the order of [`Link::send`]; a descriptor that rides along stays
//! open until its message is out.
//! Never: blocks; lets more than [`LINK_QUEUE_MESSAGES`] messages wait once the agent is greeted.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::codec::{self, CodecError};
use super::message::{ToAgent, ToInit};
use crate::limits::{LINK_MESSAGE_BYTES, LINK_QUEUE_MESSAGES};
use crate::sys::seqpacket;

/// Why the link is over; init then ends the agent and starts another.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The agent has closed its end.
    #[error("the agent has closed the link")]
    Closed,
    /// The agent does not read.
    #[error("{0} messages wait for an agent that does not read")]
    QueueFull(usize),
    /// The socket itself failed.
    #[error("link to the agent")]
    Socket(#[source] io::Error),
    /// A message that is none: a defect of ours.
    #[error("link to the agent")]
    Codec(#[from] CodecError),
}

/// What the agent said.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub message: ToInit,
    /// The descriptors that came along.
    pub fds: Vec<OwnedFd>,
    /// This process had no room for all of them.
    pub fds_lost: bool,
}

/// Init's end.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    waiting: VecDeque<(Vec<u8>, Vec<Rc<OwnedFd>>)>,
    /// The kernel had no memory for the last message; room in the socket is no news then.
    starved: bool,
    /// How many messages may wait.
    limit: usize,
    buffer: Box<[u8]>,
}

impl Link {
    /// Takes a non-blocking socket. Any number of messages may wait until
    /// [`Link::limit_queue`].
    pub fn new(socket: OwnedFd) -> Link {
        Link {
            socket,
            waiting: VecDeque::new(),
            starved: false,
            limit: usize::MAX,
            buffer: vec![0; LINK_MESSAGE_BYTES].into_boxed_slice(),
        }
    }

    /// Sends the message, or puts it behind those that wait.
    pub fn send(&mut self, message: &ToAgent, fds: Vec<Rc<OwnedFd>>) -> Result<(), LinkError> {
        if self.waiting.len() >= self.limit {
            return Err(LinkError::QueueFull(self.waiting.len()));
        }
        self.waiting.push_back((codec::encode(message)?, fds));
        self.flush()
    }

    /// From now on only so many more messages may wait: the greeting of a new agent is as long as
    /// what there is to tell, what follows is not.
    pub fn limit_queue(&mut self) {
        self.limit = self.waiting.len() + LINK_QUEUE_MESSAGES;
    }

    /// Sends what waits, as far as there is room.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        self.starved = false;
        while let Some((bytes, fds)) = self.waiting.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
            match seqpacket::send(self.socket.as_fd(), bytes, &fds) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_starved(&error) => {
                    self.starved = true;
                    return Ok(());
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// Whether messages wait for room in the socket: then the loop asks for POLLOUT.
    pub fn waits_for_room(&self) -> bool {
        !self.waiting.is_empty() && !self.starved
    }

    /// Whether messages wait for memory: then the loop calls [`Link::flush`] again in a while.
    pub fn waits_for_memory(&self) -> bool {
        self.starved
    }

    /// The agent's next message, if one is there.
    pub fn receive(&mut self) -> Result<Option<Received>, LinkError> {
        match seqpacket::receive(self.socket.as_fd(), &mut self.buffer) {
            Ok(datagram) if datagram.bytes == 0 => Err(LinkError::Closed),
            Ok(datagram) => Ok(Some(Received {
                message: codec::decode(&self.buffer[..datagram.bytes])?,
                fds: datagram.fds,
                fds_lost: datagram.fds_lost,
            })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// ENOBUFS and ENOMEM pass; ETOOMANYREFS (descriptors in flight) does once the agent reads.
fn is_starved(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM | libc::ETOOMANYREFS))
}

fn failed(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => LinkError::Closed,
        _ => LinkError::Socket(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Link, OwnedFd) {
        let (ours, theirs) = seqpacket::pair(true).unwrap();
        (Link::new(ours), theirs)
    }

    fn read(agent: &OwnedFd) -> Option<(ToAgent, usize)> {
        let mut buffer = vec![0; LINK_MESSAGE_BYTES];
        let datagram = seqpacket::receive(agent.as_fd(), &mut buffer).ok()?;
        let message = codec::decode(&buffer[..datagram.bytes]).unwrap();
        Some((message, datagram.fds.len()))
    }

    /// Far more than a socket holds: the agent reads in bursts, init flushes when there is room.
    #[test]
    fn messages_that_do_not_fit_arrive_in_order_with_their_descriptors() {
        let (mut link, agent) = pair();
        let fd = Rc::new(seqpacket::pair(true).unwrap().0);
        for beat in 0..3000 {
            let fds = vec![fd.clone(); (beat % 3) as usize];
            link.send(&ToAgent::Ping { beat }, fds).unwrap();
        }
        assert!(link.waits_for_room());
        let mut next = 0;
        while next < 3000 {
            while let Some((message, fds)) = read(&agent) {
                assert_eq!(message, ToAgent::Ping { beat: next });
                assert_eq!(fds as u64, next % 3);
                next += 1;
            }
            link.flush().unwrap();
        }
        assert!(!link.waits_for_room());
        assert_eq!(Rc::strong_count(&fd), 1, "descriptors are held though their message is out");
    }

    #[test]
    fn agent_that_does_not_read_is_noticed_once_it_is_greeted() {
        let (mut link, _agent) = pair();
        let mut sent = 0;
        while !link.waits_for_room() {
            link.send(&ToAgent::Ping { beat: sent }, Vec::new()).unwrap();
            sent += 1;
        }
        link.limit_queue();
        for beat in 0..LINK_QUEUE_MESSAGES as u64 {
            link.send(&ToAgent::Ping { beat }, Vec::new()).unwrap();
        }
        let error = link.send(&ToAgent::Caught, Vec::new()).unwrap_err();
        assert!(matches!(error, LinkError::QueueFull(_)), "{error}");
    }

    #[test]
    fn closed_link_and_garbage_are_told_apart() {
        let (mut link, agent) = pair();
        assert!(link.receive().unwrap().is_none());
        seqpacket::send(agent.as_fd(), &[0xff; 8], &[]).unwrap();
        assert!(matches!(link.receive().unwrap_err(), LinkError::Codec(_)));
        drop(agent);
        assert!(matches!(link.receive().unwrap_err(), LinkError::Closed));
        assert!(matches!(link.send(&ToAgent::Caught, Vec::new()).unwrap_err(), LinkError::Closed));
    }
}
