use snigate::client_hello::{Framing, Parsed};

pub fn name_of(bytes: &[u8]) -> Option<String> {
    match Framing::default().parse(bytes) {
        Parsed::Complete(hello) => hello.server_name.map(|name| name.to_string()),
        Parsed::Incomplete | Parsed::Invalid(_) => None,
    }
}
