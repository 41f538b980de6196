//! What an old and a new process say to each other once the new one serves: how many connections are still open in the old
//! one, and which of them the new one continues.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// A message begins with its kind and a number; the descriptors of an offer come with these bytes.
const HEADER: usize = 16;
const COUNT: u64 = 1;
const OFFER: u64 = 2;

/// Connections in an offer. Each has two descriptors, and the kernel allows 253 in a message.
pub(crate) const MAX_OFFERED: usize = 64;
/// Maximum size of a connection's record: its largest parts are a server name and an ALPN list of 255 bytes, escaped.
const MAX_RECORD: usize = 64 * 1024;

/// One end of the connection between the two processes.
#[derive(Debug)]
pub(crate) struct Channel(UnixStream);

/// A connection that the old process offers: its record, and the sockets with the client and the endpoint.
pub(crate) type Offered = (Vec<u8>, [OwnedFd; 2]);

/// What the old process says.
#[derive(Debug)]
pub(crate) enum FromPredecessor {
    /// The number of connections that are still open there.
    Connections(u64),
    /// To be answered with a byte for each.
    Offer(Vec<Offered>),
    /// So many connections were offered, for whose sockets this process has no descriptors. To be answered too.
    NoDescriptors(usize),
}

impl Channel {
    pub(super) fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(stream)?))
    }

    /// The answer of the old process to the report that this one serves.
    pub(super) async fn receive_byte(&mut self) -> io::Result<u8> {
        self.0.read_u8().await
    }

    /// Reports the number of open connections.
    pub(crate) async fn report_connections(&mut self, connections: u64) -> io::Result<()> {
        self.send(COUNT, connections, &[]).await
    }

    /// Offers connections, at most [`MAX_OFFERED`], and returns the answer for each.
    pub(crate) async fn offer(&mut self, records: &[Vec<u8>], sockets: &[BorrowedFd<'_>]) -> io::Result<Vec<u8>> {
        self.send(OFFER, records.len() as u64, sockets).await?;
        for record in records {
            // One that is too long is not understood there, instead of ending the connection to the other process.
            let record = if record.len() > MAX_RECORD { &[] } else { &record[..] };
            self.0.write_u32(u32::try_from(record.len()).map_err(io::Error::other)?).await?;
            self.0.write_all(record).await?;
        }
        let mut answers = vec![0; records.len()];
        self.0.read_exact(&mut answers).await?;
        Ok(answers)
    }

    /// The next message of the old process; an error of the kind `UnexpectedEof` when it has ended.
    pub(crate) async fn receive(&mut self) -> io::Result<FromPredecessor> {
        let mut header = [0; HEADER];
        let mut sockets = Vec::new();
        let length = self.0.async_io(Interest::READABLE, || receive(&self.0, &mut header, &mut sockets)).await?;
        let (kind, number) = match length {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            HEADER => {
                let half = |range: std::ops::Range<usize>| header[range].try_into().map(u64::from_be_bytes);
                (half(0..8).map_err(io::Error::other)?, half(8..16).map_err(io::Error::other)?)
            }
            _ => return Err(invalid("an incomplete message")),
        };
        match kind {
            COUNT => Ok(FromPredecessor::Connections(number)),
            OFFER if number <= MAX_OFFERED as u64 => {
                let mut records = Vec::new();
                for _ in 0..number {
                    let length = self.0.read_u32().await? as usize;
                    if length > MAX_RECORD {
                        return Err(invalid("a record that is too long"));
                    }
                    let mut record = vec![0; length];
                    self.0.read_exact(&mut record).await?;
                    records.push(record);
                }
                if sockets.len() != 2 * records.len() {
                    return Ok(FromPredecessor::NoDescriptors(records.len()));
                }
                let mut sockets = sockets.into_iter();
                let pairs = std::iter::from_fn(|| Some([sockets.next()?, sockets.next()?]));
                Ok(FromPredecessor::Offer(records.into_iter().zip(pairs).collect()))
            }
            _ => Err(invalid("an unknown message")),
        }
    }

    /// Answers an offer.
    pub(crate) async fn answer(&mut self, answers: &[u8]) -> io::Result<()> {
        self.0.write_all(answers).await
    }

    async fn send(&mut self, kind: u64, number: u64, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&kind.to_be_bytes());
        header[8..].copy_from_slice(&number.to_be_bytes());
        let sent = self.0.async_io(Interest::WRITABLE, || send(&self.0, &header, sockets)).await?;
        if sent == HEADER { Ok(()) } else { Err(io::Error::other("an incomplete message was sent")) }
    }
}

fn send(stream: &UnixStream, bytes: &[u8], sockets: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2 * MAX_OFFERED))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("too many file descriptors"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

fn receive(stream: &UnixStream, bytes: &mut [u8], sockets: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2 * MAX_OFFERED))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    Ok(received.bytes)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("received {what} from the old process"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (old, new) = std::os::unix::net::UnixStream::pair().unwrap();
        (Channel::new(old).unwrap(), Channel::new(new).unwrap())
    }

    #[tokio::test]
    async fn h22_a_full_offer_arrives_with_its_sockets_in_order() {
        let (mut old, mut new) = pair();
        let sockets: Vec<_> = (0..2 * MAX_OFFERED).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let records: Vec<_> = (0..MAX_OFFERED).map(|number| vec![b'x'; 1000 * number]).collect();
        let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        let offering = async {
            old.report_connections(7).await.unwrap();
            old.offer(&records, &borrowed).await.unwrap()
        };
        let answering = async {
            assert!(matches!(new.receive().await.unwrap(), FromPredecessor::Connections(7)));
            let FromPredecessor::Offer(offered) = new.receive().await.unwrap() else { panic!("no offer") };
            assert!(offered.iter().map(|(record, _)| record).eq(&records));
            let received = offered.into_iter().flat_map(|(_, pair)| pair).map(std::net::UdpSocket::from);
            let addresses: Vec<_> = received.map(|socket| socket.local_addr().unwrap()).collect();
            assert!(addresses.into_iter().eq(sockets.iter().map(|socket| socket.local_addr().unwrap())));
            new.answer(&[b'a'; MAX_OFFERED]).await.unwrap();
        };
        let (answers, ()) = tokio::join!(offering, answering);
        assert_eq!(answers, [b'a'; MAX_OFFERED]);
    }

    #[tokio::test]
    async fn h22_an_offer_whose_sockets_do_not_fit_is_understood() {
        let (mut old, mut new) = pair();
        let records = [b"first".to_vec(), vec![b'x'; MAX_RECORD + 1], b"third".to_vec()];
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        // As if the kernel had dropped the others, because the process has reached its limit.
        let sockets = [socket.as_fd()];
        let offering = old.offer(&records, &sockets);
        let answering = async {
            assert!(matches!(new.receive().await.unwrap(), FromPredecessor::NoDescriptors(3)));
            new.answer(b"rrr").await.unwrap();
        };
        let (answers, ()) = tokio::join!(offering, answering);
        assert_eq!(answers.unwrap(), b"rrr");
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error_and_an_end_is_an_end() {
        let (mut old, mut new) = pair();
        old.send(OFFER, MAX_OFFERED as u64 + 1, &[]).await.unwrap();
        assert_eq!(new.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData, "too many");
        old.send(99, 0, &[]).await.unwrap();
        assert_eq!(new.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        old.answer(b"short").await.unwrap();
        assert_eq!(new.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(old);
        assert_eq!(new.receive().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
