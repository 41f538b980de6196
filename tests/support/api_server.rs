//! A stand-in for an API server: TLS, `/readyz`, and every way to be unwell.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::backend::{Backend, reset};
use super::tls::{Authority, Issued, read_head, respond, server_config};

/// How it answers, until it is told otherwise.
#[derive(Clone, Debug)]
pub enum Mood {
    /// With this status, and this body.
    Status(u16, &'static str),
    /// Accepts, and says nothing.
    Hang,
    /// Accepts, and resets.
    Reset,
    /// With this status, if the request carries this bearer token; 401 otherwise.
    Token(&'static str),
}

pub struct ApiServer {
    backend: Backend,
    mood: Arc<Mutex<Mood>>,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl ApiServer {
    /// Ready, with a certificate for this name.
    pub fn start(authority: &Authority, name: &str) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), authority, name)
    }

    pub fn start_on(listener: TcpListener, authority: &Authority, name: &str) -> Self {
        let mood = Arc::new(Mutex::new(Mood::Status(200, "ok")));
        let config = Arc::new(Mutex::new(server_config(&authority.issue(name), None)));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (told, shown, heard) = (Arc::clone(&mood), Arc::clone(&config), Arc::clone(&requests));
        let backend = Backend::start_on(listener, move |stream| {
            let mood = told.lock().unwrap().clone();
            let config = Arc::clone(&shown.lock().unwrap());
            match mood {
                Mood::Hang => drop(stream.take(u64::MAX).read_to_end(&mut Vec::new())),
                Mood::Reset => reset(stream),
                mood => answer(stream, config, &mood, &heard),
            }
        });
        Self { backend, mood, config, requests }
    }

    pub fn address(&self) -> SocketAddr {
        self.backend.address()
    }

    pub fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// From now on shows this certificate.
    pub fn show(&self, issued: &Issued) {
        *self.config.lock().unwrap() = server_config(issued, None);
    }

    /// From now on wants a certificate from clients.
    pub fn demand(&self, issued: &Issued, authority: &Authority) {
        *self.config.lock().unwrap() = server_config(issued, Some(authority));
    }

    /// The heads of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    pub fn accepted(&self) -> usize {
        self.backend.accepted()
    }
}

fn answer(stream: TcpStream, config: Arc<ServerConfig>, mood: &Mood, requests: &Mutex<Vec<String>>) {
    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let Some(head) = read_head(&mut stream) else { return };
    let (status, body) = match mood {
        Mood::Status(status, body) => (*status, *body),
        Mood::Token(token) if head.contains(&format!("authorization: Bearer {token}\r\n")) => (200, "ok"),
        _ => (401, "Unauthorized"),
    };
    requests.lock().unwrap().push(head);
    respond(stream, status, body);
}
