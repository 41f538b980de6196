//! Prints the ClientHello of each TLS client, one client at a time, and closes the connection.
//!
//! ```sh
//! cargo run --example hello --no-default-features -- 127.0.0.1:4433
//! curl --connect-to ::127.0.0.1:4433 https://name.example/
//! ```

use std::io::{self, ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use snigate::client_hello::{ClientHello, Framing, Progress, Reason, is_grease};

/// From accept until the hello is complete.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:4433".into());
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    for client in listener.incoming() {
        match client.and_then(|mut client| describe(&mut client)) {
            Ok(description) => println!("{description}"),
            Err(error) => println!("invalid: {error}"),
        }
    }
    Ok(())
}

fn describe(client: &mut TcpStream) -> io::Result<String> {
    let (mut received, mut framing) = (Vec::new(), Framing::default());
    receive(client, &mut received, &mut framing)?;
    // Everything below borrows from `received`, which may also contain bytes after the hello.
    let hello = ClientHello::parse(framing.message(&received)).map_err(|invalid| invalid_data(invalid.reason))?;

    let name = hello.server_name.map_or_else(|| "no SNI".into(), |name| name.to_string());
    let protocols = hello.alpn.iter().flatten().map(<[u8]>::escape_ascii);
    let protocols: Vec<String> = protocols.map(|protocol| protocol.to_string()).collect();
    let versions = hex(hello.supported_versions.iter().flatten());
    // As fingerprints such as JA4 use them: in the client's order, without GREASE.
    let suites = hex(hello.cipher_suites);
    let extensions = hex(hello.extensions.types());
    Ok(format!(
        "{name}; protocols {}; versions {versions}; cipher suites {suites}; extensions {extensions}",
        protocols.join(",")
    ))
}

/// Reads until the hello is complete, and fails as soon as the bytes cannot become a valid hello.
fn receive(client: &mut TcpStream, received: &mut Vec<u8>, framing: &mut Framing) -> io::Result<()> {
    let deadline = Instant::now() + HELLO_TIMEOUT;
    let mut buffer = [0; 4096];
    while framing.advance(received).map_err(invalid_data)? == Progress::Incomplete {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        client.set_read_timeout(Some(left))?;
        match client.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => received.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn invalid_data(reason: Reason) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}

fn hex(codes: impl IntoIterator<Item = u16>) -> String {
    let known = codes.into_iter().filter(|code| !is_grease(*code));
    known.map(|code| format!("{code:04x}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
#[path = "../tests/support/hello.rs"]
mod sample;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::sample::Hello;
    use super::*;

    /// The output for a client that sends these pieces and closes.
    fn described(pieces: &[&[u8]]) -> Result<String, String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nodelay(true).unwrap();
        let mut accepted = listener.accept().unwrap().0;
        std::thread::scope(|scope| {
            scope.spawn(move || pieces.iter().for_each(|piece| client.write_all(piece).unwrap()));
            describe(&mut accepted).map_err(|error| error.to_string())
        })
    }

    #[test]
    fn a_hello_is_described_however_it_is_split() {
        let hello = Hello::to("Name.example").alpn(&["h2", "http/1.1"]).first_extension(0x2a2a, []);
        let expected = "name.example; protocols h2,http/1.1; versions 0304,0303; \
                        cipher suites 1301,1302,1303,c02f; extensions 000a,000d,002b,0033,0000,0010";
        let whole = hello.record();
        assert_eq!(described(&[&whole]).as_deref(), Ok(expected));
        assert_eq!(described(&[&whole, b"what follows"]).as_deref(), Ok(expected));
        assert_eq!(described(&whole.chunks(10).collect::<Vec<_>>()).as_deref(), Ok(expected));
        assert_eq!(described(&[&hello.records(20)]).as_deref(), Ok(expected));
        assert!(described(&[&Hello::new().without_extensions().record()]).unwrap().starts_with("no SNI; protocols ; "));
    }

    #[test]
    fn other_bytes_are_invalid() {
        assert_eq!(described(&[b"GET / HTTP/1.1\r\n\r\n"]).unwrap_err(), Reason::NotTls.to_string());
        assert_eq!(described(&[&Hello::new().record()[..50]]).unwrap_err(), "unexpected end of file");
    }
}
